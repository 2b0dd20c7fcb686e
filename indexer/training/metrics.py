"""What scores mean: pure functions on numpy arrays and spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
TypedSpan = tuple[str, int, int]
"""(type, start, end), end exclusive: offsets or word numbers."""


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Precision, recall and their harmonic mean, in [0, 1], and the number of spans in the gold standard."""

    precision: float
    recall: float
    f1: float
    support: int


def span_scores(gold: Sequence[Iterable[TypedSpan]], predicted: Sequence[Iterable[TypedSpan]]) -> dict[str, SpanScore]:
    """Strict scores over texts, for each type and, under "micro", over all types together.

    A predicted span is right if a gold span of the same text has the same type, start and end (Tjong Kim Sang
    and De Meulder 2003). P = right / predicted, R = right / gold, F1 = 2PR / (P + R); 0 where a divisor is 0.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} texts in the gold standard, but {len(predicted)} predicted")
    wanted = {(number, *span) for number, spans in enumerate(gold) for span in spans}
    found = {(number, *span) for number, spans in enumerate(predicted) for span in spans}
    types = sorted({span[1] for span in wanted | found})
    scores = {
        kind: _span_score({s for s in wanted if s[1] == kind}, {s for s in found if s[1] == kind}) for kind in types
    }
    return {"micro": _span_score(wanted, found), **scores}


def _span_score(wanted: set[tuple[int, str, int, int]], found: set[tuple[int, str, int, int]]) -> SpanScore:
    right = len(wanted & found)
    precision = right / len(found) if found else 0.0
    recall = right / len(wanted) if wanted else 0.0
    f1 = 2 * right / (len(found) + len(wanted)) if right else 0.0
    return SpanScore(precision, recall, f1, len(wanted))


def accuracy(gold: Ints, predicted: Ints) -> float:
    """Share of equal entries. *Shapes:* (n,), (n,); n > 0."""
    return float(np.mean(np.asarray(gold) == np.asarray(predicted)))


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation: Pearson's correlation of the ranks, ties sharing their mean rank (Spearman 1904).

    *Shapes:* (n,), (n,). NaN where all values of one side are equal.
    """
    a, b = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    a, b = a - a.mean(), b - b.mean()
    divisor = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / divisor) if divisor > 0 else float("nan")


def _ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: npt.NDArray[np.float64] = ((2 * last - counts + 1) / 2)[inverse]
    return ranks


def ndcg(ranking: Sequence[str], relevant: Mapping[str, float], *, k: int = 10) -> float:
    """Normalised discounted cumulative gain of one query's ranking, best first, cut at k.

    DCG = Σᵢ gain(i) / log₂(i + 1) over ranks i = 1 … k, divided by that of the ideal ranking (Järvelin and
    Kekäläinen 2002; linear gain, as in trec_eval). 0 for a query without a relevant document.
    """
    gains = [relevant.get(document, 0.0) for document in ranking[:k]]
    ideal = sorted(relevant.values(), reverse=True)[:k]
    best = _dcg(ideal)
    return _dcg(gains) / best if best > 0 else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(rank + 1) for rank, gain in enumerate(gains, start=1)))


def expected_calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by size (Guo et al. 2017).

    ECE = Σ_b |b| / n · |accuracy(b) - confidence(b)|. *Shapes:* `confidence` (n,) in [0, 1], `correct` (n,).
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    error = 0.0
    for index in range(bins):
        inside = bin_of == index
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(error)
