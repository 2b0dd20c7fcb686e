"""What is asked for: a query's options, checked."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Real

from indexer.errors import FilterError, QueryError
from indexer.fields import named
from indexer.filters import Filter

MODES = ("cosine", "hybrid", "keyword")
"""Ranked by meaning; by meaning and words together; by words."""

ENTITY_USES = ("filter", "boost")
"""What the query's own entities do: only documents that share any are hits; those that do are raised."""

MAX_BOOST = 1_000.0
"""Beyond it a cosine would be lost in the rounding, and at last the score, which is infinite, in JSON."""

FUSIONS = ("rrf", "weighted")
"""How the two rankings of a hybrid search become one: by their ranks; by their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Options of a search.

    - `k`: how many documents, `offset`: how many of the best to pass over before them.
    - `filter`: only documents for which it is true; `None` for all.
    - `min_score`: only hits with at least this score; `None` for all, negative ones too.
    - `distinct`: documents whose embeddings have at least this cosine, or with the same text, are one hit.
    - `mmr`: λ of maximal marginal relevance, from 1, hits in the order of their scores, to 0, unlike each other.
    - `entities`: one of `ENTITY_USES`, `None` for neither; `boost`: how much sharing all of them adds to a cosine.
    - `passages`: how many of its best passages each hit shows, `neighbours`: how many on either side of each of them;
      `highlight`: the best sentence of the best passage.
    - `rerank`: a cross-encoder, by name or folder, that puts the best `rerank_top` documents into a new order.
    - `mode`: one of `MODES`; `fusion`: one of `FUSIONS`; `keyword_weight`: the share of words in a weighted fusion.

    Raises `QueryError` for values that make no sense, `FilterError` for a filter that is no tree.
    """

    k: int = 10
    offset: int = 0
    filter: Filter | None = None
    min_score: float | None = None
    mode: str = "cosine"
    fusion: str = "weighted"
    keyword_weight: float = 0.5
    distinct: float | None = None
    mmr: float | None = None
    entities: str | None = None
    boost: float = 0.1
    passages: int = 0
    neighbours: int = 0
    highlight: bool = False
    rerank: str | None = None
    rerank_top: int = 50

    def __post_init__(self) -> None:
        for name in ("k", "offset", "passages", "neighbours", "rerank_top"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("min_score", "keyword_weight", "distinct", "mmr", "boost"):
            if not isinstance(value := getattr(self, name), Real | None):
                raise QueryError(f"{name} must be a number, got {named(value)}")
        if not isinstance(self.filter, Filter | None):
            raise FilterError(
                f"the filter of a Query is a tree, got {named(self.filter)}: indexer.filters.as_filter makes one of "
                "text or JSON"
            )
        if self.k < 1:
            raise QueryError(f"k must be at least 1, got {self.k}")
        if self.offset < 0:
            raise QueryError(f"offset must be at least 0, got {self.offset}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise QueryError(f"min_score must be a number, got {self.min_score}")
        if self.mode not in MODES:
            raise QueryError(f"unknown mode '{self.mode}'; there are {', '.join(MODES)}")
        if self.fusion not in FUSIONS:
            raise QueryError(f"unknown fusion '{self.fusion}'; there are {', '.join(FUSIONS)}")
        if not 0.0 <= self.keyword_weight <= 1.0:
            raise QueryError(f"keyword_weight must be between 0 and 1, got {self.keyword_weight}")
        if self.distinct is not None and not 0.0 < self.distinct <= 1.0:
            raise QueryError(f"distinct must be a cosine above 0 and up to 1, got {self.distinct}")
        if self.mmr is not None and not 0.0 <= self.mmr <= 1.0:
            raise QueryError(f"mmr must be between 0 and 1, got {self.mmr}")
        if self.entities is not None and self.entities not in ENTITY_USES:
            raise QueryError(f"unknown use of entities '{self.entities}'; there are {', '.join(ENTITY_USES)}")
        if not 0.0 <= self.boost <= MAX_BOOST:
            raise QueryError(f"boost must be between 0 and {MAX_BOOST:,g}, got {self.boost}")
        if self.passages < 0:
            raise QueryError(f"passages must be at least 0, got {self.passages}")
        if self.neighbours < 0:
            raise QueryError(f"neighbours must be at least 0, got {self.neighbours}")
        if self.neighbours and not self.passages:
            raise QueryError("neighbours are those of passages: ask for at least 1 passage")
        if self.rerank is not None and self.rerank_top < self.offset + self.k:
            raise QueryError(
                f"rerank_top is {self.rerank_top}, but offset {self.offset} and k {self.k} reach down to hit "
                f"{self.offset + self.k}: rerank at least so many, or ask for fewer hits"
            )
        if self.rerank is not None and self.mmr is not None:
            raise QueryError("rerank and mmr each put hits into an order of their own: ask for one of them")

    @property
    def diverse(self) -> bool:
        """Whether hits are chosen by more than their scores."""
        return self.distinct is not None or self.mmr is not None

    @property
    def plain(self) -> bool:
        """Whether it ranks by cosine and nothing else, so that one pass over the codes can serve several such."""
        return self.mode == "cosine" and not (self.diverse or self.entities or self.rerank)


def whole(name: str, value: object) -> int:
    """A whole number of any type as Python's own, which FAISS and SQLite take. Raises `QueryError`."""
    try:
        return int(operator.index(value))  # type: ignore[arg-type]  # raises TypeError
    except TypeError:
        raise QueryError(f"{name} must be a whole number, got {named(value)}") from None
