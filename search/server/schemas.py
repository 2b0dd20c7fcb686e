"""Requests and answers as JSON, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from search.query import MAX_BOOST

FILTER = "A filter: in the command line's syntax, or as a JSON object (see the schema Filter)."

Number = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Number], Field(min_length=1)]
FilterValue = Annotated[str | dict[str, Any] | None, Field(description=FILTER, json_schema_extra={"x-filter": True})]
IndexName = Annotated[str | None, Field(description="Which index; may be left out where there is only one.")]


class Body(BaseModel):
    """Base of requests: unknown members are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WantedHits(Body):
    """What every request for hits can say."""

    index: IndexName = None
    k: Annotated[int, Field(ge=1, description="How many documents.")] = 10
    offset: Annotated[int, Field(ge=0, description="How many of the best to pass over.")] = 0
    filter: FilterValue = None
    min_score: Annotated[Number | None, Field(description="Only hits with at least this score.")] = None
    distinct: Annotated[
        Number | None, Field(gt=0, le=1, description="Documents with at least this cosine are one hit.")
    ] = None
    mmr: Annotated[Number | None, Field(ge=0, le=1, description="λ of maximal marginal relevance.")] = None


class WantedFacets(Body):
    """Which facets to count over the best hits of a search."""

    names: Annotated[
        list[str],
        Field(description="Empty, or 'default' among others: the class, the entity types, fields of few values."),
    ] = []
    top: Annotated[int, Field(ge=1, description="How many values of each.")] = 10
    of: Annotated[int, Field(ge=1, description="How many hits are counted.")] = 100
    significant: bool = False


class SearchRequest(WantedHits):
    """A search by text, or by vector."""

    query: Annotated[str | None, Field(description="The text to search for.")] = None
    vector: Annotated[Vector | None, Field(description="A vector of the index's dimension, in place of a text.")] = None
    mode: Literal["cosine", "hybrid", "keyword"] = "cosine"
    fusion: Literal["rrf", "weighted"] = "weighted"
    keyword_weight: Annotated[Number, Field(ge=0, le=1)] = 0.5
    entities: Annotated[
        Literal["filter", "boost"] | None, Field(description="What the entities that the query names do.")
    ] = None
    boost: Annotated[
        Number, Field(ge=0, le=MAX_BOOST, description="How much sharing all of them adds to a cosine.")
    ] = 0.1
    passages: Annotated[int, Field(ge=0, description="How many of its best passages each hit shows.")] = 0
    neighbours: Annotated[int, Field(ge=0, description="How many passages on either side of each of them.")] = 0
    highlight: Annotated[bool, Field(description="Show the best sentence of the best passage.")] = False
    rerank: Annotated[bool, Field(description="Put the best hits in order anew, by the service's cross-encoder.")] = (
        False
    )
    rerank_top: Annotated[int, Field(ge=1, description="How many hits are reranked.")] = 50
    cursor: Annotated[
        str | None,
        Field(
            description="Page after page, also while the index changes: empty for the first, then the answer's cursor."
        ),
    ] = None
    facets: Annotated[WantedFacets | None, Field(description="Counts over the best hits.")] = None
    explain: Annotated[bool, Field(description="Say what was searched, and how long it took.")] = False


class BatchRequest(Body):
    """Several searches, answered in their order."""

    searches: Annotated[list[SearchRequest], Field(min_length=1)]


class SimilarRequest(WantedHits):
    """Documents and texts that hits should be like, and unlike."""

    ids: list[str] = []
    texts: list[str] = []
    not_ids: list[str] = []
    not_texts: list[str] = []
    not_weight: Annotated[Number, Field(ge=0)] = 0.5


class FacetsRequest(WantedFacets):
    """Facets of what a filter allows, or of the best hits of a query."""

    index: IndexName = None
    query: str | None = None
    vector: Vector | None = None
    mode: Literal["cosine", "hybrid", "keyword"] = "cosine"
    filter: FilterValue = None
    min_score: Number | None = None


class DocumentIn(Body):
    """A document to add, or to put in the place of the one with its id."""

    id: Annotated[str, Field(min_length=1)]
    text: str = ""
    metadata: dict[str, Any] = {}
    vector: Annotated[
        Vector | None, Field(description="Its embedding, for an index whose vectors were made elsewhere.")
    ] = None


class DocumentsRequest(Body):
    """Documents to add or replace, in one go."""

    index: IndexName = None
    documents: Annotated[list[DocumentIn], Field(min_length=1)]


class TagRequest(Body):
    """A text whose class and entities are wanted."""

    index: Annotated[str | None, Field(description="The index whose model tags; may be left out where it is one.")] = (
        None
    )
    text: str


class EmbeddingsRequest(BaseModel):
    """As OpenAI's API has it. Token ids are refused: they would be another model's."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: Annotated[str, Field(description="The name of an index, or of its model.")]
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, description="Keep only so many of the first numbers, brought to length 1 again.")
    ] = None
    user: str | None = None


class Answer(BaseModel):
    """Base of answers."""


class LabelOut(Answer):
    """A class and its probability."""

    name: str
    score: float


class EntityOut(Answer):
    """A named entity: `text[start:end]`, in code points."""

    type: str
    text: str
    start: int
    end: int
    score: float


class PassageOut(Answer):
    """Offsets of a passage, in code points."""

    start: int
    end: int


class StretchOut(PassageOut):
    """A part of a document's text."""

    text: str


class FoundPassageOut(StretchOut):
    """One of the passages of a hit that match best, with those next to it where they were asked for."""

    score: float
    before: list[StretchOut] | None = None
    after: list[StretchOut] | None = None


class HitOut(Answer):
    """A document that was found, whole; `passage` matched best."""

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    label: LabelOut | None
    entities: list[EntityOut]
    passage: PassageOut
    hidden: Annotated[list[str] | None, Field(description="Near-duplicates that this hit stands for.")] = None
    passages: list[FoundPassageOut] | None = None
    highlight: Annotated[PassageOut | None, Field(description="The best sentence of the best passage.")] = None
    rerank_score: float | None = None


class FacetValueOut(Answer):
    """A value, and how many documents have it: `count` of the counted ones, `total` of all."""

    value: Annotated[str | int | float | bool | None, Field(description="Null where a range has no beginning.")]
    count: int
    total: int
    lift: float
    type: str | None = None
    below: int | float | None = None


class FacetOut(Answer):
    """The values of one facet."""

    name: str
    path: Annotated[str | None, Field(description="Of a metadata field, as filters in JSON have it.")] = None
    distinct: int
    missing: int
    values: list[FacetValueOut]


class FacetsAnswer(Answer):
    """Facets of `documents` documents out of `indexed`."""

    documents: int
    indexed: int
    facets: list[FacetOut]


class SearchAnswer(Answer):
    """Hits, best first."""

    index: str
    hits: list[HitOut]
    cursor: Annotated[
        str | None, Field(description="For the next page, where pages were asked for; null at the end.")
    ] = None
    facets: FacetsAnswer | None = None
    explanation: dict[str, Any] | None = None


class BatchAnswer(Answer):
    """One answer for each search."""

    answers: list[SearchAnswer]


class DocumentOut(Answer):
    """A document as the index has it."""

    id: str
    text: str
    metadata: dict[str, Any]
    label: LabelOut | None
    entities: list[EntityOut]
    passages: list[PassageOut]


class WrittenAnswer(Answer):
    """What became of documents, durably. `duplicates`: ids that came again, of which the last counts."""

    index: str
    added: int
    replaced: int
    updated: int
    unchanged: int
    duplicates: int


class RemovedAnswer(Answer):
    """How many documents were removed, durably."""

    index: str
    removed: int


class TagAnswer(Answer):
    """The class, null where the model abstains, and the entities of a text."""

    label: LabelOut | None
    entities: list[EntityOut]


class EmbeddingOut(Answer):
    """One embedding, of length 1: numbers, or the base64 of little-endian fp32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class UsageOut(Answer):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """As OpenAI's API has it."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingOut]
    usage: UsageOut


class IndexOut(Answer):
    """An index that is served."""

    name: str
    documents: int
    passages: int
    entities: int
    dimension: int
    model: str | None
    commit: int
    class_labels: list[str] | None
    entity_types: list[str] | None
    facets: Annotated[list[str], Field(description="Names that can be counted, of at most 100 metadata fields.")]


class IndexesAnswer(Answer):
    """All indexes of the service, and what a request may ask for."""

    indexes: list[IndexOut]
    limits: dict[str, float]
    writable: bool
    reranker: Annotated[bool, Field(description="Whether searches may ask for a cross-encoder.")]


class Health(Answer):
    """Whether the service answers."""

    status: Literal["ok"]


class ProblemOut(Answer):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
