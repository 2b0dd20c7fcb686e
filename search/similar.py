"""More like these, and less like those: several examples as one query vector. Pure functions; no model, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from indexer.errors import QueryError
from indexer.fields import several
from indexer.records import FloatArray

NOT_WEIGHT = 0.5

# A shorter sum of unit vectors is what rounding to fp16, as documents of the index are, leaves of examples that cancel
# out.
_NO_DIRECTION = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What the hits should be like, `ids` and `texts`, and unlike, `not_ids` and `not_texts`; each kept as a tuple.

    `not_weight`: how much the negative ones count against the positive ones; 0 not at all.

    Raises `QueryError` where there is no positive example, or one is positive and negative.
    """

    ids: Sequence[str] = ()
    texts: Sequence[str] = ()
    not_ids: Sequence[str] = ()
    not_texts: Sequence[str] = ()
    not_weight: float = NOT_WEIGHT

    def __post_init__(self) -> None:
        for name in ("ids", "texts", "not_ids", "not_texts"):
            given = several(getattr(self, name), name, error=QueryError)
            object.__setattr__(self, name, tuple(dict.fromkeys(given)))  # an example counts once
        if not self.ids and not self.texts:
            raise QueryError("more like nothing: give at least one id or text that hits should be like")
        for what, positive, negative in (("id", self.ids, self.not_ids), ("text", self.texts, self.not_texts)):
            if both := set(positive).intersection(negative):
                raise QueryError(f"the {what} '{min(both)}' is both a positive and a negative example")
        weight = self.not_weight
        if not (isinstance(weight, Real) and math.isfinite(weight) and weight >= 0):
            raise QueryError(f"not_weight must be a number from 0 up, got {weight!r}")


def combine(positives: FloatArray, negatives: FloatArray, *, not_weight: float = NOT_WEIGHT) -> FloatArray:
    """One query vector, fp32 (dimension,), in the direction of mean(positives) − not_weight · mean(negatives).

    *Shapes:* (positives, dimension), at least one row, and (negatives, dimension); rows are brought to length 1 first.
    This is Rocchio's formula (Rocchio 1971) without an original query. With the weight 1/2 its direction is that of
    Qdrant's "average vector", mean(positives) + (mean(positives) − mean(negatives)). Raises `QueryError` where the
    examples cancel out.
    """
    if len(positives) == 1 and (not len(negatives) or not_weight == 0):
        alone: FloatArray = positives[0]
        return alone
    query = _units(positives).mean(axis=0)
    if len(negatives):
        scale = max(1.0, not_weight)  # the direction is all that counts, and no weight may overflow
        query = query / scale - (not_weight / scale) * _units(negatives).mean(axis=0)
    if np.linalg.norm(query) < _NO_DIRECTION:
        raise QueryError("the examples cancel out: nothing is left to search for; give fewer, or another weight")
    combined: FloatArray = query.astype(np.float32)
    return combined


def _units(vectors: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    units: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = exact / lengths
    return units
