"""The writer: rows of every table, numbers never used twice, one transaction a batch, one writer, and faults."""

from __future__ import annotations

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from fakes import (
    DemoAnalyser,
    InterruptedCommits,
    build_index,
    check_consistent,
    document_scores,
    entries,
    table_rows,
)

from indexer import store
from indexer.changes import CommitState
from indexer.durable import vector_crc
from indexer.errors import (
    CorruptIndexError,
    FormatError,
    InputError,
    LockedError,
    NotAnIndexError,
    StorageError,
)
from indexer.filters import parse
from indexer.reader import IndexReader
from indexer.records import Analysis, Document, Label, Passage, Span
from indexer.settings import IndexSettings, settings_of
from indexer.store import Action, Entry, IndexWriter
from indexer.verify import verify_index

SETTINGS = IndexSettings(
    model="demo",
    fingerprint="f" * 64,
    heads_fingerprint="h" * 64,
    dimension=2,
    class_labels=("sport", "music"),
    entity_types=("PER", "LOC"),
)
TABLES = ("passages", "pooled", "pending", "entity_terms", "entities", "paths", "fields", "labels", "changes")

EAST, NORTH = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)
EAST_BLOB, NORTH_BLOB = bytes.fromhex("003c0000"), bytes.fromhex("0000003c")


def entry(
    id_: str,
    text: str,
    *vectors: Any,
    metadata: dict[str, Any] | None = None,
    label: Label | None = None,
    spans: Any = (),
) -> Entry:
    """A document cut into as many passages of equal length as there are vectors."""
    step = len(text) // len(vectors)
    return Entry(
        Document(id_, text, metadata or {}),
        Analysis(
            passages=tuple(Passage(at * step, (at + 1) * step, 5) for at in range(len(vectors))),
            vectors=np.stack(vectors),
            pooled=np.stack(vectors).mean(axis=0),
            label=label,
            spans=tuple(spans),
        ),
    )


def documents_of(path: Path) -> list[tuple[Any, ...]]:
    """Rows of `documents` without the digest, which `check_consistent` looks at."""
    return [row[:-1] for row in table_rows(path, "documents")]


def content_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def kept(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {table: table_rows(path, table) for table in (*TABLES, "documents", "commits", "segments")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def writer(path: Path) -> Iterator[IndexWriter]:
    with IndexWriter(path, create=SETTINGS) as opened:
        yield opened


# Rows


def test_a_new_index_has_its_settings_and_a_first_commit(path: Path, writer: IndexWriter) -> None:
    assert writer.settings == SETTINGS
    stored = dict(table_rows(path, "settings"))
    assert stored.pop("digests").count(":") == 7
    assert re.fullmatch('"[0-9a-f]{16}"', stored.pop("index_id"))
    assert stored == {
        "model": '"demo"',
        "fingerprint": '"' + "f" * 64 + '"',
        "heads_fingerprint": '"' + "h" * 64 + '"',
        "dimension": "2",
        "class_labels": '["sport", "music"]',
        "entity_types": '["PER", "LOC"]',
    }
    assert table_rows(path, "commits") == [(0, 0, 0, 0, 0, bytes(16), bytes(16), CommitState().digest())]
    assert sorted(file.name for file in path.iterdir() if not file.name.startswith("meta.sqlite-")) == [
        "LOCK",
        "meta.sqlite",
        "segments",
    ]


def test_the_settings_survive_closing(path: Path) -> None:
    for created in (SETTINGS, IndexSettings("raw", "a" * 64, None, 3, None, None)):
        folder = path.with_name(created.model)
        IndexWriter(folder, create=created).close()
        with IndexWriter(folder) as again:
            assert again.settings == created


def test_the_rows_of_an_added_document(path: Path, writer: IndexWriter) -> None:
    text = "Ada in Rome  "
    writer.write(
        [
            entry(
                "a",
                text,
                EAST * 3,
                metadata={"year": 2020, "tags": ["x", True], "n": None},
                label=Label("music", 0.75),
                spans=[Span("PER", 0, 3, 0.5), Span("LOC", 7, 11, 0.25)],
            )
        ]
    )
    assert documents_of(path) == [
        (1, "a", text, '{"year":2020,"tags":["x",true],"n":null}', content_hash(text), 1, 0.75, 1)
    ]
    assert {table: table_rows(path, table) for table in TABLES} == {
        "passages": [(1, 1, 0, 13, 5)],
        "pooled": [],
        "pending": [(1, 1, EAST_BLOB, vector_crc(1, 1, EAST_BLOB))],
        "entity_terms": [(1, "LOC", "rome"), (2, "PER", "ada")],
        "entities": [(1, 0, 3, 2, 0.5), (1, 7, 11, 1, 0.25)],
        "paths": [(1, "tags"), (2, "year")],
        "fields": [(1, 0, 1, 1), (1, 2, "x", 1), (2, 1, 2020, 1)],
        "labels": [(1, "music")],
        "changes": [(1, "add", 1, 1)],
    }
    assert table_rows(path, "commits")[0][:5] == (1, 1, 1, 2, 3)
    check_consistent(path)


def test_a_long_document_has_a_row_for_each_passage_and_its_pooled_vector(path: Path, writer: IndexWriter) -> None:
    writer.write([entry("a", "one two ", EAST, EAST)])
    assert table_rows(path, "passages") == [(1, 1, 0, 4, 5), (2, 1, 4, 8, 5)]
    assert table_rows(path, "pooled") == [(1, EAST_BLOB, vector_crc(0, 1, EAST_BLOB))]
    assert [row[:2] for row in table_rows(path, "pending")] == [(1, 1), (2, 1)]
    assert table_rows(path, "changes") == [(1, "add", 1, 1), (2, "add", 1, 2)]


def test_a_replaced_text_keeps_its_number_and_takes_new_vids(path: Path, writer: IndexWriter) -> None:
    writer.write(
        [
            entry(
                "a",
                "Ada met ",
                EAST,
                EAST,
                metadata={"year": 1},
                label=Label("sport", 1.0),
                spans=[Span("PER", 0, 3, 1)],
            )
        ]
    )
    writer.write([entry("a", "Rome", NORTH, metadata={"city": "Rome"}, spans=[Span("LOC", 0, 4, 0.5)])])
    assert documents_of(path) == [(1, "a", "Rome", '{"city":"Rome"}', content_hash("Rome"), None, None, 2)]
    assert {table: table_rows(path, table) for table in TABLES} == {
        "passages": [(3, 1, 0, 4, 5)],
        "pooled": [],
        "pending": [(3, 1, NORTH_BLOB, vector_crc(3, 1, NORTH_BLOB))],
        "entity_terms": [(1, "PER", "ada"), (2, "LOC", "rome")],
        "entities": [(1, 0, 4, 2, 0.5)],
        "paths": [(1, "year"), (2, "city")],
        "fields": [(2, 2, "Rome", 1)],
        "labels": [(1, "sport")],
        "changes": [
            (1, "add", 1, 1),
            (2, "add", 1, 2),
            (3, "remove", 1, 1),
            (4, "remove", 1, 2),
            (5, "add", 1, 3),
        ],
    }
    assert table_rows(path, "commits")[0][:5] == (2, 1, 1, 1, 1)
    check_consistent(path)


def test_new_metadata_alone_keeps_vectors_class_and_entities(path: Path, writer: IndexWriter) -> None:
    writer.write(
        [entry("a", "Ada ", EAST, NORTH, metadata={"year": 1}, label=Label("sport", 1.0), spans=[Span("PER", 0, 3, 1)])]
    )
    before = kept(path)
    writer.write([Entry(Document("a", "Ada ", {"year": 2, "new": "x"}), None)])
    after = kept(path)
    for table in ("passages", "pooled", "pending", "entity_terms", "entities", "labels"):
        assert after[table] == before[table]
    assert documents_of(path) == [(1, "a", "Ada ", '{"year":2,"new":"x"}', content_hash("Ada "), 1, 1.0, 2)]
    assert after["fields"] == [(1, 1, 2, 1), (2, 2, "x", 1)]
    assert after["changes"] == [*before["changes"], (3, "update", 1, None)]
    assert after["commits"][0][:5] == (2, 1, 2, 1, 2)
    check_consistent(path)


def test_a_removed_document_leaves_only_its_log(path: Path, writer: IndexWriter) -> None:
    writer.write(
        [entry("a", "Ada ", EAST, NORTH, metadata={"year": 1}, label=Label("sport", 1.0), spans=[Span("PER", 0, 3, 1)])]
    )
    assert writer.remove(["a"]) == []
    assert {table: table_rows(path, table) for table in ("documents", *TABLES)} == {
        "documents": [],
        "passages": [],
        "pooled": [],
        "pending": [],
        "entity_terms": [(1, "PER", "ada")],
        "entities": [],
        "paths": [(1, "year")],
        "fields": [],
        "labels": [(1, "sport")],
        "changes": [(1, "add", 1, 1), (2, "add", 1, 2), (3, "remove", 1, 1), (4, "remove", 1, 2)],
    }
    assert table_rows(path, "commits")[0][:6] == (2, 0, 0, 0, 0, bytes(16))


def test_numbers_are_never_used_again(path: Path) -> None:
    with IndexWriter(path, create=SETTINGS) as writer:
        writer.write([entry("a", "a", EAST), entry("b", "b", EAST)])
        writer.remove(["a", "b"])
    with IndexWriter(path) as writer:
        writer.write([entry("a", "a", EAST)])
    assert documents_of(path)[0][:2] == (3, "a")
    assert table_rows(path, "passages") == [(3, 3, 0, 1, 5)]


def test_removing_says_which_ids_were_not_there(writer: IndexWriter) -> None:
    writer.write([entry(id_, id_, EAST) for id_ in "abc"])
    assert writer.remove(["x", "a", "y", "a", "x"]) == ["x", "y"]
    assert writer.state.documents == 2


def test_removing_more_than_are_held_in_memory_at_a_time(
    path: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REMOVE_ROWS", 3)
    writer.write([entry(f"{n}", f"{n}", EAST) for n in range(10)])
    assert writer.remove([f"{n}" for n in range(8)]) == []
    assert [row[1] for row in documents_of(path)] == ["8", "9"]
    check_consistent(path)


def test_removing_by_filter_says_how_many(path: Path, writer: IndexWriter) -> None:
    writer.write([entry(f"{n}", f"{n}", EAST, metadata={"n": n}) for n in range(10)])
    assert writer.remove_matching(parse("n >= 3")) == 7
    assert writer.remove_matching(parse("n >= 3")) == 0
    assert [row[1] for row in documents_of(path)] == ["0", "1", "2"]
    check_consistent(path)


def test_writing_nothing_is_no_commit(writer: IndexWriter) -> None:
    writer.write([])
    assert writer.state.number == 0


def test_ids_and_keys_may_hold_any_character(path: Path, writer: IndexWriter) -> None:
    odd = ["a\0b", "a", "a'b\"", "😀", "\u2028", "%_", "a\nb"]
    writer.write([entry(id_, id_, EAST, metadata={f"k{id_}": id_}) for id_ in odd])
    writer.write([entry(id_, id_ + "!", NORTH, metadata={f"k{id_}": id_}) for id_ in odd])
    assert [(row[0], row[1]) for row in documents_of(path)] == list(enumerate(odd, start=1))
    check_consistent(path)
    assert [
        plan.action for plan in writer.plan([Document(id_, id_ + "!", {f"k{id_}": id_}) for id_ in odd], since=9)
    ] == [Action.SKIP] * len(odd)
    assert writer.remove(odd) == []
    assert documents_of(path) == []


def test_tags_of_an_untagged_index_are_not_kept(path: Path) -> None:
    with IndexWriter(path, create=IndexSettings("raw", "a" * 64, None, 2, None, None)) as writer:
        writer.write([entry("a", "Ada", EAST, label=Label("sport", 1.0), spans=[Span("PER", 0, 3, 1.0)])])
    assert table_rows(path, "entities") == []
    assert documents_of(path)[0][5:7] == (None, None)
    check_consistent(path)


def test_the_plan_tells_what_each_document_needs(writer: IndexWriter) -> None:
    writer.write([entry("a", "a", EAST, metadata={"n": 1})])
    writer.write([entry("b", "b", EAST)])
    plans = writer.plan(
        [
            Document("a", "a", {"n": 1}),
            Document("a2", "a"),
            Document("b", "b", {"n": 2}),
            Document("b", "B"),
            Document("a", "a", {"n": 1.0}),
            Document("a", "a", {"n": True}),
        ],
        since=2,
    )
    assert [(plan.action, plan.exists, plan.repeated) for plan in plans] == [
        (Action.SKIP, True, False),
        (Action.EMBED, False, False),
        (Action.UPDATE, True, True),
        (Action.EMBED, True, True),
        (Action.UPDATE, True, False),
        (Action.UPDATE, True, False),
    ]


# Failed transactions


def test_a_vector_without_direction_in_a_batch_leaves_nothing_of_it(path: Path, writer: IndexWriter) -> None:
    writer.write([entry("a", "a", EAST)])
    before = kept(path)
    with pytest.raises(InputError, match="it has no direction"):
        writer.write([entry("b", "b", EAST), entry("a", "new", EAST), entry("c", "c", EAST * np.float32("nan"))])
    assert kept(path) == before
    writer.write([entry("b", "b", EAST)])
    assert [row[:2] for row in documents_of(path)] == [(1, "a"), (2, "b")]
    check_consistent(path)


def test_an_error_of_sqlite_within_a_batch_leaves_nothing_of_it(path: Path, writer: IndexWriter) -> None:
    writer.write([entry("a", "a", EAST)])
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as other:
        other.execute("CREATE TRIGGER fail BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'injected'); END")
        before = kept(path)
        with pytest.raises(CorruptIndexError, match="injected"):
            writer.write([entry("b", "b", NORTH), entry("a", "new", EAST)])
        with pytest.raises(CorruptIndexError, match="injected"):
            writer.remove(["a"])
        assert kept(path) == before
        other.execute("DROP TRIGGER fail")
    writer.write([entry("b", "b", EAST)])
    assert writer.state.documents == 2
    check_consistent(path)


def test_an_interrupt_within_a_batch_leaves_nothing_of_it(
    path: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write([entry("a", "a", EAST)])
    before = kept(path)
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(store, "read_by_id", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.write([entry("b", "b", EAST)])
    assert kept(path) == before
    writer.write([entry("b", "b", EAST)])
    assert writer.state.documents == 2


def test_an_interrupt_while_a_segment_is_committed_loses_no_vector(
    path: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_connection", InterruptedCommits(writer._connection))
        with pytest.raises(KeyboardInterrupt):
            writer.write([entry("a", "a", EAST), entry("b", "b", NORTH)])
    assert verify_index(path).faults == ()
    assert writer.state.documents == 2
    writer.write([entry("c", "c", EAST), entry("d", "d", NORTH)])
    check_consistent(path)
    assert verify_index(path).faults == ()


def test_documents_are_read_some_at_a_time_and_fewer_when_they_are_long(writer: IndexWriter) -> None:
    writer.write([entry(id_, text, EAST) for id_, text in {"a": "aa", "b": "bbb", "c": "c" * 10, "d": "d"}.items()])

    def ids(doc: int, n: int, characters: int) -> list[str]:
        return [stored.id for stored in writer.documents_after(doc, n, characters=characters)]

    assert ids(0, 3, 100) == ["a", "b", "c"]
    assert ids(0, 3, 5) == ["a", "b"]
    assert ids(2, 3, 5) == ["c"], "one at least"
    assert ids(3, 3, 5) == ["d"]
    assert ids(4, 3, 5) == []


def test_metadata_of_an_unknown_document_cannot_change(writer: IndexWriter) -> None:
    with pytest.raises(ValueError, match="'x' is not in the index: it needs an analysis"):
        writer.write([Entry(Document("x", "x"), None)])


# Sealing


def test_sealing_moves_pending_vectors_into_files_with_the_manifest_s_checksums(
    path: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    writer.write([entry("a", "ab", EAST, NORTH), entry("b", "b", NORTH), entry("c", "c", EAST)])
    writer.remove(["b"])
    assert writer.seal() is True
    assert [row[:-1] for row in table_rows(path, "segments")] == [
        ("0000000003", 1, 4, 3, 0, "SQfp16", faiss.__version__)
    ]
    files = [path / "segments" / f"0000000003.{suffix}" for suffix in ("fp16.faiss", "ids.npy")]
    assert table_rows(path, "segment_files") == [
        (file.name, "0000000003", file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files
    ]
    crcs = [vector_crc(*row) for row in ((1, 1, EAST_BLOB), (2, 1, NORTH_BLOB), (4, 3, EAST_BLOB))]
    assert np.load(files[1]).tolist() == [[1, 2, 4], [1, 1, 3], crcs]
    assert table_rows(path, "pending") == []
    assert table_rows(path, "changes") == []  # what went before it was sealed is in no segment
    assert writer.state.number == 3
    check_consistent(path)


def test_sealing_nothing_does_nothing(path: Path, writer: IndexWriter) -> None:
    assert writer.seal() is False
    assert (table_rows(path, "segments"), writer.state.number) == ([], 0)


def test_enough_pending_vectors_are_sealed_by_writing(
    path: Path, writer: IndexWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 3)
    writer.write([entry("a", "a", EAST), entry("b", "b", EAST)])
    assert (writer.pending_rows, table_rows(path, "segments")) == (2, [])
    writer.write([entry("c", "c", EAST)])
    assert (writer.pending_rows, len(table_rows(path, "segments"))) == (0, 1)


@pytest.mark.parametrize(("limit", "pending"), [(3, 0), (4, 3)])
def test_closing_seals_what_is_worth_it(path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, pending: int) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS_ON_CLOSE", limit)
    with IndexWriter(path, create=SETTINGS) as writer:
        writer.write([entry(id_, id_, EAST) for id_ in "abc"])
    assert len(table_rows(path, "pending")) == pending


def test_closing_empties_the_log(path: Path) -> None:
    with IndexWriter(path, create=SETTINGS) as writer:
        writer.write([entry("a", "a", EAST)])
        assert (path / "meta.sqlite-wal").stat().st_size > 0
    assert not (path / "meta.sqlite-wal").exists()


def test_pending_vectors_that_changed_on_disk_are_not_sealed(path: Path, writer: IndexWriter) -> None:
    writer.write([entry("a", "a", EAST)])
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as other:
        other.execute("UPDATE pending SET vector = ?", (NORTH_BLOB,))
        with pytest.raises(CorruptIndexError, match="pending vector 1 does not match its checksum"):
            writer.seal()
        other.execute("UPDATE pending SET vector = ?", (EAST_BLOB,))
    assert writer.seal() is True


def test_what_a_crash_left_among_the_segments_goes_when_a_writer_opens(path: Path) -> None:
    build_index(path, [Document("a", "one ball")], seal=True)
    folder = path / "segments"
    named = {file.name for file in folder.iterdir()}
    stray = ["0000000009.fp16.faiss", "0000000009.ids.npy", f"{min(named)}.tmp", "0000000010.fp16.faiss.tmp"]
    for name in stray:
        (folder / name).write_bytes(b"x")
    with IndexReader(path):
        assert {file.name for file in folder.iterdir()} == named | set(stray)  # a reader deletes nothing
    IndexWriter(path).close()
    assert {file.name for file in folder.iterdir()} == named


def test_what_somebody_put_among_the_segments_stays(path: Path) -> None:
    build_index(path, [Document("a", "one ball")], seal=True)
    folder = path / "segments"
    (folder / "README.txt").write_text("mine")
    (folder / "notes.npy").write_bytes(b"mine")
    (folder / "0000000009.ids.npy").mkdir()
    IndexWriter(path).close()
    assert (folder / "README.txt").read_text() == "mine"
    assert (folder / "notes.npy").read_bytes() == b"mine"
    assert (folder / "0000000009.ids.npy").is_dir()


def test_a_refused_second_writer_deletes_nothing(path: Path, writer: IndexWriter) -> None:
    writer.write([entry("a", "a", EAST)])
    (path / "segments" / "0000000009.fp16.faiss.tmp").write_bytes(b"x")
    with pytest.raises(LockedError):
        IndexWriter(path)
    assert (path / "segments" / "0000000009.fp16.faiss.tmp").exists()


# What is not an index


def test_a_missing_index_is_not_made_unless_asked(path: Path) -> None:
    with pytest.raises(NotAnIndexError, match=r"is not an index: it has no meta\.sqlite; make it with 'indexer add'"):
        IndexWriter(path)
    assert not path.exists()


def test_a_file_is_not_an_index(path: Path) -> None:
    path.write_text("x")
    with pytest.raises(NotAnIndexError, match="is a file, not an index folder"):
        IndexWriter(path, create=SETTINGS)
    assert path.read_text() == "x"


def test_a_folder_with_other_files_is_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("x")
    with pytest.raises(NotAnIndexError, match=r"holds other files such as thesis\.tex: choose a new folder"):
        IndexWriter(path, create=SETTINGS)
    assert [file.name for file in path.iterdir()] == ["thesis.tex"]


def test_an_index_is_made_by_its_first_commit(path: Path) -> None:
    """Or by the end of a writer that nothing stopped."""

    def stopped(create: IndexSettings, *entries: Entry) -> None:
        with IndexWriter(path, create=create, empty=False) as writer:
            writer.write(entries)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(SETTINGS)
    assert table_rows(path, "settings") == table_rows(path, "commits") == []
    other = replace(SETTINGS, model="other")
    with pytest.raises(KeyboardInterrupt):
        stopped(other, entry("a", "a", EAST))
    with IndexWriter(path, create=SETTINGS) as again:
        assert (again.settings, again.state.number) == (other, 1)


def test_an_empty_folder_becomes_an_index(path: Path) -> None:
    path.mkdir()
    IndexWriter(path, create=SETTINGS).close()
    assert table_rows(path, "commits")[0][0] == 0


def database(path: Path, *statements: str) -> bytes:
    path.mkdir()
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return (path / "meta.sqlite").read_bytes()


@pytest.mark.parametrize("create", [None, SETTINGS])
def test_another_program_s_database_is_left_alone(path: Path, create: IndexSettings | None) -> None:
    before = database(path, "CREATE TABLE bookmarks (url TEXT)", "PRAGMA application_id = 7")
    with pytest.raises(NotAnIndexError, match=r"but not an index's \(application id 0x7, expected 0x74676478\)"):
        IndexWriter(path, create=create)
    assert (path / "meta.sqlite").read_bytes() == before


@pytest.mark.parametrize("create", [None, SETTINGS])
def test_a_file_that_is_no_database_is_left_alone(path: Path, create: IndexSettings | None) -> None:
    path.mkdir()
    (path / "meta.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(NotAnIndexError, match=r"meta\.sqlite is not an index's database: file is not a database"):
        IndexWriter(path, create=create)
    assert (path / "meta.sqlite").read_bytes() == b"no database" * 1000


def test_an_empty_database_is_not_an_index(path: Path) -> None:
    database(path)
    with pytest.raises(NotAnIndexError, match="is not an index yet: it has no settings"):
        IndexWriter(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    build_index(path, [Document("a", "a")])
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(FormatError, match="has format 99, this version of tagdex reads formats up to 1: use a newer"):
        IndexWriter(path)


def test_a_refused_folder_is_not_left_locked(path: Path) -> None:
    database(path, "CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(NotAnIndexError):
        IndexWriter(path)
    (path / "meta.sqlite").unlink()
    IndexWriter(path, create=SETTINGS).close()


# One writer

_HOLD = """
import sys, time
from indexer.store import IndexWriter
with IndexWriter(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_in_this_process_is_refused(writer: IndexWriter) -> None:
    with pytest.raises(LockedError, match=f"is being written to by process {os.getpid()}: wait until it is done"):
        IndexWriter(writer.path)


def test_a_closed_writer_gives_the_lock_back(path: Path) -> None:
    for _ in range(3):
        IndexWriter(path, create=SETTINGS).close()


def test_a_writer_left_by_an_unforeseen_error_gives_the_lock_back(path: Path) -> None:
    def use(writer: IndexWriter) -> None:
        with writer:
            writer.write([entry("a", "a", EAST)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use(IndexWriter(path, create=SETTINGS))
    with IndexWriter(path) as again:
        assert again.state.documents == 1


def test_another_process_is_named_and_its_lock_ends_with_it(path: Path) -> None:
    build_index(path, [Document("a", "a")])
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(LockedError, match=f"is being written to by process {holder.pid}:"):
            IndexWriter(path)
        holder.kill()
    IndexWriter(path).close()


_REFUSED = """
import sys, time
from indexer.errors import LockedError
from indexer.store import IndexWriter
for _ in range(5):
    started = time.monotonic()
    try:
        IndexWriter(sys.argv[1])
    except LockedError as error:
        print(time.monotonic() - started, error, sep="\\t")
"""


def test_a_second_process_is_refused_within_a_second_and_told_which_one_writes(path: Path) -> None:
    build_index(path, [Document("a", "a")])
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        second = subprocess.run([sys.executable, "-c", _REFUSED, str(path)], capture_output=True, text=True, check=True)
        holder.kill()
    refusals = [line.split("\t") for line in second.stdout.splitlines()]
    assert len(refusals) == 5
    for seconds, message in refusals:
        assert float(seconds) < 1.0
        assert message == f"{path} is being written to by process {holder.pid}: wait until it is done, or stop it"


# Kills and full disks

_ADD = """
import sys
from fakes import DemoAnalyser, entries
from indexer import store
from indexer.records import Document
store.SEAL_ROWS = 64
model = DemoAnalyser()
with store.IndexWriter(sys.argv[1]) as writer:
    for batch in range(int(sys.argv[2]), 10_000):
        documents = [Document(f"{batch}-{n}", f"batch {batch} Text {n} ball", {"batch": batch}) for n in range(10)]
        writer.write(entries(documents, model))
        print(batch, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path) -> None:
    build_index(path, [])
    rng, model, first = random.Random(0), DemoAnalyser(), 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _ADD, str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        ) as child:
            assert child.stdout is not None
            for _ in range(rng.randint(1, 30)):
                assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in child.stdout.read().split()]
        check_consistent(path)
        batches = {row[1].split("-")[0] for row in table_rows(path, "documents")}
        last = max([int(batch) for batch in batches], default=-1)
        assert batches == {str(batch) for batch in range(last + 1)}  # whole batches, without a gap
        assert len(table_rows(path, "documents")) == 10 * (last + 1)
        assert all(batch <= last for batch in acknowledged)
        first = last + 1
    texts = {row[1]: row[2] for row in table_rows(path, "documents")}
    query = model.vector("batch 3 Text 7 ball")
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        found, _ = snapshot.search_vectors(query, len(texts) + 1)
        ids = snapshot.ids(found.docs.tolist())
        assert snapshot.view.segments  # some vectors were sealed, some were not
        assert {ids[doc]: score for doc, score in zip(found.docs.tolist(), found.scores.tolist(), strict=True)} == (
            pytest.approx(document_scores(texts, query, model), abs=1e-12)
        )


def fill_until_full(writer: IndexWriter, model: DemoAnalyser, *, start: int = 0) -> int:
    """Write batches of 20 until the disk is full; returns how many were acknowledged."""
    for batch in range(start, 10_000):
        try:
            writer.write(entries([Document(f"{batch}-{n}", f"text {n} " * 50) for n in range(20)], model))
        except StorageError:
            return batch
    raise AssertionError("the disk never became full")


@pytest.mark.parametrize("seal_rows", [100, 10**9])
def test_a_full_disk_keeps_what_was_acknowledged_and_writing_goes_on_when_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, seal_rows: int
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", seal_rows)
    path, model = small_disk / "index", DemoAnalyser()
    ballast = small_disk / "ballast"
    with IndexWriter(path, create=settings_of(model)) as writer:
        ballast.write_bytes(bytes(4_500_000))
        full = fill_until_full(writer, model)
        assert full > 0
        check_consistent(path)
        written = {row[1] for row in table_rows(path, "documents")}
        assert written >= {f"{batch}-{n}" for batch in range(full) for n in range(20)}
        ballast.unlink()
        for batch in range(full, full + 5):
            writer.write(entries([Document(f"{batch}-{n}", f"text {n} " * 50) for n in range(20)], model))
        check_consistent(path)
    shutil.copytree(path, small_disk.with_name("copy"))
    with IndexWriter(small_disk.with_name("copy")) as again:
        again.write(entries([Document("last", "text")], model))
        assert again.seal() is True
    check_consistent(small_disk.with_name("copy"))


def test_a_log_that_cannot_grow_is_a_storage_error(path: Path) -> None:
    model = DemoAnalyser()
    with IndexWriter(path, create=settings_of(model)) as writer:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            full = fill_until_full(writer, model)
            assert full > 0
            check_consistent(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.write(entries([Document("last", "text")], model))
        check_consistent(path)
    with IndexWriter(path) as again:
        assert again.state.documents >= 20 * full + 1
