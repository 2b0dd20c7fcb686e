// What the results have in common, with counts; a click filters by it, another takes the filter away.

import { element } from "./dom.js";
import { same } from "./state.js";

export function facetElements(facets, active, onToggle) {
  return facets
    .filter((facet) => facet.values.length)
    .map((facet) =>
      element("section", {
        children: [
          element("h2", { text: heading(facet.name) }),
          element("ul", {
            children: facet.values.map((value) => {
              const filter = filterOf(facet.name, value);
              return element("li", {
                children: [
                  element("button", {
                    attributes: {
                      type: "button",
                      "data-filter": JSON.stringify(filter),
                      "aria-pressed": String(active.some((one) => same(one, filter))),
                    },
                    on: { click: () => onToggle(filter) },
                    children: [
                      element("span", { text: String(value.value) }),
                      element("span", {
                        className: "count",
                        text: value.count.toLocaleString("en"),
                        attributes: { "aria-label": `${value.count} documents` },
                      }),
                    ],
                  }),
                ],
              });
            }),
          }),
        ],
      }),
    );
}

function heading(name) {
  if (name === "label") return "Class";
  if (name.startsWith("entity:")) return name.slice("entity:".length);
  return fieldOf(name);
}

// A field whose name could be taken for something else stands in backticks.
const fieldOf = (name) => (name.startsWith("`") ? name.slice(1, -1).replaceAll("``", "`") : name);

function filterOf(name, value) {
  if (name === "label") return { label: value.value };
  if (value.type) return { entity: { type: value.type, text: value.value, match: "exact" } };
  return { path: fieldOf(name), op: "=", value: value.value };
}
