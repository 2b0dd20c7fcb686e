"""The manifest's rows of segments, as records."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from indexer.changes import Change, read_commit, write_commit
from indexer.errors import CorruptIndexError
from indexer.metadata import transaction
from indexer.segments import SegmentFile, SegmentRecord, is_segment_file


def read_segments(connection: sqlite3.Connection) -> list[SegmentRecord]:
    """All segments, in the order of their vectors.

    Raises `CorruptIndexError` where one does not match its digest, or names a file that is none of a segment's: in an
    index that somebody else has made, one in another folder, to be read, written or deleted.
    """
    files: dict[str, list[SegmentFile]] = {}
    for segment, *file in connection.execute("SELECT segment, name, bytes, sha256 FROM segment_files ORDER BY name"):
        files.setdefault(segment, []).append(SegmentFile(*file))
    rows = connection.execute(
        "SELECT digest, name, first_vid, last_vid, rows, rerank, factory, faiss_version FROM segments"
        " ORDER BY first_vid"
    )
    records = []
    for digest, *facts in rows.fetchall():
        record = SegmentRecord(*facts, files=tuple(files.get(facts[0], ())))  # type: ignore[misc]
        if digest_of(record) != digest:
            raise CorruptIndexError(
                f"the rows of segment {record.name} in the manifest do not match their digest; run 'indexer verify'"
            )
        if not has_own_names(record):
            raise CorruptIndexError(
                f"segment {record.name!r} in the manifest names files that are not its own; run 'indexer verify'"
            )
        records.append(record)
    return records


def has_own_names(record: SegmentRecord) -> bool:
    """Whether a segment's files are named after it, and so lie in the folder of the segments."""
    return all(is_segment_file(file.name) and file.name.startswith(f"{record.name}.") for file in record.files)


def digest_of(record: SegmentRecord) -> str:
    """BLAKE2b, in hex, over a segment's row and those of its files."""
    record = replace(record, files=tuple(sorted(record.files, key=lambda file: file.name)))
    return hashlib.blake2b(json.dumps(astuple(record)).encode(), digest_size=16).hexdigest()


def add_segment(connection: sqlite3.Connection, record: SegmentRecord) -> None:
    """Name a segment, in the caller's transaction."""
    connection.execute(
        "INSERT INTO segments (name, first_vid, last_vid, rows, rerank, factory, faiss_version, digest)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.name,
            record.first_vid,
            record.last_vid,
            record.rows,
            record.rerank,
            record.factory,
            record.faiss_version,
            digest_of(record),
        ),
    )
    connection.executemany(
        "INSERT INTO segment_files (name, segment, bytes, sha256) VALUES (?, ?, ?, ?)",
        [(file.name, record.name, file.bytes, file.sha256) for file in record.files],
    )


def drop_segments(connection: sqlite3.Connection, records: Iterable[SegmentRecord]) -> None:
    """Name segments no more, in the caller's transaction."""
    names = [(record.name,) for record in records]
    connection.executemany("DELETE FROM segment_files WHERE segment = ?", names)
    connection.executemany("DELETE FROM segments WHERE name = ?", names)


@contextmanager
def naming(connection: sqlite3.Connection, folder: Path, record: SegmentRecord | None) -> Iterator[None]:
    """A transaction that names a segment. If it fails, the segment's files go, once it is sure that it has failed.

    An interrupt that comes while it commits is raised when it has committed.
    """
    committing = False
    try:
        with transaction(connection):
            yield
            committing = True
    except BaseException:
        if record is not None and not (committing and _may_be_named(connection, record)):
            delete_files(folder, record)
        raise


def delete_files(folder: Path, record: SegmentRecord) -> None:
    """Delete a segment's files. Readers that have them mapped keep them."""
    for file in record.files:
        (folder / file.name).unlink(missing_ok=True)


def _may_be_named(connection: sqlite3.Connection, record: SegmentRecord) -> bool:
    """Whether a segment is named, or may turn out to be, when its commit has not come back as it should; now or never.

    Where the log could be written but not synced, the commit stands in it whole, and the next one to open the index
    would take it for done. A new commit takes its place in the log. Until then, no file that it names may go.
    """
    try:
        if connection.execute("SELECT 1 FROM segments WHERE name = ?", (record.name,)).fetchone():
            return True
        with transaction(connection):
            write_commit(connection, read_commit(connection).following(Change()))
    except sqlite3.Error:
        return True
    return False
