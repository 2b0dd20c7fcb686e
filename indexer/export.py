"""Everything that an index says about its documents, one object each: JSON Lines or Parquet.

    {"id", "text", "metadata": {…}, "label": {"name", "score"} | null,
     "entities": [{"type", "text", "start", "end", "score"}], "passages": [{"start", "end", "tokens"}],
     "vector": […], "vectors": [[…], …]}

Metadata is an object of its own, so that no key of it can be taken for one of ours. Offsets are code points.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from indexer.backup import copy_commit, refuse_existing, storage_errors, sync_name
from indexer.durable import temporary_beside, write_file
from indexer.errors import CorruptIndexError, DestinationError, StorageError
from indexer.manifest import read_segments
from indexer.records import FloatArray, label_json
from indexer.segments import CODES_SUFFIXES, SegmentRecord, open_segment
from indexer.settings import read_settings
from indexer.store import SEGMENTS, read_pending
from indexer.stored import StoredDocument, json_line, read_documents
from indexer.vectors import Segment

Record = dict[str, Any]
"""A document as a JSON object; "vector" and "vectors", where asked for, are fp32 arrays."""

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}

_DOCUMENTS = 500  # held in memory at a time
_ROW_GROUP = 2_000
_TEMPORARY = "$SQLITE_TMPDIR, $TMPDIR, /var/tmp or /tmp, the first that is there"


def export_documents(path: str | Path, *, vectors: bool = False, passage_vectors: bool = False) -> Iterator[Record]:
    """All documents of an index's newest commit, in the order in which they first came, checked against their digests.

    `vectors` adds "vector", that of the whole document, fp32 (dimension,), of length 1 up to fp16; `passage_vectors`
    adds "vectors", one for each passage, fp32 (passages, dimension).

    What a writer does meanwhile changes nothing: meta.sqlite is copied first, to a temporary file without a name (in
    $SQLITE_TMPDIR, $TMPDIR, /var/tmp or /tmp), and then the writer's log is free, however long the caller takes.
    Raises `NotAnIndexError`, `FormatError`, `CorruptIndexError`, `StorageError`.
    """
    path = Path(path)
    with ExitStack() as stack:
        copy = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        table = _Vectors(copy, path / SEGMENTS, stack) if vectors or passage_vectors else None
        try:
            copy_commit(path, copy, table.hold if table is not None else lambda _: None)
        except StorageError as error:
            raise StorageError(f"{error}; the copy needs room in {_TEMPORARY}") from error
        if table is not None:
            table.check()
        last = 0
        while docs := _docs_after(copy, last):
            found = read_documents(copy, docs)
            records = {doc: _record(stored) for doc, stored in found.items()}
            if table is not None:
                table.add_to(records, found, vectors=vectors, passage_vectors=passage_vectors)
            yield from records.values()
            last = docs[-1]


def write_records(records: Iterable[Record], output: Path) -> int:
    """Write records to a new file, JSON Lines or Parquet by its suffix; returns how many there were.

    The file is there whole or not at all, and durable when this returns. Raises `DestinationError` where there is
    one already, or its suffix is another; `StorageError`; and what `records` raises.
    """
    form = FORMATS.get(output.suffix.lower())
    if form is None:
        raise DestinationError(f"{output} must end with one of {', '.join(FORMATS)}, which say how to write it")
    refuse_existing(output)
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for count, record in enumerate(records, start=1):  # noqa: B007
            yield record

    write = write_jsonl if form == "jsonl" else write_parquet
    with storage_errors(output):
        write_file(output, lambda file: write(counted(), file), temporary=temporary_beside(output))
        sync_name(output)
    return count


def write_jsonl(records: Iterable[Record], file: BinaryIO) -> None:
    """One object a line, UTF-8. Numbers of vectors have as many digits as fp32 needs."""
    for record in records:
        file.write(json_line(record))


def write_parquet(records: Iterable[Record], file: BinaryIO) -> None:
    """A Parquet file of these columns; "metadata" is JSON text, because its values may be of any type in each row.

    Raises `DestinationError` where pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise DestinationError("Parquet files need pyarrow: pip install 'tagdex[parquet]'") from error

    iterator = iter(records)
    first = next(iterator, None)
    number, text = pyarrow.int64(), pyarrow.large_string()
    span: list[Any] = [("start", number), ("end", number)]
    columns: dict[str, Any] = {
        "id": text,
        "text": text,
        "metadata": text,
        "label": pyarrow.struct([("name", text), ("score", pyarrow.float64())]),
        "entities": pyarrow.list_(
            pyarrow.struct([("type", text), ("text", text), *span, ("score", pyarrow.float64())])
        ),
        "passages": pyarrow.list_(pyarrow.struct([*span, ("tokens", number)])),
        "vector": pyarrow.list_(pyarrow.float32()),
        "vectors": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
    }
    names = [name for name in columns if first is None or name in first]
    schema = pyarrow.schema([(name, columns[name]) for name in names])
    with ParquetWriter(file, schema) as writer:
        rows = chain([first] if first is not None else [], iterator)
        while batch := list(islice(rows, _ROW_GROUP)):
            for record in batch:
                record["metadata"] = orjson.dumps(record["metadata"]).decode()
                if "vectors" in record:
                    record["vectors"] = list(record["vectors"])
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _record(stored: StoredDocument) -> Record:
    return {
        "id": stored.id,
        "text": stored.text,
        "metadata": stored.metadata,
        "label": label_json(stored.label),
        "entities": [span.to_json(stored.text) for span in stored.spans],
        "passages": [{"start": p.start, "end": p.end, "tokens": p.tokens} for p in stored.passages],
    }


def _docs_after(connection: sqlite3.Connection, doc: int) -> list[int]:
    rows = connection.execute("SELECT doc FROM documents WHERE doc > ? ORDER BY doc LIMIT ?", (doc, _DOCUMENTS))
    return [number for (number,) in rows.fetchall()]


class _Vectors:
    """The vectors of one commit: its segments, held open, and in the copy of meta.sqlite those that are pending."""

    def __init__(self, copy: sqlite3.Connection, folder: Path, stack: ExitStack) -> None:
        self._copy = copy
        self._folder = folder
        self._held = stack.enter_context(ExitStack())
        self._segments: list[Segment] = []
        self._files: list[tuple[BufferedReader, str]] = []
        self._dimension = 0

    def hold(self, connection: sqlite3.Connection) -> None:
        """Open what the commit names; raises `FileNotFoundError` where it has gone."""
        self._held.close()
        self._files.clear()
        settings = read_settings(connection)
        self._dimension = settings.dimension if settings is not None else 0
        records = [_without_codes(record) for record in read_segments(connection)]
        for file in (file for record in records for file in record.files):
            self._files.append((self._held.enter_context((self._folder / file.name).open("rb")), file.sha256))
        self._segments = [open_segment(self._folder, record, dimension=self._dimension) for record in records]

    def check(self) -> None:
        """Compare the files with their checksums, and let them go; what is mapped of them stays."""
        for file, sha256 in self._files:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise CorruptIndexError(
                    f"{file.name} is not what was written; run 'indexer verify {self._folder.parent}'"
                )
        self._held.close()

    def add_to(
        self, records: dict[int, Record], found: dict[int, StoredDocument], *, vectors: bool, passage_vectors: bool
    ) -> None:
        """Put the vectors of documents into their records."""
        table = self._of([passage.vid for stored in found.values() for passage in stored.passages])
        pooled = {
            doc: np.frombuffer(blob, dtype="<f2").astype(np.float32)
            for doc, blob in self._copy.execute(
                "SELECT doc, vector FROM pooled WHERE doc IN (SELECT value FROM json_each(?))", (str(list(found)),)
            )
        }
        for doc, stored in found.items():
            rows = np.stack([table[passage.vid] for passage in stored.passages])
            if vectors and len(rows) > 1 and doc not in pooled:
                raise CorruptIndexError(f"document '{stored.id}' has lost its vector; run 'indexer verify'")
            if vectors:
                records[doc]["vector"] = pooled[doc] if len(rows) > 1 else rows[0]
            if passage_vectors:
                records[doc]["vectors"] = rows

    def _of(self, vids: Sequence[int]) -> dict[int, FloatArray]:
        """Vectors by vid, each fp32 (dimension,). Raises `CorruptIndexError` where one is not there."""
        wanted = np.array(sorted(vids), dtype=np.int64)
        table: dict[int, FloatArray] = {}
        for segment in self._segments:
            inside = wanted[(wanted >= segment.vids[0]) & (wanted <= segment.vids[-1])]
            at = np.searchsorted(segment.vids, inside)
            there = segment.vids[at] == inside
            table.update(zip(inside[there].tolist(), segment.table[at[there]].astype(np.float32), strict=True))
        rows = self._copy.execute(
            "SELECT vid, doc, vector, crc32 FROM pending WHERE vid IN (SELECT value FROM json_each(?))",
            (str(wanted.tolist()),),
        ).fetchall()
        pending = read_pending(rows, self._dimension).astype(np.float32)
        table.update(zip([row[0] for row in rows], pending, strict=True))
        if missing := set(vids) - table.keys():
            raise CorruptIndexError(f"vector {min(missing)} is not there; run 'indexer verify {self._folder.parent}'")
        return table


def _without_codes(record: SegmentRecord) -> SegmentRecord:
    files = tuple(file for file in record.files if not file.name.endswith(CODES_SUFFIXES))
    return replace(record, rerank=0, files=files)
