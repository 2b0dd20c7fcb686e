"""Reading an index: any number of readers, which never block the writer nor see half a batch."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import faiss
import numpy as np
from pyroaring import BitMap

from indexer import keywords, vectors
from indexer.attributes import Attribute
from indexer.codes import CodeSpace, load_code_space
from indexer.columns import Column, Columns
from indexer.durable import vector_crc
from indexer.errors import CorruptIndexError, NotAnIndexError, StorageError
from indexer.fields import has_lone_surrogate
from indexer.filters import Filter
from indexer.lock import acknowledged_commit
from indexer.manifest import read_segments
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import connect_reader, is_disk_error, select_in
from indexer.postings import LogPosition, Postings, read_log_position
from indexer.records import FloatArray
from indexer.segments import SegmentRecord, open_segment
from indexer.settings import INDEX_ID, IndexSettings, read_setting, read_settings
from indexer.sources import file_sha256
from indexer.store import LOCK, META, SEGMENTS, check_acknowledged, read_pending
from indexer.stored import StoredDocument, read_documents
from indexer.vectors import Candidates, SearchPlan, Segment

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


@dataclass(frozen=True, slots=True)
class View:
    """The vectors of one commit. Nothing in it changes, so that searches of several threads can share it.

    `tail` holds vectors that are in no segment yet, in the order of their vids. `log`: where the log of changes stood.
    """

    commit: int
    segments: tuple[Segment, ...]
    tail: tuple[Segment, ...]
    seen_change: int
    space: CodeSpace | None
    log: LogPosition

    @property
    def all(self) -> tuple[Segment, ...]:
        """Segments and tail."""
        return (*self.segments, *self.tail)


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
        self._workers: ThreadPoolExecutor | None = None
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
            if self._workers is not None:
                self._workers.shutdown()
                self._workers = None

    @property
    def settings(self) -> IndexSettings:
        """The settings as of the commit that was seen last."""
        return self._settings

    @property
    def workers(self) -> ThreadPoolExecutor:
        """One thread for each core, in which FAISS stays single-threaded."""
        with self._mutex:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(
                    max_workers=os.cpu_count() or 1,
                    thread_name_prefix="search",
                    initializer=faiss.omp_set_num_threads,
                    initargs=(1,),
                )
            return self._workers

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
                dead=sum(len(segment) - int(np.count_nonzero(segment.live)) for segment in snapshot.view.all),
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


class Snapshot:
    """One commit of an index, valid inside `IndexReader.snapshot()`."""

    def __init__(self, reader: IndexReader, connection: sqlite3.Connection, view: View) -> None:
        self._reader = reader
        self.connection = connection
        self.view = view

    def count(self) -> int:
        """Number of documents."""
        return int(self.connection.execute("SELECT documents FROM commits").fetchone()[0])

    @property
    def index_id(self) -> str | None:
        """What tells the index from others; `None` for one that an earlier version made."""
        name: str | None = read_setting(self.connection, INDEX_ID)
        return name

    def last_vid(self) -> int:
        """The highest number that a vector was given up to this commit."""
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'passages'").fetchone()
        return int(row[0]) if row else 0

    def written_after(self, vid: int) -> BitMap:
        """The documents that are new, or have a new text, since this was the highest number of a vector."""
        rows = self.connection.execute("SELECT DISTINCT doc FROM passages WHERE vid > ?", (vid,))
        return BitMap(doc for (doc,) in rows)

    def allowed(self, filter: Filter) -> BitMap:
        """The numbers of the documents for which the filter is true; not to be changed."""
        return self._reader.postings.allowed(self.connection, filter, self.view.log)

    def column(self, attribute: Attribute) -> Column:
        """What each document has of an attribute, to be counted; read by SQL once, then it follows the commits."""
        return self._reader.columns.get(self.connection, attribute, self.view.log)

    def search_vectors(
        self, query: FloatArray, n: int, *, allowed: BitMap | None = None, path: str = "auto", parallel: bool = True
    ) -> tuple[Candidates, SearchPlan]:
        """The n best passages, best first, of the allowed documents (`None`: of all), and how they were found.

        `query` fp32 (dimension,), of any length but zero. With `parallel`, segments are searched by several threads.
        """
        return self.search_vectors_many(query[None], n, allowed=allowed, path=path, parallel=parallel)[0]

    def search_vectors_many(
        self, queries: FloatArray, n: int, *, allowed: BitMap | None = None, path: str = "auto", parallel: bool = True
    ) -> list[tuple[Candidates, SearchPlan]]:
        """As `search_vectors`, for several queries, fp32 (queries, dimension), with one pass over the codes."""
        mask = None
        if allowed is not None:
            highest = max((segment.highest_doc for segment in self.view.all), default=0)
            mask = np.zeros(highest + 1, dtype=bool)
            docs = np.frombuffer(allowed.to_array(), dtype=np.uint32)
            mask[docs[docs <= highest]] = True
        return vectors.search_segments_many(
            self.view.all,
            vectors.normalise(queries),
            n,
            space=self.view.space,
            allowed_docs=mask,
            path=path,
            pool=self._reader.workers if parallel else None,
        )

    def match_words(self, expression: str, n: int, allowed: BitMap | None) -> list[tuple[int, float]]:
        """The n allowed documents (`None`: all) that match best, (doc, BM25), best first, with those that tie.

        `expression` in FTS5's syntax.
        """
        return keywords.match(self.connection, expression, n, allowed)

    def passages_with_words(self, expression: str, docs: Sequence[int]) -> dict[int, int]:
        """For each of these documents the vid of the passage with the most matching words, the first of several."""
        words = keywords.matched_words(self.connection, expression, docs)
        best: dict[int, tuple[int, int]] = {}
        for doc, vid, start, end in self._passages(docs):
            count = sum(start <= at < end for at, _ in words.get(doc, ()))
            if doc not in best or count > best[doc][0]:
                best[doc] = count, vid
        return {doc: vid for doc, (_, vid) in best.items()}

    def matched_words(self, expression: str, docs: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """For each of these documents that match: the offsets of the words that do, in their order."""
        return keywords.matched_words(self.connection, expression, docs)

    def passages_of(self, docs: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
        """(vid, start, end) of all passages of each of these documents, in the order of the text."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for doc, vid, start, end in self._passages(docs):
            found.setdefault(doc, []).append((vid, start, end))
        return found

    def scores_of(self, query: FloatArray, vids: Sequence[int]) -> dict[int, float]:
        """The cosines of these vectors, by vid. `query` fp32 (dimension,), of any length but zero."""
        unit = vectors.normalise(query[None])[0]
        return dict(vectors.scores_of(self.view.all, np.array(sorted(vids), dtype=np.int64), unit))

    def best_passages(self, query: FloatArray, docs: Sequence[int]) -> dict[int, tuple[int, float]]:
        """For each of these documents the vid and cosine of its best passage. `query` fp32 (dimension,)."""
        unit = vectors.normalise(query[None])[0]
        owners = {vid: doc for doc, vid, _, _ in self._passages(docs)}
        best: dict[int, tuple[int, float]] = {}
        for vid, score in vectors.scores_of(self.view.all, np.array(sorted(owners), dtype=np.int64), unit):
            doc = owners[vid]
            if doc not in best or score > best[doc][1]:
                best[doc] = vid, score
        if missing := set(docs) - best.keys():
            raise CorruptIndexError(f"document number {min(missing)} has no vector; run 'indexer verify'")
        return best

    def _passages(self, docs: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """(doc, vid, start, end) of all passages of documents, in the order of their vids."""
        return self.connection.execute(
            'SELECT doc, vid, start, "end" FROM passages WHERE doc IN (SELECT value FROM json_each(?)) ORDER BY vid',
            (str([int(doc) for doc in docs]),),
        ).fetchall()

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

    def numbers_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers of the documents with these ids, by id; ids that are not there are left out."""
        wanted = [id_ for id_ in dict.fromkeys(ids) if not has_lone_surrogate(id_)]
        numbers: dict[str, int] = dict(select_in(self.connection, "SELECT id, doc FROM documents WHERE id IN", wanted))
        return numbers

    def document_vector(self, doc: int) -> FloatArray:
        """The embedding of a whole document, fp32 (dimension,), of length 1 up to fp16."""
        vector: FloatArray = self.document_vectors([doc])[0]
        return vector

    def document_vectors(self, docs: Sequence[int]) -> FloatArray:
        """The embeddings of whole documents, in their order, fp32 (documents, dimension), of length 1 up to fp16."""
        table = np.zeros((len(docs), self._reader.settings.dimension), dtype=np.float32)
        numbers = str([int(doc) for doc in docs])
        read = self.connection.execute
        pooled = {}
        for doc, vector, crc in read(
            "SELECT doc, vector, crc32 FROM pooled WHERE doc IN (SELECT value FROM json_each(?))", (numbers,)
        ):
            if vector_crc(0, doc, vector) != crc:
                raise CorruptIndexError(
                    f"the vector of document number {doc} does not match its checksum; run 'indexer verify'"
                )
            pooled[doc] = vector
        single = {doc: vid for doc, vid, _, _ in self._passages([doc for doc in docs if doc not in pooled])}
        found = self.vectors_of(sorted(single.values()))
        for row, doc in enumerate(docs):
            if doc in pooled:
                table[row] = np.frombuffer(pooled[doc], dtype="<f2")
            elif doc in single and single[doc] in found:
                table[row] = found[single[doc]]
            else:
                raise CorruptIndexError(f"document number {doc} has no vector; run 'indexer verify'")
        return table

    def texts_of(self, docs: Sequence[int]) -> dict[int, str]:
        """The texts of documents by number, as they are stored."""
        rows = self.connection.execute(
            "SELECT doc, text FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
            (str([int(doc) for doc in docs]),),
        )
        texts: dict[int, str] = dict(rows.fetchall())
        return texts

    def vectors_of(self, vids: Sequence[int]) -> dict[int, FloatArray]:
        """The stored vectors with these numbers, ascending; those that are in no segment are left out."""
        wanted = np.array(vids, dtype=np.int64)
        found: dict[int, FloatArray] = {}
        for segment in self.view.all if len(wanted) else ():
            at = np.searchsorted(segment.vids, wanted)
            here = np.flatnonzero(at < len(segment))
            here = here[segment.vids[at[here]] == wanted[here]]
            found.update(zip(wanted[here].tolist(), segment.table[at[here]].astype(np.float32), strict=True))
        return found
