"""One index folder and its only writer, which keeps vectors and metadata in step.

    myindex/  meta.sqlite   LOCK   segments/<name>.fp16.faiss   segments/<name>.ids.npy

A batch is one SQLite transaction: documents, passages, entities, and the vectors as pending rows. When it has
committed, the batch is acknowledged and survives a crash. Pending vectors move into an immutable segment when
enough have come together; the transaction that names the segment deletes its pending rows.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from indexer import vectors
from indexer.changes import (
    Change,
    CommitState,
    apply_change,
    hash_content,
    metadata_json,
    new_document,
    next_numbers,
    read_commit,
    write_commit,
)
from indexer.codes import CodeSpace, load_code_space, new_code_space, save_code_space
from indexer.compaction import SegmentSize, full_merges, next_merge
from indexer.durable import sync
from indexer.errors import CorruptIndexError, NotAnIndexError, StorageError, TagdexError, UnfinishedIndexError
from indexer.filters import Filter, allowed
from indexer.lock import WriterLock
from indexer.manifest import add_segment, drop_segments, read_segments
from indexer.metadata import connect_writer, select_in
from indexer.postings import LOG_KEPT, LOG_TRIMMED, read_log_position
from indexer.records import Analysis, Document, FloatArray
from indexer.segments import Block, live_blocks, open_segment, write_segment
from indexer.settings import IndexSettings, read_setting, read_settings, write_setting, write_settings
from indexer.sources import file_sha256
from indexer.stored import StoredDocument, read_by_id, read_documents
from indexer.vectors import Segment

META, LOCK, SEGMENTS = "meta.sqlite", "LOCK", "segments"
CODE_SPACE = "codes.space.npy"
RETAGGED, CODE_SPACE_SHA256, CODES = "retagged_up_to", "code_space_sha256", "codes"

CODE_CHOICES = ("auto", "always", "never")
"""Which segments get codes: those of `CODES_FROM` rows or more, all, or none."""

SEAL_ROWS = 8_192  # pending vectors that make a segment
CODES_FROM = 32_768  # rows of a segment; below, scanning the vectors themselves is fast enough
SEAL_ROWS_ON_CLOSE = 1_024  # fewer are left pending for the next run
REMOVE_ROWS = 1_000  # documents that a removal holds in memory at a time


class Action(Enum):
    """What a document needs, compared with what the index has under its id."""

    SKIP = "skip"  # the same text and metadata
    UPDATE = "update"  # the same text, other metadata: no embedding
    EMBED = "embed"  # a new id, or another text


@dataclass(frozen=True, slots=True)
class Plan:
    """A document and what it needs; `exists` and `repeated`: its id is in the index, and was written there lately."""

    document: Document
    action: Action
    exists: bool
    repeated: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A document to write: with its analysis, or with `None` to change its metadata only."""

    document: Document
    analysis: Analysis | None


class IndexWriter:
    """The only writer of an index folder. Use it as a context manager; leaving it without an error closes it.

    Every method that changes something returns after the change is durable.
    """

    def __init__(self, path: str | Path, *, create: IndexSettings | None = None) -> None:
        """Open an index for writing, or with `create` make it where there is none.

        Raises `NotAnIndexError`, `LockedError`, `FormatError`, `StorageError`.
        """
        self.path = Path(path)
        self._prepare_folder(create=create is not None)
        self._lock = WriterLock(self.path / LOCK)
        try:
            with self._storage_errors():
                self._connection = connect_writer(self.path / META)
        except BaseException:
            self._lock.release()
            raise
        try:
            with self._storage_errors():
                self.settings = self._open_settings(create)
                self._delete_orphans()
                self._pending = self.pending_rows
        except BaseException:
            self._connection.close()
            self._lock.release()
            raise

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt | TagdexError):
            try:
                self.close()
            except TagdexError:
                if kind is None:
                    raise  # else the first error is the one to show
        else:
            self._abandon()

    @property
    def state(self) -> CommitState:
        """What the last commit left."""
        return read_commit(self._connection)

    @property
    def pending_rows(self) -> int:
        """Vectors that no segment holds yet."""
        return int(self._connection.execute("SELECT count(*) FROM pending").fetchone()[0])

    def plan(self, documents: Sequence[Document], *, since: int) -> list[Plan]:
        """Compare documents of distinct ids with the index; in the order given.

        One whose id was written by commit number `since` or a later one is `repeated`.
        """
        known = {
            id_: (content_hash, metadata, written)
            for id_, content_hash, metadata, written in select_in(
                self._connection,
                "SELECT id, content_hash, metadata, written FROM documents WHERE id IN",
                [document.id for document in documents],
            )
        }
        plans = []
        for document in documents:
            action, repeated = Action.EMBED, False
            if found := known.get(document.id):
                content_hash, metadata, written = found
                repeated = written >= since
                if content_hash == hash_content(document):
                    same = metadata == metadata_json(document.metadata)
                    action = Action.SKIP if same else Action.UPDATE
            plans.append(Plan(document, action, exists=document.id in known, repeated=repeated))
        return plans

    def write(self, entries: Sequence[Entry]) -> None:
        """Add or replace documents of distinct ids, in one transaction. Seals when enough vectors are pending."""
        if not entries:
            return
        with self._storage_errors(), self._transaction():
            apply_change(self._connection, self._change(entries))
        self._pending += sum(len(entry.analysis.passages) for entry in entries if entry.analysis is not None)
        if self._pending >= SEAL_ROWS:
            self.seal()
            self.compact()

    def begin_retagging(self, settings: IndexSettings) -> None:
        """Take over the heads of these settings; until `retag` has gone through, some documents have the old tags.

        A run that was stopped goes on behind the last document that was tagged, if the heads are the same.
        """
        with self._storage_errors(), self._transaction():
            if settings.heads_fingerprint != self.settings.heads_fingerprint or not self.retagged_up_to:
                write_setting(self._connection, RETAGGED, 0)
            write_settings(self._connection, settings)
            write_commit(self._connection, self.state.following(Change()))
        self.settings = settings

    @property
    def retagged_up_to(self) -> int | None:
        """Number of the last document with new tags while re-tagging is unfinished, else `None`."""
        last: int | None = read_setting(self._connection, RETAGGED)
        return last

    def documents_after(self, doc: int, n: int) -> list[StoredDocument]:
        """The next n documents in the order of their numbers."""
        rows = self._connection.execute("SELECT doc FROM documents WHERE doc > ? ORDER BY doc LIMIT ?", (doc, n))
        return list(read_documents(self._connection, [number for (number,) in rows.fetchall()]).values())

    def retag(self, documents: Sequence[StoredDocument], analyses: Sequence[Analysis]) -> None:
        """Replace class and entities of documents, in one transaction; vectors and texts stay."""
        change = Change()
        for stored, analysis in zip(documents, analyses, strict=True):
            label = analysis.label if self.settings.class_labels is not None else None
            change.replace_tags(stored, label, analysis.spans if self.settings.entity_types is not None else ())
        with self._storage_errors(), self._transaction():
            apply_change(self._connection, change)
            write_setting(self._connection, RETAGGED, max(stored.doc for stored in documents))

    def end_retagging(self) -> None:
        """Every document has the new tags."""
        with self._storage_errors(), self._transaction():
            write_setting(self._connection, RETAGGED, None)

    def remove(self, ids: Iterable[str]) -> list[str]:
        """Remove documents in one transaction; returns the ids that were not there."""
        wanted = list(dict.fromkeys(ids))
        with self._storage_errors(), self._transaction():
            removed = self._remove(wanted)
        return [id_ for id_ in wanted if id_ not in removed]

    def remove_matching(self, where: Filter) -> int:
        """Remove the documents for which a filter is true, in one transaction; returns how many."""
        with self._storage_errors(), self._transaction():
            rows = self._connection.execute(
                "SELECT id FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
                (json.dumps(list(allowed(self._connection, where))),),
            )
            return len(self._remove([id_ for (id_,) in rows.fetchall()]))

    def _remove(self, ids: Sequence[str]) -> set[str]:
        """Remove documents in the caller's transaction, some at a time; returns the ids that were there."""
        removed: set[str] = set()
        for start in range(0, len(ids), REMOVE_ROWS):
            existing = read_by_id(self._connection, ids[start : start + REMOVE_ROWS])
            change = Change()
            for document in existing.values():
                change.take_out(document)
            if existing:
                apply_change(self._connection, change)
            removed |= existing.keys()
        return removed

    def seal(self) -> bool:
        """Move all pending vectors into a new segment; returns whether there were any."""
        with self._storage_errors():
            rows = self._connection.execute("SELECT vid, doc, vector, crc32 FROM pending ORDER BY vid").fetchall()
            if not rows:
                return False
            table = read_pending(rows, self.settings.dimension)
            vids, docs = (np.array([row[column] for row in rows], dtype=np.int64) for column in (0, 1))
            record = write_segment(
                self.path / SEGMENTS,
                self._new_name(),
                [Block(vids, docs, table)],
                dimension=self.settings.dimension,
                space=None,
            )
            with self._transaction():
                add_segment(self._connection, record)
                self._connection.execute("DELETE FROM pending WHERE vid <= ?", (record.last_vid,))
                self._trim_log(record.first_vid, record.last_vid)
                write_commit(self._connection, self.state.following(Change()))
        self._pending = 0
        return True

    @property
    def codes(self) -> str:
        """One of `CODE_CHOICES`."""
        choice: str = read_setting(self._connection, CODES) or "auto"
        return choice

    def compact(self, *, full: bool = False, codes: str | None = None) -> int:
        """Put segments together and leave removed vectors out; returns how many segments were written.

        Without `full` only what keeps the number of segments small, as adding does by itself; with it, all that can be
        given back. `codes`, one of `CODE_CHOICES`, is remembered; with `full` it changes the segments that are there.
        Readers go on meanwhile; each step is one commit, and can be cut off at any moment.
        """
        written = 0
        if codes is not None and codes != self.codes:
            if codes not in CODE_CHOICES:
                raise ValueError(f"unknown choice of codes '{codes}'; there are {', '.join(CODE_CHOICES)}")
            with self._storage_errors(), self._transaction():
                write_setting(self._connection, CODES, codes)
        if full:
            self.seal()
            for names in full_merges(self._sizes()):
                self._merge(names)
                written += 1
            for record in read_segments(self._connection):
                if (record.rerank > 0) != self._wants_codes(record.rows):
                    self._merge([record.name])
                    written += 1
            with self._storage_errors():
                self._forget_terms()
                self._shrink()
            return written
        while names := next_merge(self._sizes()):
            self._merge(names)
            written += 1
        return written

    def _wants_codes(self, rows: int) -> bool:
        return {"auto": rows >= CODES_FROM, "always": True, "never": False}[self.codes]

    def _sizes(self) -> list[SegmentSize]:
        return [
            SegmentSize(name, rows, dead)
            for name, rows, dead in self._connection.execute(
                "SELECT name, rows, (SELECT count(*) FROM changes WHERE op = 'remove' AND"
                " vid BETWEEN first_vid AND last_vid) FROM segments ORDER BY first_vid"
            )
        ]

    def _merge(self, names: Sequence[str]) -> None:
        """Write the live vectors of neighbouring segments as one, in their place."""
        folder, dimension = self.path / SEGMENTS, self.settings.dimension
        with self._storage_errors():
            records = [record for record in read_segments(self._connection) if record.name in names]
            first, last = records[0].first_vid, records[-1].last_vid
            rows = self._connection.execute(
                "SELECT vid FROM changes WHERE op = 'remove' AND vid BETWEEN ? AND ? ORDER BY vid", (first, last)
            ).fetchall()
            removed = np.array([vid for (vid,) in rows], dtype=np.int64)
            segments = [open_segment(folder, record, dimension=dimension).without(removed) for record in records]
            live = sum(int(np.count_nonzero(segment.live)) for segment in segments)
            merged = None
            if live:
                space = self._code_space(segments) if self._wants_codes(live) else None
                merged = write_segment(
                    folder, self._new_name(), live_blocks(segments), dimension=dimension, space=space
                )
            with self._transaction():
                drop_segments(self._connection, records)
                if merged is not None:
                    add_segment(self._connection, merged)
                self._trim_log(first, last)
                write_commit(self._connection, self.state.following(Change()))
            # Readers that have them mapped keep them; those that were about to open them read the manifest again.
            for record in records:
                for file in record.files:
                    (folder / file.name).unlink(missing_ok=True)

    def _trim_log(self, first: int, last: int) -> None:
        """Forget changes that nobody needs once there is a new segment, without dead vectors, of vids first to last.

        With it a reader reads the pending vectors anew; of the log it needs what is dead in other segments, and which
        documents changed lately.
        """
        trimmed = max(0, read_log_position(self._connection).last - LOG_KEPT)
        gone = (
            "op = 'remove' AND (vid BETWEEN :first AND :last"
            " OR NOT EXISTS (SELECT 1 FROM segments WHERE changes.vid BETWEEN first_vid AND last_vid))"
        )
        values = {"first": first, "last": last, "trimmed": trimmed}
        self._connection.execute(
            f"UPDATE changes SET op = 'update', vid = NULL WHERE seq > :trimmed AND {gone}", values
        )
        self._connection.execute(
            "DELETE FROM changes WHERE seq <= :trimmed AND (op = 'update'"
            f" OR (op = 'add' AND vid NOT IN (SELECT vid FROM pending)) OR ({gone}))",
            values,
        )
        write_setting(self._connection, LOG_TRIMMED, trimmed)

    def _code_space(self, segments: Sequence[Segment]) -> CodeSpace:
        """The index's rotation and centre; drawn from these segments the first time."""
        path = self.path / SEGMENTS / CODE_SPACE
        known = read_setting(self._connection, CODE_SPACE_SHA256)
        if known is not None:
            if not path.is_file() or file_sha256(path) != known:
                raise CorruptIndexError(f"{path} is not what was written; run 'indexer verify {self.path}'")
            return load_code_space(path, dimension=self.settings.dimension)
        sample = np.concatenate([segment.table[:: max(1, len(segment) // 2_048)] for segment in segments])
        space = new_code_space(sample)
        sha256 = save_code_space(space, path)
        with self._transaction():
            write_setting(self._connection, CODE_SPACE_SHA256, sha256)
        return space

    def _forget_terms(self) -> None:
        """Delete names of entities and classes that no document has any more."""
        with self._transaction():
            self._connection.execute(
                "DELETE FROM entity_terms WHERE NOT EXISTS"
                " (SELECT 1 FROM entities WHERE entities.term = entity_terms.term)"
            )

    def _new_name(self) -> str:
        return f"{self.state.number + 1:010d}"

    def close(self) -> None:
        """Seal what is worth it, give free pages back, empty the log, and release the lock."""
        try:
            if self.pending_rows >= SEAL_ROWS_ON_CLOSE:
                self.seal()
                self.compact()
            with self._storage_errors():
                self._shrink()
                self._connection.execute("PRAGMA busy_timeout = 1000")  # a reader may hold the log's end for long
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._abandon()

    def _abandon(self) -> None:
        self._connection.close()
        self._lock.release()

    def _prepare_folder(self, *, create: bool) -> None:
        known = {META, META + "-wal", META + "-shm", META + "-journal", LOCK, SEGMENTS}
        if self.path.exists() and not self.path.is_dir():
            raise NotAnIndexError(f"{self.path} is a file, not an index folder")
        if not (self.path / META).exists():
            if not create:
                raise NotAnIndexError(f"{self.path} is not an index: it has no {META}; make it with 'indexer add'")
            if self.path.is_dir() and (others := {file.name for file in self.path.iterdir()} - known):
                raise NotAnIndexError(
                    f"{self.path} is not an index, and holds other files such as {min(others)}: choose a new folder"
                )
        with self._storage_errors():
            (self.path / SEGMENTS).mkdir(parents=True, exist_ok=True)

    def _open_settings(self, create: IndexSettings | None) -> IndexSettings:
        settings = read_settings(self._connection)
        if settings is not None:
            return settings
        if create is None:
            raise UnfinishedIndexError(
                f"{self.path} is not an index yet: it has no settings; make it with 'indexer add'"
            )
        with self._transaction():
            write_settings(self._connection, create)
            write_commit(self._connection, CommitState())
        sync(self.path)
        sync(self.path.absolute().parent)
        return create

    def _delete_orphans(self) -> None:
        """Delete segment files that the manifest does not name: what a crash left. Only ever under the lock."""
        named = {CODE_SPACE} if read_setting(self._connection, CODE_SPACE_SHA256) else set()
        named |= {name for (name,) in self._connection.execute("SELECT name FROM segment_files")}
        for file in (self.path / SEGMENTS).iterdir():
            if file.name not in named:
                file.unlink()

    def _shrink(self) -> None:
        """Give free pages back in slices, so that the log stays small."""
        while int(self._connection.execute("PRAGMA freelist_count").fetchone()[0]) > 64:
            before = self._connection.execute("PRAGMA page_count").fetchone()[0]
            self._connection.execute("PRAGMA incremental_vacuum(512)").fetchall()
            if self._connection.execute("PRAGMA page_count").fetchone()[0] >= before:
                return

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """What SQLite, FAISS and the system say of a disk → `StorageError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(
                    f"{self.path}: {error}; what was acknowledged before is kept, run the command again when there "
                    "is room"
                ) from error
            raise CorruptIndexError(f"{self.path / META}: {error}; run 'indexer verify {self.path}'") from error
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise StorageError(f"{self.path} cannot be written: {reason}; what was acknowledged is kept") from error

    def _change(self, entries: Sequence[Entry]) -> Change:
        """The rows that this batch adds and removes."""
        existing = read_by_id(self._connection, [entry.document.id for entry in entries])
        new_docs, new_vids = next_numbers(self._connection)
        analyses = [entry.analysis for entry in entries if entry.analysis is not None]
        blobs = _blobs([analysis.vectors for analysis in analyses])
        pooled = _blobs([analysis.pooled[None] for analysis in analyses if len(analysis.passages) > 1])
        change = Change()
        for entry in entries:
            document, analysis = entry.document, entry.analysis
            before = existing.get(document.id)
            if analysis is None:
                if before is None:
                    raise ValueError(f"document {document.id!r} is not in the index: it needs an analysis")
                change.replace_metadata(before, document.metadata)
                continue
            if before is not None:
                change.take_out(before)
            doc = before.doc if before is not None else next(new_docs)
            count = len(analysis.passages)
            change.put_in(
                new_document(doc, document, analysis, self.settings, new_vids),
                list(islice(blobs, count)),
                next(pooled) if count > 1 else None,
            )
        return change


def _blobs(tables: Sequence[FloatArray]) -> Iterator[bytes]:
    """The rows of tables, fp32 (n, dimension), one after the other, as they are stored: of length 1, fp16."""
    if tables:
        yield from map(vectors.to_blob, vectors.normalise(np.concatenate(tables)))


def read_pending(rows: Sequence[tuple[int, int, bytes, int]], dimension: int) -> npt.NDArray[np.float16]:
    """Rows of `pending` → fp16 (n, dimension). Raises `CorruptIndexError` where a checksum differs."""
    for vid, _, blob, crc in rows:
        if len(blob) != 2 * dimension or zlib.crc32(blob) != crc:
            raise CorruptIndexError(f"pending vector {vid} does not match its checksum; run 'indexer verify'")
    joined = b"".join(row[2] for row in rows)
    return np.frombuffer(joined, dtype="<f2").reshape(len(rows), dimension)
