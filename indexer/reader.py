"""Reading an index: any number of readers, which never block the writer nor see half a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from pyroaring import BitMap

from indexer import vectors
from indexer.errors import CorruptIndexError, NotAnIndexError
from indexer.metadata import connect_reader
from indexer.records import FloatArray
from indexer.settings import read_settings
from indexer.store import META, SEGMENTS, read_pending
from indexer.stored import StoredDocument, read_documents

_REOPEN_TRIES = 5


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment as the manifest has it."""

    name: str
    rows: int
    bytes: int
    factory: str


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What `indexer info` shows. `disk_bytes` counts every file of the folder."""

    path: str
    format: int
    model: str
    fingerprint: str
    heads_fingerprint: str | None
    dimension: int
    class_labels: tuple[str, ...] | None
    entity_types: tuple[str, ...] | None
    documents: int
    passages: int
    entities: int
    pending: int
    dead: int
    segments: tuple[SegmentInfo, ...]
    disk_bytes: int
    commit: int


class IndexReader:
    """A read-only view of an index that follows its writer's commits.

    Every query runs inside `snapshot()`, which holds one SQLite read transaction: filter, vectors and texts are
    those of one commit. Snapshots of one reader follow each other, also from several threads.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `NotAnIndexError`, `FormatError`."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise NotAnIndexError(f"{self.path} is not an index folder: there is no such folder")
        self.connection = connect_reader(self.path / META)
        try:
            settings = read_settings(self.connection)
            if settings is None:
                raise NotAnIndexError(f"{self.path} is not an index yet: it has no settings")
        except BaseException:
            self.connection.close()
            raise
        self.settings = settings
        self._mutex = threading.RLock()
        self._commit = -1
        self._seen_change = 0
        self._segments: dict[str, vectors.Segment] = {}
        self._tail = vectors.Segment.empty(settings.dimension)

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; mapped files are let go with the last reference."""
        with self._mutex:
            self.connection.close()
            self._segments.clear()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The index as of its newest commit, held still."""
        with self._mutex:
            for attempt in range(_REOPEN_TRIES):
                self.connection.execute("BEGIN")
                try:
                    self._follow()
                    break
                except FileNotFoundError as error:
                    # Compaction replaced a segment between our reading its name and opening its file.
                    self.connection.execute("ROLLBACK")
                    if attempt == _REOPEN_TRIES - 1:
                        raise CorruptIndexError(
                            f"{error} is named by the index but is not there; run 'indexer verify {self.path}'"
                        ) from error
                except BaseException:
                    self.connection.execute("ROLLBACK")
                    raise
            try:
                yield Snapshot(self, [*self._segments.values(), self._tail])
            finally:
                self.connection.execute("ROLLBACK")

    def info(self) -> IndexInfo:
        """Counts and sizes as of the newest commit."""
        with self.snapshot() as snapshot:
            read = self.connection.execute
            commit, documents, passages, entities = read(
                "SELECT commit_number, documents, passages, entities FROM commits"
            ).fetchone()
            segments = tuple(
                SegmentInfo(*row)
                for row in read(
                    "SELECT name, rows, vectors_bytes + ids_bytes, factory FROM segments ORDER BY first_vid"
                )
            )
            return IndexInfo(
                path=str(self.path),
                format=read("PRAGMA user_version").fetchone()[0],
                model=self.settings.model,
                fingerprint=self.settings.fingerprint,
                heads_fingerprint=self.settings.heads_fingerprint,
                dimension=self.settings.dimension,
                class_labels=self.settings.class_labels,
                entity_types=self.settings.entity_types,
                documents=documents,
                passages=passages,
                entities=entities,
                pending=read("SELECT count(*) FROM pending").fetchone()[0],
                dead=sum(int((~segment.live).sum()) for segment in snapshot.segments),
                segments=segments,
                disk_bytes=folder_bytes(self.path),
                commit=commit,
            )

    def _follow(self) -> None:
        """Bring segments, tail and live set to the commit that this transaction sees."""
        commit = self.connection.execute("SELECT max(commit_number) FROM commits").fetchone()[0]
        if commit is None:
            raise CorruptIndexError(f"{self.path / META} has lost its commit row; run 'indexer verify {self.path}'")
        if commit == self._commit:
            return
        manifest = dict(self.connection.execute("SELECT name, rows FROM segments ORDER BY first_vid").fetchall())
        if manifest.keys() != self._segments.keys():
            self._open_segments(manifest)
            self._tail = vectors.Segment.empty(self.settings.dimension)
        self._extend_tail()
        removed = self.connection.execute(
            "SELECT seq, vid FROM changes WHERE op = 'remove' AND seq > ? ORDER BY vid", (self._seen_change,)
        ).fetchall()
        vids = np.array([vid for _, vid in removed], dtype=np.int64)
        for segment in (*self._segments.values(), self._tail):
            segment.kill(vids)
        self._seen_change = max((seq for seq, _ in removed), default=self._seen_change)
        self._commit = commit

    def _open_segments(self, manifest: dict[str, int]) -> None:
        opened = {
            name: self._segments.get(name)
            or vectors.Segment.open(self.path / SEGMENTS, name, dimension=self.settings.dimension, rows=rows)
            for name, rows in manifest.items()
        }
        if opened.keys() - self._segments.keys():
            self._seen_change = 0  # a new segment may hold vectors that were removed before
        self._segments = opened

    def _extend_tail(self) -> None:
        last = int(self._tail.vids[-1]) if len(self._tail.vids) else 0
        rows = self.connection.execute(
            "SELECT vid, doc, vector, crc32 FROM pending WHERE vid > ? ORDER BY vid", (last,)
        ).fetchall()
        if rows:
            table = read_pending(rows, self.settings.dimension)
            self._tail.append([row[0] for row in rows], [row[1] for row in rows], table)


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder; those that a writer takes away meanwhile count nothing."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


class Snapshot:
    """One commit of an index, valid inside `IndexReader.snapshot()`."""

    def __init__(self, reader: IndexReader, segments: Sequence[vectors.Segment]) -> None:
        self.connection = reader.connection
        self.settings = reader.settings
        self.segments = segments

    def count(self) -> int:
        """Number of documents."""
        return int(self.connection.execute("SELECT documents FROM commits").fetchone()[0])

    def search_vectors(self, query: FloatArray, n: int, *, allowed: BitMap | None = None) -> vectors.Candidates:
        """The n best passages, best first, of the allowed documents (`None`: of all).

        `query` fp32 (dimension,), of any length but zero.
        """
        unit = vectors.normalise(query[None])[0]
        mask = None
        if allowed is not None:
            highest = max((int(segment.docs.max()) for segment in self.segments if len(segment.docs)), default=0)
            mask = np.zeros(highest + 1, dtype=bool)
            docs = np.frombuffer(allowed.to_array(), dtype=np.uint32)
            mask[docs[docs <= highest]] = True
        return vectors.search_segments(self.segments, unit, n, allowed_docs=mask)

    def documents(self, docs: Sequence[int]) -> dict[int, StoredDocument]:
        """Whole documents by number, checked against their digests."""
        return read_documents(self.connection, docs)

    def ids(self, docs: Sequence[int]) -> dict[int, str]:
        """The ids of documents by number. Raises `CorruptIndexError` for a number that does not exist."""
        rows = self.connection.execute(
            "SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
            (str([int(doc) for doc in docs]),),
        )
        ids: dict[int, str] = dict(rows.fetchall())
        if missing := set(docs) - ids.keys():
            raise CorruptIndexError(
                f"document number {min(missing)} has a vector, but is not there: the index is damaged; "
                "run 'indexer verify'"
            )
        return ids

    def number_of(self, id_: str) -> int | None:
        """The number of the document with this id."""
        row = self.connection.execute("SELECT doc FROM documents WHERE id = ?", (id_,)).fetchone()
        return None if row is None else int(row[0])

    def document_vector(self, doc: int) -> FloatArray:
        """The embedding of a whole document, fp32 (dimension,), of length 1 up to fp16."""
        row = self.connection.execute("SELECT vector FROM pooled WHERE doc = ?", (doc,)).fetchone()
        if row is not None:
            pooled: FloatArray = np.frombuffer(row[0], dtype="<f2").astype(np.float32)
            return pooled
        for segment in self.segments:
            at = np.flatnonzero((segment.docs == doc) & segment.live)
            if len(at):
                single: FloatArray = segment.rows(at)[0].astype(np.float32)
                return single
        raise CorruptIndexError(f"document number {doc} has no vector; run 'indexer verify'")
