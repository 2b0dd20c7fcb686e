// What is searched for, as it stands in the address, so that a search can be linked and the back button works.

import { parsed, written } from "./json.js";

export const FIRST = 10; // hits, and how many more at a time

const MODES = ["cosine", "hybrid", "keyword"];
const NAMES = ["filter", "boost"]; // what the entities in a query do

// Options that are on or off; each stands in the address by its name alone.
export const SWITCHES = ["best", "passages", "distinct", "varied", "rerank", "why", "significant"];

// Examples of what hits should be like or unlike: `{ like, id }` or `{ like, text }`, by their names in the address.
const EXAMPLES = {
  like: { like: true, kind: "id" },
  unlike: { like: false, kind: "id" },
  "like-text": { like: true, kind: "text" },
  "unlike-text": { like: false, kind: "text" },
};
const LINKED = 1000; // characters of a text, up to which it stands in the address; a longer one in the history

export function read(search = location.search, kept = history.state) {
  const parameters = new URLSearchParams(search);
  const filters = [];
  for (const text of parameters.getAll("filter")) {
    try {
      const filter = parsed(text);
      if (filter && ["object", "string"].includes(typeof filter) && !Array.isArray(filter)) filters.push(filter);
    } catch {
      // an address that somebody changed by hand
    }
  }
  const mode = parameters.get("mode");
  const names = parameters.get("names");
  const n = Number(parameters.get("n"));
  const examples = [
    ...Object.entries(EXAMPLES).flatMap(([name, { like, kind }]) =>
      parameters.getAll(name).map((value) => ({ like, [kind]: value })),
    ),
    ...(kept?.examples ?? []),
  ];
  return {
    q: examples.length ? "" : (parameters.get("q") ?? kept?.q ?? ""), // examples take the place of words
    examples,
    mode: MODES.includes(mode) ? mode : "cosine",
    index: parameters.get("index"),
    names: NAMES.includes(names) ? names : "",
    ...Object.fromEntries(SWITCHES.map((name) => [name, parameters.has(name)])),
    filters,
    facets: parameters.getAll("facet"),
    n: Number.isInteger(n) && n > FIRST ? n : FIRST,
  };
}

export function write(state, { replace = false } = {}) {
  const parameters = new URLSearchParams();
  const long = state.q.length > LINKED;
  if (state.q && !long) parameters.set("q", state.q);
  const linked = ({ text }) => text === undefined || text.length <= LINKED;
  for (const [name, { like, kind }] of Object.entries(EXAMPLES)) {
    for (const one of state.examples) {
      if (one.like === like && one[kind] !== undefined && linked(one)) parameters.append(name, one[kind]);
    }
  }
  if (state.mode !== "cosine") parameters.set("mode", state.mode);
  if (state.index !== null) parameters.set("index", state.index);
  if (state.names) parameters.set("names", state.names);
  for (const name of SWITCHES) if (state[name]) parameters.set(name, "");
  for (const filter of state.filters) parameters.append("filter", written(filter));
  for (const name of state.facets) parameters.append("facet", name);
  if (state.n > FIRST) parameters.set("n", state.n);
  const text = parameters.toString();
  const address = text ? `?${text}` : location.pathname;
  const kept = { q: long ? state.q : undefined, examples: state.examples.filter((one) => !linked(one)) };
  if (replace || (address === (location.search || location.pathname) && same(kept, history.state ?? { examples: [] }))) history.replaceState(kept, "", address);
  else history.pushState(kept, "", address);
}

export const same = (a, b) => written(a) === written(b);

// One filter of several that must all hold; undefined for none. A filter is an object, or a text in the filter language.
export function together(filters) {
  return filters.length > 1 ? { and: filters } : filters[0];
}

// How a filter reads on its chip: those that the page makes shortly, any other as it is.
export function described(filter) {
  if (typeof filter === "string") return filter;
  const { path, op, value, low, high } = filter;
  if (typeof filter.label === "string") return `class: ${filter.label}`;
  if (typeof filter.entity?.text === "string" && filter.entity.match === "exact") {
    const type = filter.entity.type ?? "entity";
    if (typeof type === "string") return `${type}: ${filter.entity.text}`;
  }
  if (typeof path === "string") {
    if (op === "=" && ["string", "number", "bigint", "boolean"].includes(typeof value)) return `${path}: ${value}`;
    if (op === "between" && isDate(filter)) return `${path}: ${low}`;
    if (op === "between" && typeof low === "number") {
      if (high === null) return `${path}: ${low} or more`;
      if (typeof high === "number") return `${path}: ${low} to ${Number(high.toPrecision(12))}`;
    }
  }
  const [within, number] = Array.isArray(filter.or) ? filter.or : [];
  if (filter.or?.length === 2 && isDate(within) && typeof within.path === "string" && same(number, { path: within.path, op: "=", value: Number(within.low) })) {
    return `${within.path}: ${within.low}`; // a year, as a text or as a number
  }
  return written(filter);
}

export const DATE_END = "~"; // sorts behind all that may follow a year, a month or a day in a date

const isDate = (filter) => typeof filter?.low === "string" && filter.op === "between" && filter.high === filter.low + DATE_END;

// How an example reads on its chip.
export function describedExample({ like, id, text }) {
  const what = id ?? `“${text.length > 40 ? `${Array.from(text.slice(0, 80)).slice(0, 40).join("")} …` : text}”`;
  return like ? `more like ${what}` : `less like ${what}`;
}
