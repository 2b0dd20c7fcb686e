"""Query in, hits out: the whole way of a search in one method."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from indexer.attributes import missing_fields
from indexer.errors import InputError, QueryError
from indexer.fields import has_lone_surrogate, named, several
from indexer.filters import AnyFilter, Filter, as_filter, check_names, format_filter
from indexer.given import as_vector
from indexer.reader import IndexInfo, IndexReader
from indexer.records import Analysis, FloatArray
from indexer.settings import IndexSettings
from indexer.snapshot import Snapshot
from indexer.stored import StoredDocument
from search import steps
from search.counting import count_facets
from search.enrich import enrich
from search.excerpts import highlighted_by_meaning
from search.explain import Answer, Explanation
from search.facet_names import facet_names
from search.facets import Facets
from search.hit_parts import parts_of
from search.hits import Hit
from search.models import Models
from search.paging import Page, check_pages, find_page
from search.query import Query, whole
from search.ranking import Ranked
from search.similar import Examples, combine
from search.steps import Asked

if TYPE_CHECKING:
    from indexer.model import TextModel

TOGETHER = 32
"""Queries at most that share one pass over the codes, in `search_many`."""


class Searcher:
    """An open index that answers queries, with the model that built it. Safe to use from several threads.

    Commits of a writer, in this process or another, are seen by the next query. Each process needs one of its own, and
    what has embedded a text must not fork: torch's threads do not come with it, and the child waits for ever.
    """

    def __init__(self, path: str | Path, *, model: TextModel | str | Path | None = None, device: str = "auto") -> None:
        """Open an index. The model is loaded with the first query that needs it.

        `model`: by default the one that the index names; another one must have the same fingerprint.
        Raises `NotAnIndexError`, `FormatError`.
        """
        self._reader = IndexReader(path)
        self._models = Models(self._reader, model=model, device=device)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index. Again, it does nothing; what is asked afterwards raises `ClosedError`."""
        self._reader.close()

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """The index as of its newest commit, held still: what is asked with it is answered from that commit.

        For the thread that took it, inside its `with` block.
        """
        return self._reader.snapshot()

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
        return self._models.known

    @property
    def model(self) -> TextModel:
        """The model that embeds queries. Raises `ModelError`, `FingerprintError`."""
        return self._models.text

    def load_reranker(self, name: str) -> None:
        """Load a cross-encoder, by name or folder, before the first query that needs it. Raises `ModelError`."""
        self._models.reranker(name)

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        filter: AnyFilter | None = None,
        mode: str = "cosine",
        fusion: str = "weighted",
        keyword_weight: float = 0.5,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
        entities: str | None = None,
        boost: float = 0.1,
        passages: int = 0,
        neighbours: int = 0,
        highlight: bool = False,
        rerank: str | Path | None = None,
        rerank_top: int = 50,
    ) -> list[Hit]:
        """The k documents that answer the text best, best first; ties in the order of ids.

        `filter`: a tree from `indexer.filters`, its text, or its JSON form. `mode`: "cosine" ranks by meaning,
        "keyword" by words, and needs no model, "hybrid" by both, with `fusion` "rrf" by their ranks or "weighted" by
        their scores, of which words have the share `keyword_weight`. `distinct`: near-duplicates are one hit, `mmr`:
        hits unlike each other. `entities`: "filter" keeps to documents that share an entity of the text, where there
        are any, "boost" raises them by up to `boost`. `passages`, `neighbours` and `highlight`: what of its text each
        hit shows. `rerank`: a cross-encoder, by name or folder, that puts the best `rerank_top` into a new order. See
        `Query`. A text longer than the model's window is pooled over all of it. Raises `QueryError`, `FilterError`,
        `ModelError`.
        """
        query = Query(
            k=k,
            offset=offset,
            filter=as_filter(filter),
            min_score=min_score,
            mode=mode,
            fusion=fusion,
            keyword_weight=keyword_weight,
            distinct=distinct,
            mmr=mmr,
            entities=entities,
            boost=boost,
            passages=passages,
            neighbours=neighbours,
            highlight=highlight,
            rerank=None if rerank is None else str(rerank),
            rerank_top=rerank_top,
        )
        return list(self.answer(text, query).hits)

    def search_many(
        self,
        texts: Iterable[str],
        *,
        k: int = 10,
        filter: AnyFilter | None = None,
        mode: str = "cosine",
        fusion: str = "weighted",
        keyword_weight: float = 0.5,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[list[Hit]]:
        """The answers to several texts, all from one commit, using all cores. As `search` gives them one by one.

        Raises as `search` does.
        """
        texts = several(texts, "texts", error=QueryError)
        query = Query(
            k=k,
            offset=offset,
            filter=as_filter(filter),
            min_score=min_score,
            mode=mode,
            fusion=fusion,
            keyword_weight=keyword_weight,
            distinct=distinct,
            mmr=mmr,
        )
        for text in texts:
            _check_text(text)
        self._check_filter(query.filter)
        vectors = [None] * len(texts) if mode == "keyword" else self.model.encode(texts)
        with self._reader.snapshot() as snapshot:
            chosen = steps.allowed(snapshot, query)
            if mode != "cosine" or query.diverse:
                return [
                    steps.hits_among(snapshot, Asked(query=query, text=text, vector=vector), chosen, Explanation())
                    for text, vector in zip(texts, vectors, strict=True)
                ]

            def rank(asked: Sequence[Asked]) -> list[list[Ranked]]:
                together = steps.together(snapshot, asked, chosen)
                return [steps.rank(snapshot, one, chosen, Explanation()) for one in together]

            asked = [Asked(query=query, vector=vector) for vector in vectors]
            size = max(1, min(TOGETHER, -(-len(asked) // (os.cpu_count() or 1))))
            batches = [asked[start : start + size] for start in range(0, len(asked), size)]
            ranked = [one for batch in self._reader.helpers.map(rank, batches) for one in batch]
            return [enrich(snapshot, steps.page(steps.ordered(snapshot, found, query), query)) for found in ranked]

    def search_vector(
        self,
        vector: npt.ArrayLike,
        *,
        k: int = 10,
        filter: AnyFilter | None = None,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
    ) -> list[Hit]:
        """The k documents nearest to a vector of numbers, (dimension,), of any length but zero. Needs no model.

        Raises `QueryError` for a vector of another shape, or one with NaN or infinity in fp32, `FilterError`.
        """
        query = Query(k=k, offset=offset, filter=as_filter(filter), min_score=min_score, distinct=distinct, mmr=mmr)
        return list(self.answer_vector(vector, query).hits)

    def similar(
        self,
        examples: str | Examples,
        *,
        k: int = 10,
        filter: AnyFilter | None = None,
        offset: int = 0,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
        encoded: Sequence[npt.ArrayLike] | None = None,
    ) -> list[Hit]:
        """The k documents nearest to a document of the index, by its id, or to several examples and far from others.

        All documents that are given are left out. Scores are cosines with `similar.combine` of the examples. Needs the
        model only where texts are among them. `encoded`: the embeddings of `texts` and then of `not_texts`, where the
        caller has them already. Raises `QueryError` for an id that is not there, `FilterError`, `ModelError`.
        """
        query = Query(k=k, offset=offset, filter=as_filter(filter), min_score=min_score, distinct=distinct, mmr=mmr)
        self._check_filter(query.filter)
        if isinstance(examples, str):
            examples = Examples(ids=(examples,))
        if not isinstance(examples, Examples):
            raise QueryError(
                f"similar takes an id or Examples, got {named(examples)}; write Examples(ids=[…], texts=[…])"
            )
        texts = [*examples.texts, *examples.not_texts]
        for text in texts:
            _check_text(text)
        if encoded is None:
            encoded = list(self.model.encode(texts)) if texts else []
        if len(encoded) != len(texts):
            raise QueryError(f"encoded must hold one embedding for each of {len(texts)} texts, got {len(encoded)}")
        embeddings = [self._as_vector(one) for one in encoded]
        positive, negative = embeddings[: len(examples.texts)], embeddings[len(examples.texts) :]
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
            asked = Asked(query=query, vector=vector, exclude=frozenset(docs.values()))
            return steps.find(snapshot, asked, Explanation())

    def answer(
        self,
        text: str,
        query: Query,
        *,
        path: str = "auto",
        explain: bool = False,
        analysis: Analysis | None = None,
        snapshot: Snapshot | None = None,
    ) -> Answer:
        """The hits of a query, with what was done to find them; with `explain`, also what their scores are made of.

        `path` forces one of `indexer.planner.PLANS`. `analysis`: what the index's model says about the text, where the
        caller has it already; with its entities where the query uses them. `snapshot`: one of `snapshot()`, by default
        of the newest commit.
        """
        _check_text(text)
        self._check_filter(query.filter)
        explanation = Explanation()
        asked = replace(self._models.asked(text, query, explanation, analysis=analysis), path=path)
        return self._found(asked, explanation, explain=explain, snapshot=snapshot)

    def answer_many(self, asked: Sequence[tuple[str | npt.ArrayLike, Query, Analysis | None]]) -> list[Answer]:
        """As `answer` or `answer_vector` for several texts or vectors, all from one commit.

        With each text stands what the model says about it, `None` to ask it. Queries that want as many documents by
        meaning under the same filter share one pass over the codes, in the calling thread.
        """
        explanations, wanted = [], []
        for subject, query, analysis in asked:
            self._check_filter(query.filter)
            explanations.append(Explanation())
            if isinstance(subject, str):
                _check_text(subject)
                wanted.append(self._models.asked(subject, query, explanations[-1], analysis=analysis))
            else:
                wanted.append(self._asked_vector(subject, query))
        with self._reader.snapshot() as snapshot:
            wanted = _together(snapshot, wanted)
            hits = [steps.find(snapshot, *one) for one in zip(wanted, explanations, strict=True)]
        return [self._answer(*one) for one in zip(hits, wanted, explanations, strict=True)]

    def answer_vector(
        self,
        vector: npt.ArrayLike,
        query: Query,
        *,
        path: str = "auto",
        explain: bool = False,
        snapshot: Snapshot | None = None,
    ) -> Answer:
        """As `answer`, for a vector of numbers, (dimension,), of any length but zero."""
        self._check_filter(query.filter)
        explanation, asked = Explanation(), self._asked_vector(vector, query, path=path)
        return self._found(asked, explanation, explain=explain, snapshot=snapshot)

    def page(
        self,
        text: str | npt.ArrayLike,
        *,
        k: int = 10,
        cursor: str | None = None,
        filter: AnyFilter | None = None,
        mode: str = "cosine",
        fusion: str = "weighted",
        keyword_weight: float = 0.5,
        min_score: float | None = None,
        distinct: float | None = None,
        mmr: float | None = None,
        entities: str | None = None,
        boost: float = 0.1,
        passages: int = 0,
        neighbours: int = 0,
        highlight: bool = False,
    ) -> Page:
        """The first k hits of a text or a vector, or with the `cursor` of a page the k hits after it.

        No hit is repeated and none is skipped while the index changes: see `search.paging`. Every page needs the same
        text and options; only k, and what hits show, may differ. Raises `CursorError` for a cursor of another query or
        index, or a damaged one, and else as `search` does.
        """
        query = Query(
            k=k,
            filter=as_filter(filter),
            min_score=min_score,
            mode=mode,
            fusion=fusion,
            keyword_weight=keyword_weight,
            distinct=distinct,
            mmr=mmr,
            entities=entities,
            boost=boost,
            passages=passages,
            neighbours=neighbours,
            highlight=highlight,
        )
        return self.answer_page(text, query, cursor)

    def answer_page(
        self,
        text: str | npt.ArrayLike,
        query: Query,
        cursor: str | None = None,
        *,
        explain: bool = False,
        analysis: Analysis | None = None,
        snapshot: Snapshot | None = None,
    ) -> Page:
        """As `page`, for a query with all its options but `rerank`; with `explain`, the parts of each score.

        `analysis`, `snapshot`: as for `answer`.
        """
        check_pages(query)
        self._check_filter(query.filter)
        explanation = Explanation()
        if isinstance(text, str):
            _check_text(text)
            asked = self._models.asked(text, query, explanation, analysis=analysis)
        else:
            asked = self._asked_vector(text, query)
        with self._held(snapshot) as held:
            page = find_page(held, asked, cursor, explanation)
            if explain:
                self._explain(held, asked, page.hits, explanation)
        return replace(page, hits=self._answer(page.hits, asked, explanation).hits)

    def facets(
        self,
        query: str | npt.ArrayLike | None = None,
        *,
        names: Iterable[str] = (),
        filter: AnyFilter | None = None,
        of: int = 100,
        min_score: float | None = None,
        mode: str = "cosine",
        top: int = 10,
        significant: bool = False,
        vector: npt.ArrayLike | None = None,
        snapshot: Snapshot | None = None,
    ) -> Facets:
        """How many documents have each class, entity and metadata value: exact counts, of one commit.

        Without a query of all documents that the filter allows; with one, a text or a vector, of its `of` best hits, as
        `search` with k = `of` and the same `mode` and `min_score` finds them. `names`: `label`, `entity`,
        `entity:TYPE`, a field of the metadata, `FIELD:year`, `:month`, `:day`, `:histogram`, `:histogram:WIDTH`; by
        default, and for `default`, the class, the entities of each type and the fields of few values. `top` values of
        each, the most frequent first, or with `significant` those that stand out most from the whole index. `vector`:
        the embedding of a query that is a text, where the caller has it already. `snapshot`: as for `answer`. Raises
        `QueryError`, `FilterError`, `ModelError`.
        """
        names = several(names, "names", error=QueryError)
        if (top := whole("top", top)) < 1:
            raise QueryError(f"top must be at least 1, got {top}")
        if query is None and min_score is not None:
            raise QueryError("min_score needs a query")
        asked = Query(k=of, filter=as_filter(filter), min_score=min_score, mode=mode)
        if query is None and mode != "cosine":
            raise QueryError(f"mode '{mode}' needs a query")
        if significant and query is None and asked.filter is None:
            raise QueryError("significant values need a query or a filter, to compare with the whole index")
        self._check_filter(asked.filter)
        embedding = None
        if query is not None:
            embedding = self._query_vector(query, mode) if vector is None else self._as_vector(vector)
        text = query if isinstance(query, str) else ""
        with self._held(snapshot) as held:
            docs = steps.allowed(held, asked)
            if query is not None:
                ranked = steps.rank(held, Asked(query=asked, text=text, vector=embedding), docs, Explanation())
                docs = BitMap(document.doc for document in steps.page(steps.ordered(held, ranked, asked), asked))
            return count_facets(held, self._reader.settings, docs, names, top=top, significant=significant)

    def facet_names(self) -> list[str]:
        """Names that `facets` can count: of metadata the first hundred fields, with the dates and numbers they have."""
        with self._reader.snapshot() as snapshot:
            return facet_names(self._reader.settings, snapshot.connection)

    def missing_fields(self, filter: Filter) -> list[str]:
        """Metadata fields that a filter names and no document has, as they are written in filters."""
        with self._reader.snapshot() as snapshot:
            return missing_fields(snapshot.connection, filter)

    def present(self, ids: Iterable[str], *, filter: AnyFilter | None = None) -> set[str]:
        """Those of the ids whose documents are in the index, and which a filter allows.

        Raises `QueryError` for one id in place of several, `FilterError`.
        """
        tree = as_filter(filter)
        self._check_filter(tree)
        with self._reader.snapshot() as snapshot:
            numbers = snapshot.numbers_of(several(ids, "ids", error=QueryError))
            allowed = None if tree is None else snapshot.allowed(tree)
            return {id_ for id_, doc in numbers.items() if allowed is None or doc in allowed}

    def documents(self, ids: Iterable[str]) -> dict[str, StoredDocument]:
        """Those of the ids whose documents are in the index, with everything that it says about them, of one commit.

        Raises `QueryError` for one id in place of several.
        """
        with self._reader.snapshot() as snapshot:
            numbers = snapshot.numbers_of(several(ids, "ids", error=QueryError))
            found = snapshot.documents(list(numbers.values()))
            return {id_: found[doc] for id_, doc in numbers.items()}

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two texts, in [−1, 1]."""
        return self.model.similarity(first, second)

    def _found(self, asked: Asked, explanation: Explanation, *, explain: bool, snapshot: Snapshot | None) -> Answer:
        with self._held(snapshot) as held:
            hits = steps.find(held, asked, explanation)
            if explain:
                self._explain(held, asked, hits, explanation)
        return self._answer(hits, asked, explanation)

    def _held(self, snapshot: Snapshot | None) -> AbstractContextManager[Snapshot]:
        """A caller's snapshot, or one of the newest commit. Raises `QueryError` for that of another searcher."""
        if snapshot is None:
            return self._reader.snapshot()
        if not snapshot.is_of(self._reader):
            raise QueryError(f"the snapshot is of another Searcher: take one of this one's, of {self._reader.path}")
        return nullcontext(snapshot)

    def _check_filter(self, filter: Filter | None) -> None:
        """Unknown types and labels are errors before anything is computed."""
        if filter is not None:
            settings = self._reader.newest_settings()
            check_names(filter, labels=settings.class_labels, entity_types=settings.entity_types)

    def _explain(self, snapshot: Snapshot, asked: Asked, hits: Sequence[Hit], explanation: Explanation) -> None:
        """Add the parts of scores; those of layers where the query went through the model."""
        layers = self.model.pooled_layers if asked.text and asked.vector is not None else ()
        with explanation.timed("explanation"):
            explanation.hits = parts_of(
                snapshot, explanation.ranked, hits, vector=asked.vector, layers=layers, filter=asked.query.filter
            )

    def _asked_vector(self, vector: npt.ArrayLike, query: Query, *, path: str = "auto") -> Asked:
        """A query by a vector, which has neither words nor entities."""
        if query.mode != "cosine":
            raise QueryError(f"mode '{query.mode}' needs a text, got a vector")
        if query.entities is not None:
            raise QueryError(f"entities '{query.entities}' are those of a text, got a vector")
        if query.rerank is not None:
            raise QueryError("a cross-encoder reads the text of a query, got a vector")
        return Asked(query=query, vector=self._as_vector(vector), path=path)

    def _answer(self, hits: Sequence[Hit], asked: Asked, explanation: Explanation) -> Answer:
        """The hits with what is asked for besides and needs the model, but not the index any more."""
        if asked.query.highlight and asked.vector is not None and hits:
            model = self.model
            with explanation.timed("highlight"):
                hits = highlighted_by_meaning(list(hits), asked.vector, model)
        return Answer(tuple(hits), explanation)

    def _query_vector(self, query: str | npt.ArrayLike, mode: str) -> FloatArray | None:
        """The vector of a query, `None` where only its words count."""
        if isinstance(query, str):
            _check_text(query)
            return None if mode == "keyword" else self.model.encode([query])[0]
        if mode != "cosine":
            raise QueryError(f"mode '{mode}' needs a text, got a vector")
        return self._as_vector(query)

    def _as_vector(self, vector: npt.ArrayLike) -> FloatArray:
        """A query's vector, fp32 (dimension,). Raises `QueryError`."""
        wanted = (self._reader.settings.dimension,)
        with suppress(ValueError):  # rows of several lengths
            if (shape := tuple(np.shape(vector))) != wanted:
                raise QueryError(f"the query's vector has shape {shape}, the index's vectors have {wanted}")
        try:
            return as_vector(vector, "the query")
        except InputError as error:
            raise QueryError(str(error)) from error


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise QueryError(f"the query's text must be a string, got {named(text)}")
    if not text.strip():
        raise QueryError("the query's text is empty")
    if has_lone_surrogate(text):
        raise QueryError("the query's text has a lone surrogate, which is not valid Unicode")


def _together(snapshot: Snapshot, wanted: Sequence[Asked]) -> list[Asked]:
    """Queries in their order, with what those that are alike have found together."""
    groups: dict[object, list[int]] = {}
    for at, one in enumerate(wanted):
        alike = (_written(one.query.filter), one.query.offset + one.query.k) if one.plain else at
        groups.setdefault(alike, []).append(at)
    result = list(wanted)
    for group in groups.values():
        if len(group) > 1:
            chosen = steps.allowed(snapshot, wanted[group[0]].query)
            found = steps.together(snapshot, [wanted[at] for at in group], chosen)
            for at, one in zip(group, found, strict=True):
                result[at] = one
    return result


def _written(filter: Filter | None) -> str | None:
    """A filter as text, by which two can be compared: as trees, those for 1 and for true would be equal."""
    return None if filter is None else format_filter(filter)
