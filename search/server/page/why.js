// Why hits have their scores, and what the search did.

import { counted, element } from "./dom.js";

const number = (value) => value.toFixed(3);

// The parts of one hit's score, closed until they are asked for.
export function partsElement(parts) {
  const rows = [["score", number(parts.score)]];
  if (parts.cosine !== undefined) rows.push(["likeness of meaning (cosine)", number(parts.cosine)]);
  for (const { layer, part } of parts.layers ?? []) rows.push([`of which layer ${layer}`, number(part)]);
  if (parts.bm25 !== undefined) rows.push(["words (BM25)", number(parts.bm25)]);
  if (parts.boost !== undefined) rows.push(["names in common", `+ ${number(parts.boost)}`]);
  if (parts.fusion) {
    for (const [name, share] of Object.entries(parts.fusion)) {
      rows.push([`share of ${name}`, share.rank === null ? "not ranked" : `${number(share.part)}, rank ${share.rank}`]);
    }
  }
  if (parts.rerank !== undefined) rows.push(["read again", number(parts.rerank)]);
  if (parts.matched) rows.push(["filters that hold", parts.matched.join("; ")]);
  return element("details", {
    className: "why",
    children: [
      element("summary", { text: "Why this score" }),
      element("dl", {
        className: "facts",
        children: rows.map(([name, value]) =>
          element("div", { children: [element("dt", { text: name }), element("dd", { text: value })] }),
        ),
      }),
    ],
  });
}

// Sentences about a search: what the names in the query did, and, where it was asked for, how it was answered.
export function aboutElements(explanation, { whole }) {
  const sentences = [];
  if (explanation.entities) sentences.push(namesSentence(explanation.entities));
  if (whole) {
    const { allowed, documents, milliseconds } = explanation;
    const time = Object.values(milliseconds).reduce((sum, one) => sum + one, 0);
    sentences.push(`${counted(allowed, "document")} of ${documents.toLocaleString("en")} may be found.`);
    for (const round of explanation.rounds) {
      const scanned = [
        ...(round.scanned_codes ? [`${round.scanned_codes.toLocaleString("en")} codes`] : []),
        `${round.scanned_vectors.toLocaleString("en")} vectors`,
      ];
      sentences.push(`Plan ${round.plan}: compared ${scanned.join(" and ")}.`);
    }
    if (explanation.reranking) sentences.push(`${explanation.reranking.model} read ${counted(explanation.reranking.passages, "passage")}.`);
    sentences.push(`It took ${time.toFixed(1)} ms without the model.`);
  }
  return sentences.map((text) => element("p", { text }));
}

function namesSentence({ done, found, sharing }) {
  if (!found.length) return "No name was found in the query.";
  const names = found.map(({ type, text, documents }) => `${text} (${type}, ${counted(documents, "document")})`).join(", ");
  if (done === "nothing") return `Names in the query: ${names}. No document has any, so that all were searched.`;
  const what = done === "filter" ? "Only these were searched" : "These were raised";
  return `Names in the query: ${names}. ${what}: ${counted(sharing, "document")}.`;
}
