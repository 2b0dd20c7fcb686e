"""How sure a score is: percentile intervals from draws with replacement. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Measure:
    """A score over `units` texts, pairs or queries; `of` gives it for some of them, by number, with repeats."""

    name: str
    units: int
    of: Callable[[Ints], float]

    @property
    def value(self) -> float:
        """The score over all units."""
        return self.of(np.arange(self.units))


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first over the same units, with its 95 % interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float


def interval(measure: Measure, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Units are drawn with replacement (Efron and Tibshirani 1993); the same seed gives the same interval."""
    draws = [measure.of(rows) for rows in _draws(measure.units, resamples, seed)]
    low, high = _quantiles(draws)
    return Interval(measure.value, low, high)


def compare(first: Measure, second: Measure, *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The paired bootstrap: each draw takes the same units of both. Raises `ValueError` where they have not as many."""
    if first.units != second.units:
        raise ValueError(f"{first.units} units of the first, but {second.units} of the second")
    draws = [second.of(rows) - first.of(rows) for rows in _draws(first.units, resamples, seed)]
    low, high = _quantiles(draws)
    return Difference(first.value, second.value, second.value - first.value, low, high)


def _draws(units: int, resamples: int, seed: int) -> Iterator[Ints]:
    """One after the other: a thousand draws of a million units have no room beside each other."""
    random = np.random.default_rng(seed)
    return (random.integers(units, size=units) for _ in range(resamples))


def _quantiles(draws: list[float]) -> tuple[float, float]:
    """Draws without a value, as a correlation of equal numbers, are left out."""
    tail = (1 - CONFIDENCE) / 2
    values = np.array(draws)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
