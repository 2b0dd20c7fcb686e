"""The ways of finding documents: by meaning, by words, and by both. Each gives ranked documents of one snapshot."""

from __future__ import annotations

from pyroaring import BitMap

from indexer.reader import Snapshot
from indexer.records import FloatArray
from indexer.vectors import Candidates
from search.explain import Explanation
from search.keywords import expression_of
from search.query import Query
from search.ranking import Ranked, rank_documents, reciprocal_ranks, weighted_scores

FUSED_AT_LEAST = 200  # documents of each ranking that are fused
FUSED_PER_WANTED = 4


def by_meaning(
    snapshot: Snapshot,
    vector: FloatArray,
    wanted: int,
    chosen: BitMap | None,
    explanation: Explanation,
    *,
    exclude: frozenset[int] = frozenset(),
    path: str = "auto",
    parallel: bool = True,
) -> list[Ranked]:
    """The `wanted` best documents by cosine, and those that tie with the last of them. `vector` fp32 (dimension,)."""
    available = snapshot.count() if chosen is None else len(chosen)
    available -= sum(1 for doc in exclude if chosen is None or doc in chosen)
    if available <= 0 or wanted <= 0:
        return []

    def find(n: int) -> Candidates:
        candidates, plan = snapshot.search_vectors(vector, n, allowed=chosen, path=path, parallel=parallel)
        explanation.plans.append(plan)
        return candidates

    with explanation.timed("vectors"):
        return rank_documents(find, wanted=wanted, available=available, exclude=exclude)


def by_words(
    snapshot: Snapshot, text: str, query: Query, chosen: BitMap | None, explanation: Explanation
) -> list[Ranked]:
    """The documents that match the words of a text best, by BM25, up to offset + k and ties. Needs no model.

    A document's passage is the one with most of the words, the first of several.
    """
    expression = expression_of(text)
    if expression is None:
        return []
    with explanation.timed("keywords"):
        found = snapshot.match_words(expression, query.offset + query.k, chosen)
        passages = snapshot.passages_with_words(expression, [doc for doc, _ in found])
    return [Ranked(doc, passages[doc], score, bm25=score) for doc, score in found]


def by_both(
    snapshot: Snapshot,
    text: str,
    vector: FloatArray,
    query: Query,
    chosen: BitMap | None,
    explanation: Explanation,
    *,
    path: str = "auto",
    parallel: bool = True,
) -> list[Ranked]:
    """The documents of both rankings, fused. Every document that the filter allows counts in both before they are cut.

    Where offset + k is more than the two rankings hold together, they are made longer; so the fused order of the first
    documents can differ between small and large k, and paging keeps to one depth by asking with the same k.
    """
    depth = max(FUSED_AT_LEAST, FUSED_PER_WANTED * (query.offset + query.k))
    with explanation.timed("keywords"):
        expression = expression_of(text)
        words = [] if expression is None else snapshot.match_words(expression, depth, chosen)
    meaning = by_meaning(snapshot, vector, depth, chosen, explanation, path=path, parallel=parallel)
    passages = {item.doc: item for item in meaning}
    others = [doc for doc, _ in words if doc not in passages]
    passages |= {doc: Ranked(doc, vid, score) for doc, (vid, score) in snapshot.best_passages(vector, others).items()}
    if query.fusion == "weighted":
        return weighted_scores(words, passages, keyword_weight=query.keyword_weight)
    return reciprocal_ranks(meaning, words, passages)
