"""Similarity and retrieval on texts that were kept out of training, and the weights of the layers that they ask for."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from default_model.common import Floats
from default_model.features import Encoder
from default_model.pairs import Row, glosses, held_out, neighbours, paragraphs, questions
from indexer.training import data, metrics

TOLERANCE = 0.002  # what any one set may lose by the layer weights, about the noise of its score


@dataclass(frozen=True, slots=True)
class PairSimilarities:
    """Cosines of each layer for scored pairs: `cosines` (4, pairs), `scores` (pairs,)."""

    cosines: Floats
    scores: Floats

    def score(self, shares: Floats) -> float:
        return metrics.spearman(np.tensordot(shares, self.cosines, axes=1), self.scores)


@dataclass(frozen=True, slots=True)
class QuerySimilarities:
    """Cosines of each layer for queries and documents: `cosines` (4, queries, documents).

    `relevant`: for each query the columns of its relevant documents.
    """

    cosines: Floats
    relevant: list[list[int]]

    def score(self, shares: Floats) -> float:
        """nDCG@10, all grades 1."""
        scores = np.tensordot(shares, self.cosines, axes=1)
        if all(len(columns) == 1 for columns in self.relevant):
            own = scores[np.arange(len(scores)), [columns[0] for columns in self.relevant]]
            ranks = 1 + (scores > own[:, None]).sum(axis=1)
            return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())
        values = []
        for row, columns in zip(scores, self.relevant, strict=True):
            best = np.argsort(-row, kind="stable")[:10]
            values.append(metrics.ndcg([str(column) for column in best], {str(column): 1.0 for column in columns}))
        return float(np.mean(values))


Similarities = PairSimilarities | QuerySimilarities


def choose_layer_weights(
    sets: Mapping[str, Similarities], floors: Mapping[str, float], *, tolerance: float = TOLERANCE
) -> tuple[list[float], float, dict[str, dict[str, float]]]:
    """Weights for normalised layers; the mean gain over `floors`, negative where a set loses `tolerance` or more.

    With normalised layers, the cosine of two embeddings is Σ aₗ · cosₗ with shares aₗ = wₗ² / Σ w², so each
    layer's cosines are computed once, and a share vector costs one weighted sum. Third, the scores by set: of the last
    layer alone, with equal weights, and with those that were chosen.
    """
    last, equal = np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32), np.full(4, 0.25, dtype=np.float32)

    def gain(shares: Floats) -> float:
        gains = [found.score(shares) - floors[name] for name, found in sets.items()]
        return float(np.mean(gains)) if min(gains) > -tolerance else -1.0 + float(np.mean(gains))

    best, value = last, gain(last)
    for step in (0.05, 0.01):
        centre = best[1:]
        for moves in itertools.product(range(5) if step == 0.05 else range(-4, 5), repeat=3):
            others = (0 if step == 0.05 else centre) + step * np.array(moves)
            if others.min() < -1e-9 or others.sum() > 0.9:
                continue
            shares = np.concatenate([[1 - others.sum()], others.clip(min=0)]).astype(np.float32)
            if (improved := gain(shares)) > value + 1e-6:
                best, value = shares, improved
    weights = [round(float(weight), 4) for weight in np.sqrt(best / best.max())]
    exact = np.array(weights, dtype=np.float32) ** 2
    exact /= exact.sum()
    scores = {
        name: {"last layer": found.score(last), "equal": found.score(equal), "chosen": found.score(exact)}
        for name, found in sets.items()
    }
    return weights, value, scores


def floors_of(sets: Mapping[str, Similarities]) -> dict[str, float]:
    """What the last layer alone gives."""
    last = np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)
    return {name: found.score(last) for name, found in sets.items()}


def similarity_sets(encoder: Encoder, folder: Path) -> dict[str, Similarities]:
    """Similarity and retrieval on texts that the backbone was not adapted on; see `pairs.held_out`."""
    generator = random.Random(7)

    def pairs(name: str, path: Path) -> PairSimilarities:
        rows = data.read_stsb(path)
        first = encoder.features(f"{name}-1", [row.first for row in rows])
        second = encoder.features(f"{name}-2", [row.second for row in rows])
        cosines = np.einsum("nld,nld->ln", unit(first), unit(second))
        return PairSimilarities(cosines, np.array([row.score for row in rows], dtype=np.float32))

    def twins(name: str, rows: Sequence[tuple[str, str]], count: int) -> QuerySimilarities:
        """Each first text's only relevant document is its second one."""
        rows = generator.sample(list({b: (a, b) for a, b in rows}.values()), min(count, len(rows)))
        first = encoder.features(f"{name}-queries", [a for a, _ in rows])
        second = encoder.features(f"{name}-documents", [b for _, b in rows])
        return QuerySimilarities(layer_cosines(first, second), [[row] for row in range(len(rows))])

    def kept_out(rows: Iterator[tuple[str, Row]]) -> list[tuple[str, str]]:
        return [(row["first"], row["second"]) for key, row in rows if held_out(key)]

    titles = {row["title"]: row["abstract"] for row in papers_of(folder) if held_out(row["id"])}
    return {
        "STS-B dev": pairs("stsb-dev", folder / "stsb" / "sts-dev.csv"),
        "ACL title → abstract": twins("acl", list(titles.items()), 500),
        "SciFact claim → abstract": scifact(encoder, folder, generator),
        "sentence → its paragraph": twins("wiki", kept_out(paragraphs(folder)), 400),
        "paragraph → one of its article": twins("articles", kept_out(neighbours(folder, limit=10_000)), 400),
        "question → answer": twins("trivia", kept_out(questions(folder)), 1000),
        "example → gloss": twins("oewn", kept_out(glosses(folder)), 1000),
        "request → same intent": intents(encoder, folder),
    }


def papers_of(folder: Path) -> Iterator[Row]:
    """Papers with abstracts, as they are."""
    rows = data.read_jsonl(folder / "acl-anthology" / "acl-2016-2024.jsonl.xz")
    return (row for row in rows if row["abstract"] and len(row["title"]) > 10)


def scifact(encoder: Encoder, folder: Path, generator: random.Random) -> QuerySimilarities:
    """The training queries that were kept out, on their documents and 400 others."""
    found = data.read_beir(folder / "scifact", split="train")
    asked = {name: query for name, query in found.queries.items() if name in found.relevant and held_out(name)}
    wanted = {document for relevant in found.relevant.values() for document in relevant}
    others = sorted(found.documents.keys() - wanted)
    names = sorted(generator.sample(sorted(wanted), 200)) + generator.sample(others, 200)
    names += sorted({document for name in asked for document in found.relevant[name]} - set(names))
    column = {name: index for index, name in enumerate(names)}
    queries = encoder.features("scifact-queries", list(asked.values()))
    documents = encoder.features("scifact-documents", [found.documents[name] for name in names])
    relevant = [[column[document] for document in found.relevant[name]] for name in asked]
    return QuerySimilarities(layer_cosines(queries, documents), relevant)


def intents(encoder: Encoder, folder: Path) -> QuerySimilarities:
    """Two requests of each intent → ten others of it. Requests to assistants: a kind of text and of likeness that
    nothing is trained on, so that what is gained elsewhere is not bought here."""
    found = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))["val"]
    by_intent: dict[str, list[str]] = {}
    for text, intent in found:
        by_intent.setdefault(intent, []).append(text)
    texts = [by_intent[intent][:12] for intent in sorted(by_intent)]
    queries = encoder.features("intents-queries", [text for one in texts for text in one[:2]])
    documents = encoder.features("intents-documents", [text for one in texts for text in one[2:]])
    relevant = [list(range(10 * intent, 10 * intent + 10)) for intent in range(len(texts)) for _ in range(2)]
    return QuerySimilarities(layer_cosines(queries, documents), relevant)


def unit(means: Floats) -> Floats:
    result: Floats = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return result


def layer_cosines(queries: Floats, documents: Floats) -> Floats:
    """(q, 4, d), (n, 4, d) → (4, q, n)."""
    result: Floats = np.einsum("qld,nld->lqn", unit(queries), unit(documents), optimize=True)
    return result
