"""The ways of finding documents: by meaning, by words, and by both. Each gives ranked documents of one snapshot.

With a boost, the documents that share entities of the query are searched a second time among themselves, those that
share as many of them together, so that each group is ranked exactly whatever its place in the whole ranking. What is
missing of the others cannot belong among the best: so many better ones were found without a boost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pyroaring import BitMap

from indexer.planner import Candidates, SearchPlan
from indexer.records import FloatArray
from indexer.snapshot import Snapshot
from search.entities import Boost
from search.explain import Explanation
from search.keywords import expression_of
from search.query import Query
from search.ranking import Ranked, first_asked, rank_documents, reciprocal_ranks, weighted_scores

FUSED_AT_LEAST = 200  # documents of each ranking that are fused
FUSED_PER_WANTED = 4


@dataclass(frozen=True, slots=True)
class First:
    """The n best passages of a query, and how they were found."""

    n: int
    candidates: Candidates
    plan: SearchPlan


def first_of_many(snapshot: Snapshot, queries: FloatArray, wanted: int, chosen: BitMap | None) -> list[First | None]:
    """What `by_meaning` looks for first, for several queries at once, fp32 (queries, dimension), without a boost."""
    available = snapshot.count() if chosen is None else len(chosen)
    if available <= 0 or wanted <= 0:
        return [None] * len(queries)
    n = first_asked(wanted, available)
    found = snapshot.search_vectors_many(queries, n, allowed=chosen, parallel=False)
    return [First(n, candidates, plan) for candidates, plan in found]


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
    boost: Boost | None = None,
    first: First | None = None,
) -> list[Ranked]:
    """The `wanted` best documents by cosine, and those that tie with the last of them. `vector` fp32 (dimension,).

    With a `boost` it is added to the cosine. `first`: what `first_of_many` found for the chosen documents.
    """

    def find(docs: BitMap | None) -> list[Ranked]:
        available = snapshot.count() if docs is None else len(docs)
        available -= sum(1 for doc in exclude if docs is None or doc in docs)
        if available <= 0 or wanted <= 0:
            return []

        def find_passages(n: int) -> Candidates:
            if first is not None and n == first.n:
                explanation.plans.append(first.plan)
                return first.candidates
            candidates, plan = snapshot.search_vectors(vector, n, allowed=docs, path=path, parallel=parallel)
            explanation.plans.append(plan)
            return candidates

        return rank_documents(find_passages, wanted=wanted, available=available, exclude=exclude)

    with explanation.timed("vectors"):
        if boost is None:
            return find(chosen)
        return _best(_raised(_in_groups(find, chosen, boost), boost), wanted)


def by_words(
    snapshot: Snapshot,
    text: str,
    query: Query,
    chosen: BitMap | None,
    explanation: Explanation,
    *,
    boost: Boost | None = None,
) -> list[Ranked]:
    """The documents that match the words of a text best, by BM25, up to offset + k and ties. Needs no model.

    A document's passage is the one with most of the words, the first of several. With a `boost`, that of a document is
    multiplied by the best BM25 there is, and added.
    """
    expression = expression_of(text)
    if expression is None:
        return []
    with explanation.timed("keywords"):
        found = _match_words(snapshot, expression, query.offset + query.k, chosen, boost)
        passages = snapshot.passages_with_words(expression, [item.doc for item in found])
    return [replace(item, vid=passages[item.doc]) for item in found]


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
    boost: Boost | None = None,
) -> list[Ranked]:
    """The documents of both rankings, fused. Every document that the filter allows counts in both before they are cut.

    Where offset + k is more than the two rankings hold together, they are made longer; so the fused order of the first
    documents can differ between small and large k, and paging keeps to one depth by asking with the same k. A `boost`
    raises documents in both rankings, before they are fused.
    """
    depth = max(FUSED_AT_LEAST, FUSED_PER_WANTED * (query.offset + query.k))
    with explanation.timed("keywords"):
        expression = expression_of(text)
        words = [] if expression is None else _match_words(snapshot, expression, depth, chosen, boost)
    meaning = by_meaning(snapshot, vector, depth, chosen, explanation, path=path, parallel=parallel, boost=boost)
    meaning = _best(meaning, depth)
    passages = {item.doc: item for item in meaning}
    others = [item.doc for item in words if item.doc not in passages]
    rest = [Ranked(doc, vid, score) for doc, (vid, score) in snapshot.best_passages(vector, others).items()]
    passages |= {item.doc: item for item in (rest if boost is None else _raised(rest, boost))}
    by_words = [(item.doc, item.score) for item in words]
    if query.fusion == "weighted":
        fused = weighted_scores(by_words, passages, keyword_weight=query.keyword_weight)
    else:
        fused = reciprocal_ranks(meaning, by_words, passages)
    return fused if boost is None else _with_parts(fused, passages, {item.doc: item for item in words}, boost)


def _match_words(
    snapshot: Snapshot, expression: str, wanted: int, chosen: BitMap | None, boost: Boost | None
) -> list[Ranked]:
    """The documents that match best, best first, and those that tie with the last; without their passages."""

    def find(docs: BitMap | None) -> list[Ranked]:
        found = snapshot.match_words(expression, wanted, docs)
        return [Ranked(doc, 0, score, bm25=score) for doc, score in found]

    if boost is None:
        return find(chosen)
    found = _in_groups(find, chosen, boost)
    return _best(_raised(found, boost, scale=max((item.score for item in found), default=0.0)), wanted)


def _in_groups(find: Callable[[BitMap | None], list[Ranked]], chosen: BitMap | None, boost: Boost) -> list[Ranked]:
    """The best of all the chosen, and the best of each group of documents that share as many entities."""
    found = {item.doc: item for item in find(chosen)}
    for _, docs in boost.shared.levels:
        found |= {item.doc: item for item in find(docs)}
    return list(found.values())


def _raised(ranked: Sequence[Ranked], boost: Boost, *, scale: float = 1.0) -> list[Ranked]:
    """With the boost added to the scores; `scale` is what the score of a perfect document is about."""
    raised = []
    for item in ranked:
        added = scale * boost.of(item.doc)
        cosine = item.score if item.bm25 is None else None
        raised.append(replace(item, score=item.score + added, cosine=cosine, boost=added))
    return raised


def _best(ranked: Sequence[Ranked], wanted: int) -> list[Ranked]:
    """Best first, equal scores by number, up to `wanted` and those that tie with the last of them."""
    order = sorted(ranked, key=lambda item: (-item.score, item.doc))
    if len(order) <= wanted:
        return order
    return [item for item in order if item.score >= order[wanted - 1].score] if wanted > 0 else []


def _with_parts(
    fused: Sequence[Ranked], passages: Mapping[int, Ranked], words: Mapping[int, Ranked], boost: Boost
) -> list[Ranked]:
    """Fused documents with the cosine and the BM25 that they have without a boost, and what it added to the cosine."""
    return [
        replace(
            item,
            cosine=passages[item.doc].cosine,
            bm25=words[item.doc].bm25 if item.doc in words else None,
            boost=boost.of(item.doc),
        )
        for item in fused
    ]
