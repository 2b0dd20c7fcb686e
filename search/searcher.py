"""Query in, hits out: the whole way of a search in one method."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pyroaring import BitMap

from indexer.errors import ModelError, QueryError
from indexer.fields import has_lone_surrogate
from indexer.filters import Filter, check_names, parse
from indexer.reader import IndexInfo, IndexReader, Snapshot
from indexer.records import FloatArray
from indexer.settings import IndexSettings, check_model
from indexer.stored import StoredDocument
from search.counting import count_facets
from search.diversity import Group, diversify
from search.enrich import enrich
from search.explain import Answer, Explanation
from search.facets import Facets
from search.hits import Hit
from search.query import Query
from search.ranking import Ranked, in_order
from search.retrieval import by_both, by_meaning, by_words
from search.similar import Examples, combine

if TYPE_CHECKING:
    from indexer.model import TextModel

T = TypeVar("T")


class Searcher:
    """An open index that answers queries, with the model that built it. Safe to use from several threads.

    Commits of a writer, in this process or another, are seen by the next query.
    """

    def __init__(self, path: str | Path, *, model: TextModel | str | Path | None = None, device: str = "auto") -> None:
        """Open an index. The model is loaded with the first query that needs it.

        `model`: by default the one that the index names; another one must have the same fingerprint.
        Raises `NotAnIndexError`, `FormatError`.
        """
        self._reader = IndexReader(path)
        self._given = model
        self._device = device
        self._model: TextModel | None = None
        self._model_mutex = threading.Lock()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""
        self._reader.close()

    @property
    def info(self) -> IndexInfo:
        """Counts, sizes and the model of the index."""
        return self._reader.info()

    @property
    def settings(self) -> IndexSettings:
        """The index's model and its heads, as of the commit that was seen last."""
        return self._reader.settings

    @property
    def commit(self) -> int:
        """The number of the newest commit."""
        with self._reader.snapshot() as snapshot:
            return snapshot.view.commit

    @property
    def has_model(self) -> bool:
        """Whether texts can be compared by meaning: the index names its model, or one was given."""
        return self._given is not None or self._reader.settings.model is not None

    @property
    def model(self) -> TextModel:
        """The model that embeds queries. Raises `ModelError`, `FingerprintError`."""
        from indexer.model import TextModel, choose_device

        with self._model_mutex:
            if self._model is None:
                settings = self._reader.settings
                model = self._given if isinstance(self._given, TextModel) else None
                if model is None:
                    choose_device(self._device)  # a wrong device is not the fault of the model's place
                    name = settings.model if self._given is None else str(self._given)
                    if name is None:
                        raise ModelError(
                            f"{self._reader.path} holds vectors that were made elsewhere: pass the --model that made "
                            "them, or search by vector"
                        )
                    try:
                        model = TextModel.load(name, device=self._device)
                    except ModelError as error:
                        if self._given is not None:
                            raise
                        raise ModelError(
                            f"{self._reader.path} was built with model {name}, which cannot be loaded: {error}; "
                            "pass its new place with --model"
                        ) from error
                check_model(settings, model, place=str(self._reader.path), heads=False)
                self._model = model
            return self._model

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        filter: Filter | str | None = None,
        mode: str = "cosine",
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[Hit]:
        """The k documents that answer the text best, best first; ties in the order of ids.

        `filter`: a tree from `indexer.filters`, or its text. `mode`: "cosine" ranks by meaning, "keyword" by words,
        and needs no model, "hybrid" by both. `distinct`: near-duplicates are one hit, `mmr`: hits unlike each other;
        see `Query`. A text longer than the model's window is pooled over all of it. Raises `QueryError`,
        `FilterError`, `ModelError`.
        """
        query = Query(
            k=k,
            offset=offset,
            filter=_as_filter(filter),
            min_score=min_score,
            mode=mode,
            distinct=distinct,
            mmr=mmr,
        )
        return list(self.answer(text, query).hits)

    def search_many(
        self,
        texts: Sequence[str],
        *,
        k: int = 10,
        filter: Filter | str | None = None,
        mode: str = "cosine",
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[list[Hit]]:
        """The answers to several texts, all from one commit, using all cores. As `search` gives them one by one."""
        query = Query(
            k=k,
            offset=offset,
            filter=_as_filter(filter),
            min_score=min_score,
            mode=mode,
            distinct=distinct,
            mmr=mmr,
        )
        for text in texts:
            _check_text(text)
        self._check_filter(query.filter)
        vectors = [None] * len(texts) if mode == "keyword" else self.model.encode(list(texts))
        with self._reader.snapshot() as snapshot:
            chosen = self._allowed(snapshot, query)
            if mode != "cosine" or query.diverse:
                return [
                    self._hits(snapshot, text, vector, query, chosen, Explanation())
                    for text, vector in zip(texts, vectors, strict=True)
                ]

            def rank(vector: FloatArray) -> list[Ranked]:
                return self._rank(snapshot, "", vector, query, chosen, Explanation(), parallel=False)

            ranked = list(self._reader.workers.map(rank, vectors))
            return [enrich(snapshot, _page(_ordered(snapshot, found, query), query)) for found in ranked]

    def search_vector(
        self,
        vector: FloatArray,
        *,
        k: int = 10,
        filter: Filter | str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[Hit]:
        """The k documents nearest to a vector, fp32 (dimension,), of any length but zero. Needs no model.

        Raises `QueryError` for a vector of another dimension, `FilterError`.
        """
        query = Query(k=k, offset=offset, filter=_as_filter(filter), min_score=min_score, distinct=distinct, mmr=mmr)
        return list(self.answer_vector(vector, query).hits)

    def similar(
        self,
        examples: str | Examples,
        *,
        k: int = 10,
        filter: Filter | str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[Hit]:
        """The k documents nearest to a document of the index, by its id, or to several examples and far from others.

        All documents that are given are left out. Scores are cosines with `similar.combine` of the examples. Needs the
        model only where texts are among them. Raises `QueryError` for an id that is not there, `FilterError`,
        `ModelError`.
        """
        query = Query(k=k, offset=offset, filter=_as_filter(filter), min_score=min_score, distinct=distinct, mmr=mmr)
        self._check_filter(query.filter)
        if isinstance(examples, str):
            examples = Examples(ids=(examples,))
        texts = [*examples.texts, *examples.not_texts]
        for text in texts:
            _check_text(text)
        encoded = list(self.model.encode(texts)) if texts else []
        positive, negative = encoded[: len(examples.texts)], encoded[len(examples.texts) :]
        with self._reader.snapshot() as snapshot:
            docs = snapshot.numbers_of([*examples.ids, *examples.not_ids])
            if missing := [id_ for id_ in (*examples.ids, *examples.not_ids) if id_ not in docs]:
                raise QueryError(f"no document has the id '{missing[0]}'")
            positive += [snapshot.document_vector(docs[id_]) for id_ in examples.ids]
            negative += [snapshot.document_vector(docs[id_]) for id_ in examples.not_ids]
            vector = combine(
                np.stack(positive),
                np.stack(negative) if negative else np.zeros((0, len(positive[0])), dtype=np.float32),
                not_weight=examples.not_weight,
            )
            return self._find(snapshot, "", vector, query, Explanation(), exclude=frozenset(docs.values()))

    def answer(self, text: str, query: Query, *, path: str = "auto", vector: FloatArray | None = None) -> Answer:
        """The hits of a query, with what was done to find them. `path` forces one of `indexer.vectors.PLANS`.

        `vector`: the text's embedding, fp32 (dimension,), where the caller has it already.
        """
        _check_text(text)
        self._check_filter(query.filter)
        explanation = Explanation()
        if vector is not None:
            self._check_vector(vector)
        elif query.mode != "keyword":
            with explanation.timed("model"):
                vector = self.model.encode([text])[0]
        with self._reader.snapshot() as snapshot:
            hits = self._find(snapshot, text, vector, query, explanation, path=path)
        return Answer(tuple(hits), explanation)

    def answer_vector(self, vector: FloatArray, query: Query, *, path: str = "auto") -> Answer:
        """As `answer`, for a vector, fp32 (dimension,), of any length but zero."""
        self._check_filter(query.filter)
        if query.mode != "cosine":
            raise QueryError(f"mode '{query.mode}' needs a text, got a vector")
        self._check_vector(vector)
        explanation = Explanation()
        with self._reader.snapshot() as snapshot:
            hits = self._find(snapshot, "", vector, query, explanation, path=path)
        return Answer(tuple(hits), explanation)

    def facets(
        self,
        query: str | FloatArray | None = None,
        *,
        names: Sequence[str] = (),
        filter: Filter | str | None = None,
        of: int = 100,
        min_score: float | None = None,
        top: int = 10,
        significant: bool = False,
    ) -> Facets:
        """How many documents have each class, entity and metadata value: exact counts, of one commit.

        Without a query of all documents that the filter allows; with one, a text or a vector, of its `of` best hits, as
        `search` with k = `of` and the same `min_score` finds them. `names`: `label`, `entity`, `entity:TYPE`, a field
        of the metadata, `FIELD:year`, `:month`, `:day`, `:histogram`, `:histogram:WIDTH`; by default the class, the
        entities of each type and the fields of few values. `top` values of each, the most frequent first, or with
        `significant` those that stand out most from the whole index. Raises `QueryError`, `FilterError`, `ModelError`.
        """
        if top < 1:
            raise QueryError(f"top must be at least 1, got {top}")
        if query is None and min_score is not None:
            raise QueryError("min_score needs a query")
        asked = Query(k=of, filter=_as_filter(filter), min_score=min_score)
        if significant and query is None and asked.filter is None:
            raise QueryError("significant values need a query or a filter, to compare with the whole index")
        self._check_filter(asked.filter)
        vector = self._query_vector(query) if query is not None else None
        with self._reader.snapshot() as snapshot:
            docs = self._allowed(snapshot, asked)
            if vector is not None:
                ranked = self._rank(snapshot, "", vector, asked, docs, Explanation())
                docs = BitMap(document.doc for document in _page(_ordered(snapshot, ranked, asked), asked))
            return count_facets(snapshot, self._reader.settings, docs, names, top=top, significant=significant)

    def present(self, ids: Iterable[str], *, filter: Filter | str | None = None) -> set[str]:
        """Those of the ids whose documents are in the index, and which a filter allows. Raises `FilterError`."""
        tree = _as_filter(filter)
        self._check_filter(tree)
        with self._reader.snapshot() as snapshot:
            numbers = snapshot.numbers_of(ids)
            allowed = None if tree is None else snapshot.allowed(tree)
            return {id_ for id_, doc in numbers.items() if allowed is None or doc in allowed}

    def documents(self, ids: Iterable[str]) -> dict[str, StoredDocument]:
        """Those of the ids whose documents are in the index, with everything that it says about them, of one commit."""
        with self._reader.snapshot() as snapshot:
            numbers = snapshot.numbers_of(ids)
            found = snapshot.documents(list(numbers.values()))
            return {id_: found[doc] for id_, doc in numbers.items()}

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two texts, in [−1, 1]."""
        return self.model.similarity(first, second)

    def _check_filter(self, filter: Filter | None) -> None:
        """Unknown types and labels are errors before anything is computed."""
        if filter is not None:
            settings = self._reader.settings
            check_names(filter, labels=settings.class_labels, entity_types=settings.entity_types)

    def _find(
        self,
        snapshot: Snapshot,
        text: str,
        vector: FloatArray | None,
        query: Query,
        explanation: Explanation,
        *,
        exclude: frozenset[int] = frozenset(),
        path: str = "auto",
    ) -> list[Hit]:
        """Filter → search → rank → enrich, on one commit of the index."""
        with explanation.timed("filter"):
            chosen = self._allowed(snapshot, query)
            explanation.documents = snapshot.count()
            explanation.allowed = explanation.documents if chosen is None else len(chosen)
        return self._hits(snapshot, text, vector, query, chosen, explanation, exclude=exclude, path=path)

    def _hits(
        self,
        snapshot: Snapshot,
        text: str,
        vector: FloatArray | None,
        query: Query,
        chosen: BitMap | None,
        explanation: Explanation,
        *,
        exclude: frozenset[int] = frozenset(),
        path: str = "auto",
    ) -> list[Hit]:
        def rank(n: int) -> list[Ranked]:
            asked = replace(query, k=n, offset=0)
            found = self._rank(snapshot, text, vector, asked, chosen, explanation, exclude=exclude, path=path)
            return _ordered(snapshot, found, asked)[:n]

        def describe(ranked: Sequence[Ranked]) -> tuple[FloatArray, list[str]]:
            with explanation.timed("diversity"):
                return _described(snapshot, ranked)

        wanted = query.offset + query.k
        if query.diverse:
            groups = diversify(
                rank,
                describe,
                wanted=wanted,
                distinct=query.distinct,
                mmr=query.mmr,
                cosines=query.mode == "cosine",
            )
        else:
            groups = [Group(best) for best in rank(wanted)]
        shown = _page(groups, query)
        explanation.ranked = [group.best for group in shown]
        with explanation.timed("documents"):
            hits = enrich(snapshot, explanation.ranked)
            ids = snapshot.ids([document.doc for group in shown for document in group.hidden])
            return [
                replace(hit, hidden=tuple(ids[document.doc] for document in group.hidden)) if group.hidden else hit
                for hit, group in zip(hits, shown, strict=True)
            ]

    def _allowed(self, snapshot: Snapshot, query: Query) -> BitMap | None:
        return None if query.filter is None else snapshot.allowed(query.filter)

    def _rank(
        self,
        snapshot: Snapshot,
        text: str,
        vector: FloatArray | None,
        query: Query,
        chosen: BitMap | None,
        explanation: Explanation,
        *,
        exclude: frozenset[int] = frozenset(),
        path: str = "auto",
        parallel: bool = True,
    ) -> list[Ranked]:
        """The best documents up to offset + k, and those that tie with the last of them."""
        if query.mode == "keyword" or vector is None:
            return by_words(snapshot, text, query, chosen, explanation)
        if query.mode == "hybrid":
            return by_both(snapshot, text, vector, query, chosen, explanation, path=path, parallel=parallel)
        wanted = query.offset + query.k
        return by_meaning(snapshot, vector, wanted, chosen, explanation, exclude=exclude, path=path, parallel=parallel)

    def _query_vector(self, query: str | FloatArray) -> FloatArray:
        if isinstance(query, str):
            _check_text(query)
            vector: FloatArray = self.model.encode([query])[0]
            return vector
        self._check_vector(query)
        return query

    def _check_vector(self, vector: FloatArray) -> None:
        wanted = (self._reader.settings.dimension,)
        if vector.shape != wanted:
            raise QueryError(f"the query's vector has shape {vector.shape}, the index's vectors have {wanted}")


def _ordered(snapshot: Snapshot, ranked: list[Ranked], query: Query) -> list[Ranked]:
    """Those with enough score, in the order of showing."""
    if query.min_score is not None:
        ranked = [document for document in ranked if document.score >= query.min_score]
    return in_order(ranked, snapshot.ids([document.doc for document in ranked]))


def _page(found: Sequence[T], query: Query) -> Sequence[T]:
    return found[query.offset : query.offset + query.k]


def _described(snapshot: Snapshot, ranked: Sequence[Ranked]) -> tuple[FloatArray, list[str]]:
    """The embeddings and texts of documents, in their order."""
    docs = [document.doc for document in ranked]
    texts = snapshot.texts_of(docs)
    return snapshot.document_vectors(docs), [texts[doc] for doc in docs]


def _check_text(text: str) -> None:
    if not text.strip():
        raise QueryError("the query's text is empty")
    if has_lone_surrogate(text):
        raise QueryError("the query's text has a lone surrogate, which is not valid Unicode")


def _as_filter(filter: Filter | str | None) -> Filter | None:
    return parse(filter) if isinstance(filter, str) else filter
