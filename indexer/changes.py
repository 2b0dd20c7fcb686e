"""What one transaction changes: the rows of each table, and the row of `commits` that follows from them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import astuple, dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from indexer import keywords
from indexer.durable import vector_crc
from indexer.fields import flatten, normalise_entity
from indexer.metadata import select_in
from indexer.records import Analysis, Document, Label, Metadata, Span
from indexer.settings import IndexSettings
from indexer.stored import DIGEST_BYTES, StoredDocument, StoredPassage, sum_digests

FieldRow = tuple[str, int, Any, int]
"""A row of `fields` with its path by name: (path, kind, value, doc)."""


@dataclass(frozen=True, slots=True)
class CommitState:
    """The row of `commits`: what must be there after the last commit."""

    number: int = 0
    documents: int = 0
    passages: int = 0
    entities: int = 0
    fields: int = 0
    digest_sum: bytes = bytes(DIGEST_BYTES)
    previous: bytes = bytes(DIGEST_BYTES)
    chain: bytes = bytes(DIGEST_BYTES)

    def following(self, change: Change, digests: Iterable[bytes] = ()) -> CommitState:
        """The state after a change, its digest chained to this one's. `digests`: those of `change.documents`."""
        state = replace(
            self,
            number=self.number + 1,
            documents=self.documents + len(change.documents) - len(change.replaced),
            passages=self.passages + len(change.passages) - change.passages_gone,
            entities=self.entities + len(change.entities) - change.entities_gone,
            fields=self.fields + len(change.fields) - len(change.fields_gone),
            digest_sum=sum_digests(
                self.digest_sum,
                added=digests,
                removed=(stored.digest() for stored in change.replaced),
            ),
        )
        return state.chained_to(self.chain)

    def chained_to(self, previous: bytes) -> CommitState:
        """This state behind the commit with that chain."""
        state = replace(self, previous=previous)
        return replace(state, chain=state.digest())

    def digest(self) -> bytes:
        """BLAKE2b over the counts, the digest sum and the previous commit's chain: what `chain` must be."""
        counts = [self.number, self.documents, self.passages, self.entities, self.fields]
        digest = hashlib.blake2b(json.dumps(counts).encode(), digest_size=DIGEST_BYTES)
        digest.update(self.digest_sum + self.previous)
        return digest.digest()


@dataclass(slots=True)
class Change:
    """The rows that a transaction adds and removes.

    `documents` are those that will be there, `replaced` what stands in their place now, or goes without a
    successor. The rows of other tables are kept apart, because a document's text may stay as it is.
    """

    documents: list[StoredDocument] = field(default_factory=list)
    replaced: list[StoredDocument] = field(default_factory=list)
    passages: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    pooled: list[tuple[int, bytes]] = field(default_factory=list)
    vectors: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), dtype="<f2"))
    vids_gone: list[int] = field(default_factory=list)
    pooled_gone: list[int] = field(default_factory=list)
    entities: list[tuple[int, int, int, str, str, float]] = field(default_factory=list)
    untagged: list[int] = field(default_factory=list)
    fields: list[FieldRow] = field(default_factory=list)
    fields_gone: list[FieldRow] = field(default_factory=list)
    log: list[tuple[str, int, int | None]] = field(default_factory=list)
    passages_gone: int = 0
    entities_gone: int = 0

    def put_in(self, stored: StoredDocument, pooled: bytes | None) -> None:
        """A document with new vectors; `pooled`, fp16, where it has more than one passage."""
        self.documents.append(stored)
        self.fields += field_rows(stored)
        self._put_in_entities(stored)
        for passage in stored.passages:
            self.passages.append((passage.vid, stored.doc, passage.start, passage.end, passage.tokens))
            self.log.append(("add", stored.doc, passage.vid))
        if pooled is not None:
            self.pooled.append((stored.doc, pooled))

    def take_out(self, stored: StoredDocument) -> None:
        """A document that goes, its vectors included."""
        self.replaced.append(stored)
        self.fields_gone += field_rows(stored)
        self._take_out_entities(stored)
        self.pooled_gone.append(stored.doc)
        self.passages_gone += len(stored.passages)
        for passage in stored.passages:
            self.vids_gone.append(passage.vid)
            self.log.append(("remove", stored.doc, passage.vid))

    def replace_metadata(self, stored: StoredDocument, metadata: Metadata) -> None:
        """A document whose text stays: its vectors, class and entities stay too."""
        after = replace(stored, metadata_json=metadata_json(metadata))
        self._replace(stored, after)
        self.fields_gone += field_rows(stored)
        self.fields += field_rows(after)

    def replace_tags(self, stored: StoredDocument, label: Label | None, spans: Iterable[Span]) -> None:
        """A document whose text, metadata and vectors stay, with another class and other entities."""
        after = replace(stored, label=label, spans=sorted_spans(spans))
        self._replace(stored, after)
        self._take_out_entities(stored)
        self._put_in_entities(after)

    def texts(self) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """What the keyword index loses and gains, each as (doc, text); a text that stays is in neither."""
        before = {stored.doc: stored.text for stored in self.replaced}
        after = {stored.doc: stored.text for stored in self.documents}
        return (
            [(doc, text) for doc, text in before.items() if after.get(doc) != text],
            [(doc, text) for doc, text in after.items() if before.get(doc) != text],
        )

    def _replace(self, before: StoredDocument, after: StoredDocument) -> None:
        self.replaced.append(before)
        self.documents.append(after)
        self.log.append(("update", before.doc, None))

    def _put_in_entities(self, stored: StoredDocument) -> None:
        for span in stored.spans:
            norm = normalise_entity(stored.text[span.start : span.end])
            self.entities.append((stored.doc, span.start, span.end, span.type, norm, span.score))

    def _take_out_entities(self, stored: StoredDocument) -> None:
        self.untagged.append(stored.doc)
        self.entities_gone += len(stored.spans)


def new_document(
    doc: int, document: Document, analysis: Analysis, settings: IndexSettings, vids: Iterator[int]
) -> StoredDocument:
    """A document as it will be stored, its vectors numbered from `vids`."""
    return StoredDocument(
        doc=doc,
        id=document.id,
        text=document.text,
        metadata_json=metadata_json(document.metadata),
        content_hash=hash_content(document),
        label=analysis.label if settings.class_labels is not None else None,
        passages=tuple(StoredPassage(next(vids), p.start, p.end, p.tokens) for p in analysis.passages),
        spans=sorted_spans(analysis.spans) if settings.entity_types is not None else (),
    )


def apply_change(connection: sqlite3.Connection, change: Change, *, pending: bool = True) -> None:
    """Write a change's rows and its commit row, in the caller's transaction; its vectors only where they are `pending`.

    Without, the caller has them in a segment.
    """
    digests = [stored.digest() for stored in change.documents]
    state = read_commit(connection).following(change, digests)
    before, kept = {stored.doc for stored in change.replaced}, {stored.doc for stored in change.documents}
    for table, column, numbers in (
        ("pending", "vid", change.vids_gone),
        ("passages", "vid", change.vids_gone),
        ("pooled", "doc", change.pooled_gone),
        ("entities", "doc", change.untagged),
    ):
        _delete(connection, table, column, numbers)
    paths = _numbers(connection, "paths", "path", {row[0] for row in (*change.fields, *change.fields_gone)})
    connection.executemany(
        "DELETE FROM fields WHERE path = ? AND kind = ? AND value = ? AND doc = ?",
        [(paths[path], kind, value, doc) for path, kind, value, doc in change.fields_gone],
    )
    _delete(connection, "documents", "doc", sorted(before - kept))
    texts_gone, texts = change.texts()
    keywords.remove_texts(connection, texts_gone)
    keywords.add_texts(connection, texts)
    _write_documents(connection, change.documents, digests, written=state.number, known=before & kept)
    connection.executemany(
        'INSERT INTO passages (vid, doc, start, "end", tokens) VALUES (?, ?, ?, ?, ?)', change.passages
    )
    connection.executemany(
        "INSERT INTO pooled (doc, vector, crc32) VALUES (?, ?, ?)",
        ((doc, blob, vector_crc(0, doc, blob)) for doc, blob in change.pooled),
    )
    if pending:
        blobs = (vector.tobytes() for vector in change.vectors)
        connection.executemany(
            "INSERT INTO pending (vid, doc, vector, crc32) VALUES (?, ?, ?, ?)",
            (
                (vid, doc, blob, vector_crc(vid, doc, blob))
                for (vid, doc, *_), blob in zip(change.passages, blobs, strict=True)
            ),
        )
    connection.executemany(
        "INSERT OR IGNORE INTO entity_terms (type, norm) VALUES (?, ?)",
        sorted({(kind, norm) for _, _, _, kind, norm, _ in change.entities}),
    )
    connection.executemany(
        'INSERT INTO entities (doc, start, "end", term, score) VALUES (?, ?, ?,'
        " (SELECT term FROM entity_terms WHERE type = ? AND norm = ?), ?)",
        change.entities,
    )
    # In the order of the table's key, so that each of its pages is visited once.
    fields = sorted((paths[path], kind, value, doc) for path, kind, value, doc in change.fields)
    connection.executemany("INSERT INTO fields (path, kind, value, doc) VALUES (?, ?, ?, ?)", fields)
    connection.executemany("INSERT INTO changes (op, doc, vid) VALUES (?, ?, ?)", change.log)
    write_commit(connection, state)


def read_commit(connection: sqlite3.Connection) -> CommitState:
    """The state after the last commit."""
    row = connection.execute(
        "SELECT commit_number, documents, passages, entities, fields, digest_sum, previous, chain FROM commits"
        " ORDER BY commit_number DESC LIMIT 1"
    ).fetchone()
    return CommitState(*row) if row else CommitState()


def write_commit(connection: sqlite3.Connection, state: CommitState) -> None:
    """Replace the commit row, in the caller's transaction."""
    connection.execute("DELETE FROM commits")
    connection.execute(
        "INSERT INTO commits (commit_number, documents, passages, entities, fields, digest_sum, previous,"
        " chain) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        astuple(state),
    )


def next_numbers(connection: sqlite3.Connection) -> tuple[Iterator[int], Iterator[int]]:
    """Numbers for new documents and for new vectors, never used before."""
    used = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    return count(used.get("documents", 0) + 1), count(used.get("passages", 0) + 1)


def metadata_json(metadata: Metadata) -> str:
    """Metadata as stored: compact JSON with the keys in the order given."""
    return orjson.dumps(metadata).decode()


def hash_content(document: Document) -> bytes:
    """What tells whether a document must be embedded again: BLAKE2b, 16 bytes, over its text and given vector.

    Of the vector the SHA-256 goes in, which processors have an instruction for.
    """
    digest = hashlib.blake2b(document.text.encode(), digest_size=16)
    if document.vector is not None:
        vector = np.ascontiguousarray(document.vector, dtype="<f4")
        digest.update(b"\0" + hashlib.sha256(vector.data).digest())
    return digest.digest()


def sorted_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in the order in which the index reads them back."""
    return tuple(sorted(spans, key=lambda span: (span.start, span.end, span.type)))


def field_rows(stored: StoredDocument) -> list[FieldRow]:
    """The rows of `fields` for a document."""
    return [(path, int(kind), value, stored.doc) for path, kind, value in flatten(stored.metadata)]


def _write_documents(
    connection: sqlite3.Connection,
    documents: Sequence[StoredDocument],
    digests: Sequence[bytes],
    *,
    written: int,
    known: Set[int],
) -> None:
    """Rows of new documents, and of those in `known` the new contents."""
    labels = _numbers(connection, "labels", "label", {stored.label.name for stored in documents if stored.label})
    rows = [
        (
            stored.text,
            stored.metadata_json,
            stored.content_hash,
            labels[stored.label.name] if stored.label else None,
            stored.label.score if stored.label else None,
            digest,
            written,
            stored.id,
            stored.doc,
        )
        for stored, digest in zip(documents, digests, strict=True)
    ]
    # Two statements, as one with ON CONFLICT takes twice as long for a new row.
    connection.executemany(
        "UPDATE documents SET text = ?, metadata = ?, content_hash = ?, label = ?, label_score = ?, digest = ?,"
        " written = ? WHERE id = ? AND doc = ?",
        (row for row in rows if row[-1] in known),
    )
    connection.executemany(
        "INSERT INTO documents (text, metadata, content_hash, label, label_score, digest, written, id, doc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (row for row in rows if row[-1] not in known),
    )


def _numbers(connection: sqlite3.Connection, table: str, key: str, names: set[str]) -> dict[str, int]:
    """The numbers of names in a table (number, name), with new rows for new names."""
    ordered = sorted(names)
    connection.executemany(f"INSERT OR IGNORE INTO {table} (name) VALUES (?)", [(name,) for name in ordered])
    return dict(select_in(connection, f"SELECT name, {key} FROM {table} WHERE name IN", ordered))


def _delete(connection: sqlite3.Connection, table: str, column: str, numbers: Iterable[int]) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (json.dumps(list(numbers)),)
    )
