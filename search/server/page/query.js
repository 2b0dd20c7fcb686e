// What the service is asked for, for a state of the page.

import { together } from "./state.js";

const NEAR = 0.95; // cosine from which documents are near-duplicates
const VARIED = 0.7; // λ of maximal marginal relevance
const PASSAGES = 3;
const RERANKED = 50; // how many of the best a cross-encoder reads

// What every request says: the index, and all filters.
export function common(state) {
  return { index: state.index ?? undefined, filter: together(state.filters) };
}

// What every request for hits says.
function choice(state, k) {
  return { ...common(state), k, distinct: state.distinct ? NEAR : undefined, mmr: state.varied ? VARIED : undefined };
}

export function searchOf(state, k, maximum) {
  return {
    ...choice(state, k),
    query: state.q,
    mode: state.mode,
    entities: state.names || undefined,
    passages: state.passages ? PASSAGES : 0,
    neighbours: state.passages ? 1 : 0,
    highlight: state.best,
    rerank: state.rerank,
    rerank_top: Math.min(Math.max(RERANKED, k), maximum),
    explain: state.why || state.names !== "",
  };
}

export function similarOf(state, k) {
  return { ...choice(state, k), ids: [state.like] };
}

// Whether more hits come page by page, so that none is repeated or left out while the index changes.
export function hasPages(state) {
  return state.like === null && !state.rerank;
}
