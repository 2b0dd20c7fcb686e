"""Vectors in memory: segments, and how one of them is read. `planner.py` searches over all of an index's.

Every vector is L2-normalised fp16. A large segment also has RaBitQ codes (`codes.py`): the codes say which vectors may
be among the best, and the fp16 vectors of those, mapped from disk, say which are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from indexer.codes import SegmentCodes, selector
from indexer.errors import InputError
from indexer.records import FloatArray

IdArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Found = tuple[IdArray, FloatArray | Scores]
"""Positions in a segment and what each is worth: int64 (n,), fp32 or fp64 (n,)."""

# Where fewer than one row in so many is wanted, copying those rows beats asking a selector about every row.
COPY_SHARE = 1_024
# Up to so many rows are copied to be scored, in the thread of the query; for more, a selector is faster.
ROWS_AT_ONCE = 1_024
_TABLES = 64  # that are normalised at a time


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

    def rows(self, positions: IdArray) -> npt.NDArray[np.float16]:
        """A copy of the vectors at some positions, fp16 (n, dimension)."""
        # As bytes: of numbers that a file does not align, `take` would first copy the whole table.
        return np.take(_code_table(self.index), positions, axis=0).view("<f2")

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
        if allowed is not None and allowed_rows(self, allowed) * COPY_SHARE <= len(self):
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
        few.add_sa_codes(np.take(_code_table(self.index), positions, axis=0))
        at, cosines = _found(*few.search(query[None], n))
        return positions[at], cosines


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


def normalise(vectors: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """Rows of length 1, fp32 (n, dimension), in `out` if that is given.

    Raises `InputError` for a row that is zero or not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise InputError(f"vector {wrong[0]} has length {lengths[wrong[0]]}: it has no direction to compare")
    result = np.empty_like(vectors) if out is None else out
    np.divide(vectors, lengths[:, None], out=result, casting="same_kind")
    return result


def halves(tables: Sequence[FloatArray]) -> npt.NDArray[np.float16]:
    """The rows of tables, fp32 (n, dimension), one after the other, as they are stored: of length 1, fp16."""
    if not tables:
        return np.zeros((0, 0), dtype="<f2")
    ends = np.cumsum([0, *map(len, tables)])
    result = np.empty((ends[-1], tables[0].shape[1]), dtype="<f2")
    # A few tables at a time, which stay in the processor's cache, always in the same memory, as fresh memory costs more
    # than the arithmetic.
    bounds = [*range(0, len(tables), _TABLES), len(tables)]
    room = np.empty((max(ends[b] - ends[a] for a, b in pairwise(bounds)), result.shape[1]), dtype=np.float32)
    for first, last in pairwise(bounds):
        own = room[: ends[last] - ends[first]]
        np.concatenate(tables[first:last], out=own)
        result[ends[first] : ends[last]] = normalise(own, out=own)
    return result


def to_blob(vector: FloatArray) -> bytes:
    """A normalised vector as it is stored: little-endian fp16."""
    return vector.astype("<f2").tobytes()


def allowed_rows(segment: Segment, mask: Mask | None) -> int:
    """How many vectors of a segment a mask lets through; `None` lets all."""
    return len(segment) if mask is None else int(np.count_nonzero(mask))


def _parameters(allowed: Mask | None) -> faiss.SearchParameters | None:
    if allowed is None:
        return None
    return faiss.SearchParameters(sel=selector(allowed))  # type: ignore[call-arg]  # faiss adds it when imported


def _found(values: npt.NDArray[np.float32], labels: IdArray) -> tuple[IdArray, FloatArray]:
    """FAISS fills up with −1 where there are fewer than n."""
    real = labels[0] >= 0
    return labels[0][real], values[0][real]
