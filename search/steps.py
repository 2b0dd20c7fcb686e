"""The steps of one query on one commit of the index: filter, rank, choose what is shown, and read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pyroaring import BitMap

from indexer.records import FloatArray
from indexer.snapshot import Snapshot
from search.diversity import Group, diversify
from search.enrich import enrich
from search.entities import Boost, EntityUse, QueryEntity, shared_entities
from search.excerpts import highlighted_by_words, with_passages
from search.explain import Explanation, Reranking
from search.hits import Hit
from search.query import Query
from search.ranking import Ranked, in_order
from search.retrieval import First, by_both, by_meaning, by_words, first_of_many

if TYPE_CHECKING:
    from search.rerank import CrossEncoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query's options, with its text and what the model made of it.

    `vector` fp32 (dimension,), `None` where only words count. `entities`: those that the query names. `exclude`:
    documents that are no hits. `path` forces one of `indexer.planner.PLANS`; with `parallel`, segments are searched by
    several threads. `boost` follows from the entities, once a commit is held still. `reranker`: the one that the query
    asks for. `first`: what was found for it together with others; see `together`.
    """

    query: Query
    text: str = ""
    vector: FloatArray | None = None
    entities: tuple[QueryEntity, ...] = ()
    exclude: frozenset[int] = frozenset()
    path: str = "auto"
    parallel: bool = True
    boost: Boost | None = None
    reranker: CrossEncoder | None = None
    first: First | None = None

    @property
    def plain(self) -> bool:
        """Whether it only asks for the best documents by meaning, so that `together` can search for it."""
        return self.query.plain and self.vector is not None and self.reranker is None and not self.exclude


def find(snapshot: Snapshot, asked: Asked, explanation: Explanation) -> list[Hit]:
    """Filter → search → rank → enrich."""
    with explanation.timed("filter"):
        chosen = allowed(snapshot, asked.query)
        if asked.query.entities is not None:
            asked, chosen = with_entities(snapshot, asked, chosen, explanation)
        explanation.documents = snapshot.count()
        explanation.allowed = explanation.documents if chosen is None else len(chosen)
    return hits_among(snapshot, asked, chosen, explanation)


def together(snapshot: Snapshot, asked: Sequence[Asked], chosen: BitMap | None) -> list[Asked]:
    """Plain queries that want as many among the same documents, with what one pass over the codes found for each."""
    vectors = np.stack([one.vector for one in asked if one.vector is not None])
    wanted = asked[0].query.offset + asked[0].query.k
    found = first_of_many(snapshot, vectors, wanted, chosen)
    return [replace(one, first=first, parallel=False) for one, first in zip(asked, found, strict=True)]


def allowed(snapshot: Snapshot, query: Query) -> BitMap | None:
    """The documents that the filter allows, `None` for all."""
    return None if query.filter is None else snapshot.allowed(query.filter)


def hits_among(snapshot: Snapshot, asked: Asked, chosen: BitMap | None, explanation: Explanation) -> list[Hit]:
    """The hits among chosen documents (`None`: all)."""
    query = asked.query
    groups = groups_among(snapshot, asked, chosen, explanation, wanted=query.offset + query.k)
    return show(snapshot, asked, page(groups, query), explanation)


def groups_among(
    snapshot: Snapshot, asked: Asked, chosen: BitMap | None, explanation: Explanation, *, wanted: int
) -> list[Group]:
    """The first documents to show among chosen ones (`None`: all); fewer than `wanted` where there are no more."""
    query = asked.query

    def found(n: int) -> list[Ranked]:
        deeper = replace(asked, query=replace(query, k=n, offset=0))
        return ordered(snapshot, rank(snapshot, deeper, chosen, explanation), query)[:n]

    def describe(ranked: Sequence[Ranked]) -> tuple[FloatArray, list[str]]:
        with explanation.timed("diversity"):
            return _described(snapshot, ranked)

    if asked.reranker is not None:
        again = _reranked(snapshot, found(query.rerank_top), asked.text, asked.reranker, explanation)

    def best(n: int) -> list[Ranked]:
        return found(n) if asked.reranker is None else again[:n]

    if not query.diverse:
        return [Group(document) for document in best(wanted)]
    return diversify(
        best,
        describe,
        wanted=wanted,
        distinct=query.distinct,
        mmr=query.mmr,
        cosines=query.mode == "cosine",
    )


def show(snapshot: Snapshot, asked: Asked, shown: Sequence[Group], explanation: Explanation) -> list[Hit]:
    """The hits of documents that are shown, in their order, with what of their texts is asked for."""
    query = asked.query
    explanation.ranked = [group.best for group in shown]
    with explanation.timed("documents"):
        hits = enrich(snapshot, explanation.ranked)
        ids = snapshot.ids([document.doc for group in shown for document in group.hidden])
        hits = [
            replace(hit, hidden=tuple(ids[document.doc] for document in group.hidden)) if group.hidden else hit
            for hit, group in zip(hits, shown, strict=True)
        ]
    if query.passages:
        with explanation.timed("passages"):
            hits = with_passages(snapshot, hits, explanation.ranked, asked.vector, asked.text, query)
    if query.highlight and asked.vector is None:  # by meaning it needs the model, and no index any more
        with explanation.timed("highlight"):
            hits = highlighted_by_words(snapshot, hits, explanation.ranked, asked.text)
    return hits


def with_entities(
    snapshot: Snapshot, asked: Asked, chosen: BitMap | None, explanation: Explanation, *, used: bool | None = None
) -> tuple[Asked, BitMap | None]:
    """What the query's entities make of it: fewer documents, or a boost for some; nothing where none shares any.

    `used`: whether there were such documents when the query began, for its later pages.
    """
    query, shared = asked.query, shared_entities(snapshot, asked.entities, chosen)
    docs = shared.docs
    explanation.entities = EntityUse(query.entities or "", shared.entities, shared.documents, len(docs), query.boost)
    if not (docs if used is None else used):
        return asked, chosen
    if query.entities == "filter":
        return asked, docs
    return replace(asked, boost=Boost(query.boost, shared)), chosen


def rank(snapshot: Snapshot, asked: Asked, chosen: BitMap | None, explanation: Explanation) -> list[Ranked]:
    """The best documents up to offset + k, and those that tie with the last of them."""
    query, vector, text = asked.query, asked.vector, asked.text
    if query.mode == "keyword" or vector is None:
        return by_words(snapshot, text, query, chosen, explanation, boost=asked.boost)
    options: Any = {"path": asked.path, "parallel": asked.parallel, "boost": asked.boost}
    if query.mode == "hybrid":
        return by_both(snapshot, text, vector, query, chosen, explanation, **options)
    wanted = query.offset + query.k
    return by_meaning(
        snapshot, vector, wanted, chosen, explanation, exclude=asked.exclude, first=asked.first, **options
    )


def ordered(snapshot: Snapshot, ranked: list[Ranked], query: Query) -> list[Ranked]:
    """Those with enough score, in the order of showing."""
    if query.min_score is not None:
        ranked = [document for document in ranked if document.score >= query.min_score]
    return in_order(ranked, snapshot.ids([document.doc for document in ranked]))


def page(found: Sequence[T], query: Query) -> Sequence[T]:
    """What is shown of a ranking."""
    return found[query.offset : query.offset + query.k]


def _reranked(
    snapshot: Snapshot, ranked: Sequence[Ranked], text: str, reranker: CrossEncoder, explanation: Explanation
) -> list[Ranked]:
    """All of the documents in the order of what a cross-encoder says of their passages; ties in the order of ids."""
    docs = [document.doc for document in ranked]
    with explanation.timed("documents"):
        ids, texts, passages = snapshot.ids(docs), snapshot.texts_of(docs), snapshot.passages_of(docs)
    spans = {vid: (start, end) for own in passages.values() for vid, start, end in own}
    with explanation.timed("rerank"):
        scored = reranker.score(text, [texts[item.doc][slice(*spans[item.vid])] for item in ranked])
    explanation.reranking = Reranking(reranker.name, len(ranked), scored.truncated, reranker.max_tokens)
    again = [replace(item, rerank=score) for item, score in zip(ranked, scored.scores.tolist(), strict=True)]
    return sorted(again, key=lambda item: (-(item.rerank or 0.0), ids[item.doc]))


def _described(snapshot: Snapshot, ranked: Sequence[Ranked]) -> tuple[FloatArray, list[str]]:
    """The embeddings and texts of documents, in their order."""
    docs = [document.doc for document in ranked]
    texts = snapshot.texts_of(docs)
    return snapshot.document_vectors(docs), [texts[doc] for doc in docs]
