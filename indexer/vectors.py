"""Vectors in memory: segments, and the search over them. Callers see vids and documents; positions stay in here.

Every vector is L2-normalised fp16. A large segment also has RaBitQ codes (`codes.py`): the codes say which vectors may
be among the best, and the fp16 vectors of those, mapped from disk, say which are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from indexer.codes import CodeSpace, SegmentCodes, selector
from indexer.errors import InputError
from indexer.records import FloatArray

_Out = TypeVar("_Out")

IdArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Found = tuple[IdArray, FloatArray | Scores]
"""Positions in a segment and what each is worth: int64 (n,), fp32 or fp64 (n,)."""

# Up to so many allowed vectors in all, scanning just those beats scanning codes: a fixed number, measured by
# scripts/bench_vectors.py, because the plan must not depend on the clock, so that results don't.
SCAN_LIMIT = 2_500
# A search of fewer rows is not worth handing to other threads.
PARALLEL_ROWS = 16_384
# Where fewer than one row in so many is wanted, copying those rows beats asking a selector about every row.
COPY_SHARE = 1_024
# Up to so many rows are copied to be scored, in the thread of the query; for more, a selector is faster.
ROWS_AT_ONCE = 1_024
_ROUNDING = 1e-6  # of a cosine in fp32

PLANS = ("auto", "codes", "scan")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Vectors found, best first: vids and docs int64 (n,), scores fp64 (n,), the cosine with the query."""

    vids: IdArray
    docs: IdArray
    scores: Scores


@dataclass(frozen=True)
class Segment:
    """Vectors with the vid and document of each; `live` says which still count. Nothing in it changes.

    - `index`: FAISS flat index of fp16 vectors; where it is mapped from a file it must not be added to.
    - `vids`, `docs`: int64 (rows,), `vids` ascending; `live`: bool (rows,).
    - `codes`: RaBitQ codes in the same order, `None` for a small segment; `rerank`: how many times n
      candidates the codes must give, so that the best n are among them.
    - `crcs`: the checksum of each vector, int64 (rows,), `None` for vectors that are in no file.
    """

    name: str
    index: faiss.IndexScalarQuantizer
    vids: IdArray
    docs: IdArray
    live: Mask
    codes: SegmentCodes | None = None
    rerank: int = 1
    crcs: IdArray | None = None

    def __len__(self) -> int:
        return len(self.vids)

    @cached_property
    def live_rows(self) -> int:
        """Vectors that are not dead."""
        return int(np.count_nonzero(self.live))

    @cached_property
    def highest_doc(self) -> int:
        """The highest document number, 0 for an empty segment."""
        return int(self.docs.max(initial=0))

    @property
    def all_live(self) -> bool:
        """True where no vector is dead."""
        return self.live_rows == len(self)

    @cached_property
    def table(self) -> npt.NDArray[np.float16]:
        """The stored vectors, fp16 (rows, dimension), without copying them."""
        table: npt.NDArray[np.float16] = _code_table(self.index).view("<f2")
        return table

    def without(self, vids: IdArray) -> Segment:
        """The segment with these vectors dead; vids that are not in it are passed over."""
        at = np.searchsorted(self.vids, vids)
        here = at < len(self.vids)
        at = at[here][self.vids[at[here]] == vids[here]]
        if not len(at):
            return self
        live = self.live.copy()
        live[at] = False
        return replace(self, live=live)

    @cached_property
    def numbered_through(self) -> bool:
        """True where the documents are numbered one after the other, one vector each."""
        return len(self) > 0 and bool((np.diff(self.docs) == 1).all())

    def mask(self, allowed_docs: Mask | None) -> Mask | None:
        """Which vectors are live and belong to these documents, bool (rows,); `None` for all vectors.

        `allowed_docs` bool (highest doc + 1,), `None` for all documents.
        """
        if allowed_docs is None:
            return None if self.all_live else self.live
        first = int(self.docs[0]) if len(self) else 0
        mask = allowed_docs[first : first + len(self)] if self.numbered_through else allowed_docs[self.docs]
        return mask if self.all_live else mask & self.live

    def scan(self, query: FloatArray, n: int, allowed: Mask | None) -> tuple[IdArray, FloatArray]:
        """Positions and cosines of the n best allowed vectors, by the fp16 vectors. `query` fp32 (dimension,)."""
        if allowed is not None and _count(self, allowed) * COPY_SHARE <= len(self):
            return self._copied(query, n, np.flatnonzero(allowed))
        return _found(*self.index.search(query[None], n, params=_parameters(allowed)))

    def score(self, query: FloatArray, n: int, positions: IdArray) -> Found:
        """As `scan`, for the vectors at these positions, int64 (m,); all of them where they are few."""
        if len(positions) > ROWS_AT_ONCE:
            mask = np.zeros(len(self), dtype=bool)
            mask[positions] = True
            return self.scan(query, n, mask)
        return self._copied(query, len(positions), positions)

    def _copied(self, query: FloatArray, n: int, positions: IdArray) -> tuple[IdArray, FloatArray]:
        """Positions and cosines of the n best vectors at some positions, by a copy of them."""
        if not len(positions):
            return positions, np.zeros(0, dtype=np.float32)
        few = new_flat_index(len(query))
        few.add_sa_codes(_code_table(self.index)[positions])
        at, cosines = _found(*few.search(query[None], n))
        return positions[at], cosines

    def scan_codes(self, space: CodeSpace, rotated: FloatArray, n: int, allowed: Mask | None) -> list[Found]:
        """For each query, fp32 (queries, dimension): positions and estimates of the n best allowed vectors by codes.

        One pass over the codes serves all queries, and gives each what it would have alone.
        """
        if self.codes is None:
            raise ValueError(f"segment {self.name} has no codes")
        estimates, found = self.codes.search(space, rotated, n, allowed)
        return list(zip(found, estimates, strict=True))


class _Memory:
    """An array in memory of FAISS that keeps its owner alive, which a plain `rev_swig_ptr` does not."""

    def __init__(self, owner: faiss.Index, array: npt.NDArray[np.uint8]) -> None:
        self._owner = owner
        self.__array_interface__ = array.__array_interface__


def _code_table(index: Any) -> npt.NDArray[np.uint8]:
    """What a `faiss.IndexFlatCodes` keeps of each vector, uint8 (n, bytes)."""
    count, size = index.ntotal, index.code_size
    if count == 0:
        return np.zeros((0, size), dtype=np.uint8)
    memory = _Memory(index, faiss.rev_swig_ptr(index.codes.data(), count * size))
    return np.asarray(memory).reshape(count, size)


def new_flat_index(dimension: int) -> faiss.IndexScalarQuantizer:
    """An empty FAISS index for fp16 vectors, ranked by inner product."""
    return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def in_memory(name: str, vids: Sequence[int], docs: Sequence[int], vectors: npt.NDArray[np.float16]) -> Segment:
    """A segment of vectors, fp16 (n, dimension), that are in no file."""
    index = new_flat_index(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return Segment(
        name,
        index,
        np.asarray(vids, dtype=np.int64),
        np.asarray(docs, dtype=np.int64),
        np.ones(len(vids), dtype=bool),
    )


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
    pool: ThreadPoolExecutor | None = None,
) -> tuple[Candidates, SearchPlan]:
    """The n best live vectors of the allowed documents over all segments, exactly scored; `query` fp32 (dimension,).

    See `search_segments_many`.
    """
    return search_segments_many(segments, query[None], n, space=space, allowed_docs=allowed_docs, path=path, pool=pool)[
        0
    ]


def search_segments_many(
    segments: Sequence[Segment],
    queries: FloatArray,
    n: int,
    *,
    space: CodeSpace | None,
    allowed_docs: Mask | None = None,
    path: str = "auto",
    pool: ThreadPoolExecutor | None = None,
) -> list[tuple[Candidates, SearchPlan]]:
    """For each query the n best live vectors of the allowed documents over all segments, exactly scored.

    `queries` fp32 (queries, dimension), each of length 1; each gets what it would get alone, bit by bit. `allowed_docs`
    bool (highest doc + 1,), `None` for all. `path` forces one of `PLANS`: "codes" scans the codes of segments that have
    them, and then the vectors that are the most promising of all segments; "scan" scans the allowed vectors themselves.
    Min(n, allowed) vectors come back whichever it is. Segments are shared out among the threads of a pool.

    Scores are computed at the end in fp64, row by row, so that they do not depend on how a vector was found. Equal
    scores are in the order of their vids.
    """
    parallel = pool is not None and sum(len(segment) for segment in segments) >= PARALLEL_ROWS

    def select(segment: Segment) -> tuple[Mask | None, int]:
        mask = segment.mask(allowed_docs)
        return mask, _count(segment, mask)

    selected = _map(select, segments, pool=pool if parallel and allowed_docs is not None else None)
    masks, counts = [mask for mask, _ in selected], [count for _, count in selected]
    allowed = sum(counts)
    chosen_path = _choose(path, allowed)
    by_codes = [
        chosen_path == "codes" and space is not None and segment.codes is not None and count > n * segment.rerank
        for segment, count in zip(segments, counts, strict=True)
    ]
    rotated = queries
    if space is not None and any(by_codes):  # row by row: how a product of more rows rounds depends on their number
        rotated = np.concatenate([space.rotate(query[None]) for query in queries])

    def find(at: int) -> list[Found]:
        if space is not None and by_codes[at]:
            return segments[at].scan_codes(space, rotated, n * segments[at].rerank, masks[at])
        return [segments[at].scan(query, n, masks[at]) for query in queries]

    work = [at for at in range(len(segments)) if counts[at]]
    with _one_thread_each():
        found = dict(zip(work, _map(find, work, pool=pool if parallel else None), strict=True))
        coded = [at for at in work if by_codes[at]]
        scanned = sum(counts[at] for at in work if not by_codes[at])
        plan = SearchPlan(
            path=chosen_path,
            rows=sum(segment.live_rows for segment in segments),
            allowed=allowed,
            scanned_codes=sum(codes.read(counts[at]) for at in coded if (codes := segments[at].codes) is not None),
        )
        results = []
        for number, query in enumerate(queries):
            own = {at: found[at][number] for at in work}
            rows = _rerank({at: segments[at] for at in coded}, own, query, n, pool=pool)
            best = _best([segments[at] for at in work], list(own.values()), query, n)
            results.append((best, replace(plan, scanned_vectors=scanned + rows)))
    return results


def _rerank(
    segments: dict[int, Segment], found: dict[int, Found], query: FloatArray, n: int, *, pool: ThreadPoolExecutor | None
) -> int:
    """Exact cosines in the place of estimates, for the most promising vectors of all segments; how many these are."""
    most = n * max((segment.rerank for segment in segments.values()), default=0)
    chosen = _promising([found[at] for at in segments], most)
    rows = sum(map(len, chosen))

    def rerank(segment: Segment, positions: IdArray) -> Found:
        return segment.score(query, n, positions)

    exact = _map(rerank, list(segments.values()), chosen, pool=pool if rows > ROWS_AT_ONCE else None)
    found.update(zip(segments, exact, strict=True))
    return rows


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep FAISS from sharing out one query among threads, which it cannot, and which would then wait by spinning."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # a setting of this thread
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _promising(found: Sequence[Found], n: int) -> list[IdArray]:
    """Positions in each segment of the n best estimates over all of them: they are in one code space."""
    estimates = np.concatenate([np.zeros(0, dtype=np.float32), *(estimates for _, estimates in found)])
    if len(estimates) <= n:
        return [positions for positions, _ in found]
    least = np.partition(estimates, len(estimates) - n)[len(estimates) - n]
    return [positions[estimates >= least] for positions, estimates in found]


def _map(function: Callable[..., _Out], *items: Sequence[Any], pool: ThreadPoolExecutor | None) -> list[_Out]:
    """The results for all items, by the threads of a pool where there is one and more than one item."""
    return list(map(function, *items) if pool is None or len(items[0]) < 2 else pool.map(function, *items))


def exact_scores(rows: npt.NDArray[np.float16], query: FloatArray) -> Scores:
    """Cosine of each row with the query, fp64 (n,), each independent of the other rows."""
    if not len(rows):
        return np.zeros(0)
    products = rows.astype(np.float64) * query.astype(np.float64)
    scores: Scores = np.clip(products.sum(axis=1), -1.0, 1.0)
    return scores


def scores_of(segments: Sequence[Segment], vids: IdArray, query: FloatArray) -> Iterator[tuple[int, float]]:
    """(vid, cosine) of those vectors, `vids` ascending, that segments hold and that are live; cosine in fp64."""
    for segment in segments:
        at = np.searchsorted(segment.vids, vids)
        at = at[(at < len(segment)) & (segment.vids[np.minimum(at, len(segment) - 1)] == vids)]
        at = at[segment.live[at]]
        yield from zip(segment.vids[at].tolist(), exact_scores(segment.table[at], query).tolist(), strict=True)


def normalise(vectors: FloatArray) -> FloatArray:
    """Rows of length 1, fp32 (n, dimension). Raises `InputError` for a row that is zero or not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise InputError(f"vector {wrong[0]} has length {lengths[wrong[0]]}: it has no direction to compare")
    result: FloatArray = np.divide(vectors, lengths[:, None], out=np.empty_like(vectors), casting="same_kind")
    return result


def to_blob(vector: FloatArray) -> bytes:
    """A normalised vector as it is stored: little-endian fp16."""
    return vector.astype("<f2").tobytes()


def _choose(path: str, allowed: int) -> str:
    if path not in PLANS:
        raise ValueError(f"unknown plan '{path}'; there are {', '.join(PLANS)}")
    if path != "auto":
        return path
    return "scan" if allowed <= SCAN_LIMIT else "codes"


def _count(segment: Segment, mask: Mask | None) -> int:
    return len(segment) if mask is None else int(np.count_nonzero(mask))


def _best(segments: Sequence[Segment], found: Sequence[Found], query: FloatArray, n: int) -> Candidates:
    """The n best of what the segments found, scored exactly."""
    nothing = np.zeros(0, dtype=np.int64)
    cosines = np.concatenate([nothing, *(cosines for _, cosines in found)])
    # Cosines in fp32 that are equal up to rounding may be in any order: keep all that tie with the last.
    limit = np.partition(cosines, len(cosines) - n)[len(cosines) - n] - _ROUNDING if len(cosines) > n else -np.inf
    kept = [positions[cosines >= limit] for positions, cosines in found]
    vids = np.concatenate([nothing, *(s.vids[at] for s, at in zip(segments, kept, strict=True))])
    docs = np.concatenate([nothing, *(s.docs[at] for s, at in zip(segments, kept, strict=True))])
    scores = np.concatenate(
        [np.zeros(0), *(exact_scores(s.table[at], query) for s, at in zip(segments, kept, strict=True))]
    )
    order = np.lexsort((vids, -scores))[:n]
    return Candidates(vids[order], docs[order], scores[order])


def _parameters(allowed: Mask | None) -> faiss.SearchParameters | None:
    if allowed is None:
        return None
    return faiss.SearchParameters(sel=selector(allowed))  # type: ignore[call-arg]  # faiss adds it when imported


def _found(values: npt.NDArray[np.float32], labels: IdArray) -> tuple[IdArray, FloatArray]:
    """FAISS fills up with −1 where there are fewer than n."""
    real = labels[0] >= 0
    return labels[0][real], values[0][real]
