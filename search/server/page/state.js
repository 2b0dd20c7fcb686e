// What is searched for, as it stands in the address, so that a search can be linked and the back button works.

export const FIRST = 10; // hits, and how many more at a time

const MODES = ["cosine", "hybrid", "keyword"];
const NAMES = ["filter", "boost"]; // what the entities in a query do

// Options that are on or off; each stands in the address by its name alone.
export const SWITCHES = ["best", "passages", "distinct", "varied", "rerank", "why"];

export function read(search = location.search) {
  const parameters = new URLSearchParams(search);
  const filters = [];
  for (const text of parameters.getAll("filter")) {
    try {
      const filter = JSON.parse(text);
      if (filter && ["object", "string"].includes(typeof filter) && !Array.isArray(filter)) filters.push(filter);
    } catch {
      // an address that somebody changed by hand
    }
  }
  const mode = parameters.get("mode");
  const names = parameters.get("names");
  const n = Number(parameters.get("n"));
  return {
    q: parameters.get("q") ?? "",
    like: parameters.get("like"),
    mode: MODES.includes(mode) ? mode : "cosine",
    index: parameters.get("index"),
    names: NAMES.includes(names) ? names : "",
    ...Object.fromEntries(SWITCHES.map((name) => [name, parameters.has(name)])),
    filters,
    n: Number.isInteger(n) && n > FIRST ? Math.min(n, 1000) : FIRST,
  };
}

export function write(state, { replace = false } = {}) {
  const parameters = new URLSearchParams();
  if (state.q) parameters.set("q", state.q);
  if (state.like !== null) parameters.set("like", state.like);
  if (state.mode !== "cosine") parameters.set("mode", state.mode);
  if (state.index !== null) parameters.set("index", state.index);
  if (state.names) parameters.set("names", state.names);
  for (const name of SWITCHES) if (state[name]) parameters.set(name, "");
  for (const filter of state.filters) parameters.append("filter", JSON.stringify(filter));
  if (state.n > FIRST) parameters.set("n", state.n);
  const text = parameters.toString();
  const address = text ? `?${text}` : location.pathname;
  if (replace || address === location.search) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// One filter of several that must all hold; undefined for none. A filter is an object, or a text in the filter language.
export function together(filters) {
  return filters.length > 1 ? { and: filters } : filters[0];
}

// How a filter reads on its chip.
export function described(filter) {
  if (typeof filter === "string") return filter;
  if (filter.label !== undefined) return `class: ${filter.label}`;
  if (filter.entity) return `${filter.entity.type ?? "entity"}: ${filter.entity.text ?? "any"}`;
  if (filter.path !== undefined && filter.op === "=") return `${filter.path}: ${filter.value}`;
  return JSON.stringify(filter);
}
