"""Two rankings measured on the same queries: who wins where, and how sure the difference is. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95

_CELLS = 4_000_000  # random numbers drawn at a time
_TIE = 1e-9  # values of a measure that are equal up to rounding


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first, over the same queries.

    `difference` is the mean, [`low`, `high`] its 95 % interval; `wins`, `losses` and `ties` count queries, from the
    side of the second.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> PairedDifference:
    """Compare two columns of values, one a query, in the same order of queries; at least one.

    The interval is the paired bootstrap's (Efron & Tibshirani 1993, percentiles): queries are drawn with replacement,
    both values of a query together, and the mean difference of each draw is taken. The same seed gives the same one.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differences[np.abs(differences) <= _TIE] = 0.0
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_resampled_means(differences, resamples=resamples, seed=seed), [tail, 1 - tail])
    return PairedDifference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        wins=int(np.count_nonzero(differences > 0)),
        losses=int(np.count_nonzero(differences < 0)),
        ties=int(np.count_nonzero(differences == 0)),
    )


def _resampled_means(values: npt.NDArray[np.float64], *, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """The mean of each of the draws, fp64 (resamples,)."""
    random = np.random.default_rng(seed)
    at_once = max(1, _CELLS // len(values))
    means = [
        values[random.integers(len(values), size=(min(at_once, resamples - done), len(values)))].mean(axis=1)
        for done in range(0, resamples, at_once)
    ]
    return np.concatenate(means)
