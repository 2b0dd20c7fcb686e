"""From a request to a search: options and filters, checked against the limits before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from indexer.fields import has_lone_surrogate
from indexer.filters import Filter
from indexer.records import FloatArray
from search.paging import check_pages
from search.query import Query
from search.server.filtering import Filters
from search.server.problems import Problem, beyond
from search.server.schemas import Body, FacetsRequest, SearchRequest, SimilarRequest, WantedFacets
from search.server.service import OpenIndex
from search.server.settings import Limits, Settings
from search.similar import Examples

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search, checked: a text or a vector, fp32 (dimension,)."""

    query: Query
    text: str
    vector: FloatArray | None
    facets: WantedFacets | None
    explain: bool
    cursor: str | None

    @property
    def embeds(self) -> bool:
        """Whether the text must go through the model."""
        return self.vector is None and (self.query.mode != "keyword" or self.tags)

    @property
    def joins(self) -> bool:
        """Whether it is answered together with others: it asks for nothing that takes time of its own."""
        query = self.query
        more = query.highlight or query.passages or self.explain or self.facets is not None
        return query.plain and not more and self.cursor is None

    @property
    def subject(self) -> str | FloatArray:
        """What is searched for."""
        return self.text if self.vector is None else self.vector

    @property
    def tags(self) -> bool:
        """Whether the text's entities are wanted."""
        return self.query.entities is not None


def search_of(body: SearchRequest, settings: Settings, filters: Filters) -> Asked:
    """A search as it was asked for. Raises `Problem`, `QueryError`, `FilterError`."""
    limits = settings.limits
    if (body.query is None) == (body.vector is None):
        raise Problem(422, "invalid-request", "give either 'query', a text, or 'vector'")
    if body.query is not None:
        check_text(body.query, limits)
    facets = None if body.facets is None else lowered(body.facets, limits)
    if facets is not None:
        check_facets(facets, limits)
    query = query_of(body, limits, filters, reranker=settings.reranker)
    if body.cursor is not None:
        check_pages(query)
    return Asked(query, body.query or "", vector_of(body.vector), facets, body.explain, body.cursor)


def query_of(
    body: SearchRequest | SimilarRequest, limits: Limits, filters: Filters, *, reranker: str | None = None
) -> Query:
    """The options of a search. A new option of `Query` is passed on here, and declared in `schemas.py`."""
    body = lowered(body, limits)
    check_k(body.k + body.offset, limits)
    ranking: dict[str, Any] = {}
    if isinstance(body, SearchRequest):
        check_k(max(body.passages, body.neighbours, body.rerank_top if body.rerank else 0), limits)
        stretches = body.k * body.passages * (1 + 2 * body.neighbours)
        if stretches > limits.passages:
            raise beyond("passages", limits.passages, stretches, "the passages of all hits, with their neighbours,")
        if body.rerank and reranker is None:
            raise Problem(
                422, "invalid-query", "this service has no cross-encoder: its operator gives one by --reranker"
            )
        ranking = {
            "mode": body.mode,
            "fusion": body.fusion,
            "keyword_weight": body.keyword_weight,
            "entities": body.entities,
            "boost": body.boost,
            "passages": body.passages,
            "neighbours": body.neighbours,
            "highlight": body.highlight,
            "rerank": reranker if body.rerank else None,
            "rerank_top": body.rerank_top,
        }
    return Query(
        k=body.k,
        offset=body.offset,
        filter=filters.read(body.filter),
        min_score=body.min_score,
        distinct=body.distinct,
        mmr=body.mmr,
        **ranking,
    )


def examples_of(body: SimilarRequest, limits: Limits) -> Examples:
    """The examples that hits should be like or unlike."""
    check_batch(len(body.ids) + len(body.texts) + len(body.not_ids) + len(body.not_texts), limits, "examples")
    for text in (*body.texts, *body.not_texts):
        check_text(text, limits)
    return Examples(
        ids=tuple(body.ids),
        texts=tuple(body.texts),
        not_ids=tuple(body.not_ids),
        not_texts=tuple(body.not_texts),
        not_weight=body.not_weight,
    )


def facet_query_of(
    body: FacetsRequest, limits: Limits, filters: Filters
) -> tuple[str | None, FloatArray | None, Filter | None]:
    """The text or the vector whose hits are counted, if any, and the filter."""
    if body.query is not None and body.vector is not None:
        raise Problem(422, "invalid-request", "give either 'query', a text, or 'vector', or neither")
    if body.query is not None:
        check_text(body.query, limits)
    check_facets(body, limits)
    return body.query, vector_of(body.vector), filters.read(body.filter)


def vector_of(values: list[float] | None) -> FloatArray | None:
    """fp32 (dimension,). Raises `Problem` for one without a direction."""
    if values is None:
        return None
    with np.errstate(over="ignore"):
        vector = np.asarray(values, dtype=np.float32)
        length = float(vector @ vector)
    if not 0.0 < length < np.inf:
        raise Problem(422, "invalid-query", "the vector has no direction: it is zero, or too large for 32-bit floats")
    return vector


def lowered(body: B, limits: Limits) -> B:
    """A request whose defaults, where it does not name another number, keep to a small limit `k`."""
    offset = getattr(body, "offset", 0)
    most = {"k": max(limits.k - offset, 1), "of": limits.k, "top": limits.k, "rerank_top": limits.k}
    defaults = most.keys() & type(body).model_fields.keys() - body.model_fields_set
    return body.model_copy(update={name: min(getattr(body, name), most[name]) for name in defaults})


def check_text(text: str, limits: Limits) -> None:
    """Raise `Problem` for a text that is too long, empty or no Unicode."""
    if len(text) > limits.text:
        raise beyond("text", limits.text, len(text), "the characters of a text")
    if not text.strip():
        raise Problem(422, "invalid-query", "the text is empty")
    if has_lone_surrogate(text):
        raise Problem(422, "invalid-query", "the text has a lone surrogate, which is not valid Unicode")


def check_k(k: int, limits: Limits) -> None:
    """Raise `Problem` where more hits are looked for than allowed."""
    if k > limits.k:
        raise beyond("k", limits.k, k, "offset and k together")


def check_batch(count: int, limits: Limits, what: str) -> None:
    """Raise `Problem` for too many things in one request."""
    if count > limits.batch:
        raise beyond("batch", limits.batch, count, f"the {what} of one request")


def check_facets(wanted: WantedFacets | FacetsRequest, limits: Limits) -> None:
    """Raise `Problem` for facets beyond the limits."""
    check_batch(len(wanted.names), limits, "facets")
    for name, value in (("of", wanted.of), ("top", wanted.top)):
        if value > limits.k:
            raise beyond("k", limits.k, value, f"'{name}' of facets")


def needs_model(asked: Asked, index: OpenIndex) -> bool:
    """Whether a search waits for the model. Raises `Problem` where the index has none."""
    if asked.embeds:
        index.model()
    return asked.embeds
