"""Reading an index: any number of readers, which never block the writer nor see half a batch."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from indexer import vectors
from indexer.codes import CodeSpace, load_code_space
from indexer.columns import Columns
from indexer.errors import CorruptIndexError, NotAnIndexError, StorageError
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


class IndexReader:
    """A read-only view of an index that follows its writer's commits. Safe to use from several threads.

    Every query runs inside `snapshot()`, which holds one SQLite read transaction: filter, vectors and texts are
    those of one commit.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `NotAnIndexError`, `FormatError`, `StorageError`."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise NotAnIndexError(f"{self.path} is not an index folder: there is no such folder")
        self._mutex = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._view = _NO_VIEW
        self._helpers: Helpers | None = None
        self.postings = Postings()
        self.columns = Columns()
        acknowledged = acknowledged_commit(self.path / LOCK)
        with self._connection() as connection:
            settings = read_settings(connection)
            if settings is not None:
                check_acknowledged(self.path, self._commit_of(connection), acknowledged)
        if settings is None:
            self.close()
            raise NotAnIndexError(f"{self.path} is not an index yet: it has no settings")
        self._settings = settings

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; mapped files are let go with the last reference."""
        with self._mutex:
            for connection in self._idle:
                connection.close()
            self._idle.clear()
            self._view = _NO_VIEW
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
    def helpers(self) -> Helpers:
        """The threads that share one query."""
        with self._mutex:
            if self._helpers is None:
                self._helpers = Helpers()
            return self._helpers

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The index as of its newest commit, held still."""
        with self._connection() as connection:
            view = self._begin(connection)
            yield Snapshot(self, connection, view)
            connection.execute("ROLLBACK")

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
                disk_bytes=folder_bytes(self.path),
                commit=commit,
                sqlite_version=sqlite3.sqlite_version,
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each snapshot that is open at a time."""
        with self._mutex:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = connect_reader(self.path / META)
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            connection.close()
            if is_disk_error(error):
                raise StorageError(f"{self.path / META} cannot be read: {error}") from error
            raise CorruptIndexError(f"{self.path / META}: {error}; run 'indexer verify {self.path}'") from error
        except BaseException:
            connection.close()
            raise
        with self._mutex:
            self._idle.append(connection)

    def _begin(self, connection: sqlite3.Connection) -> View:
        """Begin a read transaction and bring the view to the commit that it sees."""
        for attempt in range(_REOPEN_TRIES):
            try:
                # One thread at a time, so that none sees a newer commit between the two lines in the middle.
                with self._mutex:
                    connection.execute("BEGIN")
                    commit = self._commit_of(connection)
                    if commit > self._view.commit:
                        self._view = self._follow(connection, commit)
                    if commit == self._view.commit:
                        return self._view
            except FileNotFoundError as error:
                # Compaction replaced a segment between our reading its name and opening its file.
                connection.execute("ROLLBACK")
                if attempt == _REOPEN_TRIES - 1:
                    raise CorruptIndexError(
                        f"{error} is named by the index but is not there; run 'indexer verify {self.path}'"
                    ) from error
                continue
            except OSError as error:
                raise StorageError(f"{self.path} cannot be read: {error}") from error
            break
        raise CorruptIndexError(f"{self.path} went back to an older commit; open it again")

    def _commit_of(self, connection: sqlite3.Connection) -> int:
        commit = connection.execute("SELECT max(commit_number) FROM commits").fetchone()[0]
        if commit is None:
            raise CorruptIndexError(f"{self.path / META} has lost its commit row; run 'indexer verify {self.path}'")
        return int(commit)

    def _follow(self, connection: sqlite3.Connection, commit: int) -> View:
        """The view of a newer commit: what stayed is shared with the last one."""
        before, records = self._view, read_segments(connection)
        self._settings = read_settings(connection) or self._settings
        known = {segment.name: segment for segment in before.segments}
        same = [record.name for record in records] == list(known)
        tail, seen, space = before.tail, before.seen_change, before.space
        if not same:
            # A new segment may hold vectors that were removed long ago, and the tail's first ones.
            tail, seen = (), 0
            if space is None and any(record.rerank for record in records):
                space = self._code_space(connection)
        segments = [
            known.get(record.name) or open_segment(self.path / SEGMENTS, record, dimension=self.settings.dimension)
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
        path = self.path / SEGMENTS / CODE_SPACE
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
