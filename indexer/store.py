"""One index folder and its only writer, which keeps vectors and metadata in step.

    myindex/  meta.sqlite   LOCK   segments/<name>.fp16.faiss   segments/<name>.ids.npy

A batch is one SQLite transaction: documents, passages, entities, and the vectors as pending rows. When it has
committed, the batch is acknowledged and survives a crash. Pending vectors move into an immutable segment when
enough have come together; the transaction that names the segment deletes its pending rows.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import faiss
import numpy as np
import orjson

from indexer import vectors
from indexer.errors import CorruptIndexError, NotAnIndexError, StorageError, TagdexError
from indexer.fields import flatten, normalise_entity
from indexer.filters import Filter, allowed
from indexer.lock import WriterLock
from indexer.metadata import connect_writer
from indexer.records import Analysis, Document, Metadata, Span
from indexer.settings import IndexSettings, read_settings, write_settings
from indexer.sources import file_sha256
from indexer.stored import DIGEST_BYTES, StoredDocument, StoredPassage, read_documents, sum_digests

META, LOCK, SEGMENTS = "meta.sqlite", "LOCK", "segments"

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


@dataclass(frozen=True, slots=True)
class CommitState:
    """The row of `commits`: what must be there after the last commit."""

    number: int = 0
    documents: int = 0
    passages: int = 0
    entities: int = 0
    fields: int = 0
    digest_sum: bytes = bytes(DIGEST_BYTES)
    chain: bytes = bytes(DIGEST_BYTES)

    def following(self, change: Change) -> CommitState:
        """The state after a change, with its digest chained to this one's."""
        state = replace(
            self,
            number=self.number + 1,
            documents=self.documents + len(change.documents) - len(change.gone),
            passages=self.passages + len(change.passages) - change.passages_gone,
            entities=self.entities + len(change.entities) - change.entities_gone,
            fields=self.fields + len(change.fields) - len(change.fields_gone),
            digest_sum=sum_digests(
                self.digest_sum, added=(row[-1] for row in change.documents), removed=change.digests_gone
            ),
        )
        counts = [state.number, state.documents, state.passages, state.entities, state.fields]
        digest = hashlib.blake2b(json.dumps(counts).encode(), digest_size=DIGEST_BYTES)
        digest.update(state.digest_sum + self.chain)
        return replace(state, chain=digest.digest())


@dataclass(slots=True)
class Change:
    """The rows of one transaction, by table. Documents that are replaced are in `gone` and in `documents`."""

    documents: list[tuple[Any, ...]] = field(default_factory=list)
    passages: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    pooled: list[tuple[int, bytes]] = field(default_factory=list)
    pending: list[tuple[int, int, bytes, int]] = field(default_factory=list)
    entities: list[tuple[int, int, int, str, str, float]] = field(default_factory=list)
    fields: list[tuple[str, int, Any, int]] = field(default_factory=list)
    log: list[tuple[str, int, int | None]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    vids_gone: list[int] = field(default_factory=list)
    fields_gone: list[tuple[str, int, Any, int]] = field(default_factory=list)
    digests_gone: list[bytes] = field(default_factory=list)
    passages_gone: int = 0
    entities_gone: int = 0


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
        row = self._connection.execute(
            "SELECT commit_number, documents, passages, entities, fields, digest_sum, chain FROM commits"
            " ORDER BY commit_number DESC LIMIT 1"
        ).fetchone()
        return CommitState(*row) if row else CommitState()

    @property
    def pending_rows(self) -> int:
        """Vectors that no segment holds yet."""
        return int(self._connection.execute("SELECT count(*) FROM pending").fetchone()[0])

    def plan(self, documents: Sequence[Document], *, since: int) -> list[Plan]:
        """Compare documents of distinct ids with the index; in the order given.

        One whose id was written by commit number `since` or a later one is `repeated`.
        """
        known = {
            id_: (text_hash, metadata, written)
            for id_, text_hash, metadata, written in self._connection.execute(
                "SELECT id, text_hash, metadata, written FROM documents WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps([document.id for document in documents]),),
            )
        }
        plans = []
        for document in documents:
            action, repeated = Action.EMBED, False
            if found := known.get(document.id):
                text_hash, metadata, written = found
                repeated = written >= since
                if text_hash == hash_text(document.text):
                    same = metadata == metadata_json(document.metadata)
                    action = Action.SKIP if same else Action.UPDATE
            plans.append(Plan(document, action, exists=document.id in known, repeated=repeated))
        return plans

    def write(self, entries: Sequence[Entry]) -> None:
        """Add or replace documents of distinct ids, in one transaction. Seals when enough vectors are pending."""
        if not entries:
            return
        with self._storage_errors(), self._transaction():
            self._apply(self._change(entries))
        if self.pending_rows >= SEAL_ROWS:
            self.seal()

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
            existing = self._existing(ids[start : start + REMOVE_ROWS])
            change = Change()
            for document, digest in existing.values():
                self._take_out(change, document, digest)
            if existing:
                self._apply(change)
            removed |= existing.keys()
        return removed

    def seal(self) -> bool:
        """Move all pending vectors into a new segment; returns whether there were any."""
        rows = self._connection.execute("SELECT vid, doc, vector, crc32 FROM pending ORDER BY vid").fetchall()
        if not rows:
            return False
        table = read_pending(rows, self.settings.dimension)
        vids, docs = (np.array([row[column] for row in rows], dtype=np.int64) for column in (0, 1))
        name, folder = f"{self.state.number + 1:010d}", self.path / SEGMENTS
        with self._storage_errors():
            vectors.write_segment(folder, name, vids, docs, table)
            files = [folder / (name + suffix) for suffix in (vectors.VECTORS_SUFFIX, vectors.IDS_SUFFIX)]
            facts = [fact for file in files for fact in (file.stat().st_size, file_sha256(file))]
            with self._transaction():
                self._connection.execute(
                    "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, rows[0][0], rows[-1][0], len(rows), *facts, vectors.FACTORY, faiss.__version__),
                )
                self._connection.execute("DELETE FROM pending WHERE vid <= ?", (rows[-1][0],))
                # A reader learns of these vectors from the segment now.
                self._connection.execute("DELETE FROM changes WHERE op = 'add' AND vid <= ?", (rows[-1][0],))
                self._commit_row(self.state.following(Change()))
        return True

    def close(self) -> None:
        """Seal what is worth it, give free pages back, empty the log, and release the lock."""
        try:
            if self.pending_rows >= SEAL_ROWS_ON_CLOSE:
                self.seal()
            with self._storage_errors():
                self._shrink()
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
            raise NotAnIndexError(f"{self.path} is not an index yet: it has no settings; make it with 'indexer add'")
        with self._transaction():
            write_settings(self._connection, create)
            self._commit_row(CommitState())
        vectors.sync(self.path)
        vectors.sync(self.path.absolute().parent)
        return create

    def _delete_orphans(self) -> None:
        """Delete segment files that the manifest does not name: what a crash left. Only ever under the lock."""
        named = {row[0] for row in self._connection.execute("SELECT name FROM segments")}
        for file in (self.path / SEGMENTS).iterdir():
            if file.name.split(".")[0] not in named or file.name.endswith(".tmp"):
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

    def _existing(self, ids: Sequence[str]) -> dict[str, tuple[StoredDocument, bytes]]:
        rows = self._connection.execute(
            "SELECT doc, digest FROM documents WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        ).fetchall()
        stored = read_documents(self._connection, [doc for doc, _ in rows])
        return {stored[doc].id: (stored[doc], digest) for doc, digest in rows}

    def _next_numbers(self) -> tuple[Iterator[int], Iterator[int]]:
        """Numbers for new documents and vectors, never used before."""
        used = dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        return count(used.get("documents", 0) + 1), count(used.get("passages", 0) + 1)

    def _change(self, entries: Sequence[Entry]) -> Change:
        """The rows that this batch adds and removes."""
        existing = self._existing([entry.document.id for entry in entries])
        new_docs, new_vids = self._next_numbers()
        change = Change()
        for entry in entries:
            before = existing.get(entry.document.id)
            if entry.analysis is None:
                if before is None:
                    raise ValueError(f"document {entry.document.id!r} is not in the index: it needs an analysis")
                self._replace_metadata(change, *before, entry.document.metadata)
                continue
            if before is not None:
                self._take_out(change, *before)
            doc = before[0].doc if before is not None else next(new_docs)
            self._put_in(change, doc, entry.document, entry.analysis, new_vids)
        return change

    def _put_in(
        self, change: Change, doc: int, document: Document, analysis: Analysis, new_vids: Iterator[int]
    ) -> None:
        """Rows of a document with its analysis."""
        stored = StoredDocument(
            doc=doc,
            id=document.id,
            text=document.text,
            metadata_json=metadata_json(document.metadata),
            label=analysis.label if self.settings.class_labels is not None else None,
            passages=tuple(StoredPassage(next(new_vids), p.start, p.end, p.tokens) for p in analysis.passages),
            spans=sorted_spans(analysis.spans) if self.settings.entity_types is not None else (),
        )
        self._put_document(change, stored)
        table = vectors.normalise(analysis.vectors)
        for passage, vector in zip(stored.passages, table, strict=True):
            blob = vectors.to_blob(vector)
            change.passages.append((passage.vid, doc, passage.start, passage.end, passage.tokens))
            change.pending.append((passage.vid, doc, blob, zlib.crc32(blob)))
            change.log.append(("add", doc, passage.vid))
        if len(stored.passages) > 1:
            change.pooled.append((doc, vectors.to_blob(vectors.normalise(analysis.pooled[None])[0])))
        for span in stored.spans:
            norm = normalise_entity(document.text[span.start : span.end])
            change.entities.append((doc, span.start, span.end, span.type, norm, span.score))

    def _put_document(self, change: Change, stored: StoredDocument) -> None:
        label = stored.label
        change.documents.append(
            (
                stored.doc,
                stored.id,
                stored.text,
                stored.metadata_json,
                hash_text(stored.text),
                label.name if label else None,
                label.score if label else None,
                stored.digest(),
            )
        )
        change.fields.extend(field_rows(stored))

    def _take_out(self, change: Change, stored: StoredDocument, digest: bytes) -> None:
        """Rows of a document that goes, its vectors included."""
        self._take_out_document(change, stored, digest)
        for passage in stored.passages:
            change.vids_gone.append(passage.vid)
            change.log.append(("remove", stored.doc, passage.vid))
        change.passages_gone += len(stored.passages)
        change.entities_gone += len(stored.spans)

    def _take_out_document(self, change: Change, stored: StoredDocument, digest: bytes) -> None:
        change.gone.append(stored.doc)
        change.fields_gone.extend(field_rows(stored))
        change.digests_gone.append(digest)

    def _replace_metadata(self, change: Change, stored: StoredDocument, digest: bytes, metadata: Metadata) -> None:
        """Rows of a document whose text stays: its vectors, class and entities stay too."""
        self._take_out_document(change, stored, digest)
        self._put_document(change, replace(stored, metadata_json=metadata_json(metadata)))
        change.log.append(("update", stored.doc, None))

    def _apply(self, change: Change) -> None:
        """Write a change's rows, in the caller's transaction."""
        execute, many = self._connection.execute, self._connection.executemany
        state = self.state.following(change)
        kept = {row[0] for row in change.documents}
        gone = json.dumps([doc for doc in change.gone if doc not in kept])
        vids = json.dumps(change.vids_gone)
        if change.vids_gone:
            texts_gone = json.dumps(sorted({doc for op, doc, _ in change.log if op == "remove"}))
            for table, column, values in (
                ("pending", "vid", vids),
                ("passages", "vid", vids),
                ("pooled", "doc", texts_gone),
                ("entities", "doc", texts_gone),
            ):
                execute(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (values,))
        paths = self._numbers("paths", "path", {row[0] for row in (*change.fields, *change.fields_gone)})
        many(
            "DELETE FROM fields WHERE path = ? AND kind = ? AND value = ? AND doc = ?",
            [(paths[path], kind, value, doc) for path, kind, value, doc in change.fields_gone],
        )
        execute("DELETE FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (gone,))
        labels = self._numbers("labels", "label", {row[5] for row in change.documents if row[5] is not None})
        many(
            "INSERT INTO documents (doc, id, text, metadata, text_hash, label, label_score, digest, written)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (doc) DO UPDATE SET text = excluded.text,"
            " metadata = excluded.metadata, text_hash = excluded.text_hash, label = excluded.label,"
            " label_score = excluded.label_score, digest = excluded.digest, written = excluded.written",
            [(*row[:5], labels.get(row[5]), *row[6:], state.number) for row in change.documents],
        )
        many('INSERT INTO passages (vid, doc, start, "end", tokens) VALUES (?, ?, ?, ?, ?)', change.passages)
        many("INSERT INTO pooled (doc, vector) VALUES (?, ?)", change.pooled)
        many("INSERT INTO pending (vid, doc, vector, crc32) VALUES (?, ?, ?, ?)", change.pending)
        many(
            "INSERT OR IGNORE INTO entity_terms (type, norm) VALUES (?, ?)",
            sorted({(kind, norm) for _, _, _, kind, norm, _ in change.entities}),
        )
        many(
            'INSERT INTO entities (doc, start, "end", term, score) VALUES (?, ?, ?,'
            " (SELECT term FROM entity_terms WHERE type = ? AND norm = ?), ?)",
            change.entities,
        )
        many(
            "INSERT INTO fields (path, kind, value, doc) VALUES (?, ?, ?, ?)",
            [(paths[path], kind, value, doc) for path, kind, value, doc in change.fields],
        )
        many("INSERT INTO changes (op, doc, vid) VALUES (?, ?, ?)", change.log)
        self._commit_row(state)

    def _numbers(self, table: str, key: str, names: set[str]) -> dict[str, int]:
        """The numbers of names in a table (number, name), with new rows for new names."""
        self._connection.executemany(
            f"INSERT OR IGNORE INTO {table} (name) VALUES (?)", [(name,) for name in sorted(names)]
        )
        rows = self._connection.execute(
            f"SELECT name, {key} FROM {table} WHERE name IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted(names)),),
        )
        return dict(rows.fetchall())

    def _commit_row(self, state: CommitState) -> None:
        self._connection.execute("DELETE FROM commits")
        self._connection.execute(
            "INSERT INTO commits (commit_number, documents, passages, entities, fields, digest_sum, chain)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                state.number,
                state.documents,
                state.passages,
                state.entities,
                state.fields,
                state.digest_sum,
                state.chain,
            ),
        )


def read_pending(rows: Sequence[tuple[int, int, bytes, int]], dimension: int) -> Any:
    """Rows of `pending` → fp16 (n, dimension). Raises `CorruptIndexError` where a checksum differs."""
    for vid, _, blob, crc in rows:
        if len(blob) != 2 * dimension or zlib.crc32(blob) != crc:
            raise CorruptIndexError(f"pending vector {vid} does not match its checksum; run 'indexer verify'")
    return np.frombuffer(b"".join(row[2] for row in rows), dtype="<f2").reshape(len(rows), dimension)


def metadata_json(metadata: Metadata) -> str:
    """Metadata as stored: compact JSON with the keys in the order given."""
    return orjson.dumps(metadata).decode()


def hash_text(text: str) -> bytes:
    """What tells whether a text has changed: BLAKE2b, 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def sorted_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in the order in which the index reads them back."""
    return tuple(sorted(spans, key=lambda span: (span.start, span.end, span.type)))


def field_rows(stored: StoredDocument) -> list[tuple[str, int, Any, int]]:
    """The rows of `fields` for a document, the path by name."""
    return [(path, int(kind), value, stored.doc) for path, kind, value in flatten(stored.metadata)]
