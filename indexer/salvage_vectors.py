"""The vectors that can be read out of a damaged index, each proven by its checksum."""

from __future__ import annotations

import errno
import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import faiss
import numpy as np
import numpy.typing as npt

from indexer.durable import vector_crc, write_npy
from indexer.errors import StorageError
from indexer.pages import DamagedDatabase, SectorFile
from indexer.segments import IDS_SUFFIX, VECTORS_SUFFIX, SegmentRecord, suffixes
from indexer.sources import file_sha256
from indexer.vectors import IdArray, new_flat_index

_NPY_HEADER = 128  # bytes before the numbers of a file of ids
_COPIED = 2**20  # bytes at a time


@dataclass(frozen=True)
class VectorSource:
    """The vectors of one segment's files, or of `pending`: fp16 (rows, dimension), and which rows are proven.

    `record`: where all its files are as they were written, its row of the manifest.
    """

    vids: IdArray
    docs: IdArray
    table: npt.NDArray[np.float16]
    sound: npt.NDArray[np.bool_]
    record: SegmentRecord | None = None


def read_pending_rows(database: DamagedDatabase, dimension: int) -> VectorSource:
    """The pending vectors that match their checksums."""
    rows = [
        row
        for row in database.rows("pending")
        if len(row) == 4 and isinstance(row[1], int) and isinstance(row[2], bytes) and len(row[2]) == 2 * dimension
    ]
    rows = [row for row in rows if vector_crc(row[0], row[1], row[2]) == row[3]]
    table = np.frombuffer(b"".join(row[2] for row in rows), dtype="<f2").reshape(len(rows), dimension)
    numbers = np.array([row[:2] for row in rows], dtype=np.int64).reshape(len(rows), 2)
    return VectorSource(numbers[:, 0], numbers[:, 1], table, np.ones(len(rows), dtype=bool))


def read_segment_files(
    folder: Path,
    records: Iterable[SegmentRecord],
    dimension: int,
    owners: dict[int, int],
    removed: dict[int, int],
) -> Iterator[VectorSource]:
    """All vectors in the files of a folder, whether the manifest names them or not.

    `owners`: the document of each live vid, `removed`: of each that is known to be dead; from these a file of ids is
    made again, which its SHA-256 in the manifest proves.
    """
    known = {record.name: record for record in records}
    names = known.keys() | {file.name.removesuffix(VECTORS_SUFFIX) for file in folder.glob(f"*{VECTORS_SUFFIX}")}
    start = len(faiss.serialize_index(new_flat_index(dimension)))
    for name in sorted(names):
        record = known.get(name)
        files = record.files if record else ()
        file = folder / (name + VECTORS_SUFFIX)
        there = max(0, file.stat().st_size - start) // (2 * dimension) if file.is_file() else 0
        rows = record.rows if record else there
        there = min(rows, there)
        table: npt.NDArray[np.float16] = np.zeros((0, dimension), dtype="<f2")
        digests = {part: _digest(folder / part) for part in {file.name, *(part.name for part in files)}}
        if there:
            with nullcontext(file) if digests[file.name] is not None else _readable_copy(file) as source:
                table = np.memmap(source, dtype="<f2", mode="r", offset=start, shape=(there, dimension))
        ids = _read_ids(folder / (name + IDS_SUFFIX), rows)
        good = {part.name: digests[part.name] == part.sha256 for part in files}
        if record and good.get(file.name) and not good.get(name + IDS_SUFFIX):
            again = _ids_again(record, table, owners, removed)
            if again is not None:
                ids = again
        if ids is None or not there:
            continue
        ids = ids[:, :there]
        whole = (
            record is not None
            and all(good.values())
            and len(good) == len(suffixes(codes=record.rerank > 0))
            and file.stat().st_size == start + 2 * dimension * record.rows  # else of another dimension
        )
        sound = np.ones(there, dtype=bool) if whole else _proven(ids, table)
        yield VectorSource(ids[0], ids[1], table, sound, record if whole else None)


def _digest(file: Path) -> str | None:
    """SHA-256 of a file, in hex; `None` where it is not there, or has sectors that the disk cannot read."""
    try:
        return file_sha256(file) if file.is_file() else None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _readable_copy(file: Path) -> IO[bytes]:
    """What can be read of a file, with zeros for the other sectors, in a file without a name beside it."""
    parts, copy = SectorFile(file), tempfile.TemporaryFile(dir=file.parent)  # noqa: SIM115  # the caller closes it
    try:
        for start in range(0, len(parts), _COPIED):
            copy.write(parts[start : start + _COPIED])
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def sha256_if_readable(file: Path) -> str:
    """SHA-256 of a file, in hex. Raises `StorageError` with the way out where a part of it cannot be read."""
    try:
        return file_sha256(file)
    except OSError as error:
        raise StorageError(
            f"{file} cannot be read: {error.strerror or error}; where that does not pass, put a copy of what can be "
            "read in its place, or move it away: then the repair does without it"
        ) from error


def _read_ids(file: Path, rows: int) -> IdArray | None:
    """The numbers in a file of ids, zeros behind its end, whatever its header says."""
    if not file.is_file() or not rows:
        return None
    data = SectorFile(file)[_NPY_HEADER : _NPY_HEADER + 24 * rows].ljust(24 * rows, b"\0")
    return np.frombuffer(data, dtype="<i8").reshape(3, rows)


def _ids_again(
    record: SegmentRecord, table: npt.NDArray[np.float16], owners: dict[int, int], removed: dict[int, int]
) -> IdArray | None:
    """The numbers of a segment from what else is known of its range; `None` unless they are just what was written."""
    known = {**removed, **owners}
    vids = sorted(vid for vid in known if record.first_vid <= vid <= record.last_vid)
    wanted = next((file.sha256 for file in record.files if file.name.endswith(IDS_SUFFIX)), None)
    if len(vids) != record.rows or len(table) != record.rows:
        return None
    docs = [known[vid] for vid in vids]
    crcs = [vector_crc(vid, doc, row.tobytes()) for vid, doc, row in zip(vids, docs, table, strict=True)]
    ids = np.array([vids, docs, crcs], dtype="<i8")
    buffer = io.BytesIO()
    write_npy(buffer, ids)
    return ids if hashlib.sha256(buffer.getvalue()).hexdigest() == wanted else None


def _proven(ids: IdArray, table: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    numbers = zip(*ids.tolist(), table, strict=True)
    return np.array([vector_crc(vid, doc, row.tobytes()) == crc for vid, doc, crc, row in numbers], dtype=bool)
