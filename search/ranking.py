"""From scored passages to ranked documents, and from two rankings to one: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from indexer.planner import Candidates

# Vectors are found with fp32 arithmetic and scored with fp64: within this distance their order is open.
TIE = 1e-5
FIRST_CANDIDATES = 16
MARGIN = 2  # passages asked for first, for each document wanted
WIDEN = 4

RRF_K = 60  # Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet …"


@dataclass(frozen=True, slots=True)
class Fusion:
    """What both rankings give to a fused score, which is their sum, and the document's ranks among the candidates.

    A rank is `None` where the ranking does not have the document.
    """

    meaning: float
    words: float
    meaning_rank: int | None
    words_rank: int | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document with its best passage; `cosine`, `bm25`, `fusion` and `boost`: what its score is made of.

    `rerank`: what a cross-encoder says of the passage, in [0, 1], where one was asked.
    """

    doc: int
    vid: int
    score: float
    cosine: float | None = None
    bm25: float | None = None
    fusion: Fusion | None = None
    boost: float | None = None
    rerank: float | None = None


def best_passages(candidates: Candidates, *, exclude: Collection[int] = ()) -> list[Ranked]:
    """The best passage of each document, best first, without the documents to exclude."""
    docs, first = np.unique(candidates.docs, return_index=True)
    order = np.argsort(first, kind="stable")
    return [
        Ranked(int(docs[at]), int(candidates.vids[first[at]]), float(candidates.scores[first[at]]))
        for at in order
        if docs[at] not in exclude
    ]


def first_asked(wanted: int, available: int) -> int:
    """How many passages `rank_documents` asks for first."""
    return max(FIRST_CANDIDATES, MARGIN * min(wanted, available))


def rank_documents(
    find: Callable[[int], Candidates], *, wanted: int, available: int, exclude: Collection[int] = ()
) -> list[Ranked]:
    """At least the `wanted` best documents, best first, with all that tie with the last of them.

    `find(n)` gives the n best passages. It is asked for more until min(wanted, available) documents are there
    and no passage that it left out could belong among them.
    """
    wanted = min(wanted, available)
    n = first_asked(wanted, available)
    while True:
        candidates = find(n)
        ranked = best_passages(candidates, exclude=exclude)
        if len(candidates.vids) < n or len(ranked) >= available:
            return ranked
        if len(ranked) >= wanted and candidates.scores[-1] < ranked[wanted - 1].score - TIE:
            return ranked
        n *= WIDEN


def in_order(ranked: list[Ranked], ids: Mapping[int, str]) -> list[Ranked]:
    """Best score first; equal scores in the order of their ids."""
    return sorted(ranked, key=lambda document: (-document.score, ids[document.doc]))


def reciprocal_ranks(
    by_meaning: Sequence[Ranked], by_words: Sequence[tuple[int, float]], passages: Mapping[int, Ranked]
) -> list[Ranked]:
    """Two rankings as one: the score of a document is the sum of 1 / (60 + rank) over the rankings that have it.

    Ranks count from 1; equal scores in a ranking have the same rank. `by_words`: (doc, BM25), best first; `passages`:
    the best passage of every document of either ranking, its score the cosine. Best first.
    """
    meaning, words = ranks([(item.doc, item.score) for item in by_meaning]), ranks(by_words)
    fusions = {
        doc: Fusion(
            1.0 / (RRF_K + meaning[doc]) if doc in meaning else 0.0,
            1.0 / (RRF_K + words[doc]) if doc in words else 0.0,
            meaning.get(doc),
            words.get(doc),
        )
        for doc in (*meaning, *(doc for doc in words if doc not in meaning))
    }
    return _fused(fusions, dict(by_words), passages)


def ranks(ranking: Sequence[tuple[int, float]]) -> dict[int, int]:
    """The ranks of (doc, score), best first, from 1; equal scores have the same.

    >>> ranks([(7, 0.9), (3, 0.5), (4, 0.5), (1, 0.2)])
    {7: 1, 3: 2, 4: 2, 1: 4}
    """
    found: dict[int, int] = {}
    rank, last = 0, None
    for place, (doc, score) in enumerate(ranking, start=1):
        if score != last:
            rank, last = place, score
        found[doc] = rank
    return found


def weighted_scores(
    by_words: Sequence[tuple[int, float]], passages: Mapping[int, Ranked], *, keyword_weight: float
) -> list[Ranked]:
    """Scores in [0, 1]: (1 − w) · cosine + w · BM25, each scaled to the range that the candidates span.

    The cosine is scaled from lowest to highest, BM25 from 0, which is what a document without any of the words has.
    """
    cosines = [item.score for item in passages.values()]
    low, high = min(cosines, default=0.0), max(cosines, default=0.0)
    words = dict(by_words)
    most = max(words.values(), default=0.0)
    meaning_ranks = ranks(sorted(((doc, item.score) for doc, item in passages.items()), key=lambda item: -item[1]))
    word_ranks = ranks(by_words)
    fusions = {
        doc: Fusion(
            (1.0 - keyword_weight) * ((item.score - low) / (high - low) if high > low else 1.0),
            keyword_weight * (words.get(doc, 0.0) / most if most > 0 else 0.0),
            meaning_ranks[doc],
            word_ranks.get(doc),
        )
        for doc, item in passages.items()
    }
    return _fused(fusions, words, passages)


def _fused(fusions: Mapping[int, Fusion], words: Mapping[int, float], passages: Mapping[int, Ranked]) -> list[Ranked]:
    ranked = [
        Ranked(
            doc,
            passages[doc].vid,
            fusion.meaning + fusion.words,
            cosine=passages[doc].score,
            bm25=words.get(doc),
            fusion=fusion,
        )
        for doc, fusion in fusions.items()
    ]
    return sorted(ranked, key=lambda item: (-item.score, item.doc))
