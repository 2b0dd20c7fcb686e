"""Why a hit has its score, and which conditions of the filter it fulfils."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyroaring import BitMap

from indexer.filters import And, Filter, Not, Or, format_filter
from indexer.records import FloatArray
from indexer.snapshot import Snapshot
from indexer.vectors import normalise
from search.hits import Hit
from search.ranking import Fusion, Ranked


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What one pooled layer of the model adds to a cosine; `layer` as the model's configuration counts it."""

    layer: int
    part: float


@dataclass(frozen=True, slots=True)
class HitParts:
    """What one hit's score is made of; `None` and `()` where it has no such part.

    - `cosine`: of the query with the best passage; `layers` sum to it.
    - `bm25`: of the document with the query's words.
    - `boost`: what shared entities add to the score, or in a hybrid search to the cosine.
    - `rerank`: what a cross-encoder says of the best passage; it makes the order, not the score.
    - `fusion`: what both rankings give to the score of a hybrid search.
    - `matched`: the conditions of the filter that are true for the document, in the filter language.
    """

    id: str
    score: float
    cosine: float | None = None
    layers: tuple[LayerPart, ...] = ()
    bm25: float | None = None
    boost: float | None = None
    rerank: float | None = None
    fusion: Fusion | None = None
    matched: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without what the hit does not have."""
        found: dict[str, Any] = {"id": self.id, "score": self.score}
        if self.cosine is not None:
            found["cosine"] = self.cosine
        if self.layers:
            found["layers"] = [{"layer": layer.layer, "part": layer.part} for layer in self.layers]
        if self.bm25 is not None:
            found["bm25"] = self.bm25
        if self.boost is not None:
            found["boost"] = self.boost
        if self.rerank is not None:
            found["rerank"] = self.rerank
        if self.fusion is not None:
            found["fusion"] = {
                "meaning": {"rank": self.fusion.meaning_rank, "part": self.fusion.meaning},
                "words": {"rank": self.fusion.words_rank, "part": self.fusion.words},
            }
        if self.matched:
            found["matched"] = list(self.matched)
        return found

    def lines(self, number: int) -> Iterator[str]:
        """For reading."""
        parts = [
            f"{name} {value:.4f}"
            for name, value in (("cosine", self.cosine), ("bm25", self.bm25), ("boost", self.boost))
            if value is not None
        ]
        yield f"hit {number}: {self.score:.4f} of {', '.join(parts)}"
        if self.layers:
            yield "  cosine: " + " + ".join(f"{layer.part:.4f} (layer {layer.layer})" for layer in self.layers)
        if self.fusion is not None:
            shares = (
                ("meaning", self.fusion.meaning, self.fusion.meaning_rank),
                ("words", self.fusion.words, self.fusion.words_rank),
            )
            yield "  fusion: " + " + ".join(
                f"{part:.4f} ({name}{', not ranked' if rank is None else f', rank {rank}'})"
                for name, part, rank in shares
            )
        if self.rerank is not None:
            yield f"  rerank: {self.rerank:.4f}"
        if self.matched:
            yield f"  matched: {'; '.join(self.matched)}"


@dataclass(frozen=True, slots=True)
class _Condition:
    """A condition of a filter, the documents for which it is true without its `not`, and whether it has one."""

    text: str
    docs: BitMap
    negated: bool

    def matches(self, doc: int) -> bool:
        return (doc in self.docs) is not self.negated


def parts_of(
    snapshot: Snapshot,
    ranked: Sequence[Ranked],
    hits: Sequence[Hit],
    *,
    vector: FloatArray | None,
    layers: Sequence[int] = (),
    filter: Filter | None = None,
) -> tuple[HitParts, ...]:
    """The parts of each hit, in their order.

    `vector`: the query's, fp32 (dimension,), `None` for a search by words; `layers`: the pooled layers of the model,
    in the order in which the embedding concatenates them, none where they are not known.
    """
    unit = None if vector is None else normalise(vector[None])[0].astype(np.float64)
    rows = {} if unit is None else snapshot.vectors_of(sorted(document.vid for document in ranked))
    conditions = [] if filter is None or not hits else _evaluated(snapshot, filter)
    found = []
    for document, hit in zip(ranked, hits, strict=True):
        shares: tuple[LayerPart, ...] = ()
        cosine = document.cosine
        if unit is not None and document.vid in rows:
            products = rows[document.vid].astype(np.float64) * unit
            total = products.sum()
            if cosine is None:
                cosine = float(np.clip(total, -1.0, 1.0))
            products /= max(1.0, abs(total))  # what is stored is rounded, and may be a little longer than 1
            if layers:
                sums = products.reshape(len(layers), -1).sum(axis=1)
                shares = tuple(LayerPart(layer, part) for layer, part in zip(layers, sums.tolist(), strict=True))
        found.append(
            HitParts(
                id=hit.id,
                score=hit.score,
                cosine=cosine,
                layers=shares,
                bm25=document.bm25,
                boost=document.boost,
                rerank=document.rerank,
                fusion=document.fusion,
                matched=tuple(condition.text for condition in conditions if condition.matches(document.doc)),
            )
        )
    return tuple(found)


def _evaluated(snapshot: Snapshot, filter: Filter) -> list[_Condition]:
    """The conditions of a filter in order, each once; of a negated one, those documents match for which it is false."""
    found = []
    for condition in dict.fromkeys(_conditions(filter, negated=False)):
        negated = isinstance(condition, Not)
        docs = snapshot.allowed(condition.part if isinstance(condition, Not) else condition)
        found.append(_Condition(format_filter(condition), docs, negated))
    return found


def _conditions(filter: Filter, *, negated: bool) -> Iterator[Filter]:
    """A filter without And, Or, and Not around them: `not (a or b)` is `not a` and `not b` (De Morgan)."""
    match filter:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _conditions(part, negated=negated)
        case Not(part):
            yield from _conditions(part, negated=not negated)
        case _:
            yield Not(filter) if negated else filter
