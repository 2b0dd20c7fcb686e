// The page: reads what is searched for from the address, asks the service, shows the answer.

import { call, forgetToken, Problem } from "./api.js";
import { byId, counted, element } from "./dom.js";
import { withExample, without } from "./examples.js";
import { facetElements } from "./facets.js";
import { hitElement, textElement } from "./hits.js";
import { label, marked } from "./marks.js";
import { common, facetsOf, hasPages, searchOf, similarOf } from "./query.js";
import { described, describedExample, FIRST, read, same, SWITCHES, write } from "./state.js";
import { aboutElements } from "./why.js";

const TYPING = 250; // milliseconds without a key before a search begins
const SLOW = 150; // before the page says that it is searching

let state = read();
let underWay = null;
let looking = null; // at a pasted text
let typing = null; // a timer, while what stands in the search box has not been searched for
let typed = false; // whether the newest entry of the history comes from typing, and goes on with it
let indexes = []; // none until the service has said which it has
let reranker = false;
let maximum = 1000;
let following = null; // the cursor of the hits after those that are shown, where it is known

// What is still being typed changes with the rest. While one types, the history keeps the last of it only.
function change(changes, { byTyping = false, replace = false } = {}) {
  const pending = typing === null ? {} : { q: byId("query").value, examples: [] };
  state = known({ ...state, n: Math.min(FIRST, maximum), ...pending, ...changes });
  write(state, { replace: replace || (byTyping && typed) });
  typed = byTyping;
  return show();
}

// A state without what the service does not have, wherever its address came from.
function known(wanted) {
  if (!indexes.length) return wanted;
  const index = indexOf(wanted);
  return {
    ...wanted,
    index: indexes.length > 1 ? index.name : null,
    mode: index.model === null ? "keyword" : wanted.mode,
    names: index.entity_types === null ? "" : wanted.names,
    rerank: wanted.rerank && reranker,
    n: Math.min(wanted.n, maximum),
  };
}

const indexOf = (wanted) => indexes.find(({ name }) => name === wanted.index) ?? indexes[0];

async function show() {
  clearTimeout(typing);
  typing = null;
  underWay?.abort();
  const own = (underWay = new AbortController());
  showState();
  following = null;
  await during(own, async () => {
    if (!indexes.length) await meet(own);
    const answer = await ask(own.signal);
    if (own !== underWay) return;
    const wrong = byId("error").contains(document.activeElement);
    byId("error").replaceChildren();
    showHits(answer);
    showFacets(answer.facets);
    if (wrong) byId("results").focus();
  });
}

const again = () => change({ n: state.n }, { replace: true });

// Learn what the service has.
async function meet(own) {
  const answer = await call("/v1/indexes", undefined, own.signal);
  if (own !== underWay) return;
  indexes = answer.indexes;
  reranker = answer.reranker;
  maximum = answer.limits.k;
  if (indexes.length > 1) {
    byId("index").replaceChildren(...indexes.map(({ name }) => element("option", { text: name, attributes: { value: name } })));
    byId("index").hidden = false;
  }
  state = known(state);
  showState();
}

function showState() {
  if (typing === null && byId("query").value !== state.q) byId("query").value = state.q;
  byId("mode").value = state.mode;
  byId("names").value = state.names;
  for (const name of SWITCHES) byId(name).checked = state[name];
  document.title = state.q ? `${state.q} – Search` : "Search";
  showChips();
  if (!indexes.length) return;
  const index = indexOf(state);
  byId("index").value = index.name;
  byId("names-choice").hidden = index.entity_types === null;
  byId("rerank-choice").hidden = !reranker;
  for (const option of byId("mode").options) option.disabled = index.model === null && option.value !== "keyword";
  byId("countable").replaceChildren(...index.facets.map((value) => element("option", { attributes: { value } })));
}

// Do something that takes time, and say so where it takes long. What another has overtaken is given up in silence.
async function during(own, work, failed = showError) {
  const results = byId("results");
  const slow = setTimeout(() => {
    if (own !== underWay) return;
    results.setAttribute("aria-busy", "true");
    byId("status").textContent = "Searching …";
  }, SLOW);
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError" || own !== underWay) return;
    failed(error);
  } finally {
    clearTimeout(slow);
    if (own === underWay) results.setAttribute("aria-busy", "false");
  }
}

// Hits, `null` where nothing is searched for yet, and facets: of the best hits, or of all that the filters allow.
async function ask(signal) {
  const facets = facetsOf(state, maximum);
  const countAll = () => call("/v1/facets", { ...common(state), ...facets }, signal);
  if (state.examples.length) {
    const [answer, counts] = await Promise.all([call("/v1/similar", similarOf(state, state.n), signal), countAll()]);
    return { hits: answer.hits, facets: counts };
  }
  if (!state.q.trim()) return { hits: null, facets: await countAll() };
  return call("/v1/search", { ...searchOf(state, state.n, maximum), facets }, signal);
}

// More hits, behind those that are shown. The first time, those are asked for anew as a page, for the cursor of the next.
async function more() {
  const shown = state.n;
  const n = Math.min(shown + FIRST, maximum);
  if (typing !== null) return change({}); // those shown are of another search
  if (!hasPages(state)) return change({ n });
  underWay?.abort();
  const own = (underWay = new AbortController());
  const page = (cursor, k) => call("/v1/search", { ...searchOf(state, k, maximum), cursor }, own.signal);
  const get = async () => {
    if (following === null) {
      const first = await page("", shown);
      if (own !== underWay) return;
      following = first.cursor;
      showHits(first);
    }
    const next = following === null ? null : await page(following, n - shown);
    if (own !== underWay) return;
    byId("error").replaceChildren();
    state = { ...state, n };
    write(state);
    if (next === null) return showMore(false);
    following = next.cursor;
    const before = byId("results").querySelectorAll(".hit").length;
    byId("results").append(...hitElements(next, before));
    showCount(before + next.hits.length);
    showMore(following !== null);
    byId("results").children[before]?.querySelector("button")?.focus();
  };
  await during(own, get, (error) => {
    if (error.status === 422) following = null; // a cursor of an index that has been replaced
    showCount(byId("results").querySelectorAll(".hit").length);
    showProblem(error);
    byId("error").scrollIntoView({ block: "nearest" });
  });
}

function showCount(hits) {
  byId("status").textContent = `${counted(hits, "result")}, best first`;
}

function hitElements({ hits, explanation }, before = 0) {
  const parts = (state.why && explanation?.hits) || [];
  return hits.map((hit, at) => hitElement(hit, before + at + 1, { onExample: example, parts: parts[at] }));
}

function showMore(there) {
  byId("more").hidden = !there || state.n >= maximum;
}

function showHits({ hits, facets, explanation }) {
  const results = byId("results");
  byId("about").replaceChildren(...(explanation ? aboutElements(explanation, { whole: state.why }) : []));
  if (hits === null) {
    const { documents, indexed } = facets;
    const what = state.filters.length ? `${documents === 1 ? "matches" : "match"} the filters` : "can be searched";
    byId("status").textContent = "";
    results.replaceChildren(
      element("p", {
        className: "empty",
        text: indexed ? `${counted(documents, "document")} ${what}. Type what you are looking for.` : "The index is empty: it has no documents yet.",
      }),
    );
  } else if (!hits.length) {
    byId("status").textContent = "No document fits.";
    results.replaceChildren(
      element("p", {
        className: "empty",
        text: state.filters.length ? "Nothing fits. Take a filter away, or search for something else." : "Nothing fits. Search for something else.",
      }),
    );
  } else {
    showCount(hits.length);
    results.replaceChildren(...hitElements({ hits, explanation }));
  }
  showMore(hits !== null && hits.length >= state.n);
}

// New buttons take the place of the old ones; the one that has the keyboard keeps it.
function showFacets(facets) {
  const chosen = byId("facets").contains(document.activeElement) ? document.activeElement.dataset.filter : null;
  byId("facets").replaceChildren(...facetElements(facets.facets, { active: state.filters, chosen: state.facets, onToggle: toggle, onAway: uncount }));
  if (chosen !== null) {
    const again = [...byId("facets").querySelectorAll("button")].find((button) => button.dataset.filter === chosen);
    (again ?? byId("results")).focus();
  }
}

function showError(error) {
  byId("status").textContent = "";
  byId("results").replaceChildren();
  byId("about").replaceChildren();
  following = null;
  showMore(false);
  showProblem(error);
}

function showProblem(error) {
  const title = error instanceof Problem ? error.title : "The page failed";
  const held = byId("error").contains(document.activeElement);
  byId("error").replaceChildren(
    element("div", {
      className: "box error",
      children: [
        element("h2", { text: title }),
        element("p", { text: error.message }),
        element("button", { text: "Try again", attributes: { type: "button" }, on: { click: again } }),
        ...(error.status === 403 ? [element("button", { text: "Use another token", attributes: { type: "button" }, on: { click: anotherToken } })] : []),
        ...state.facets.map((name) => element("button", { text: `Stop counting by ${name}`, attributes: { type: "button" }, on: { click: () => uncount(name) } })),
      ],
    }),
  );
  if (held) byId("error").querySelector("button").focus();
}

function anotherToken() {
  forgetToken();
  again();
}

// Of the chips that take the place of the old ones, the next one has the keyboard when one has been removed.
function showChips() {
  const at = [...byId("chips").querySelectorAll("button")].indexOf(document.activeElement);
  const chips = state.filters.map((filter) => [described(filter), () => toggle(filter)]);
  chips.unshift(...state.examples.map((one) => [describedExample(one), () => change({ examples: without(state.examples, one) })]));
  byId("chips").replaceChildren(
    ...chips.map(([text, remove]) =>
      element("li", {
        children: [
          element("button", {
            attributes: { type: "button", "aria-label": `Remove: ${text}` },
            on: { click: remove },
            children: [element("bdi", { text }), " ×"],
          }),
        ],
      }),
    ),
  );
  if (at < 0) return;
  const left = byId("chips").querySelectorAll("button");
  (left[Math.min(at, left.length - 1)] ?? byId("results")).focus({ preventScroll: true });
}

function toggle(filter) {
  const others = state.filters.filter((one) => !same(one, filter));
  change({ filters: others.length < state.filters.length ? others : [...state.filters, filter] });
}

// Variety and a second reading each put hits into an order of their own: one takes the other's place.
function instead(name) {
  return { varied: { rerank: false }, rerank: { varied: false } }[name];
}

// A filter in the filter language becomes a chip, once the service has understood it.
async function where(event) {
  event.preventDefault();
  const field = byId("where");
  const filter = field.value.trim();
  if (!filter || !(await accepted(field, { filter }))) return;
  if (!state.filters.some((one) => same(one, filter))) change({ filters: [...state.filters, filter] });
}

// An example more of what is wanted or not; what was searched for by words becomes one itself.
async function example(one) {
  await change({ examples: withExample(state, one), q: "" });
  window.scrollTo(0, 0);
  byId("results").focus({ preventScroll: true });
}

// The pasted text as an example.
function exampleText(like) {
  const field = byId("text");
  const one = { like, text: field.value };
  if (!one.text.trim()) return;
  if (withExample(state, one).length) return example(one);
  field.setCustomValidity("Search for something first, or give an example of what results should be like.");
  field.reportValidity();
}

// A facet more, by its name, once the service has counted it.
async function count(event) {
  event.preventDefault();
  const field = byId("facet");
  const name = field.value.trim();
  if (!name) return;
  if (!(await accepted(field, { names: [name] }))) return;
  if (!state.facets.includes(name)) change({ facets: [name, ...state.facets], n: state.n });
}

const uncount = (name) => change({ facets: state.facets.filter((one) => one !== name), n: state.n });

// Whether the service can count so; what it says against it is shown at the field, which is emptied otherwise.
async function accepted(field, wanted) {
  field.setCustomValidity("");
  try {
    await call("/v1/facets", { index: state.index ?? undefined, top: 1, of: 1, ...wanted });
  } catch (error) {
    field.setCustomValidity(error.message);
    field.reportValidity();
    return false;
  }
  field.value = "";
  return true;
}

async function tag(event) {
  event.preventDefault();
  const text = byId("text").value;
  const place = byId("tagged");
  looking?.abort();
  const own = (looking = new AbortController());
  place.replaceChildren(element("p", { text: "Looking …" }));
  try {
    const found = await call("/v1/tag", { index: state.index ?? undefined, text }, own.signal);
    if (own !== looking) return;
    const points = Array.from(text);
    const { class_labels, entity_types } = indexOf(state);
    const summary = [
      ...(entity_types === null ? [] : [counted(found.entities.length, "entity").replace("entitys", "entities")]),
      ...(entity_types === null || class_labels === null ? [] : ["; "]),
      ...(class_labels === null ? [] : found.label ? [label(found.label)] : ["no class fits well enough"]),
    ];
    place.replaceChildren(element("p", { children: summary }), textElement(marked(points, found.entities), "text box"));
  } catch (error) {
    if (own !== looking) return;
    place.replaceChildren(
      element("div", {
        className: "box error",
        attributes: { role: "alert" },
        children: [element("h2", { text: error.title ?? "The page failed" }), element("p", { text: error.message })],
      }),
    );
  }
}

function start() {
  const early = byId("query").value; // typed before this page's scripts had come
  if (early) state = { ...state, q: early, examples: [] };
  byId("facets-box").open = matchMedia("(min-width: 48rem)").matches;
  byId("options").open = state.names !== "" || SWITCHES.some((name) => state[name] && byId("options").contains(byId(name)));
  for (const field of [byId("where"), byId("facet"), byId("text")]) field.addEventListener("input", () => field.setCustomValidity(""));
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ q: byId("query").value, examples: [] });
  });
  byId("query").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({}, { byTyping: true }), TYPING);
  });
  byId("mode").addEventListener("change", () => change({ mode: byId("mode").value }));
  byId("names").addEventListener("change", () => change({ names: byId("names").value }));
  for (const name of SWITCHES) byId(name).addEventListener("change", () => change({ [name]: byId(name).checked, ...instead(name) }));
  byId("where-form").addEventListener("submit", where);
  byId("index").addEventListener("change", () => change({ index: byId("index").value, filters: [], examples: [], facets: [] }));
  byId("more").addEventListener("click", more);
  byId("tag").addEventListener("submit", tag);
  byId("like-text").addEventListener("click", () => exampleText(true));
  byId("unlike-text").addEventListener("click", () => exampleText(false));
  byId("facet-form").addEventListener("submit", count);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // an address with #results would be another entry of the history
    byId("results").focus();
    byId("results").scrollIntoView();
  });
  window.addEventListener("popstate", () => {
    state = known(read());
    typed = false;
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.closest("input, textarea, select")) {
      event.preventDefault();
      byId("query").focus();
    }
  });
  show();
}

start();
