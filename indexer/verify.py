"""Is an index what its writer wrote? Everything is checked against checksums, and the parts against each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.changes import CommitState, field_rows, read_commit
from indexer.errors import CorruptIndexError, TagdexError
from indexer.fields import normalise_entity
from indexer.manifest import read_segments
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import connect_reader
from indexer.segments import IDS_SUFFIX, open_segment
from indexer.settings import IndexSettings, read_setting, read_settings
from indexer.sources import file_sha256
from indexer.store import META, SEGMENTS, read_pending
from indexer.stored import DIGEST_BYTES, StoredDocument, read_documents, sum_digests
from indexer.vectors import IdArray

_ROWS = 1_000  # documents or vectors held in memory at a time


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and where."""

    place: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify_index` counted and found."""

    documents: int
    passages: int
    faults: tuple[Fault, ...]


def verify_index(path: str | Path) -> VerifyReport:
    """Read everything in an index once, without changing it.

    Raises `NotAnIndexError` and `FormatError`; damage of any kind is reported, not raised.
    """
    path = Path(path)
    connection = connect_reader(path / META)
    try:
        connection.execute("BEGIN")
        state = read_commit(connection)
        faults = tuple(_faults(connection, path, state))
    except sqlite3.DatabaseError as error:
        return VerifyReport(0, 0, (Fault(META, str(error)),))
    finally:
        connection.close()
    return VerifyReport(state.documents, state.passages, faults)


def _faults(connection: sqlite3.Connection, path: Path, state: CommitState) -> Iterator[Fault]:
    for (message,) in connection.execute("PRAGMA integrity_check(20)"):
        if message != "ok":
            yield Fault(META, message)
    settings = read_settings(connection)
    if settings is None:
        yield Fault(META, "the settings are gone")
        return
    yield from _check_documents(connection, state)
    yield from _check_segments(connection, path / SEGMENTS, settings)
    yield from _check_vectors(connection, path / SEGMENTS, settings)


def _check_documents(connection: sqlite3.Connection, state: CommitState) -> Iterator[Fault]:
    """Every document against its digest, its fields and its entities; all together against the commit row."""
    total = bytes(DIGEST_BYTES)
    docs = [doc for (doc,) in connection.execute("SELECT doc FROM documents ORDER BY doc")]
    for start in range(0, len(docs), _ROWS):
        for item in _read_each(connection, docs[start : start + _ROWS]):
            if isinstance(item, Fault):
                yield item
            else:
                total = sum_digests(total, added=[item.digest()])
                yield from _check_document(connection, item)
    if total != state.digest_sum:
        yield Fault("documents", "the sum of their digests is not the one of the last commit: one is gone or changed")
    for table, wanted in (
        ("documents", state.documents),
        ("passages", state.passages),
        ("entities", state.entities),
        ("fields", state.fields),
    ):
        there = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        if there != wanted:
            yield Fault(table, f"{there} rows, but the last commit left {wanted}")


def _read_each(connection: sqlite3.Connection, docs: list[int]) -> Iterator[StoredDocument | Fault]:
    """Documents together, which is faster; one by one where any of them is damaged."""
    try:
        yield from read_documents(connection, docs).values()
    except (CorruptIndexError, ValueError) as error:
        if len(docs) == 1:
            damaged = isinstance(error, CorruptIndexError)
            yield Fault(f"document number {docs[0]}", "does not match its digest" if damaged else str(error))
            return
        for doc in docs:
            yield from _read_each(connection, [doc])


def _check_document(connection: sqlite3.Connection, stored: StoredDocument) -> Iterator[Fault]:
    place = f"document '{stored.id}'"
    found = connection.execute(
        "SELECT doc FROM documents INDEXED BY sqlite_autoindex_documents_1 WHERE id = ?", (stored.id,)
    ).fetchone()
    if found != (stored.doc,):
        yield Fault(place, "its id does not lead to it")
    rows = field_rows(stored)
    for name, kind, value, doc in rows:
        row = connection.execute(
            "SELECT 1 FROM fields WHERE path = (SELECT path FROM paths WHERE name = ?) AND kind = ? AND value = ?"
            " AND doc = ?",
            (name, kind, value, doc),
        ).fetchone()
        if row is None:
            yield Fault(place, f"filters do not know its field '{name}'")
    norms = {(span.type, normalise_entity(stored.text[span.start : span.end])) for span in stored.spans}
    known = set(
        connection.execute(
            "SELECT DISTINCT type, norm FROM entities JOIN entity_terms USING (term) WHERE doc = ?", (stored.doc,)
        ).fetchall()
    )
    if norms != known:
        yield Fault(place, "its entities are not those that filters know")


def _check_segments(connection: sqlite3.Connection, folder: Path, settings: IndexSettings) -> Iterator[Fault]:
    """Every segment's files against the manifest."""
    for record in read_segments(connection):
        for wanted in record.files:
            yield from _check_file(folder / wanted.name, size=wanted.bytes, sha256=wanted.sha256)
        try:
            open_segment(folder, record, dimension=settings.dimension)
        except (TagdexError, FileNotFoundError) as error:
            yield Fault(f"{SEGMENTS}/{record.name}", str(error))
    sha256 = read_setting(connection, CODE_SPACE_SHA256)
    if sha256 is not None:
        yield from _check_file(folder / CODE_SPACE, size=None, sha256=sha256)


def _check_file(file: Path, *, size: int | None, sha256: str) -> Iterator[Fault]:
    place = f"{SEGMENTS}/{file.name}"
    if not file.is_file():
        yield Fault(place, "the file is gone")
    elif size is not None and file.stat().st_size != size:
        yield Fault(place, f"{file.stat().st_size} bytes, but {size} were written")
    elif file_sha256(file) != sha256:
        yield Fault(place, "its SHA-256 is not the one that was written")


def _check_vectors(connection: sqlite3.Connection, folder: Path, settings: IndexSettings) -> Iterator[Fault]:
    """Every passage has exactly one vector, of the right document; what has no passage is known as removed."""
    pending = connection.execute("SELECT vid, doc, vector, crc32 FROM pending ORDER BY vid").fetchall()
    try:
        read_pending(pending, settings.dimension)
    except CorruptIndexError as error:
        yield Fault("pending", str(error))
    wanted = dict(connection.execute("SELECT vid, doc FROM passages").fetchall())
    removed = {vid for (vid,) in connection.execute("SELECT vid FROM changes WHERE op = 'remove'")}
    there = {vid: doc for vid, doc, _, _ in pending}
    for (name,) in connection.execute("SELECT name FROM segments ORDER BY first_vid").fetchall():
        try:
            ids = np.load(folder / (name + IDS_SUFFIX), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue  # reported with the segment
        for vid, doc in _pairs(ids):
            if vid in there:
                yield Fault(f"vector {vid}", "it is there twice")
            if vid not in removed:
                there[vid] = doc
    missing, unknown = wanted.keys() - there.keys(), there.keys() - wanted.keys()
    if missing:
        yield Fault("vectors", f"{len(missing)} passages have no vector, the first is number {min(missing)}")
    if unknown:
        yield Fault("vectors", f"{len(unknown)} vectors have no passage, the first is number {min(unknown)}")
    for vid in wanted.keys() & there.keys():
        if wanted[vid] != there[vid]:
            yield Fault(f"vector {vid}", f"it belongs to document {there[vid]}, its passage to {wanted[vid]}")


def _pairs(ids: IdArray) -> Iterable[tuple[int, int]]:
    return zip(ids[0].tolist(), ids[1].tolist(), strict=True) if ids.ndim == 2 and len(ids) == 2 else ()
