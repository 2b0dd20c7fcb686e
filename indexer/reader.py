"""Reading an index: any number of readers, which never block the writer nor see half a batch."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from indexer import vectors
from indexer.codes import CodeSpace, load_code_space
from indexer.columns import Columns
from indexer.durable import FileNumber, file_number
from indexer.errors import (
    ClosedError,
    CorruptIndexError,
    IndexFolderError,
    NotAnIndexError,
    ReplacedIndexError,
    StorageError,
    no_folder,
)
from indexer.helpers import Helpers
from indexer.lock import acknowledged_commit
from indexer.manifest import read_segments
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import connect_reader, is_disk_error
from indexer.postings import LogPosition, Postings, read_log_position
from indexer.segments import SegmentRecord, open_segment
from indexer.settings import IndexSettings, read_setting, read_settings
from indexer.snapshot import Snapshot, View
from indexer.sources import file_sha256
from indexer.store import LOCK, META, SEGMENTS, check_acknowledged, read_pending
from indexer.vectors import Segment

_REOPEN_TRIES = 5
_OPENING = (OSError, sqlite3.DatabaseError, IndexFolderError)  # also where what is opened is replaced meanwhile
_TAIL_PIECES = 16  # of unsealed vectors, before they are put together again


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What `indexer info` shows. `disk_bytes` counts every file of the folder; `sqlite_version` is the library's."""

    path: str
    format: int
    model: str | None
    fingerprint: str | None
    heads_fingerprint: str | None
    dimension: int
    class_labels: tuple[str, ...] | None
    entity_types: tuple[str, ...] | None
    documents: int
    passages: int
    entities: int
    pending: int
    dead: int
    segments: tuple[SegmentRecord, ...]
    disk_bytes: int
    commit: int
    sqlite_version: str


_NO_VIEW = View(-1, (), (), 0, None, LogPosition(0, 0))


@dataclass(slots=True, eq=False)
class _Database:
    """The file that an index's path named when it was opened, and what is known of it.

    `held` is a connection that nothing is asked of: while it is open, no other file can get this one's number.
    """

    file: FileNumber
    held: sqlite3.Connection
    idle: list[sqlite3.Connection]
    view: View = _NO_VIEW
    postings: Postings = field(default_factory=Postings)
    columns: Columns = field(default_factory=Columns)

    def close(self) -> None:
        """Close the connections that nobody reads from; what a snapshot has is closed when it ends."""
        for connection in (self.held, *self.idle):
            connection.close()
        self.idle.clear()
        self.view = _NO_VIEW


class IndexReader:
    """A read-only view of an index that follows its writer's commits. Safe to use from several threads.

    Every query runs inside `snapshot()`, which holds one SQLite read transaction: filter, vectors and texts are
    those of one commit. Where another index has taken the path's place (a copy restored, a new one, a repaired one),
    the next snapshot is of that; what is being read is read to its end from the one before.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `NotAnIndexError`, `FormatError`, `StorageError`."""
        self.path = Path(path)
        self._folder = self.path.absolute()  # also after a change of the working directory
        self._meta = self._folder / META
        if not self.path.is_dir():
            raise no_folder(self.path)
        self._mutex = threading.Lock()
        self._closed = False
        self._helpers: Helpers | None = None
        with self._sqlite_errors():
            self._database: _Database | None
            self._database, self._settings = self._open(self.path)  # so that errors name it as the caller did

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; mapped files are let go with the last reference. Again, it does nothing.

        What another thread is reading is read to its end; what is asked afterwards raises `ClosedError`.
        """
        with self._mutex:
            self._closed = True
            if self._database is not None:
                self._database.close()
                self._database = None
            if self._helpers is not None:
                self._helpers.shutdown()
                self._helpers = None

    @property
    def settings(self) -> IndexSettings:
        """The settings as of the commit that was seen last."""
        return self._settings

    def newest_settings(self) -> IndexSettings:
        """The settings as of the newest commit."""
        with self.snapshot():
            return self._settings

    @property
    def postings(self) -> Postings:
        """What is remembered of filters, for the next snapshot."""
        with self._mutex:
            return self._current().postings

    @property
    def columns(self) -> Columns:
        """What is remembered of the documents' values, for the next snapshot."""
        with self._mutex:
            return self._current().columns

    @property
    def helpers(self) -> Helpers:
        """The threads that share one query."""
        with self._mutex:
            if self._helpers is None:
                self._helpers = Helpers()
            return self._helpers

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The index as of its newest commit, held still.

        Raises `ClosedError`, `NotAnIndexError` where it is gone, and its `ReplacedIndexError` where one of another
        model or dimension is there in its place.
        """
        with self._sqlite_errors():
            database, connection, view = self._begin()
            snapshot = Snapshot(self, connection, view, postings=database.postings, columns=database.columns)
            try:
                yield snapshot
                connection.execute("ROLLBACK")
            except BaseException:
                connection.close()
                raise
            finally:
                snapshot.end()
        with self._mutex:
            if database is self._database:
                database.idle.append(connection)
            else:
                connection.close()

    def info(self) -> IndexInfo:
        """Counts and sizes as of the newest commit."""
        with self.snapshot() as snapshot:
            read = snapshot.connection.execute
            commit, documents, passages, entities = read(
                "SELECT commit_number, documents, passages, entities FROM commits"
            ).fetchone()
            settings = self.settings
            return IndexInfo(
                path=str(self.path),
                format=read("PRAGMA user_version").fetchone()[0],
                model=settings.model,
                fingerprint=settings.fingerprint,
                heads_fingerprint=settings.heads_fingerprint,
                dimension=settings.dimension,
                class_labels=settings.class_labels,
                entity_types=settings.entity_types,
                documents=documents,
                passages=passages,
                entities=entities,
                pending=read("SELECT count(*) FROM pending").fetchone()[0],
                dead=sum(len(segment) - segment.live_rows for segment in snapshot.view.segments),
                segments=tuple(read_segments(snapshot.connection)),
                disk_bytes=folder_bytes(self._folder),
                commit=commit,
                sqlite_version=sqlite3.sqlite_version,
            )

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        """What SQLite says of a database that cannot be read → `StorageError`, `CorruptIndexError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if is_disk_error(error):
                raise StorageError(f"{self.path / META} cannot be read: {error}") from error
            raise CorruptIndexError(f"{self.path / META}: {error}; run 'indexer verify {self.path}'") from error

    def _begin(self) -> tuple[_Database, sqlite3.Connection, View]:
        """A connection of its own for each snapshot, in a read transaction, and the view of the commit that it sees."""
        vanished: FileNotFoundError | None = None
        for _ in range(_REOPEN_TRIES):
            # One thread at a time, so that none sees a newer commit between the lines in the middle.
            with self._mutex, ExitStack() as on_error:
                database = self._current()
                try:
                    connection = database.idle.pop() if database.idle else connect_reader(self._meta)
                    on_error.callback(connection.close)
                    connection.execute("BEGIN")
                    view = self._view_of(connection, database.view)
                except _OPENING as error:
                    if file_number(self._meta) != database.file:
                        continue
                    if isinstance(error, FileNotFoundError):
                        # Compaction replaced a segment between our reading its name and opening its file.
                        vanished = error
                        continue
                    if isinstance(error, OSError):
                        raise StorageError(f"{self.path} cannot be read: {error}") from error
                    raise
                if file_number(self._meta) != database.file:
                    continue  # the connection or a segment may be another index's
                if view is not database.view:
                    database.view = view
                    self._settings = read_settings(connection) or self._settings
                on_error.pop_all()
                return database, connection, view
        if vanished is None:
            raise StorageError(f"{self.path} is replaced again and again; ask again when that is done")
        raise CorruptIndexError(
            f"{vanished} is named by the index but is not there; run 'indexer verify {self.path}'"
        ) from vanished

    def _current(self) -> _Database:
        """The database that has the path's name now; the caller holds the mutex. Raises `ClosedError`."""
        if self._closed:
            raise ClosedError(f"{self.path} was closed here, and is asked again: open it anew")
        if self._database is not None:
            if file_number(self._meta) == self._database.file:
                return self._database
            self._database.close()
            self._database = None
        database, settings = self._open(self._folder)
        try:
            self._settings.check_replaced(settings, place=str(self.path))
        except ReplacedIndexError:
            database.close()
            raise
        self._database, self._settings = database, settings
        return database

    def _open(self, folder: Path) -> tuple[_Database, IndexSettings]:
        """The database and its settings. Raises as `__init__`, and `CorruptIndexError` where commits are missing."""
        for _ in range(_REOPEN_TRIES):
            number = file_number(self._meta)
            acknowledged = acknowledged_commit(folder / LOCK)
            with ExitStack() as on_error:
                try:
                    held = connect_reader(folder / META)
                    on_error.callback(held.close)
                    connection = connect_reader(folder / META)
                    on_error.callback(connection.close)
                    settings = read_settings(connection)
                    commit = 0 if settings is None else self._commit_of(connection)
                except _OPENING:
                    if file_number(self._meta) == number:
                        raise
                    continue
                if number is None or file_number(self._meta) != number:
                    continue
                if settings is None:
                    raise NotAnIndexError(f"{self.path} is not an index yet: it has no settings")
                check_acknowledged(self.path, commit, acknowledged)
                on_error.pop_all()
                return _Database(number, held, [connection]), settings
        raise StorageError(f"{self.path} is replaced again and again; open it again when that is done")

    def _view_of(self, connection: sqlite3.Connection, before: View) -> View:
        """The view of the commit that a read transaction sees; the last one where that is its commit."""
        commit = self._commit_of(connection)
        if commit < before.commit:
            raise CorruptIndexError(f"{self.path} went back to an older commit; open it again")
        return self._follow(before, connection, commit) if commit > before.commit else before

    def _commit_of(self, connection: sqlite3.Connection) -> int:
        commit = connection.execute("SELECT max(commit_number) FROM commits").fetchone()[0]
        if commit is None:
            raise CorruptIndexError(f"{self.path / META} has lost its commit row; run 'indexer verify {self.path}'")
        return int(commit)

    def _follow(self, before: View, connection: sqlite3.Connection, commit: int) -> View:
        """The view of a newer commit: what stayed is shared with the last one."""
        records = read_segments(connection)
        known = {segment.name: segment for segment in before.segments}
        same = [record.name for record in records] == list(known)
        tail, seen, space = before.tail, before.seen_change, before.space
        if not same:
            # A new segment may hold vectors that were removed long ago, and the tail's first ones.
            tail, seen = (), 0
            if space is None and any(record.rerank for record in records):
                space = self._code_space(connection)
        segments = [
            known.get(record.name) or open_segment(self._folder / SEGMENTS, record, dimension=self.settings.dimension)
            for record in records
        ]
        tail = self._extended(connection, tail)
        rows = connection.execute(
            "SELECT vid, seq FROM changes WHERE op = 'remove' AND seq > ? ORDER BY vid", (seen,)
        ).fetchall()
        removed = np.array([vid for vid, _ in rows], dtype=np.int64)
        return View(
            commit,
            tuple(segment.without(removed) for segment in segments),
            tuple(segment.without(removed) for segment in tail),
            max((seq for _, seq in rows), default=seen),
            space,
            read_log_position(connection),
        )

    def _code_space(self, connection: sqlite3.Connection) -> CodeSpace:
        path = self._folder / SEGMENTS / CODE_SPACE
        if path.is_file() and file_sha256(path) != read_setting(connection, CODE_SPACE_SHA256):
            raise CorruptIndexError(f"{path} is not what was written; run 'indexer verify {self.path}'")
        return load_code_space(path, dimension=self.settings.dimension)

    def _extended(self, connection: sqlite3.Connection, tail: tuple[Segment, ...]) -> tuple[Segment, ...]:
        if len(tail) >= _TAIL_PIECES:
            tail = ()
        last = int(tail[-1].vids[-1]) if tail else 0
        rows = connection.execute(
            "SELECT vid, doc, vector, crc32 FROM pending WHERE vid > ? ORDER BY vid", (last,)
        ).fetchall()
        if not rows:
            return tail
        table = read_pending(rows, self.settings.dimension)
        return (*tail, vectors.in_memory("tail", [row[0] for row in rows], [row[1] for row in rows], table))


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder; those that a writer takes away meanwhile count nothing."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total
