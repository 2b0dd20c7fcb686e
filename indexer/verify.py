"""Is an index what its writer wrote? Everything is checked against checksums, and the parts against each other.

| part | what guards it |
|---|---|
| meta.sqlite as a file, its indexes | SQLite's own check; the tables' definitions are compared with this version's |
| the write-ahead log | the number of the last commit that was acknowledged, in LOCK |
| documents, labels, passages, entities, their terms | a digest for each document, the sum of all in the commit row |
| the commit row | its own digest, chained to the one before |
| fields, paths | the documents' metadata, row by row, and the number of rows |
| settings; rows of segments | a digest for each |
| pending and pooled vectors | CRC-32 for each |
| segment files, codes.space.npy | SHA-256 for each |
| numbers given so far | are not below any that is in use |

What no answer depends on is not checked: free space, and entries of the log of changes that only readers which were
open before would follow.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from indexer import keywords
from indexer.changes import CommitState, field_rows, read_commit
from indexer.durable import is_scarcity, vector_crc
from indexer.errors import CorruptIndexError, FormatError, NotAnIndexError, StorageError, TagdexError
from indexer.fields import normalise_entity
from indexer.lock import acknowledged_commit
from indexer.manifest import read_segments
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import connect_reader, expected_schema, read_schema
from indexer.segments import IDS_SUFFIX, SegmentRecord, open_segment
from indexer.settings import IndexSettings, read_setting, read_settings
from indexer.sources import file_sha256
from indexer.store import LOCK, META, REPAIRED, SEGMENTS, read_pending
from indexer.stored import DIGEST_BYTES, HIGHEST_DOC, StoredDocument, read_documents, sum_digests
from indexer.vectors import IdArray

_ROWS = 1_000  # documents or vectors held in memory at a time


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and where: a file, a table of meta.sqlite, or what one of its rows stands for."""

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

    Raises `NotAnIndexError` for a folder that never was one, `FormatError`, and `StorageError` where memory, room or
    open files have run out; damage of any kind is reported.
    """
    path = Path(path)
    acknowledged = acknowledged_commit(path / LOCK)  # before the commit is looked at: a writer may be at work
    try:
        connection = connect_reader(path / META)
    except (NotAnIndexError, FormatError, sqlite3.DatabaseError) as error:
        if not _was_an_index(path, error, acknowledged):
            raise
        return VerifyReport(0, 0, (Fault(META, _why(path, error)),))
    try:
        connection.execute("PRAGMA mmap_size = 0")  # what a disk cannot read would end a process that maps it
        connection.execute("BEGIN")
        faults = tuple(_faults(connection, path, acknowledged))
        counts = _counts(connection)
    finally:
        connection.close()
    return VerifyReport(*counts, faults)


def _was_an_index(path: Path, error: Exception, acknowledged: int) -> bool:
    """Is this damage, or something that is no index, or not one of ours?"""
    if isinstance(error, FormatError):
        return read_schema(path / META) == expected_schema()
    segments = path / SEGMENTS
    return (path / REPAIRED).is_file() or acknowledged > 0 or (segments.is_dir() and any(segments.iterdir()))


def _why(path: Path, error: Exception) -> str:
    if not (path / META).is_file():
        return "a repair was cut off; run it again" if (path / REPAIRED).is_file() else "the file is gone"
    return f"{error}" if not isinstance(error, FormatError) else f"{error}; its tables are of this version's format"


def _counts(connection: sqlite3.Connection) -> tuple[int, int]:
    try:
        state = read_commit(connection)
    except (sqlite3.DatabaseError, TypeError):
        return 0, 0
    return state.documents, state.passages


def _faults(connection: sqlite3.Connection, path: Path, acknowledged: int) -> Iterator[Fault]:
    yield from _guarded(META, _check_database(connection))
    yield from _guarded("commits", _check_commit(connection, acknowledged))
    yield from _guarded("documents", _check_documents(connection))
    yield from _guarded("keywords", _check_keywords(connection))
    yield from _guarded("sqlite_sequence", _check_numbers(connection))
    settings: list[IndexSettings] = []
    yield from _guarded("settings", _check_settings(connection, settings))
    for known in settings:
        unread: list[str] = []
        yield from _guarded("segments", _check_segments(connection, path / SEGMENTS, known, unread))
        yield from _guarded("pooled", _check_pooled(connection, known))
        yield from _guarded("vectors", _check_vectors(connection, path / SEGMENTS, known, unread))


def _guarded(place: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    """The faults that a check finds, and the error that ends it.

    Of any kind: a damaged page can hold values of any type where others were written.
    """
    try:
        yield from faults
    except Exception as error:
        if is_scarcity(error) or isinstance(error, StorageError):
            raise StorageError(
                f"{place} cannot be checked: {error}; that says nothing about the index: run it again when there is "
                f"room, in {tempfile.gettempdir()} for a copy of {META}"
            ) from error
        yield Fault(place, f"cannot be read: {' '.join(str(error).split())} ({type(error).__name__})")


def _check_database(connection: sqlite3.Connection) -> Iterator[Fault]:
    wanted = expected_schema()
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    for name, sql in wanted.items():
        if found.get(name) != sql:
            yield Fault(META, f"the definition of '{name}' is not this version's")
    for kind, name in connection.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL").fetchall():
        if name not in wanted and not str(name).startswith("sqlite_"):  # those are SQLite's own, as its statistics
            yield Fault(META, f"it has a {kind} '{name}', which is not this version's and may change what is written")
    for (message,) in connection.execute("PRAGMA integrity_check(20)"):
        if message != "ok":
            yield Fault(META, message)


def _check_keywords(connection: sqlite3.Connection) -> Iterator[Fault]:
    if (problem := keywords.problem(connection)) is not None:
        yield Fault("keywords", problem)


def _check_commit(connection: sqlite3.Connection, acknowledged: int) -> Iterator[Fault]:
    state, rows = read_commit(connection), connection.execute("SELECT count(*) FROM commits").fetchone()[0]
    if rows != 1 or state.digest() != state.chain:
        yield Fault("commits", f"the row of the last commit does not match its digest ({rows} rows)")
    elif state.number < acknowledged:
        yield Fault(
            f"{META}-wal", f"commit {acknowledged} was acknowledged, but the last one that is there is {state.number}"
        )


def _check_settings(connection: sqlite3.Connection, known: list[IndexSettings]) -> Iterator[Fault]:
    """Appends the settings to `known` where they are sound."""
    settings = read_settings(connection)
    if settings is None:
        yield Fault(META, "the settings are gone")
    else:
        known.append(settings)


def _check_numbers(connection: sqlite3.Connection) -> Iterator[Fault]:
    """A number that is given again would mean two things to a reader."""
    given = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    for table, used in (
        ("documents", "SELECT max(doc) FROM (SELECT doc FROM documents UNION ALL SELECT doc FROM changes)"),
        (
            "passages",
            "SELECT max(vid) FROM (SELECT vid FROM passages UNION ALL SELECT vid FROM changes"
            " UNION ALL SELECT last_vid FROM segments)",
        ),
        ("changes", "SELECT max(seq) FROM changes"),
    ):
        highest = connection.execute(used).fetchone()[0] or 0
        last = given.get(table, 0)
        if not isinstance(last, int) or last < highest or (table == "documents" and last > HIGHEST_DOC):
            yield Fault("sqlite_sequence", f"{table} were numbered up to {last}, but {highest} is in use")


def _check_documents(connection: sqlite3.Connection) -> Iterator[Fault]:
    """Every document against its digest, its fields and its entities; all together against the commit row."""
    state: CommitState = read_commit(connection)
    total = bytes(DIGEST_BYTES)
    docs = [doc for (doc,) in connection.execute("SELECT doc FROM documents ORDER BY doc")]
    for start in range(0, len(docs), _ROWS):
        for item in _read_each(connection, docs[start : start + _ROWS]):
            if isinstance(item, Fault):
                yield item
            else:
                total = sum_digests(total, added=[item.digest()])
                yield from _guarded(f"document '{item.id}'", _check_document(connection, item))
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
    except (CorruptIndexError, ValueError, sqlite3.DatabaseError) as error:
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


def _check_segments(
    connection: sqlite3.Connection, folder: Path, settings: IndexSettings, unread: list[str]
) -> Iterator[Fault]:
    """Every segment's files against the manifest; appends to `unread` the names of those with a fault."""
    records = read_segments(connection)
    for record in records:
        faults = list(_check_segment(folder, record, settings))
        if faults:
            unread.append(record.name)
        yield from faults
    sha256 = read_setting(connection, CODE_SPACE_SHA256)
    if sha256 is not None:
        yield from _check_file(folder / CODE_SPACE, size=None, sha256=sha256)
    elif any(record.rerank for record in records):
        yield Fault("settings", f"segments have codes, but the checksum of {CODE_SPACE} is gone")


def _check_segment(folder: Path, record: SegmentRecord, settings: IndexSettings) -> Iterator[Fault]:
    faults = [
        fault
        for wanted in record.files
        for fault in _check_file(folder / wanted.name, size=wanted.bytes, sha256=wanted.sha256)
    ]
    yield from faults
    if faults:
        return  # files that are damaged are better not opened
    try:
        segment = open_segment(folder, record, dimension=settings.dimension)
    except (TagdexError, FileNotFoundError) as error:
        yield Fault(f"{SEGMENTS}/{record.name}", str(error))
        return
    vids = segment.vids
    if (vids[0], vids[-1]) != (record.first_vid, record.last_vid) or not (vids[1:] > vids[:-1]).all():
        yield Fault(f"{SEGMENTS}/{record.name}{IDS_SUFFIX}", "its numbers are not those that the manifest names")


def _check_file(file: Path, *, size: int | None, sha256: str) -> Iterator[Fault]:
    place = f"{SEGMENTS}/{file.name}"
    if not file.is_file():
        yield Fault(place, "the file is gone")
    elif size is not None and file.stat().st_size != size:
        yield Fault(place, f"{file.stat().st_size} bytes, but {size} were written")
    else:
        try:
            found = file_sha256(file)
        except OSError as error:
            if is_scarcity(error):
                raise
            yield Fault(place, f"cannot be read: {error.strerror or error}")
        else:
            if found != sha256:
                yield Fault(place, "its SHA-256 is not the one that was written")


def _check_pooled(connection: sqlite3.Connection, settings: IndexSettings) -> Iterator[Fault]:
    """Documents of several passages, and no others, have a vector for the whole."""
    rows = connection.execute("SELECT doc, vector, crc32 FROM pooled ORDER BY doc")
    there = set()
    for doc, vector, crc in rows:
        there.add(doc)
        if len(vector) != 2 * settings.dimension or vector_crc(0, doc, vector) != crc:
            yield Fault("pooled", f"the vector of document number {doc} does not match its checksum")
    wanted = {doc for (doc,) in connection.execute("SELECT doc FROM passages GROUP BY doc HAVING count(*) > 1")}
    for doc in sorted(wanted ^ there):
        yield Fault("pooled", f"document number {doc} {'lacks its vector' if doc in wanted else 'needs no vector'}")


def _check_vectors(
    connection: sqlite3.Connection, folder: Path, settings: IndexSettings, unread: list[str]
) -> Iterator[Fault]:
    """Every passage has exactly one vector, of the right document; what has no passage is known as removed."""
    pending = connection.execute("SELECT vid, doc, vector, crc32 FROM pending ORDER BY vid").fetchall()
    try:
        read_pending(pending, settings.dimension)
    except CorruptIndexError as error:
        yield Fault("pending", str(error))
    if unread:
        return  # reported with the segment
    wanted = _pairs(connection, "SELECT vid, doc FROM passages ORDER BY vid")
    removed = _pairs(connection, "SELECT vid, doc FROM changes WHERE op = 'remove' AND vid IS NOT NULL")[0]
    parts = [np.array([row[:2] for row in pending], dtype=np.int64).reshape(-1, 2).T]
    for (name,) in connection.execute("SELECT name FROM segments ORDER BY first_vid").fetchall():
        ids = np.load(folder / (name + IDS_SUFFIX), allow_pickle=False)[:2]
        parts.append(ids[:, ~np.isin(ids[0], removed)])
    there = np.concatenate(parts, axis=1)
    there = there[:, np.argsort(there[0], kind="stable")]
    twice = there[0, 1:] == there[0, :-1]
    for vid in there[0, 1:][twice].tolist():
        yield Fault(f"vector {vid}", "it is there twice")
    there = there[:, np.append(~twice, True)] if there.size else there  # the last of several
    missing, unknown = np.setdiff1d(wanted[0], there[0]), np.setdiff1d(there[0], wanted[0])
    if len(missing):
        yield Fault("vectors", f"{len(missing)} passages have no vector, the first is number {missing[0]}")
    if len(unknown):
        yield Fault("vectors", f"{len(unknown)} vectors have no passage, the first is number {unknown[0]}")
    _, at, found = np.intersect1d(wanted[0], there[0], assume_unique=True, return_indices=True)
    other = wanted[1, at] != there[1, found]
    for vid, doc, passage in zip(*there[:, found[other]].tolist(), wanted[1, at[other]].tolist(), strict=True):
        yield Fault(f"vector {vid}", f"it belongs to document {doc}, its passage to {passage}")


def _pairs(connection: sqlite3.Connection, query: str) -> IdArray:
    """The two integers of each row of a query, int64 (2, rows)."""
    numbers = np.fromiter(chain.from_iterable(connection.execute(query)), dtype=np.int64)
    return numbers.reshape(-1, 2).T
