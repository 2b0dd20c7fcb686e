"""One index folder and its only writer, which keeps vectors and metadata in step.

    myindex/  meta.sqlite   LOCK   segments/<name>.fp16.faiss   segments/<name>.ids.npy

A batch is one SQLite transaction: documents, passages, entities, and the vectors as pending rows. When it has
committed, the batch is acknowledged and survives a crash. Pending vectors move into an immutable segment when
enough have come together; the transaction that names the segment deletes its pending rows.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from indexer import keywords, vectors
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
from indexer.durable import FileNumber, file_number, sync_with_parents, vector_crc
from indexer.errors import (
    ClosedError,
    CorruptIndexError,
    FormatError,
    InputError,
    NotAnIndexError,
    ReplacedIndexError,
    StorageError,
    TagdexError,
    UnfinishedIndexError,
)
from indexer.fields import has_lone_surrogate, several
from indexer.filters import Filter, allowed
from indexer.lock import WriterLock, acknowledged_commit
from indexer.manifest import add_segment, naming
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256, Merger
from indexer.metadata import connect_reader, connect_writer, select_in, transaction
from indexer.postings import read_log_position
from indexer.records import Analysis, Document
from indexer.segments import Block, SegmentRecord, is_segment_file, new_name, write_segment
from indexer.settings import INDEX_ID, IndexSettings, read_setting, read_settings, write_setting, write_settings
from indexer.stored import StoredDocument, read_by_id, read_documents
from indexer.upkeep import Upkeep

META, LOCK, SEGMENTS = "meta.sqlite", "LOCK", "segments"
REPAIRED = "meta.sqlite.repaired"  # complete; a repair puts it in the place of the damaged one
RETAGGED = "retagged_up_to"

SEAL_ROWS = 8_192  # pending vectors that make a segment
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

    def __init__(self, path: str | Path, *, create: IndexSettings | None = None, empty: bool = True) -> None:
        """Open an index for writing, or with `create` make it where there is none.

        `empty`: make it at once, without a document; else it is made with the first commit, or by `close`, so that an
        error before leaves nothing that says how it is to be made, and readers find it from then on.
        Where another has taken its place since, every method raises `ReplacedIndexError`, and nothing is acknowledged.
        Raises `NotAnIndexError`, `LockedError`, `FormatError`, `StorageError`.
        """
        self.path = Path(path)
        self._folder = self.path.absolute()  # also after a change of the working directory
        self._meta = self._folder / META
        self._file: FileNumber | None = None
        self._closed = False
        self._create = create
        self._prepare_folder(create=create is not None)
        self._lock = WriterLock(self.path / LOCK)
        try:
            with self._storage_errors():
                self._refuse_damaged()
                self._connection = connect_writer(self.path / META)
        except BaseException:
            self._lock.release()
            raise
        try:
            with self._storage_errors():
                self._file = file_number(self._meta)
                self.settings = self._open_settings(create, empty=empty)
                self._delete_orphans()
                self._pending = self.pending_rows
                self._merge_error: TagdexError | None = None
                self._upkeep = Upkeep(self._connection, self._meta)
                self._merger = Merger(
                    self._connection, self._folder / SEGMENTS, self.settings.dimension, check_place=self._check_place
                )
        except BaseException:
            self._connection.close()
            self._lock.release()
            raise

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            if issubclass(kind, KeyboardInterrupt | TagdexError):
                self._merger.close()
                self._create = None
                with suppress(Exception):  # the first error is the one to show
                    self.close()
        finally:
            self._abandon()

    @property
    def in_place(self) -> bool:
        """Whether the path still names the index that was opened. It does not where that was moved or deleted."""
        return file_number(self._meta) == self._file

    @property
    def state(self) -> CommitState:
        """What the last commit left."""
        with self._storage_errors():
            return read_commit(self._connection)

    @property
    def pending_rows(self) -> int:
        """Vectors that no segment holds yet."""
        with self._storage_errors():
            return int(self._connection.execute("SELECT count(*) FROM pending").fetchone()[0])

    def plan(self, documents: Sequence[Document], *, since: int) -> list[Plan]:
        """Compare documents of distinct ids with the index; in the order given.

        One whose id was written by commit number `since` or a later one is `repeated`.
        """
        with self._storage_errors():
            rows = select_in(
                self._connection,
                "SELECT id, content_hash, metadata, written FROM documents WHERE id IN",
                [document.id for document in documents],
            )
            known = {id_: (content_hash, metadata, written) for id_, content_hash, metadata, written in rows}
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
        """Add or replace documents of distinct ids, in one transaction. Seals when enough vectors are pending.

        A merge that fails behind it is an error of the next call.
        """
        if not entries:
            return
        if self._merge_error is not None:
            error, self._merge_error = self._merge_error, None
            raise error
        with self._storage_errors():
            change = self._change(entries)
        seal = self._pending + len(change.vectors) >= SEAL_ROWS
        self._commit(change, seal=seal)
        self._acknowledge()
        if seal:
            try:
                with self._storage_errors():
                    self._merger.keep_few()
            except TagdexError as failed:
                self._merge_error = failed

    def begin_retagging(self, settings: IndexSettings) -> None:
        """Take over the heads of these settings; until `retag` has gone through, some documents have the old tags.

        A run that was stopped goes on behind the last document that was tagged, if the heads are the same.
        """
        try:
            with self._storage_errors(), transaction(self._connection):
                self._make()
                if settings.heads_fingerprint != self.settings.heads_fingerprint or not self.retagged_up_to:
                    write_setting(self._connection, RETAGGED, 0)
                write_settings(self._connection, settings)
                write_commit(self._connection, self.state.following(Change()))
        finally:
            with self._storage_errors():  # an interrupt can come when this is committed
                self.settings = read_settings(self._connection) or self.settings
        self._acknowledge()

    @property
    def retagged_up_to(self) -> int | None:
        """Number of the last document with new tags while re-tagging is unfinished, else `None`."""
        with self._storage_errors():
            last: int | None = read_setting(self._connection, RETAGGED)
            return last

    def documents_after(self, doc: int, n: int, *, characters: int) -> list[StoredDocument]:
        """The next documents in the order of their numbers, n at most, and fewer when so many characters are there."""
        numbers = []
        with self._storage_errors():
            for number, length in self._connection.execute(
                "SELECT doc, length(text) FROM documents WHERE doc > ? ORDER BY doc LIMIT ?", (doc, n)
            ).fetchall():
                numbers.append(number)
                characters -= length
                if characters <= 0:
                    break
            return list(read_documents(self._connection, numbers).values())

    def retag(self, documents: Sequence[StoredDocument], analyses: Sequence[Analysis]) -> None:
        """Replace class and entities of documents, in one transaction; vectors and texts stay."""
        change = Change()
        for stored, analysis in zip(documents, analyses, strict=True):
            label = analysis.label if self.settings.class_labels is not None else None
            change.replace_tags(stored, label, analysis.spans if self.settings.entity_types is not None else ())
        with self._storage_errors(), transaction(self._connection):
            apply_change(self._connection, change)
            write_setting(self._connection, RETAGGED, max(stored.doc for stored in documents))
        self._acknowledge()
        self._upkeep.keep_log_small()

    def end_retagging(self) -> None:
        """Every document has the new tags."""
        with self._storage_errors(), transaction(self._connection):
            write_setting(self._connection, RETAGGED, None)

    def remove(self, ids: Iterable[str]) -> list[str]:
        """Remove documents in one transaction; returns the ids that were not there.

        Raises `InputError` for one id in place of several.
        """
        wanted = list(dict.fromkeys(several(ids, "ids", error=InputError)))
        with self._storage_errors(), transaction(self._connection):
            removed = self._remove([id_ for id_ in wanted if not has_lone_surrogate(id_)])  # no id has one
        self._acknowledge()
        self._upkeep.keep_log_small()
        return [id_ for id_ in wanted if id_ not in removed]

    def remove_matching(self, where: Filter) -> int:
        """Remove the documents for which a filter is true, in one transaction; returns how many."""
        with self._storage_errors(), transaction(self._connection):
            rows = self._connection.execute(
                "SELECT id FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
                (json.dumps(list(allowed(self._connection, where))),),
            )
            removed = self._remove([id_ for (id_,) in rows.fetchall()])
        self._acknowledge()
        self._upkeep.keep_log_small()
        return len(removed)

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
        if not self.pending_rows:
            return False
        self._commit(Change(), seal=True)
        self._acknowledge()
        return True

    @property
    def codes(self) -> str:
        """One of `CODE_CHOICES`."""
        return self._merger.codes

    def compact(self, *, full: bool = False, codes: str | None = None) -> int:
        """Put segments together and leave removed vectors out; returns how many merges were committed.

        Without `full` only what keeps the number of segments small, as adding does by itself; with it, all that can be
        given back. `codes`, one of `CODE_CHOICES`, is remembered; with `full` it changes the segments that are there.
        Readers go on meanwhile; each step is one commit, and can be cut off at any moment.
        """
        with self._storage_errors():
            if codes is not None:
                with transaction(self._connection):
                    self._make()
                self._merger.choose_codes(codes)
        if not full:
            with self._storage_errors():
                merges = self._merger.catch_up() + self._merger.code_rest()
            self._acknowledge()
            return merges
        self.seal()
        with self._storage_errors():
            merges = self._merger.merge_all()
            self._forget_terms()
            keywords.merge(self._connection)
            self._upkeep.give_pages_back()
        self._acknowledge()
        return merges

    def _commit(self, change: Change, *, seal: bool) -> None:
        """Write a change in one transaction; with `seal`, all vectors that no segment holds go into a new one.

        The segment's files are durable before the transaction that names them begins, and are nothing without it.
        """
        with self._storage_errors():
            record = self._new_segment(change) if seal else None
            with naming(self._connection, self._folder / SEGMENTS, record):
                self._make()
                apply_change(self._connection, change, pending=not seal)
                if seal:
                    self._connection.execute("DELETE FROM pending")
                if record is not None:
                    add_segment(self._connection, record)
                    last_change = read_log_position(self._connection).last
                    self._merger.trim_log(record.first_vid, record.last_vid, known=last_change)
        self._pending = 0 if seal else self._pending + len(change.vectors)
        self._upkeep.keep_log_small()

    def _new_segment(self, change: Change) -> SegmentRecord | None:
        """Write a segment of what is pending after a change; `None` where that is nothing."""
        rows = self._connection.execute("SELECT vid, doc, vector, crc32 FROM pending ORDER BY vid").fetchall()
        gone = set(change.vids_gone)
        kept = [row for row in rows if row[0] not in gone]
        blocks = [
            Block(np.array([row[0] for row in kept]), np.array([row[1] for row in kept]), table)
            for table in ([read_pending(kept, self.settings.dimension)] if kept else ())
        ]
        if len(change.vectors):
            numbers = np.array([(vid, doc) for vid, doc, *_ in change.passages], dtype=np.int64)
            blocks.append(Block(numbers[:, 0], numbers[:, 1], change.vectors))
        if not blocks:
            return None
        return write_segment(
            self._folder / SEGMENTS,
            new_name(self._folder / SEGMENTS, f"{self.state.number + 1:010d}"),
            blocks,
            dimension=self.settings.dimension,
            space=None,
        )

    def _forget_terms(self) -> None:
        """Delete names of entities and classes that no document has any more."""
        with transaction(self._connection):
            self._connection.execute(
                "DELETE FROM entity_terms WHERE NOT EXISTS"
                " (SELECT 1 FROM entities WHERE entities.term = entity_terms.term)"
            )

    def close(self) -> None:
        """Seal what is worth it, give free pages back, empty the log, and release the lock. Again, it does nothing.

        What is asked of the writer afterwards raises `ClosedError`.
        """
        if self._closed:
            return
        try:
            if self._create is not None:
                with self._storage_errors(), transaction(self._connection):
                    self._make()
            if self.pending_rows >= SEAL_ROWS_ON_CLOSE:
                self.seal()
            if not self._merger.closed:
                self.compact()
            with self._storage_errors():
                self._upkeep.end()
        finally:
            self._abandon()

    def _acknowledge(self) -> None:
        """What was committed will be reported as durable: from now on it must be there."""
        self._check_place()
        if not self._connection.in_transaction:
            with suppress(TagdexError):  # the commit is what counts; this only guards it
                self._lock.acknowledge(self.state.number)

    def _check_place(self) -> None:
        """Raise where what is written would be found by nobody, and files of another index could be taken for ours."""
        if self._closed:
            raise ClosedError(f"{self.path} was closed by this writer: open a new one")
        if self._file is not None and not self.in_place:
            raise ReplacedIndexError(
                f"{self.path} was moved, deleted or replaced while it was being written to: what was not acknowledged "
                "may be in neither; open it again"
            )

    def _abandon(self) -> None:
        """Let the index go, which nobody else may write to while a merge that was given up has not ended."""
        interrupt = None
        while True:
            try:
                self._merger.close()
                break
            except KeyboardInterrupt as again:
                interrupt = again
        self._closed = True
        self._connection.close()
        self._lock.release()
        if interrupt is not None:
            raise interrupt

    def _prepare_folder(self, *, create: bool) -> None:
        known = {META, META + "-wal", META + "-shm", META + "-journal", LOCK, SEGMENTS}
        if self.path.exists() and not self.path.is_dir():
            raise NotAnIndexError(f"{self.path} is a file, not an index folder")
        if not (self.path / META).exists() and not (self.path / REPAIRED).exists():
            if not create:
                raise NotAnIndexError(f"{self.path} is not an index: it has no {META}; make it with 'indexer add'")
            if self.path.is_dir() and (others := {file.name for file in self.path.iterdir()} - known):
                raise NotAnIndexError(
                    f"{self.path} is not an index, and holds other files such as {min(others)}: choose a new folder"
                )
        with self._storage_errors():
            (self.path / SEGMENTS).mkdir(parents=True, exist_ok=True)

    def _refuse_damaged(self) -> None:
        """Raise where acknowledged commits are missing; seen read-only, because a writer empties a damaged log."""
        if (self.path / REPAIRED).exists():
            raise CorruptIndexError(
                f"a repair of {self.path} was cut off; run 'indexer verify {self.path} --repair' again"
            )
        if acknowledged := acknowledged_commit(self.path / LOCK):
            with suppress(FormatError), closing(connect_reader(self.path / META)) as connection:
                check_acknowledged(self.path, read_commit(connection).number, acknowledged)

    def _open_settings(self, create: IndexSettings | None, *, empty: bool) -> IndexSettings:
        settings = read_settings(self._connection)
        if settings is not None:
            return settings
        if create is None:
            raise UnfinishedIndexError(
                f"{self.path} is not an index yet: it has no settings; make it with 'indexer add'"
            )
        # First the folders: where there are settings, no later process asks whether the index's name is durable.
        sync_with_parents(self.path)
        if empty:
            with transaction(self._connection):
                self._make()
        return create

    def _make(self) -> None:
        """Write the settings where there are none yet, in the caller's transaction."""
        if self._create is not None and read_settings(self._connection) is None:
            write_settings(self._connection, self._create)
            write_setting(self._connection, INDEX_ID, secrets.token_hex(8))
            write_commit(self._connection, CommitState().chained_to(CommitState().chain))

    def _delete_orphans(self) -> None:
        """Delete segment files that the manifest does not name: what a crash left. Only ever under the lock.

        Whatever else somebody has put there stays.
        """
        named = {CODE_SPACE} if read_setting(self._connection, CODE_SPACE_SHA256) else set()
        named |= {name for (name,) in self._connection.execute("SELECT name FROM segment_files").fetchall()}
        orphans = [file for file in (self._folder / SEGMENTS).iterdir() if file.name not in named and _is_ours(file)]
        if orphans and read_settings(self._connection) is not None:
            # A reader that was there all the time hides a commit that failed in the log, and that names these.
            with transaction(self._connection):
                write_commit(self._connection, self.state.following(Change()))
        for file in orphans:
            file.unlink()

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """What SQLite, FAISS and the system say of a disk → `StorageError`. No transaction is left open by an error.

        An interrupt can come when one is about to end, and what that has written would be taken for committed.
        """
        self._check_place()
        try:
            try:
                yield
            except BaseException:
                connection = getattr(self, "_connection", None)
                if connection is not None and connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(
                    f"{self.path}: {error}; what was acknowledged before is kept, run the command again when there "
                    "is room"
                ) from error
            raise CorruptIndexError(f"{self.path / META}: {error}; run 'indexer verify {self.path}'") from error
        except (OSError, RuntimeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
            raise StorageError(f"{self.path} cannot be written: {reason}; what was acknowledged is kept") from error

    def _change(self, entries: Sequence[Entry]) -> Change:
        """The rows that this batch adds and removes."""
        existing = read_by_id(self._connection, [entry.document.id for entry in entries])
        new_docs, new_vids = next_numbers(self._connection)
        analyses = [entry.analysis for entry in entries if entry.analysis is not None]
        pooled = iter(vectors.halves([analysis.pooled[None] for analysis in analyses if len(analysis.passages) > 1]))
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
                next(pooled).tobytes() if count > 1 else None,
            )
        change.vectors = vectors.halves([analysis.vectors for analysis in analyses])
        return change


def _is_ours(file: Path) -> bool:
    """Whether a file under segments/ is one that a writer makes, by its name."""
    name = file.name.removesuffix(".tmp")
    return (is_segment_file(name) or name == CODE_SPACE) and not file.is_dir()


def check_acknowledged(path: Path, commit: int, acknowledged: int) -> None:
    """Raise `CorruptIndexError` where an index is at an older commit than the last one that was acknowledged."""
    if commit < acknowledged:
        raise CorruptIndexError(
            f"{path} is at commit {commit}, but {acknowledged} was acknowledged: {META}-wal is gone or damaged; run "
            f"'indexer verify {path}'"
        )


def read_pending(rows: Sequence[tuple[int, int, bytes, int]], dimension: int) -> npt.NDArray[np.float16]:
    """Rows of `pending` → fp16 (n, dimension). Raises `CorruptIndexError` where a checksum differs."""
    for vid, doc, blob, crc in rows:
        sound = isinstance(doc, int) and isinstance(blob, bytes) and len(blob) == 2 * dimension
        if not sound or vector_crc(vid, doc, blob) != crc:
            raise CorruptIndexError(f"pending vector {vid} does not match its checksum; run 'indexer verify'")
    joined = b"".join(row[2] for row in rows)
    return np.frombuffer(joined, dtype="<f2").reshape(len(rows), dimension)
