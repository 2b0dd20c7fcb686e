"""What can be read out of a damaged index: rows, proven by their digests, and vectors, proven by their checksums."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from indexer.changes import CommitState, hash_content, sorted_spans
from indexer.durable import vector_crc
from indexer.manifest import digest_of, has_own_names
from indexer.metadata import migrate
from indexer.pages import DamagedDatabase, Row, rows_that_begin_with
from indexer.records import Analysis, Document
from indexer.segments import SegmentFile, SegmentRecord
from indexer.settings import IndexSettings, with_bits_turned
from indexer.stored import HIGHEST_DOC, StoredDocument, StoredPassage, matches_digest, read_unchecked

_TABLES: dict[str, tuple[type | tuple[type, ...], ...]] = {
    "labels": (int, str),
    "entity_terms": (int, str, str),
    "documents": (int, str, str, str, bytes, (int, type(None)), (float, int, type(None)), int, bytes),
    "passages": (int, int, int, int, int),
    "entities": (int, int, int, int, (float, int)),
    "pooled": (int, bytes, int),
}
_TRIED_BYTES = 4_096  # of a damaged document, each bit of which is turned to see whether its digest is right then


def read_state(database: DamagedDatabase) -> CommitState | None:
    """The commit row, `None` where it does not match its digest."""
    for row in database.rows("commits"):
        with suppress(TypeError, ValueError):
            state = CommitState(*row)
            if state.digest() == state.chain:
                return state
    return None


def read_manifest(database: DamagedDatabase) -> list[SegmentRecord]:
    """The segments whose rows match their digests, in the order of their vectors."""
    files: dict[Any, list[SegmentFile]] = {}
    for row in database.rows("segment_files"):
        if len(row) == 4:
            files.setdefault(row[1], []).append(SegmentFile(row[0], row[2], row[3]))
    records = []
    for row in database.rows("segments"):
        with suppress(TypeError, ValueError):
            name, first, last, rows, rerank, factory, version, digest = row
            record = SegmentRecord(name, first, last, rows, rerank, factory, version, tuple(files.get(name, ())))
            if digest_of(record) == digest and has_own_names(record):
                records.append(record)
    return sorted(records, key=lambda record: record.first_vid)


class Salvage:
    """The readable rows of a damaged database in a scratch database with the same tables, and what is proven of them.

    `lost` collects (place, problem) of what cannot be restored, `spare` the vids of each document that have a vector.
    """

    def __init__(self, database: DamagedDatabase, scratch: Path) -> None:
        self.database = database
        self.state = read_state(database)
        self.loose: list[Row] = []  # rows of documents that do not fit
        self.connection = sqlite3.connect(scratch, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = OFF")
        self.connection.execute("PRAGMA synchronous = OFF")
        migrate(self.connection)
        self.connection.execute("BEGIN")
        for table, types in _TABLES.items():
            self._copy(table, types)
        self._copy_ids()

    def documents(self) -> Iterator[tuple[StoredDocument, bytes]]:
        """Every document with the digest that was stored for it."""
        docs = [doc for (doc,) in self.connection.execute("SELECT doc FROM documents ORDER BY doc")]
        for start in range(0, len(docs), 500):
            yield from read_unchecked(self.connection, docs[start : start + 500])

    def pooled(self, doc: int, dimension: int) -> bytes | None:
        """The vector of a whole document, `None` where it is damaged."""
        row = self.connection.execute("SELECT vector, crc32 FROM pooled WHERE doc = ?", (doc,)).fetchone()
        if row is None or len(row[0]) != 2 * dimension or vector_crc(0, doc, row[0]) != row[1]:
            return None
        vector: bytes = row[0]
        return vector

    def restore_names(self, entity_types: Sequence[str], labels: Sequence[str]) -> None:
        """Give entity terms and labels whose rows are damaged their names again, proven by a document's digest."""
        for table, key, names in (("entities", "term", entity_types), ("documents", "label", labels)):
            home = "entity_terms" if key == "term" else "labels"
            suspects = self.connection.execute(
                f"SELECT {key}, min(doc) FROM {table} WHERE {key} IS NOT NULL GROUP BY {key}"
            ).fetchall()
            for number, doc in suspects:
                self._restore_name(home, key, number, doc, names)

    def candidates(
        self, stored: StoredDocument, analysis: Analysis | None, vids: Sequence[int]
    ) -> Iterator[StoredDocument]:
        """What a document that does not match its digest may have been, the likeliest first."""
        metadata = [stored.metadata_json]
        passages = [stored.passages, _passages(stored, analysis, vids)]
        tags = [(stored.label, stored.spans)]
        if analysis is not None:
            tags += [(analysis.label, sorted_spans(analysis.spans)), (analysis.label, stored.spans)]
            tags += [(stored.label, sorted_spans(analysis.spans)), (analysis.label, ())]
        hashes = [stored.content_hash, hash_content(Document(stored.id, stored.text))]
        ids = [stored.id]
        row = self._id_of(stored.doc)
        if row is not None and row != stored.id:
            ids.append(row)
        for id_ in ids:
            for content_hash in hashes:
                for places in passages:
                    for label, spans in tags:
                        yield replace(
                            stored,
                            id=id_,
                            metadata_json=metadata[0],
                            content_hash=content_hash,
                            passages=places,
                            label=label,
                            spans=spans,
                        )

    def turned(self, stored: StoredDocument) -> Iterator[StoredDocument]:
        """The document with each bit of its id, its text and its metadata turned, one at a time, where it is short."""
        for text in with_bits_turned(stored.metadata_json, most=_TRIED_BYTES):
            yield replace(stored, metadata_json=text)
        for text in with_bits_turned(stored.id, most=_TRIED_BYTES):
            yield replace(stored, id=text)
        for text in with_bits_turned(stored.text, most=_TRIED_BYTES):
            yield replace(stored, text=text)

    def as_document(self, row: Row, doc: int) -> tuple[StoredDocument, bytes] | None:
        """A row of `documents` that stood under another number, as the document with this one."""
        values = (doc, *row[1:])
        try:
            self.connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        except (sqlite3.Error, OverflowError):
            return None
        return next(iter(read_unchecked(self.connection, [doc])), None)

    def find_in_pages(self, doc: int, id_: str) -> tuple[StoredDocument, bytes] | None:
        """A document whose row cannot be reached, by its id, where it stands in a page and matches its digest.

        Of several versions of it, as what was replaced may still stand in a page, the one that was written last.
        """
        best: tuple[int, tuple[StoredDocument, bytes]] | None = None
        for number in self.database.pages("documents"):
            for row in rows_that_begin_with(self.database.page(number), id_):
                if len(row) == 9 and row[1] == id_ and fits("documents", (doc, *row[1:])):
                    found = self.as_document(row, doc) if best is None or row[7] > best[0] else None
                    if found is not None and (matches_digest(*found) or self._matches_again(found)):
                        best = row[7], found
        self.connection.execute("DELETE FROM documents WHERE doc = ?", (doc,))
        return None if best is None else best[1]

    def _matches_again(self, found: tuple[StoredDocument, bytes]) -> bool:
        return any(matches_digest(candidate, found[1]) for candidate in self.candidates(found[0], None, ()))

    def readable(self, stored: StoredDocument, analysis: Analysis | None, settings: IndexSettings) -> StoredDocument:
        """A document that cannot be proven, in a form that an index can hold: tags by the model where it is there.

        Its id is that of SQLite's index of them where it is known, as the document's own row is what is damaged.
        """
        metadata = stored.metadata_json
        try:
            if not isinstance(orjson.loads(metadata), dict):
                metadata = "{}"
        except ValueError:
            metadata = "{}"
        label, spans = stored.label, stored.spans
        if analysis is not None:
            label, spans = analysis.label, sorted_spans(analysis.spans)
        ends = len(stored.text)
        return replace(
            stored,
            id=self._id_of(stored.doc) or stored.id,
            metadata_json=metadata,
            content_hash=b"",  # no text's: the document as it was is embedded again when it is added again
            label=label if settings.class_labels is not None else None,
            spans=tuple(span for span in spans if span.end <= ends) if settings.entity_types is not None else (),
        )

    def missing(self, there: set[int]) -> dict[int, str | None]:
        """Numbers of documents that other rows name, but that are not `there`, with their ids where they are known."""
        rows = self.connection.execute(
            "SELECT doc, ids.id FROM"
            " (SELECT doc FROM passages UNION SELECT doc FROM entities UNION SELECT doc FROM ids)"
            " LEFT JOIN ids USING (doc)"
        )
        return {doc: id_ for doc, id_ in rows if doc not in there}

    def _copy(self, table: str, types: tuple[type | tuple[type, ...], ...]) -> None:
        places = ", ".join("?" * len(types))
        self.connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", self._fitting(table))

    def _fitting(self, table: str) -> Iterator[Row]:
        """The rows of a table one by one; those of documents that do not fit, or come twice, are put by."""
        before: set[int] = set()
        for row in self.database.rows(table):
            there = fits(table, row)
            if table == "documents":
                if not there or row[0] in before:
                    self.loose.append(row)
                if there:
                    before.add(row[0])
            if there:
                yield row

    def _copy_ids(self) -> None:
        """The ids by number, as SQLite's index of them has them."""
        self.connection.execute("CREATE TABLE ids (doc INTEGER PRIMARY KEY, id TEXT NOT NULL)")
        rows = (
            (row[1], row[0])
            for row in self.database.rows("sqlite_autoindex_documents_1")
            if len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], int) and abs(row[1]) < 2**63
        )
        self.connection.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?)", rows)

    def _id_of(self, doc: int) -> str | None:
        row = self.connection.execute("SELECT id FROM ids WHERE doc = ?", (doc,)).fetchone()
        return None if row is None else row[0]

    def _restore_name(self, home: str, key: str, number: int, doc: int, names: Sequence[str]) -> None:
        """Try each name until the document is what its digest says; leave it as it was where none does."""
        found = next(iter(read_unchecked(self.connection, [doc])), None)
        if found is None or matches_digest(*found):
            return
        before = self.connection.execute(f"SELECT * FROM {home} WHERE {key} = ?", (number,)).fetchone()
        for name in names:
            values = (number, name) if home == "labels" else (number, name, f"{number}")
            self.connection.execute(f"DELETE FROM {home} WHERE {key} = ?", (number,))
            marks = ", ".join("?" * len(values))
            try:
                self.connection.execute(f"INSERT INTO {home} VALUES ({marks})", values)
            except sqlite3.IntegrityError:
                continue  # another number has this name already
            if all(matches_digest(*item) for item in read_unchecked(self.connection, [doc])):
                return
        self.connection.execute(f"DELETE FROM {home} WHERE {key} = ?", (number,))
        if before is not None:
            marks = ", ".join("?" * len(before))
            self.connection.execute(f"INSERT INTO {home} VALUES ({marks})", before)


def fits(table: str, row: Row) -> bool:
    """Can these values be a row of a table?"""
    types = _TABLES[table]
    return (
        len(row) == len(types)
        and all(
            isinstance(value, kind) and not (isinstance(value, int) and abs(value) >= 2**63)
            for value, kind in zip(row, types, strict=True)
        )
        and (table != "documents" or 0 < row[0] <= HIGHEST_DOC)
    )


def _passages(stored: StoredDocument, analysis: Analysis | None, vids: Sequence[int]) -> tuple[StoredPassage, ...]:
    """The passages of a text by the model, or the one of a given vector, with the numbers that the vectors have."""
    places = [(p.start, p.end, p.tokens) for p in analysis.passages] if analysis else [(0, len(stored.text), 0)]
    numbers = sorted(vids)
    if len(numbers) != len(places):
        return stored.passages
    return tuple(StoredPassage(vid, *place) for vid, place in zip(numbers, places, strict=True))
