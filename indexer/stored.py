"""Documents as the index keeps them: reading whole ones back, and the digest that guards each."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from indexer.errors import CorruptIndexError
from indexer.metadata import select_in
from indexer.records import Label, Span

DIGEST_BYTES = 16
HIGHEST_DOC = 2**32 - 2  # that a bitmap can hold


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage with the number of its vector."""

    vid: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document with everything that the index says about it.

    `metadata_json` is the JSON text as stored, `content_hash` tells whether the text must be embedded again.
    """

    doc: int
    id: str
    text: str
    metadata_json: str
    content_hash: bytes
    label: Label | None
    passages: tuple[StoredPassage, ...]
    spans: tuple[Span, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as Python values."""
        metadata: dict[str, Any] = orjson.loads(self.metadata_json)
        return metadata

    def digest(self) -> bytes:
        """BLAKE2b, 16 bytes, over every field but `doc`."""
        label = self.label
        parts: list[bytes] = []
        for text in (self.id, self.text, self.metadata_json, label.name if label else ""):
            encoded = text.encode()
            parts += (struct.pack("<q", len(encoded)), encoded)
        parts += (self.content_hash, struct.pack("<d", label.score if label else -1.0))
        parts += (struct.pack("<qqqq", p.vid, p.start, p.end, p.tokens) for p in self.passages)
        for span in self.spans:
            parts += (struct.pack("<qqd", span.start, span.end, span.score), span.type.encode(), b"\0")
        return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record about a document as one line of JSON, its arrays of fp32 with as many digits as they need.

    Also one with metadata so deep that there is no level left for the record around it: older versions took such.
    """
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    try:
        return orjson.dumps(record, option=option)
    except orjson.JSONEncodeError:
        metadata = orjson.Fragment(orjson.dumps(record["metadata"]))
        return orjson.dumps({**record, "metadata": metadata}, option=option)


def read_documents(connection: sqlite3.Connection, docs: Sequence[int]) -> dict[int, StoredDocument]:
    """The documents with these numbers, by number; numbers that do not exist are left out.

    Raises `CorruptIndexError` where a document's rows do not have the digest that was stored with them.
    """
    documents: dict[int, StoredDocument] = {}
    for document, digest in read_unchecked(connection, docs):
        if not matches_digest(document, digest):
            raise CorruptIndexError(
                f"document '{document.id}' (number {document.doc}) does not match its stored digest: the index is "
                "damaged; run 'indexer verify'"
            )
        documents[document.doc] = document
    return documents


def read_unchecked(connection: sqlite3.Connection, docs: Sequence[int]) -> Iterator[tuple[StoredDocument, bytes]]:
    """The documents with these numbers, each with the digest that is stored for it, whether it is that one or not."""
    chosen = json.dumps(list(docs))
    passages: dict[int, list[StoredPassage]] = {}
    spans: dict[int, list[Span]] = {}
    for doc, *passage in connection.execute(
        'SELECT doc, vid, start, "end", tokens FROM passages WHERE doc IN (SELECT value FROM json_each(?))'
        " ORDER BY vid",
        (chosen,),
    ):
        passages.setdefault(doc, []).append(StoredPassage(*passage))
    for doc, *span in connection.execute(
        'SELECT doc, type, start, "end", score FROM entities JOIN entity_terms USING (term)'
        ' WHERE doc IN (SELECT value FROM json_each(?)) ORDER BY doc, start, "end", type',
        (chosen,),
    ):
        spans.setdefault(doc, []).append(Span(*span))
    for doc, id_, text, metadata, content_hash, name, score, digest in connection.execute(
        "SELECT doc, id, text, metadata, content_hash, labels.name, label_score, digest FROM documents"
        " LEFT JOIN labels USING (label) WHERE doc IN (SELECT value FROM json_each(?)) ORDER BY doc",
        (chosen,),
    ):
        document = StoredDocument(
            doc=doc,
            id=id_,
            text=text,
            metadata_json=metadata,
            content_hash=content_hash,
            label=None if name is None else Label(name, score),
            passages=tuple(passages.get(doc, ())),
            spans=tuple(spans.get(doc, ())),
        )
        yield document, digest


def matches_digest(document: StoredDocument, digest: object) -> bool:
    """Is this the document for which the digest was stored?"""
    try:
        return document.digest() == digest
    except (TypeError, ValueError, AttributeError, struct.error):  # a damaged row may hold values of any type
        return False


def read_by_id(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, StoredDocument]:
    """The documents with these ids, by id; ids that do not exist are left out. Raises `CorruptIndexError`."""
    docs = [doc for (doc,) in select_in(connection, "SELECT doc FROM documents WHERE id IN", ids)]
    return {document.id: document for document in read_documents(connection, docs).values()}


def sum_digests(total: bytes, *, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> bytes:
    """A running sum of digests modulo 2¹²⁸, so that a document that vanishes shows.

    The order of documents does not matter (Bellare and Micciancio 1997, AdHash).
    """
    value = int.from_bytes(total, "little")
    value += sum(int.from_bytes(digest, "little") for digest in added)
    value -= sum(int.from_bytes(digest, "little") for digest in removed)
    return (value % (1 << 8 * DIGEST_BYTES)).to_bytes(DIGEST_BYTES, "little")
