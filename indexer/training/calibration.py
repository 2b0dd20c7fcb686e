"""Confidence: the temperature of class scores, and what abstaining below a threshold gives. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Over the last axis, fp64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def fit_temperature(logits: Floats, gold: Ints) -> float:
    """The temperature from 0.05 to 20 with the smallest mean cross-entropy (Guo et al. 2017), to four digits.

    *Shapes:* (n, classes), (n,).
    """
    candidates = np.exp(np.linspace(np.log(0.05), np.log(20), 601))
    found = [cross_entropy(logits / value, gold) for value in candidates]
    return round(float(candidates[int(np.argmin(found))]), 4)


def cross_entropy(logits: Floats, gold: Ints) -> float:
    """Mean of −log of the gold class's probability. *Shapes:* (n, classes), (n,)."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    return float((log_sum - wide[np.arange(len(gold)), gold]).mean())


@dataclass(frozen=True, slots=True)
class Abstention:
    """Below `threshold` the head abstains: the share of texts it answers, and the accuracy of those answers."""

    threshold: float
    answered: float
    accuracy: float | None


def abstention_curve(confidence: Floats, correct: npt.NDArray[np.bool_], *, steps: int = 20) -> list[Abstention]:
    """One row for each threshold from 0 in steps of 1 / `steps`; accuracy is None where nothing is answered."""
    rows = []
    for index in range(steps):
        answered = confidence >= index / steps
        accuracy = float(correct[answered].mean()) if answered.any() else None
        rows.append(Abstention(index / steps, float(answered.mean()), accuracy))
    return rows


@dataclass(frozen=True, slots=True)
class Bin:
    """Texts whose confidence lies in (low, high]: how many, their mean confidence and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: Floats, correct: npt.NDArray[np.bool_], *, bins: int = 15) -> list[Bin]:
    """The bins of the expected calibration error that hold a text; see `metrics.expected_calibration_error`."""
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        inside = number == index
        if inside.any():
            found.append(
                Bin(
                    index / bins,
                    (index + 1) / bins,
                    int(inside.sum()),
                    float(confidence[inside].mean()),
                    float(correct[inside].mean()),
                )
            )
    return found
