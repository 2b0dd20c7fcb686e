// The list of hits.

import { element } from "./dom.js";
import { written } from "./json.js";
import { emphasised, label, marked } from "./marks.js";
import { partsElement } from "./why.js";

const SHOWN = 600; // code points of a text, from where its best passage begins, or its best sentence further on

// `parts`: what its score is made of, where that was asked for.
export function hitElement(hit, number, { onExample, parts }) {
  const heading = [
    element("span", { className: "id", text: hit.id }),
    element("span", { className: "score", text: `score ${hit.score.toFixed(3)}` }),
  ];
  if (hit.label) heading.push(label(hit.label));
  if (hit.hidden) heading.push(element("span", { className: "score", text: `+ ${hit.hidden.length} like it` }));
  const points = Array.from(hit.text);
  const actions = element("div", { className: "actions" });
  const body = hit.passages && points.length > SHOWN ? passagesElement(points, hit, actions) : excerpt(points, hit, actions);
  for (const [like, word] of [[true, "More"], [false, "Less"]]) {
    actions.append(
      element("button", {
        text: `${word} like this`,
        attributes: { type: "button", "aria-label": `${word} like ${hit.id}` },
        on: { click: () => onExample({ like, id: hit.id }) },
      }),
    );
  }
  return element("article", {
    className: "hit",
    attributes: { "aria-label": `Result ${number}` },
    children: [
      element("h2", { children: heading }),
      body,
      facts(hit.metadata),
      ...(parts ? [partsElement(parts)] : []),
      actions,
    ],
  });
}

// The text, or so much of it as there is room for, with a button for the rest.
function excerpt(points, hit, actions) {
  const text = textElement();
  const best = hit.highlight;
  const from = best && best.end > hit.passage.start + SHOWN ? best.start : hit.passage.start;
  const start = points.length > SHOWN ? from : 0;
  const end = Math.min(points.length, start + SHOWN);
  text.append(start > 0 ? "… " : "", ...emphasised(points, hit.entities, best, start, end), end < points.length ? " …" : "");
  if (start > 0 || end < points.length) {
    const whole = () => {
      text.replaceChildren(...emphasised(points, hit.entities, best));
      return text;
    };
    actions.append(wholeButton(whole));
  }
  return text;
}

// A button that shows the whole text, once; the keyboard goes on from the element that `show` returns.
function wholeButton(show) {
  const button = element("button", {
    text: "Whole text",
    attributes: { type: "button" },
    on: {
      click: () => {
        const text = show();
        text.tabIndex = -1;
        text.focus({ preventScroll: true });
        button.remove();
      },
    },
  });
  return button;
}

// The best passages, best first, each between its neighbours, with a button for the text in their place.
function passagesElement(points, hit, actions) {
  const around = (stretches) =>
    stretches.map(({ start, end }) =>
      textElement(marked(points, hit.entities, start, end), "text around"),
    );
  const list = element("ol", {
    className: "passages",
    attributes: { "aria-label": "Best passages" },
    children: hit.passages.map((passage) =>
      element("li", {
        children: [
          element("span", { className: "score", text: `score ${passage.score.toFixed(3)}` }),
          ...around(passage.before ?? []),
          textElement(emphasised(points, hit.entities, hit.highlight, passage.start, passage.end)),
          ...around(passage.after ?? []),
        ],
      }),
    ),
  });
  const whole = () => {
    const text = textElement(emphasised(points, hit.entities, hit.highlight));
    list.replaceWith(text);
    return text;
  };
  actions.append(wholeButton(whole));
  return list;
}

// A paragraph of a text, in the direction of its own script.
export function textElement(children = [], className = "text") {
  return element("p", { className, attributes: { dir: "auto" }, children });
}

function facts(metadata) {
  return element("dl", {
    className: "facts",
    children: Object.entries(metadata).map(([name, value]) =>
      element("div", {
        children: [
          element("dt", { text: name }),
          element("dd", { attributes: { dir: "auto" }, text: Array.isArray(value) ? value.map(shown).join(", ") : shown(value) }),
        ],
      }),
    ),
  });
}

const shown = (value) => (value !== null && typeof value === "object" ? written(value) : String(value));
