// The list of hits.

import { element } from "./dom.js";
import { emphasised, label } from "./marks.js";

const SHOWN = 600; // code points of a text, from where its best passage begins, or its best sentence further on

export function hitElement(hit, number, { onLike }) {
  const heading = [
    element("span", { className: "id", text: hit.id }),
    element("span", { className: "score", text: `score ${hit.score.toFixed(3)}` }),
  ];
  if (hit.label) heading.push(label(hit.label));
  if (hit.hidden) heading.push(element("span", { className: "score", text: `+ ${hit.hidden.length} like it` }));
  const points = Array.from(hit.text);
  const text = element("p", { className: "text" });
  const actions = element("div", { className: "actions" });
  const best = hit.highlight;
  const from = best && best.end > hit.passage.start + SHOWN ? best.start : hit.passage.start;
  const start = points.length > SHOWN ? from : 0;
  const end = Math.min(points.length, start + SHOWN);
  text.append(start > 0 ? "… " : "", ...emphasised(points, hit.entities, best, start, end), end < points.length ? " …" : "");
  if (start > 0 || end < points.length) {
    const whole = element("button", {
      text: "Whole text",
      attributes: { type: "button" },
      on: {
        click: () => {
          text.replaceChildren(...emphasised(points, hit.entities, best));
          whole.remove();
        },
      },
    });
    actions.append(whole);
  }
  actions.append(
    element("button", {
      text: "More like this",
      attributes: { type: "button", "aria-label": `More like ${hit.id}` },
      on: { click: () => onLike(hit.id) },
    }),
  );
  return element("article", {
    className: "hit",
    attributes: { "aria-label": `Result ${number}` },
    children: [element("h2", { children: heading }), text, facts(hit.metadata), actions],
  });
}

function facts(metadata) {
  return element("dl", {
    className: "facts",
    children: Object.entries(metadata).map(([name, value]) =>
      element("div", {
        children: [
          element("dt", { text: name }),
          element("dd", { text: Array.isArray(value) ? value.map(shown).join(", ") : shown(value) }),
        ],
      }),
    ),
  });
}

const shown = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
