// A text with its entities marked: by colour, and by the name of their type.

import { element } from "./dom.js";

const KINDS = 8;
const order = ["PER", "ORG", "LOC"];

export function kindOf(type) {
  let at = order.indexOf(type);
  if (at < 0) at = order.push(type) - 1;
  return `kind-${at % KINDS}`;
}

// Nodes for text[start:end]. Offsets are code points, and JavaScript counts UTF-16 units: hence the array.
export function marked(points, entities, start = 0, end = points.length) {
  const nodes = [];
  let at = start;
  for (const entity of entities) {
    if (entity.start < at || entity.end > end) continue;
    if (entity.start > at) nodes.push(points.slice(at, entity.start).join(""));
    nodes.push(
      element("mark", {
        className: kindOf(entity.type),
        text: points.slice(entity.start, entity.end).join(""),
        attributes: { title: `${entity.type}, ${entity.score.toFixed(2)}` },
        children: [element("span", { className: "type", text: entity.type })],
      }),
    );
    at = entity.end;
  }
  if (at < end) nodes.push(points.slice(at, end).join(""));
  return nodes;
}

// The same with one sentence emphasised. Where an entity crosses its border, the border moves.
export function emphasised(points, entities, sentence, start = 0, end = points.length) {
  if (!sentence || sentence.end <= start || sentence.start >= end) return marked(points, entities, start, end);
  let from = Math.max(sentence.start, start);
  let to = Math.min(sentence.end, end);
  for (const entity of entities) {
    if (entity.start < from && entity.end > from) from = Math.max(entity.start, start);
    if (entity.start < to && entity.end > to) to = Math.min(entity.end, end);
  }
  return [
    ...marked(points, entities, start, from),
    element("strong", { className: "best", children: marked(points, entities, from, to) }),
    ...marked(points, entities, to, end),
  ];
}

export function label(found) {
  return element("span", {
    className: "label",
    attributes: { title: `class, probability ${found.score.toFixed(2)}` },
    children: [
      element("span", { className: "unseen", text: "class " }),
      `${found.name} `,
      element("span", { className: "label-score", text: found.score.toFixed(2) }),
    ],
  });
}
