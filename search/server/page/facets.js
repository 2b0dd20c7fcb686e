// What the results have in common, with counts; a click filters by it, another takes the filter away.

import { counted, element } from "./dom.js";
import { written } from "./json.js";
import { DATE_END, same } from "./state.js";

// `chosen`: names of facets that were asked for, each with a button that puts it away.
export function facetElements(facets, { active, chosen, onToggle, onAway }) {
  return facets
    .filter((facet) => facet.values.length || chosen.includes(facet.name))
    .map((facet) => facetElement(facet, { active, onToggle, onAway: chosen.includes(facet.name) ? onAway : null }));
}

function facetElement(facet, { active, onToggle, onAway }) {
  const heading = element("h2", { text: headingOf(facet) });
  if (onAway) {
    heading.append(
      element("button", {
        text: "×",
        className: "away",
        attributes: { type: "button", "aria-label": `Stop counting by ${facet.name}` },
        on: { click: () => onAway(facet.name) },
      }),
    );
  }
  const more = facet.distinct - facet.values.length;
  const most = Math.max(...facet.values.map(({ count }) => count));
  return element("section", {
    children: [
      heading,
      facet.values.length
        ? element("ul", { children: facet.values.map((value) => valueElement(facet, value, { active, onToggle, most })) })
        : element("p", { className: "nothing", text: facet.distinct ? "No value stands out" : "No value among these documents" }),
      ...(more > 0 && facet.values.length ? [element("p", { className: "nothing", text: counted(more, "more value") })] : []),
    ],
  });
}

function valueElement(facet, value, { active, onToggle, most }) {
  const filter = filterOf(facet, value);
  const button = element("button", {
    attributes: {
      type: "button",
      "data-filter": written(filter),
      "aria-pressed": String(active.some((one) => same(one, filter))),
    },
    on: { click: () => onToggle(filter) },
    children: [
      element("span", { className: "value", text: shown(value), attributes: { dir: "auto" } }),
      element("span", {
        className: "count",
        text: value.count.toLocaleString("en"),
        attributes: { "aria-label": counted(value.count, "document") },
      }),
    ],
  });
  button.style.setProperty("--share", `${(100 * value.count) / most}%`);
  return element("li", { children: [button] });
}

const shown = ({ value, below }) => (below === undefined ? String(value) : `${value} to ${below ?? "…"}`);

function headingOf({ name, path }) {
  if (name === "label") return "Class";
  if (name === "entity") return "Entities";
  if (path === undefined) return name.slice("entity:".length);
  const unit = unitOf(name);
  if (!unit) return path;
  return unit.startsWith("histogram") ? `${path}, in ranges` : `${path}, by ${unit}`;
}

// What of a metadata field is counted, where not its values. A field whose own name ends like that stands in backticks.
const unitOf = (name) => /:(year|month|day|histogram(?::[^:`]*)?)$/u.exec(name)?.[1];

function filterOf({ name, path }, { value, type, below }) {
  if (name === "label") return { label: value };
  if (type) return { entity: { type, text: value, match: "exact" } };
  const unit = unitOf(name);
  if (!unit) return { path, op: "=", value };
  if (unit.startsWith("histogram")) return { path, op: "between", low: value, high: below === null ? null : before(Number(below)) };
  const within = { path, op: "between", low: value, high: value + DATE_END };
  return unit === "year" ? { or: [within, { path, op: "=", value: Number(value) }] } : within;
}

// The next smaller number: ranges of a histogram end before the next one begins, those of filters with their end.
function before(number) {
  if (number === 0) return -Number.MIN_VALUE;
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, number);
  view.setBigInt64(0, view.getBigInt64(0) + (number > 0 ? -1n : 1n));
  return view.getFloat64(0);
}
