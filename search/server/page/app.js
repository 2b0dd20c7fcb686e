// The page: reads what is searched for from the address, asks the service, shows the answer.

import { call, Problem } from "./api.js";
import { byId, counted, element } from "./dom.js";
import { facetElements } from "./facets.js";
import { hitElement } from "./hits.js";
import { label, marked } from "./marks.js";
import { described, FIRST, read, same, together, write } from "./state.js";

const TYPING = 250; // milliseconds without a key before a search begins
const SLOW = 150; // before the page says that it is searching

let state = read();
let underWay = null;
let typing = null;
let maximum = 1000;

function change(changes, options) {
  state = { ...state, n: FIRST, ...changes };
  write(state, options);
  return show();
}

async function show() {
  clearTimeout(typing);
  underWay?.abort();
  const own = (underWay = new AbortController());
  if (byId("query").value !== state.q) byId("query").value = state.q;
  byId("mode").value = state.mode;
  byId("best").checked = state.best;
  if (state.index !== null) byId("index").value = state.index;
  document.title = state.q ? `${state.q} – Search` : "Search";
  showChips();
  const results = byId("results");
  const slow = setTimeout(() => {
    results.setAttribute("aria-busy", "true");
    byId("status").textContent = "Searching …";
  }, SLOW);
  try {
    const { hits, facets } = await ask(own.signal);
    if (own !== underWay) return;
    byId("error").replaceChildren();
    showHits(hits, facets);
    showFacets(facets);
  } catch (error) {
    if (error.name === "AbortError" || own !== underWay) return;
    showError(error);
  } finally {
    clearTimeout(slow);
    if (own === underWay) results.setAttribute("aria-busy", "false");
  }
}

// Hits, `null` where nothing is searched for yet, and facets: of the best hits, or of all that the filters allow.
async function ask(signal) {
  const common = { index: state.index ?? undefined, filter: together(state.filters) };
  const countAll = () => call("/v1/facets", { ...common, top: 8 }, signal);
  if (state.like !== null) {
    const [answer, facets] = await Promise.all([
      call("/v1/similar", { ...common, ids: [state.like], k: state.n }, signal),
      countAll(),
    ]);
    return { hits: answer.hits, facets };
  }
  if (!state.q.trim()) return { hits: null, facets: await countAll() };
  const search = { ...common, query: state.q, mode: state.mode, k: state.n, facets: { top: 8 }, highlight: state.best };
  const answer = await call("/v1/search", search, signal);
  return { hits: answer.hits, facets: answer.facets };
}

function showHits(hits, facets) {
  const results = byId("results");
  if (hits === null) {
    const what = state.filters.length ? "match the filters" : "can be searched";
    byId("status").textContent = "";
    results.replaceChildren(
      element("p", { className: "empty", text: `${counted(facets.documents, "document")} ${what}. Type what you are looking for.` }),
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
    byId("status").textContent = `${counted(hits.length, "result")}, best first`;
    results.replaceChildren(...hits.map((hit, at) => hitElement(hit, at + 1, { onLike: like })));
  }
  byId("more").hidden = hits === null || hits.length < state.n || state.n >= maximum;
}

// New buttons take the place of the old ones; the one that has the keyboard keeps it.
function showFacets(facets) {
  const chosen = byId("facets").contains(document.activeElement) ? document.activeElement.dataset.filter : null;
  byId("facets").replaceChildren(...facetElements(facets.facets, state.filters, toggle));
  if (chosen !== null) {
    const again = [...byId("facets").querySelectorAll("button")].find((button) => button.dataset.filter === chosen);
    (again ?? byId("results")).focus();
  }
}

function showError(error) {
  const title = error instanceof Problem ? error.title : "The page failed";
  byId("status").textContent = "";
  byId("results").replaceChildren();
  byId("more").hidden = true;
  byId("error").replaceChildren(
    element("div", {
      className: "box error",
      children: [
        element("h2", { text: title }),
        element("p", { text: error.message }),
        element("button", { text: "Try again", attributes: { type: "button" }, on: { click: show } }),
      ],
    }),
  );
}

function showChips() {
  const chips = state.filters.map((filter) => [described(filter), () => toggle(filter)]);
  if (state.like !== null) chips.unshift([`more like ${state.like}`, () => change({ like: null })]);
  byId("chips").replaceChildren(
    ...chips.map(([text, remove]) =>
      element("li", {
        children: [
          element("button", {
            text: `${text} ×`,
            attributes: { type: "button", "aria-label": `Remove: ${text}` },
            on: { click: remove },
          }),
        ],
      }),
    ),
  );
}

function toggle(filter) {
  const others = state.filters.filter((one) => !same(one, filter));
  change({ filters: others.length < state.filters.length ? others : [...state.filters, filter] });
}

async function like(id) {
  await change({ like: id, q: "" });
  window.scrollTo(0, 0);
  byId("results").focus();
}

async function tag(event) {
  event.preventDefault();
  const text = byId("text").value;
  const place = byId("tagged");
  place.replaceChildren(element("p", { text: "Looking …" }));
  try {
    const found = await call("/v1/tag", { index: state.index ?? undefined, text });
    const points = Array.from(text);
    const summary = `${counted(found.entities.length, "entity").replace("entitys", "entities")}; `;
    place.replaceChildren(
      element("p", { children: found.label ? [summary, "class ", label(found.label)] : [summary, "no class fits well enough"] }),
      element("p", { className: "text box", children: marked(points, found.entities) }),
    );
  } catch (error) {
    place.replaceChildren(
      element("div", {
        className: "box error",
        attributes: { role: "alert" },
        children: [element("h2", { text: error.title ?? "The page failed" }), element("p", { text: error.message })],
      }),
    );
  }
}

async function start() {
  byId("facets-box").open = matchMedia("(min-width: 48rem)").matches;
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ q: byId("query").value, like: null });
  });
  byId("query").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: byId("query").value, like: null }, { replace: true }), TYPING);
  });
  byId("mode").addEventListener("change", () => change({ mode: byId("mode").value }));
  byId("best").addEventListener("change", () => change({ best: byId("best").checked }));
  byId("index").addEventListener("change", () => change({ index: byId("index").value, filters: [], like: null }));
  byId("more").addEventListener("click", () => change({ n: Math.min(state.n + FIRST, maximum) }));
  byId("tag").addEventListener("submit", tag);
  window.addEventListener("popstate", () => {
    state = read();
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, textarea, select")) {
      event.preventDefault();
      byId("query").focus();
    }
  });
  try {
    const { indexes, limits } = await call("/v1/indexes");
    maximum = limits.k;
    if (indexes.length > 1) {
      byId("index").append(...indexes.map(({ name }) => element("option", { text: name, attributes: { value: name } })));
      byId("index").hidden = false;
      if (!indexes.some(({ name }) => name === state.index)) state.index = indexes[0].name;
    } else {
      state.index = null;
    }
  } catch (error) {
    showError(error);
    return;
  }
  await show();
}

start();
