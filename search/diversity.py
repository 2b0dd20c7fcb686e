"""Hits that differ from each other: near-duplicates collapsed into the best of them, and maximal marginal relevance.

Pure functions over candidates in the order of their ranking, with the embeddings of their documents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.records import FloatArray
from search.ranking import Ranked

MMR_POOL = 100  # of the best documents that MMR puts into a new order; further ones follow in theirs
MOST_EXAMINED = 10_000  # documents among which distinct ones are looked for, or twice as many as are wanted
FIRST_EXAMINED = 32
WIDEN = 4
BLOCK = 256  # candidates that are compared with all leaders at a time

_ROUNDING = 1e-9  # of a cosine in fp64: of equal vectors it is 1 up to this

Units = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """A document that is shown, and those that it hides, best first."""

    best: Ranked
    hidden: tuple[Ranked, ...] = ()


def diversify(
    rank: Callable[[int], list[Ranked]],
    describe: Callable[[Sequence[Ranked]], tuple[FloatArray, list[str]]],
    *,
    wanted: int,
    distinct: float | None,
    mmr: float | None,
    cosines: bool = True,
) -> list[Group]:
    """The first `wanted` documents to show; fewer only where there are no more, or none among `MOST_EXAMINED`.

    `rank(n)` gives the n best in order, fewer where there are no more; `describe` their documents' embeddings, fp32
    (n, dimension), and texts. Near-duplicates are collapsed first (`distinct`, see `collapse`). Then the best
    `MMR_POOL` of what is left are put into a new order (`mmr`, see `marginal_relevance`), however many are wanted, so
    that pages of one query fit together. `cosines`: whether the scores are such; others are scaled to [0, 1] for MMR.
    """
    wanted = max(wanted, MMR_POOL) if mmr is not None else wanted
    n = wanted if distinct is None else max(FIRST_EXAMINED, 2 * wanted)
    while True:
        ranked = rank(n)
        vectors, texts = describe(ranked)
        if distinct is None:
            groups = [[at] for at in range(len(ranked))]
        else:
            groups = collapse(vectors, texts, threshold=distinct, wanted=wanted)
        if len(groups) >= wanted or len(ranked) < n or n >= MOST_EXAMINED:
            break
        n = min(WIDEN * n, MOST_EXAMINED)
    if mmr is not None:
        pool, rest = groups[:MMR_POOL], groups[MMR_POOL:]
        leaders = [group[0] for group in pool]
        scores = [ranked[at].score for at in leaders]
        order = marginal_relevance(scores if cosines else scaled(scores), vectors[leaders], balance=mmr)
        groups = [pool[at] for at in order] + rest
    return [Group(ranked[first], tuple(ranked[at] for at in others)) for first, *others in groups]


def collapse(vectors: FloatArray, texts: Sequence[str], *, threshold: float, wanted: int) -> list[list[int]]:
    """Groups of positions, each led by its best, in the order of the leaders; at most `wanted` of them.

    `vectors` fp32 (n, dimension) and `texts` are the candidates', best first. A candidate joins the first leader whose
    vector has a cosine of at least `threshold` with its own, or whose text is the same up to case, white space and
    forms of Unicode; if there is none, it leads a group of its own. So the leaders depend only on what is ranked before
    them: a longer list of candidates adds leaders at the end, and changes none. Texts without a word are not compared.
    """
    # The cosines of a block with all leaders are one product in fp32, where one candidate after the other would read
    # all leaders each time. Those that may be near, by the error of that, are computed in fp64, in their order.
    units = _units(vectors)
    rough, slack = units.astype(np.float32), (units.shape[1] + 2) * float(np.finfo(np.float32).eps)
    keys = [_folded(text) for text in texts]
    groups: list[list[int]] = []
    by_key: dict[str, int] = {}
    for start in range(0, len(units), BLOCK):
        before, block = len(groups), np.arange(start, min(start + BLOCK, len(units)))
        columns = np.concatenate([[group[0] for group in groups], block]).astype(np.int64)
        group_of = np.arange(len(columns))
        leads = group_of < before
        cosines = rough[block] @ rough[columns].T
        for row, at in enumerate(block.tolist()):
            near = np.flatnonzero(leads & (cosines[row] >= threshold - _ROUNDING - slack))
            exact = (column for column in near if units[columns[column]] @ units[at] >= threshold - _ROUNDING)
            first = next((int(group_of[column]) for column in exact), len(groups))
            first = min(first, by_key.get(keys[at], len(groups)))
            if first < len(groups):
                groups[first].append(at)
            elif len(groups) < wanted:
                leads[before + row], group_of[before + row] = True, len(groups)
                if keys[at]:
                    by_key[keys[at]] = len(groups)
                groups.append([at])
    return groups


def marginal_relevance(scores: Sequence[float], vectors: FloatArray, *, balance: float) -> list[int]:
    """All positions in the order of maximal marginal relevance (Carbonell & Goldstein 1998).

    The next is always the one with the highest balance · score − (1 − balance) · (its highest cosine with one chosen
    before), the first of several. `balance` is the paper's λ, from 1, the order of the scores, to 0, which looks for
    what is unlike the ones before. `scores` are best first, `vectors` fp32 (n, dimension).
    """
    units = _units(vectors)
    relevance = balance * np.asarray(scores, dtype=np.float64)
    nearest = np.zeros(len(relevance))
    order: list[int] = []
    left = np.ones(len(relevance), dtype=bool)
    while left.any():
        marginal = np.where(left, relevance - (1.0 - balance) * nearest, -np.inf)
        # Differences of rounding are none: the better ranked comes first, on every machine.
        chosen = int(np.flatnonzero(marginal >= marginal.max() - _ROUNDING)[0])
        cosines = units @ units[chosen]
        nearest = np.maximum(nearest, cosines) if order else cosines
        order.append(chosen)
        left[chosen] = False
    return order


def scaled(scores: Sequence[float]) -> list[float]:
    """Scores from 0, the lowest, to 1, the highest; all 1 where they are equal.

    >>> scaled([8.0, 4.0, 2.0, 0.0])
    [1.0, 0.5, 0.25, 0.0]
    """
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _folded(text: str) -> str:
    """A text as it is compared with others: NFKC, casefolded, white space collapsed; empty for one without a word."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _units(vectors: FloatArray) -> Units:
    exact = vectors.astype(np.float64)
    units: Units = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return units
