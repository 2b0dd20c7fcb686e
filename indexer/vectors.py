"""FAISS only: immutable segments of fp16 vectors, the unsealed tail, and exact search over both.

A segment is two files: `<name>.fp16.faiss`, the L2-normalised vectors, and `<name>.ids.npy`, int64 (2, rows): the
vids, ascending, and the document of each. Callers see vids and documents; positions stay in here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from indexer.errors import CorruptIndexError, InputError
from indexer.records import FloatArray

FACTORY = "SQfp16"
VECTORS_SUFFIX, IDS_SUFFIX = ".fp16.faiss", ".ids.npy"

# Below this many allowed vectors of a segment, reading just those beats scanning all with a selector.
GATHER_LIMIT = 256

IdArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Vectors found, best first: vids and docs int64 (n,), scores fp64 (n,), the cosine with the query."""

    vids: IdArray
    docs: IdArray
    scores: npt.NDArray[np.float64]


def normalise(vectors: FloatArray) -> FloatArray:
    """Rows of length 1, fp32 (n, dimension). Raises `InputError` for a row that is zero or not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(wrong):
        raise InputError(f"vector {wrong[0]} has length {lengths[wrong[0], 0]}: it has no direction to compare")
    result: FloatArray = (vectors / lengths).astype(np.float32)
    return result


def to_blob(vector: FloatArray) -> bytes:
    """A normalised vector as it is stored: little-endian fp16."""
    return vector.astype("<f2").tobytes()


class Segment:
    """Vectors in one FAISS index with the vid and document of each; some may be dead.

    `live` is the only thing that changes after a segment is made; a tail also grows.
    """

    def __init__(self, index: faiss.IndexScalarQuantizer, vids: IdArray, docs: IdArray) -> None:
        self.index = index
        self.vids = vids
        self.docs = docs
        self.live: Mask = np.ones(len(vids), dtype=bool)

    @classmethod
    def empty(cls, dimension: int) -> Segment:
        """A tail without vectors."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(_new_index(dimension), nothing, nothing)

    @classmethod
    def open(cls, folder: Path, name: str, *, dimension: int, rows: int) -> Segment:
        """Map a segment's files into memory. Raises `FileNotFoundError` and `CorruptIndexError`."""
        path, ids_path = folder / (name + VECTORS_SUFFIX), folder / (name + IDS_SUFFIX)
        for file in (path, ids_path):
            if not file.is_file():
                raise FileNotFoundError(file)
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            ids = np.load(ids_path, allow_pickle=False)
        except (RuntimeError, ValueError, EOFError) as error:
            raise CorruptIndexError(
                f"segment {name} cannot be read ({type(error).__name__}); run 'indexer verify'"
            ) from error
        if not isinstance(index, faiss.IndexScalarQuantizer) or index.sq.qtype != faiss.ScalarQuantizer.QT_fp16:
            raise CorruptIndexError(f"segment {name} is a {type(index).__name__}, not {FACTORY}; run 'indexer verify'")
        if index.d != dimension or index.ntotal != rows or ids.shape != (2, rows):
            raise CorruptIndexError(
                f"segment {name} has {index.ntotal} vectors of {index.d} dimensions and ids of shape {ids.shape}; "
                f"the manifest says {rows} of {dimension}; run 'indexer verify'"
            )
        return cls(index, ids[0], ids[1])

    def append(self, vids: Sequence[int], docs: Sequence[int], vectors: npt.NDArray[np.float16]) -> None:
        """Add normalised vectors to a tail: fp16 (n, dimension). `vids` ascend and follow those already here."""
        self.index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self.vids = np.concatenate([self.vids, np.asarray(vids, dtype=np.int64)])
        self.docs = np.concatenate([self.docs, np.asarray(docs, dtype=np.int64)])
        self.live = np.concatenate([self.live, np.ones(len(vids), dtype=bool)])

    def kill(self, vids: IdArray) -> None:
        """Mark vectors as dead; vids that are not here are passed over."""
        self.live[self.positions(vids)] = False

    def positions(self, vids: IdArray) -> IdArray:
        """Where these vids stand; those that are not here are left out."""
        at = np.searchsorted(self.vids, vids)
        at = at[at < len(self.vids)] if len(self.vids) else at[:0]
        return at[np.isin(self.vids[at], vids)]

    def rows(self, positions: IdArray) -> npt.NDArray[np.float16]:
        """The stored vectors at these positions: fp16 (n, dimension)."""
        count, size = self.index.ntotal, self.index.code_size
        codes = faiss.rev_swig_ptr(self.index.codes.data(), count * size)
        table = codes.view("<f2").reshape(count, self.index.d)
        return np.asarray(table[positions])

    def search(self, query: FloatArray, n: int, allowed: Mask) -> IdArray:
        """Positions of the n best allowed vectors, in no order. `query` fp32 (dimension,), `allowed` (rows,)."""
        chosen = np.flatnonzero(allowed)
        if len(chosen) <= n:
            return chosen
        if len(chosen) <= GATHER_LIMIT:
            scores = self.rows(chosen).astype(np.float32) @ query
            return chosen[np.argpartition(-scores, n - 1)[:n]]
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]  # faiss adds it when it is imported
        _, found = self.index.search(query[None], n, params=parameters)
        return np.asarray(found[0][found[0] >= 0], dtype=np.int64)


def search_segments(
    segments: Iterable[Segment], query: FloatArray, n: int, *, allowed_docs: Mask | None = None
) -> Candidates:
    """The n best live vectors over all segments, exactly scored.

    `query` fp32 (dimension,), of length 1. `allowed_docs` bool (highest doc + 1,), `None` for all. Scores are
    computed once more in fp64, row by row, so that they do not depend on how a vector was found. Equal
    scores are in the order of their vids.
    """
    vids, docs, scores = [], [], []
    for segment in segments:
        allowed = segment.live if allowed_docs is None else segment.live & allowed_docs[segment.docs]
        at = segment.search(query, n, allowed)
        vids.append(segment.vids[at])
        docs.append(segment.docs[at])
        scores.append(exact_scores(segment.rows(at), query))
    if not vids:
        nothing = np.zeros(0, dtype=np.int64)
        return Candidates(nothing, nothing, np.zeros(0))
    all_vids, all_docs, all_scores = np.concatenate(vids), np.concatenate(docs), np.concatenate(scores)
    best = np.lexsort((all_vids, -all_scores))[:n]
    return Candidates(all_vids[best], all_docs[best], all_scores[best])


def exact_scores(rows: npt.NDArray[np.float16], query: FloatArray) -> npt.NDArray[np.float64]:
    """Cosine of each row with the query, fp64 (n,), each independent of the other rows."""
    if not len(rows):
        return np.zeros(0)
    products = rows.astype(np.float64) * query.astype(np.float64)
    scores: npt.NDArray[np.float64] = np.clip(products.sum(axis=1), -1.0, 1.0)
    return scores


def write_segment(folder: Path, name: str, vids: IdArray, docs: IdArray, vectors: npt.NDArray[np.float16]) -> None:
    """Write a segment's two files durably: temporary files, fsync, rename, fsync of the folder.

    A segment exists only once the manifest names it; what a crash leaves behind is deleted at the next open.
    """
    index = _new_index(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    path, ids_path = folder / (name + VECTORS_SUFFIX), folder / (name + IDS_SUFFIX)
    # Given a name, faiss only prints when the last bytes do not fit on the disk, and numpy's `save` says nothing
    # at all; a Python file raises.
    _write_file(path, lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write)))  # type: ignore[attr-defined]
    _write_file(ids_path, lambda file: _write_ids(file, np.stack([vids, docs]).astype("<i8")))
    sync(folder)


def _write_ids(file: BinaryIO, ids: IdArray) -> None:
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ids))
    file.write(ids.tobytes())


def _write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, fsync it, rename it; nothing stays where that fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_index(dimension: int) -> faiss.IndexScalarQuantizer:
    return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
