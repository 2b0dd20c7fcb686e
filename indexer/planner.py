"""Searching all segments of an index: which are scanned, which are searched by their codes, and what comes of it.

By codes there are three steps, each over fewer vectors and with more of each: the packed bits of all codes, all bits
of the most promising ones, and the vectors of the most promising of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import faiss
import numpy as np

from indexer.codes import CodeSpace, SegmentCodes
from indexer.helpers import Helpers
from indexer.records import FloatArray
from indexer.vectors import ROWS_AT_ONCE, Found, IdArray, Mask, Scores, Segment, allowed_rows, exact_scores

_In = TypeVar("_In")
_Out = TypeVar("_Out")

PLANS = ("auto", "codes", "scan")

# Up to so many allowed vectors in all, scanning just those beats scanning codes: a fixed number, measured by
# scripts/bench_vectors.py, because the plan must not depend on the clock, so that results don't.
SCAN_LIMIT = 1_000
# Reading fewer vectors, or codes one by one, is not worth waking other threads; a scan passes over so many codes in the
# time of one.
PARALLEL_ROWS = 512
CODES_OF_A_ROW = 16
# Each segment is first asked for one in so many of the codes that are wanted from all of them, or for so many times its
# share of them; one that may have more among the best is asked again. What a scan must keep costs more than what it
# passes over.
FIRST = 4
MORE_THAN_ITS_SHARE = 2
_ROUNDING = 1e-6  # of a cosine in fp32


@dataclass(frozen=True, slots=True)
class Candidates:
    """Vectors found, best first: vids and docs int64 (n,), scores fp64 (n,), the cosine with the query."""

    vids: IdArray
    docs: IdArray
    scores: Scores


@dataclass(slots=True)
class SearchPlan:
    """What a search did, for `--explain`. `rows` live vectors, `allowed` of them under the filter."""

    path: str = "none"
    rows: int = 0
    allowed: int = 0
    scanned_codes: int = 0
    scanned_vectors: int = 0


def search_segments(
    segments: Sequence[Segment],
    query: FloatArray,
    n: int,
    *,
    space: CodeSpace | None,
    allowed_docs: Mask | None = None,
    path: str = "auto",
    helpers: Helpers | None = None,
) -> tuple[Candidates, SearchPlan]:
    """The n best live vectors of the allowed documents over all segments, exactly scored; `query` fp32 (dimension,).

    See `search_segments_many`.
    """
    found = search_segments_many(
        segments, query[None], n, space=space, allowed_docs=allowed_docs, path=path, helpers=helpers
    )
    return found[0]


def search_segments_many(
    segments: Sequence[Segment],
    queries: FloatArray,
    n: int,
    *,
    space: CodeSpace | None,
    allowed_docs: Mask | None = None,
    path: str = "auto",
    helpers: Helpers | None = None,
) -> list[tuple[Candidates, SearchPlan]]:
    """For each query the n best live vectors of the allowed documents over all segments, exactly scored.

    `queries` fp32 (queries, dimension), each of length 1; each gets what it would get alone, bit by bit. `allowed_docs`
    bool (highest doc + 1,), `None` for all. `path` forces one of `PLANS`: "codes" searches segments that have codes by
    them; "scan" scans the allowed vectors themselves. Min(n, allowed) vectors come back whichever it is. Segments are
    shared out with `helpers`.

    Scores are computed at the end in fp64, row by row, so that they do not depend on how a vector was found. Equal
    scores are in the order of their vids.
    """
    masks = [segment.mask(allowed_docs) for segment in segments]
    parts = [
        _Part(segment, mask, count)
        for segment, mask in zip(segments, masks, strict=True)
        if (count := allowed_rows(segment, mask))
    ]
    allowed = sum(part.allowed for part in parts)
    plan = SearchPlan(_choose(path, allowed), sum(segment.live_rows for segment in segments), allowed)
    scanned, coded = parts, list[_CodedPart]()
    if plan.path == "codes" and space is not None:
        coded = [
            _CodedPart(part.segment, part.mask, part.allowed, codes, space, n * part.segment.rerank)
            for part in parts
            if (codes := part.segment.codes) is not None and part.allowed > n * part.segment.rerank
        ]
        known = {id(part.segment) for part in coded}
        scanned = [part for part in parts if id(part.segment) not in known]
    plan.scanned_vectors = sum(part.allowed for part in scanned)
    plan.scanned_codes = sum(part.allowed if part.few else len(part.codes) for part in coded)
    work = sum(part.allowed if part.few else len(part.codes) // CODES_OF_A_ROW for part in coded)
    if plan.scanned_vectors + work < PARALLEL_ROWS:
        helpers = None
    likely = sum(part.allowed for part in coded if part.rough)
    rotated = queries
    if space is not None and coded:  # row by row: how a product of more rows rounds depends on their number
        rotated = np.concatenate([space.rotate(query[None]) for query in queries])

    def find(part: _Part | _CodedPart) -> list[Found]:
        if isinstance(part, _CodedPart):
            return part.find(rotated, likely)
        return [part.segment.scan(query, n, part.mask) for query in queries]

    with _one_thread_each():
        found = _map(find, [*coded, *scanned], helpers)
        results = []
        for number, query in enumerate(queries):
            by_codes = [one[number] for one in found[: len(coded)]]
            by_codes, again = _judge(coded, by_codes, rotated[number : number + 1], helpers)
            chosen, rows = _rerank(coded, by_codes, query, n, helpers)
            exact = [*chosen, *(one[number] for one in found[len(coded) :])]
            best = _best([part.segment for part in (*coded, *scanned)], exact, query, n)
            done = replace(plan, scanned_codes=plan.scanned_codes + again, scanned_vectors=plan.scanned_vectors + rows)
            results.append((best, done))
    return results


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment with the vectors that are allowed in it: a mask, `None` for all, and how many."""

    segment: Segment
    mask: Mask | None
    allowed: int


@dataclass(frozen=True, slots=True)
class _CodedPart(_Part):
    """One that is searched by its codes, for the `wanted` best."""

    codes: SegmentCodes
    space: CodeSpace
    wanted: int

    @property
    def few(self) -> bool:
        """Whether all bits of the allowed codes are looked at, and no scan is made."""
        return self.mask is not None and self.codes.few(self.allowed)

    @property
    def rough(self) -> bool:
        """Whether what it finds at first is to be judged by all bits."""
        return self.space.shortlist > 1 and not self.few

    @property
    def shortlist(self) -> int:
        """How many codes a scan gives at most."""
        return self.wanted * self.space.shortlist

    def find(self, rotated: FloatArray, likely: int) -> list[Found]:
        """For each query, fp32 (queries, dimension), the most promising codes; `likely`: codes allowed in all."""
        if self.few and self.mask is not None:
            return _pairs(self.codes.judge(self.space, rotated, self.wanted, np.flatnonzero(self.mask)))
        if not self.rough:
            return self.scan(rotated, self.wanted)
        share = max(1 / FIRST, MORE_THAN_ITS_SHARE * self.allowed / likely)
        return self.scan(rotated, math.ceil(self.shortlist * min(1.0, share)))

    def scan(self, rotated: FloatArray, n: int) -> list[Found]:
        """For each query the n best by the packed bits."""
        return _pairs(self.codes.scan(rotated, n, self.mask))

    def judge(self, rotated: FloatArray, positions: IdArray) -> Found:
        """The best at these positions by all bits; `rotated` fp32 (1, dimension)."""
        return _pairs(self.codes.judge(self.space, rotated, self.wanted, positions))[0]


def _judge(
    parts: Sequence[_CodedPart], found: Sequence[Found], rotated: FloatArray, helpers: Helpers | None
) -> tuple[list[Found], int]:
    """Estimates by all bits in the place of those by the packed ones, for the most promising codes of all segments.

    And how many codes were scanned once more.
    """
    judged, rough = list(found), [at for at, part in enumerate(parts) if part.rough]
    ranks = [parts[at].shortlist for at in rough]
    chosen = _promising([judged[at] for at in rough], ranks)
    # Where all that a segment gave is among the best, it may have more of them.
    short = [
        at
        for at, positions in zip(rough, chosen, strict=True)
        if len(positions) == len(judged[at][0]) < min(parts[at].shortlist, parts[at].allowed)
    ]
    if short:
        again = _map(lambda at: parts[at].scan(rotated, parts[at].shortlist)[0], short, helpers)
        for at, more in zip(short, again, strict=True):
            judged[at] = more
        chosen = _promising([judged[at] for at in rough], ranks)
    for at, positions in zip(rough, chosen, strict=True):
        judged[at] = parts[at].judge(rotated, positions)
    return judged, sum(len(parts[at].codes) for at in short)


def _rerank(
    parts: Sequence[_CodedPart], found: Sequence[Found], query: FloatArray, n: int, helpers: Helpers | None
) -> tuple[list[Found], int]:
    """Exact cosines in the place of estimates, for the most promising vectors of all segments; how many these are."""
    chosen = _promising(found, [part.wanted for part in parts])
    rows = sum(map(len, chosen))

    def rerank(at: int) -> Found:
        return parts[at].segment.score(query, n, chosen[at])

    return _map(rerank, range(len(parts)), helpers if rows > ROWS_AT_ONCE else None), rows


def _promising(found: Sequence[Found], ranks: Sequence[int]) -> list[IdArray]:
    """Positions in each segment of those that are among the best over all segments, up to the rank that it needs.

    Estimates of all segments compare, as they are in one code space. How far down their order vectors of a segment may
    be right differs between segments, and is known from a sample of each.
    """
    estimates = np.concatenate([np.zeros(0, dtype=np.float32), *(estimates for _, estimates in found)])
    places = sorted({len(estimates) - rank for rank in ranks if rank < len(estimates)})
    if not places:
        return [positions for positions, _ in found]
    ordered = np.partition(estimates, places)
    return [
        positions[own >= ordered[len(estimates) - rank]] if rank < len(estimates) else positions
        for (positions, own), rank in zip(found, ranks, strict=True)
    ]


def _best(segments: Sequence[Segment], found: Sequence[Found], query: FloatArray, n: int) -> Candidates:
    """The n best of what the segments found, scored exactly."""
    cosines = np.concatenate([np.zeros(0), *(cosines for _, cosines in found)])
    # Cosines in fp32 that are equal up to rounding may be in any order: keep all that tie with the last.
    limit = np.partition(cosines, len(cosines) - n)[len(cosines) - n] - _ROUNDING if len(cosines) > n else -np.inf
    kept = [
        (segment, positions[near])
        for segment, (positions, own) in zip(segments, found, strict=True)
        if (near := own >= limit).any()
    ]
    if not kept:
        nothing = np.zeros(0, dtype=np.int64)
        return Candidates(nothing, nothing, np.zeros(0))
    vids = np.concatenate([segment.vids[at] for segment, at in kept])
    docs = np.concatenate([segment.docs[at] for segment, at in kept])
    scores = exact_scores(np.concatenate([segment.rows(at) for segment, at in kept]), query)
    order = np.lexsort((vids, -scores))[:n]
    return Candidates(vids[order], docs[order], scores[order])


def _choose(path: str, allowed: int) -> str:
    if path not in PLANS:
        raise ValueError(f"unknown plan '{path}'; there are {', '.join(PLANS)}")
    if path != "auto":
        return path
    return "scan" if allowed <= SCAN_LIMIT else "codes"


def _pairs(found: tuple[FloatArray, IdArray]) -> list[Found]:
    """FAISS's two tables, a row for each query, as positions and estimates."""
    estimates, positions = found
    return list(zip(positions, estimates, strict=True))


def _map(function: Callable[[_In], _Out], items: Sequence[_In], helpers: Helpers | None) -> list[_Out]:
    """The results for all items; with helpers where there are some."""
    return list(map(function, items)) if helpers is None else helpers.map(function, items)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep FAISS from sharing out one query among threads, which it cannot, and which would then wait by spinning."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # a setting of this thread
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
