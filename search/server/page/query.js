// What the service is asked for, for a state of the page.

import { together } from "./state.js";

const NEAR = 0.95; // cosine from which documents are near-duplicates
const VARIED = 0.7; // λ of maximal marginal relevance
const PASSAGES = 3;
const TOP = 8; // values of each facet
const RERANKED = 50; // how many of the best a cross-encoder reads
const COUNTED = 100; // hits that facets are counted over

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
  const given = (kind, like) => state.examples.filter((one) => one.like === like && one[kind] !== undefined).map((one) => one[kind]);
  return {
    ...choice(state, k),
    ids: given("id", true),
    texts: given("text", true),
    not_ids: given("id", false),
    not_texts: given("text", false),
  };
}

// Which facets are counted: those that were asked for, before the usual ones. What stands out does so against the rest.
export function facetsOf(state, maximum) {
  const compared = state.filters.length > 0 || (!state.examples.length && state.q.trim() !== "");
  return {
    names: [...state.facets, "default"],
    top: Math.min(TOP, maximum),
    of: Math.min(COUNTED, maximum),
    significant: state.significant && compared,
  };
}

// Whether more hits come page by page, so that none is repeated or left out while the index changes.
export function hasPages(state) {
  return !state.examples.length && !state.rerank;
}
