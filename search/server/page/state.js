// What is searched for, as it stands in the address, so that a search can be linked and the back button works.

export const FIRST = 10; // hits, and how many more at a time

const MODES = ["cosine", "hybrid", "keyword"];

export function read(search = location.search) {
  const parameters = new URLSearchParams(search);
  const filters = [];
  for (const text of parameters.getAll("filter")) {
    try {
      const filter = JSON.parse(text);
      if (filter && typeof filter === "object" && !Array.isArray(filter)) filters.push(filter);
    } catch {
      // an address that somebody changed by hand
    }
  }
  const mode = parameters.get("mode");
  const n = Number(parameters.get("n"));
  return {
    q: parameters.get("q") ?? "",
    like: parameters.get("like"),
    mode: MODES.includes(mode) ? mode : "cosine",
    index: parameters.get("index"),
    best: parameters.has("best"),
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
  if (state.best) parameters.set("best", "");
  for (const filter of state.filters) parameters.append("filter", JSON.stringify(filter));
  if (state.n > FIRST) parameters.set("n", state.n);
  const text = parameters.toString();
  const address = text ? `?${text}` : location.pathname;
  if (replace || address === location.search) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// One filter of several that must all hold; undefined for none.
export function together(filters) {
  return filters.length > 1 ? { and: filters } : filters[0];
}

// How a filter reads on its chip.
export function described(filter) {
  if (filter.label !== undefined) return `class: ${filter.label}`;
  if (filter.entity) return `${filter.entity.type ?? "entity"}: ${filter.entity.text ?? "any"}`;
  if (filter.path !== undefined && filter.op === "=") return `${filter.path}: ${filter.value}`;
  return JSON.stringify(filter);
}
