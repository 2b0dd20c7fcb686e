"""The weights of the pooled layers, chosen on held-in similarity and retrieval."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from default_model.common import Floats
from default_model.features import Encoder
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


def choose_layer_weights(encoder: Encoder, folder: Path) -> tuple[list[float], dict[str, Any]]:
    """Weights for normalised layers, chosen on the sets in `chosen_on`; the others only check.

    With normalised layers, the cosine of two embeddings is Σ aₗ · cosₗ with shares aₗ = wₗ² / Σ w², so each
    layer's cosines are computed once, and a share vector costs one weighted sum.
    """
    sets = similarity_sets(encoder, folder)
    chosen_on, every = sets.chosen_on, {**sets.chosen_on, **sets.checks}
    floor = np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)
    floors = {name: found.score(floor) for name, found in every.items()}

    def gain(shares: Floats) -> float:
        """Mean gain over the last layer alone, if no set loses more than the tolerance."""
        gains = [found.score(shares) - floors[name] for name, found in chosen_on.items()]
        return float(np.mean(gains)) if min(gains) > -TOLERANCE else -1.0

    best, value = floor, 0.0
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
    report: dict[str, Any] = {"layer_weights": weights, "chosen_on": list(chosen_on), "scores": {}}
    equal = np.full(4, 0.25, dtype=np.float32)
    for name, found in every.items():
        report["scores"][name] = {
            "last layer": floors[name],
            "equal": found.score(equal),
            "chosen": found.score(exact),
        }
    return weights, report


Similarities = PairSimilarities | QuerySimilarities


@dataclass(frozen=True, slots=True)
class SimilaritySets:
    """Sets to choose the weights on, and sets that only check them."""

    chosen_on: dict[str, Similarities]
    checks: dict[str, Similarities]


def similarity_sets(encoder: Encoder, folder: Path) -> SimilaritySets:
    generator = random.Random(7)
    papers = [row for row in data.read_jsonl(folder / "acl-anthology" / "acl-2016-2024.jsonl.xz") if row["abstract"]]
    papers = generator.sample(papers, 3000)
    trivia = list(data.read_jsonl(folder / "opentrivia" / "opentrivia.jsonl.xz"))
    trivia = list({row["answer"].lower(): row for row in generator.sample(trivia, 4000)}.values())[:2500]
    synsets = [row for row in data.read_jsonl(folder / "oewn" / "oewn-synsets.jsonl.xz") if row["examples"]]
    synsets = generator.sample(synsets, 2500)
    paragraphs = wiki_pairs(folder, 1500, generator)

    def pairs(name: str, path: Path) -> PairSimilarities:
        rows = data.read_stsb(path)
        first = encoder.features(f"{name}-1", [row.first for row in rows])
        second = encoder.features(f"{name}-2", [row.second for row in rows])
        cosines = np.einsum("nld,nld->ln", unit(first), unit(second))
        return PairSimilarities(cosines, np.array([row.score for row in rows], dtype=np.float32))

    def twins(name: str, queries: Sequence[str], documents: Sequence[str]) -> QuerySimilarities:
        first = encoder.features(f"{name}-queries", queries)
        second = encoder.features(f"{name}-documents", documents)
        return QuerySimilarities(layer_cosines(first, second), [[row] for row in range(len(queries))])

    def titles(name: str, rows: Sequence[Mapping[str, Any]]) -> QuerySimilarities:
        return twins(name, [row["title"] for row in rows], [row["abstract"] for row in rows])

    chosen_on: dict[str, Similarities] = {
        "STS-B train": pairs("stsb-train", folder / "stsb" / "sts-train.csv"),
        "ACL titles": titles("acl-1", papers[:1500]),
        "wiki paragraphs": twins("wiki", [a for a, _ in paragraphs], [b for _, b in paragraphs]),
        "trivia answers": twins("trivia", [row["question"] for row in trivia], [str(row["answer"]) for row in trivia]),
        "OEWN examples": twins("oewn", [row["examples"][0] for row in synsets], [row["definition"] for row in synsets]),
    }
    checks: dict[str, Similarities] = {
        "STS-B dev": pairs("stsb-dev", folder / "stsb" / "sts-dev.csv"),
        "ACL titles held out": titles("acl-2", papers[1500:]),
        "SciFact train": scifact(encoder, folder, generator),
    }
    return SimilaritySets(chosen_on, checks)


def scifact(encoder: Encoder, folder: Path, generator: random.Random) -> QuerySimilarities:
    """All training queries, on the documents that are relevant to one and 1,000 others."""
    found = data.read_beir(folder / "scifact", split="train")
    wanted = {document for relevant in found.relevant.values() for document in relevant}
    others = sorted(found.documents.keys() - wanted)
    names = sorted(wanted) + generator.sample(others, 1000)
    column = {name: index for index, name in enumerate(names)}
    queries = encoder.features("scifact-queries", list(found.queries.values()))
    documents = encoder.features("scifact-documents", [found.documents[name] for name in names])
    relevant = [[column[name] for name in found.relevant[query]] for query in found.queries]
    return QuerySimilarities(layer_cosines(queries, documents), relevant)


def wiki_pairs(folder: Path, count: int, generator: random.Random) -> list[tuple[str, str]]:
    """Two paragraphs each of `count` articles."""
    articles: dict[str, list[str]] = {}
    for row in data.read_jsonl(folder / "wiki-en" / "wiki-paragraphs.jsonl.xz"):
        if len(row["text"]) > 150:
            articles.setdefault(row["title"], []).append(row["text"])
    titles = sorted(title for title, texts in articles.items() if len(texts) > 1)
    return [(articles[title][0], articles[title][1]) for title in generator.sample(titles, count)]


def unit(means: Floats) -> Floats:
    result: Floats = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return result


def layer_cosines(queries: Floats, documents: Floats) -> Floats:
    """(q, 4, d), (n, 4, d) → (4, q, n)."""
    result: Floats = np.einsum("qld,nld->lqn", unit(queries), unit(documents), optimize=True)
    return result
