"""Segments on disk: immutable files, written durably, opened into memory, checked against the manifest.

A segment has two files: `<name>.fp16.faiss`, the L2-normalised vectors; `<name>.ids.npy`, int64 (3, rows): the vids,
ascending, the document of each, and the CRC-32 of each vector with these two. A large one has two more:
`<name>.codes.faiss`, the codes packed for scanning, which are held in memory; `<name>.codes.npy`, the same codes one
after the other, mapped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from indexer.codes import Codes, CodeSpace, PackedCodes, SegmentCodes, code_bytes, packed_bits
from indexer.durable import is_scarcity, sync, vector_crc, write_file, write_npy
from indexer.errors import CorruptIndexError, StorageError
from indexer.sources import file_sha256
from indexer.vectors import IdArray, Segment, new_flat_index

FACTORY, CODES_FACTORY = "SQfp16", "RaBitQfs"
VECTORS_SUFFIX, IDS_SUFFIX = ".fp16.faiss", ".ids.npy"
PACKED_SUFFIX, PLAIN_SUFFIX = CODES_SUFFIXES = ".codes.faiss", ".codes.npy"

_BLOCK = 8_192  # rows that are held at a time
_OWN_NAME = re.compile(r"[\w-]+(\.fp16\.faiss|\.ids\.npy|\.codes\.faiss|\.codes\.npy)", re.ASCII)
_ROWS_AT = 8  # of a FAISS file: the number of its vectors, behind its kind and their dimension


class Block(NamedTuple):
    """Vids, docs, and vectors fp16 (n, dimension), with their codes and checksums where they are known."""

    vids: IdArray
    docs: IdArray
    vectors: npt.NDArray[np.float16]
    codes: Codes | None = None
    crcs: IdArray | None = None


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One file of a segment as the manifest has it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment as the manifest has it. `rerank` is 0 for a segment without codes."""

    name: str
    first_vid: int
    last_vid: int
    rows: int
    rerank: int
    factory: str
    faiss_version: str
    files: tuple[SegmentFile, ...]


def write_segment(
    folder: Path, name: str, blocks: Iterable[Block], *, dimension: int, space: CodeSpace | None
) -> SegmentRecord:
    """Write a segment durably: temporary files, fsync, rename, fsync of the folder. Blocks ascend in vid.

    It exists only once the manifest names it; what a crash leaves behind is deleted at the next open. With a `space`
    it gets codes. No more than a block of vectors is held in memory.
    """
    ids: list[IdArray] = []
    codes: list[Codes] = []

    def write_vectors(file: BinaryIO) -> None:
        file.write(_flat_header(dimension, 0))
        for block in blocks:
            if block.vectors.shape != (len(block.vids), dimension):
                raise ValueError(f"{len(block.vids)} vectors of {dimension} numbers have shape {block.vectors.shape}")
            file.write(np.ascontiguousarray(block.vectors, dtype="<f2").data)
            # A vector that is copied keeps its checksum, so that damage on the way shows.
            crcs = _checksums(block) if block.crcs is None else block.crcs
            ids.append(np.stack([block.vids, block.docs, crcs]).astype("<i8"))
            if space is not None:
                codes.append(space.encode(block.vectors) if block.codes is None else block.codes)
        file.seek(0)
        file.write(_flat_header(dimension, sum(part.shape[1] for part in ids)))

    rerank, names = 0, [name + suffix for suffix in suffixes(codes=space is not None)]
    try:
        # Given a name, faiss only prints when the last bytes do not fit on the disk, and numpy's `save` says nothing
        # at all; a Python file raises.
        write_file(folder / names[0], write_vectors)
        table = np.concatenate(ids, axis=1)
        write_file(folder / names[1], lambda file: write_npy(file, table))
        if space is not None:
            plain = np.concatenate(codes)
            packed = space.pack(plain)
            index = _map_vectors(folder / names[0])
            segment = Segment(name, index, table[0], table[1], np.ones(table.shape[1], dtype=bool))
            rerank = calibrate(segment, SegmentCodes(packed, plain), space)
            write_file(folder / names[2], lambda file: _write_faiss(file, packed))
            write_file(folder / names[3], lambda file: write_npy(file, plain))
        sync(folder)
    except BaseException:
        for file_name in names:
            (folder / file_name).unlink(missing_ok=True)
        raise
    files = [folder / file_name for file_name in names]
    return SegmentRecord(
        name=name,
        first_vid=int(table[0, 0]),
        last_vid=int(table[0, -1]),
        rows=table.shape[1],
        rerank=rerank,
        factory=FACTORY if rerank == 0 else f"{FACTORY},{CODES_FACTORY}",
        faiss_version=faiss.__version__,
        files=tuple(SegmentFile(file.name, file.stat().st_size, file_sha256(file)) for file in files),
    )


def new_name(folder: Path, stem: str) -> str:
    """A name for a new segment that begins with `stem` and is no other's, not even of one whose commit failed."""
    names = chain([stem], (f"{stem}-{n}" for n in count(1)))
    return next(name for name in names if not (folder / (name + VECTORS_SUFFIX)).exists())


def open_segment(folder: Path, record: SegmentRecord, *, dimension: int) -> Segment:
    """Map vectors and ids, load codes. Raises `FileNotFoundError` and `CorruptIndexError`."""
    _require(folder, record)
    name, rows = record.name, record.rows
    if missing := {name + suffix for suffix in suffixes(codes=record.rerank > 0)} - {
        file.name for file in record.files
    }:
        raise CorruptIndexError(f"segment {name} has no {min(missing)}; run 'indexer verify --repair {folder.parent}'")
    try:
        index = _map_vectors(folder / (name + VECTORS_SUFFIX))
        ids = np.load(folder / (name + IDS_SUFFIX), mmap_mode="r", allow_pickle=False)
        packed = faiss.read_index(str(folder / (name + PACKED_SUFFIX))) if record.rerank else None
        plain = np.load(folder / (name + PLAIN_SUFFIX), mmap_mode="r", allow_pickle=False) if record.rerank else None
    except (RuntimeError, ValueError, EOFError) as error:
        if is_scarcity(error):
            raise StorageError(f"segment {name} cannot be read: {error}") from error
        _require(folder, record)  # it may have vanished in between
        raise CorruptIndexError(
            f"segment {name} cannot be read ({type(error).__name__}); run 'indexer verify'"
        ) from error
    if not isinstance(index, faiss.IndexScalarQuantizer) or index.sq.qtype != faiss.ScalarQuantizer.QT_fp16:
        raise CorruptIndexError(f"segment {name} is a {type(index).__name__}, not {FACTORY}; run 'indexer verify'")
    codes = None if packed is None or plain is None else _codes(name, packed, plain, index.d)
    counts = {index.ntotal, *((codes.packed.ntotal, len(codes.plain)) if codes is not None else ())}
    if index.d != dimension or counts != {rows} or ids.shape != (3, rows) or ids.dtype != np.int64:
        raise CorruptIndexError(
            f"segment {name} has {sorted(counts)} vectors of {index.d} dimensions and ids of shape {ids.shape}; "
            f"the manifest says {rows} of {dimension}; run 'indexer verify'"
        )
    return Segment(name, index, ids[0], ids[1], np.ones(rows, dtype=bool), codes, record.rerank, ids[2])


def _codes(name: str, packed: faiss.Index, plain: npt.NDArray[Any], dimension: int) -> SegmentCodes:
    if not (isinstance(packed, PackedCodes) and packed.nlist == 1 and packed.d == packed_bits(dimension)):
        raise CorruptIndexError(f"segment {name} has codes of {type(packed).__name__}; run 'indexer verify'")
    width = code_bytes(dimension)
    if plain.ndim != 2 or plain.shape[1] != width or plain.dtype != np.uint8:
        raise CorruptIndexError(
            f"segment {name} has codes of shape {plain.shape} {plain.dtype}, expected {width} bytes each; "
            "run 'indexer verify'"
        )
    return SegmentCodes(packed, np.asarray(plain))


def check_files(folder: Path, record: SegmentRecord) -> None:
    """Raise `CorruptIndexError` where a segment's files are not what was written: what is read whole is checked whole.

    `FileNotFoundError` where one is gone.
    """
    for file in record.files:
        if file_sha256(folder / file.name) != file.sha256:
            raise CorruptIndexError(f"{file.name} is not what was written; run 'indexer verify {folder.parent}'")


def _require(folder: Path, record: SegmentRecord) -> None:
    for file in record.files:
        if not (folder / file.name).is_file():
            raise FileNotFoundError(folder / file.name)


def live_blocks(segments: Iterable[Segment]) -> Iterator[Block]:
    """The live vectors of segments, in order, in blocks."""
    for segment in segments:
        for start in range(0, len(segment), _BLOCK):
            live = np.flatnonzero(segment.live[start : start + _BLOCK])
            at = start + live
            if len(at):
                codes = None if segment.codes is None else segment.codes.plain[at]
                crcs = None if segment.crcs is None else segment.crcs[at]
                yield Block(segment.vids[at], segment.docs[at], segment.table[at], codes, crcs)


def is_segment_file(name: str) -> bool:
    """Whether a file's name is one that segments have: without a folder in it.

    >>> is_segment_file("0000000001.ids.npy"), is_segment_file("../0000000001.ids.npy"), is_segment_file("mine.npy")
    (True, False, False)
    """
    return _OWN_NAME.fullmatch(name) is not None


def suffixes(*, codes: bool) -> tuple[str, ...]:
    """What the names of a segment's files end in."""
    return (VECTORS_SUFFIX, IDS_SUFFIX, *(CODES_SUFFIXES if codes else ()))


CALIBRATION_QUERIES = 32
CALIBRATION_K = 10
CALIBRATION_RECALL = 0.998
_FACTORS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def calibrate(segment: Segment, codes: SegmentCodes, space: CodeSpace) -> int:
    """The rerank factor at which the codes give recall@10 of `CALIBRATION_RECALL` in this segment, and one step more.

    The step is for queries that are harder than the sample: measured on others, recall without it was up to .01 less.
    Queries are vectors of the segment itself, evenly spaced, each left out of its own answer. The truth is the
    scan of the fp16 vectors.
    """
    at = np.linspace(0, len(segment) - 1, CALIBRATION_QUERIES).astype(np.int64)
    queries = segment.table[at].astype(np.float32)
    _, truth = segment.index.search(queries, CALIBRATION_K + 1)
    answers = [row[(row != own) & (row >= 0)][:CALIBRATION_K] for own, row in zip(at, truth, strict=True)]
    wanted, rotated = sum(map(len, answers)), space.rotate(queries)
    for factor, more in pairwise(_FACTORS):
        _, found = codes.search(space, rotated, factor * CALIBRATION_K + 1)
        guesses = [row[row != own][: factor * CALIBRATION_K] for own, row in zip(at, found, strict=True)]
        right = sum(np.isin(answer, guess).sum() for answer, guess in zip(answers, guesses, strict=True))
        if right >= CALIBRATION_RECALL * wanted:
            return more
    return _FACTORS[-1]


def _checksums(block: Block) -> IdArray:
    table = np.ascontiguousarray(block.vectors, dtype="<f2")
    numbers = zip(block.vids.tolist(), block.docs.tolist(), table, strict=True)
    return np.array([vector_crc(vid, doc, row.tobytes()) for vid, doc, row in numbers], dtype=np.int64)


def _flat_header(dimension: int, rows: int) -> bytes:
    """What stands before the vectors in FAISS's file of a flat index: that of an empty one, with its two counts."""
    header = bytearray(faiss.serialize_index(new_flat_index(dimension)).tobytes())
    struct.pack_into("<q", header, _ROWS_AT, rows)
    struct.pack_into("<q", header, len(header) - 8, 2 * dimension * rows)
    return bytes(header)


def _map_vectors(path: Path) -> faiss.IndexScalarQuantizer:
    """The flat index in a file, mapped; whatever else is in it is the caller's to refuse."""
    index: faiss.IndexScalarQuantizer = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # type: ignore[assignment]
    return index


def _write_faiss(file: BinaryIO, index: faiss.Index) -> None:
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
