"""From scored passages to ranked documents: pure functions, and the widening search that feeds them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from indexer.vectors import Candidates

# Vectors are found with fp32 arithmetic and scored with fp64: within this distance their order is open.
TIE = 1e-5
FIRST_CANDIDATES = 16
MARGIN = 2  # passages asked for first, for each document wanted
WIDEN = 4


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document with its best passage."""

    doc: int
    vid: int
    score: float


def best_passages(candidates: Candidates, *, exclude: Collection[int] = ()) -> list[Ranked]:
    """The best passage of each document, best first, without the documents to exclude."""
    docs, first = np.unique(candidates.docs, return_index=True)
    order = np.argsort(first, kind="stable")
    return [
        Ranked(int(docs[at]), int(candidates.vids[first[at]]), float(candidates.scores[first[at]]))
        for at in order
        if docs[at] not in exclude
    ]


def rank_documents(
    find: Callable[[int], Candidates], *, wanted: int, available: int, exclude: Collection[int] = ()
) -> list[Ranked]:
    """At least the `wanted` best documents, best first, with all that tie with the last of them.

    `find(n)` gives the n best passages. It is asked for more until min(wanted, available) documents are there
    and no passage that it left out could belong among them.
    """
    wanted = min(wanted, available)
    n = max(FIRST_CANDIDATES, MARGIN * wanted)
    while True:
        candidates = find(n)
        ranked = best_passages(candidates, exclude=exclude)
        if len(candidates.vids) < n or len(ranked) >= available:
            return ranked
        if len(ranked) >= wanted and candidates.scores[-1] < ranked[wanted - 1].score - TIE:
            return ranked
        n *= WIDEN


def in_order(ranked: list[Ranked], ids: Mapping[int, str]) -> list[Ranked]:
    """Best score first; equal scores in the order of their ids."""
    return sorted(ranked, key=lambda document: (-document.score, ids[document.doc]))
