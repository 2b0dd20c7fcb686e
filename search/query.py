"""What is asked for: a query's options, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from indexer.errors import QueryError
from indexer.filters import Filter

MODES = ("cosine",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Options of a search.

    - `k`: how many documents, `offset`: how many of the best to pass over before them.
    - `filter`: only documents for which it is true; `None` for all.
    - `min_score`: only hits with at least this cosine; `None` for all, negative ones too.

    Raises `QueryError` for values that make no sense.
    """

    k: int = 10
    offset: int = 0
    filter: Filter | None = None
    min_score: float | None = None
    mode: str = "cosine"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise QueryError(f"k must be at least 1, got {self.k}")
        if self.offset < 0:
            raise QueryError(f"offset must be at least 0, got {self.offset}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise QueryError(f"min_score must be a number, got {self.min_score}")
        if self.mode not in MODES:
            raise QueryError(f"unknown mode '{self.mode}'; there are {', '.join(MODES)}")
