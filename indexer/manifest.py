"""The manifest's rows of segments, as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from indexer.segments import SegmentFile, SegmentRecord


def read_segments(connection: sqlite3.Connection) -> list[SegmentRecord]:
    """All segments, in the order of their vectors."""
    files: dict[str, list[SegmentFile]] = {}
    for segment, *file in connection.execute("SELECT segment, name, bytes, sha256 FROM segment_files ORDER BY name"):
        files.setdefault(segment, []).append(SegmentFile(*file))
    rows = connection.execute(
        "SELECT name, first_vid, last_vid, rows, rerank, factory, faiss_version FROM segments ORDER BY first_vid"
    )
    return [SegmentRecord(*facts, files=tuple(files.get(facts[0], ()))) for facts in rows.fetchall()]  # type: ignore[misc]


def add_segment(connection: sqlite3.Connection, record: SegmentRecord) -> None:
    """Name a segment, in the caller's transaction."""
    connection.execute(
        "INSERT INTO segments (name, first_vid, last_vid, rows, rerank, factory, faiss_version)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            record.name,
            record.first_vid,
            record.last_vid,
            record.rows,
            record.rerank,
            record.factory,
            record.faiss_version,
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
