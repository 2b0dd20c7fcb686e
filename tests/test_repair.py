"""`repair_index` restores damage of every kind, reports what it cannot, and loses nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import sqlite3
import struct
import sys
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner
from fakes import DemoAnalyser, build_vector_index, check_consistent, clustered, entries

from indexer import compaction, merging, planner, store
from indexer.cli import cli
from indexer.durable import write_file
from indexer.errors import CorruptIndexError, LockedError, ModelError, StorageError, TagdexError
from indexer.pages import PAGE_SIZE, DamagedDatabase, Row
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.repair import RepairReport, repair_index
from indexer.settings import settings_of
from indexer.store import IndexWriter
from indexer.stored import StoredDocument, read_documents
from indexer.verify import verify_index

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "faults"))

import corruption
from workload import State

TEXT = "Ada rode a race through Oslo with Nora and a song and a ball at the end of it"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments with codes, one of them with dead vectors, and pending vectors, some of them only in the log."""
    path, model = tmp_path_factory.mktemp("sound") / "index", DemoAnalyser()
    with IndexWriter(path, create=settings_of(model)) as writer:
        for first in (0, 60):
            documents = [Document(f"d{n}", f"{TEXT} {n}", {"n": n, "tags": ["x"]}) for n in range(first, first + 60)]
            writer.write(entries(documents, model))
            writer.seal()
            if first == 0:
                writer.compact(full=True, codes="always")
        writer.write(entries([Document(f"d{n}", f"{TEXT} {n}", {"n": n}) for n in range(120, 125)], model))
        writer.remove(["d4"])
    writer = IndexWriter(path)
    for n in range(125, 130):
        writer.write(entries([Document(f"d{n}", f"Paul sings {n}", {"n": n})], model))
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    writer._abandon()
    return copy


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "index"))


def repaired(path: Path) -> RepairReport:
    report = repair_index(path, load=lambda _: DemoAnalyser())
    assert verify_index(path).faults == ()
    check_consistent(path)
    return report


def content(path: Path) -> dict[str, tuple[StoredDocument, list[bytes]]]:
    """Every document with its vectors."""
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        vectors = {
            vid: row.tobytes()
            for segment in snapshot.view.all
            for vid, row in zip(segment.vids.tolist(), segment.table, strict=True)
        }
        docs = [doc for (doc,) in snapshot.connection.execute("SELECT doc FROM documents")]
        return {
            stored.id: (
                stored,
                [vectors[passage.vid] for passage in stored.passages] + [snapshot.document_vector(doc).tobytes()],
            )
            for doc, stored in read_documents(snapshot.connection, docs).items()
        }


def damage(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def flip(file: Path, at: int, bit: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= bit
    file.write_bytes(data)


def test_a_sound_index_is_left_as_it_is(path: Path) -> None:
    before = (path / "meta.sqlite").stat()
    assert repair_index(path) == RepairReport((), (), None)
    assert (path / "meta.sqlite").stat().st_ino == before.st_ino
    assert not list(path.glob("damaged*"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET text = replace(text, 'Oslo', 'Osln') WHERE id = 'd7'",
        "UPDATE documents SET metadata = replace(metadata, 'tags', 'tagr') WHERE id = 'd7'",
        "UPDATE documents SET content_hash = x'00' WHERE id = 'd7'",
        "UPDATE documents SET digest = zeroblob(16) WHERE id = 'd7'",
        "UPDATE documents SET label = NULL, label_score = NULL WHERE id = 'd7'",
        "UPDATE entities SET score = 1 WHERE doc = 8",
        "DELETE FROM entities WHERE doc = 8",
        "DELETE FROM entity_terms",
        "UPDATE entity_terms SET norm = 'ida' WHERE norm = 'ada'",
        "UPDATE entity_terms SET type = 'PES' WHERE norm = 'ada'",
        "UPDATE labels SET name = 'sporu'",
        "DELETE FROM labels",
        "DELETE FROM fields",
        "DELETE FROM paths",
        "UPDATE passages SET start = 1 WHERE doc = 8",
        "DELETE FROM passages WHERE doc = 8",
        "UPDATE pending SET vector = zeroblob(32)",
        "DELETE FROM pending",
        "UPDATE pooled SET vector = zeroblob(32) WHERE doc = 8",
        "DELETE FROM pooled",
        "DELETE FROM changes",
        "DELETE FROM commits",
        "UPDATE commits SET documents = 19",
        "UPDATE segments SET rerank = rerank + 1",
        "DELETE FROM segments",
        "DELETE FROM segment_files",
        "DELETE FROM settings",
        "UPDATE settings SET value = '17' WHERE name = 'dimension'",
        "UPDATE settings SET value = 'nulk' WHERE name = 'class_labels'",
        "DELETE FROM settings WHERE name = 'code_space_sha256'",
        "UPDATE sqlite_sequence SET seq = 1",
        "CREATE TRIGGER more AFTER INSERT ON documents BEGIN DELETE FROM documents WHERE doc = new.doc - 1; END",
        # What is left of documents that were removed:
        "INSERT INTO documents SELECT 999, 'gone', text, metadata, content_hash, label, label_score, 1, digest"
        " FROM documents WHERE id = 'd7'",
        'INSERT INTO entities SELECT 999, start, "end", term, score FROM entities WHERE doc = 8',
        'INSERT INTO passages SELECT 9999, 999, start, "end", tokens FROM passages WHERE doc = 8 LIMIT 1',
    ],
)
def test_damaged_rows_are_restored(path: Path, statement: str) -> None:
    before = content(path)
    damage(path, statement)
    assert verify_index(path).faults != ()
    report = repaired(path)
    assert report.lost == ()
    assert content(path) == before


@pytest.mark.parametrize("suffix", ["fp16.faiss", "ids.npy", "codes.faiss", "codes.npy", "codes.space.npy"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damaged_files_are_restored(path: Path, suffix: str, how: str) -> None:
    before = content(path)
    file = min(file for file in (path / "segments").iterdir() if file.name.endswith(suffix))
    if how == "flip":
        flip(file, file.stat().st_size // 2)
    elif how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    assert f"segments/{file.name}" in {fault.place for fault in verify_index(path).faults}
    report = repaired(path)
    assert report.lost == ()
    assert content(path) == before
    if how != "delete":
        assert (path / "damaged-1" / file.name).is_file()


def test_only_the_vectors_that_are_damaged_are_embedded_again(path: Path) -> None:
    model, file = DemoAnalyser(), min((path / "segments").glob("*.fp16.faiss"))
    flip(file, file.stat().st_size - 5)
    assert repair_index(path, load=lambda _: model).lost == ()
    assert len(model.analysed) == 1


def test_vectors_that_a_killed_run_embedded_are_found_by_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, damaged = content(path), min((path / "segments").glob("*.fp16.faiss"))
    damaged.unlink()
    monkeypatch.setattr("indexer.rebuild._EMBEDDED", 1)
    model = DemoAnalyser()
    with monkeypatch.context() as patch:
        patch.setattr("indexer.rebuild.Rebuild._write_vectors", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair_index(path, load=lambda _: model)
    assert model.analysed
    again = DemoAnalyser()
    assert repair_index(path, load=lambda _: again).lost == ()
    assert again.analysed == []
    assert content(path) == before


def test_a_given_vector_is_lost_alone_and_its_record_is_kept(tmp_path: Path) -> None:
    path = build_vector_index(tmp_path / "index", clustered(300, dimension=16), text="a text")
    with IndexWriter(path) as writer:
        writer.seal()
    (file,) = (path / "segments").glob("*.fp16.faiss")
    flip(file, file.stat().st_size - 5)
    report = repair_index(path)
    assert [fault.place for fault in report.lost] == ["document 'd299'"]
    assert verify_index(path).faults == ()
    assert content(path).keys() == {f"d{n}" for n in range(299)}
    kept = (path / "damaged-1" / "lost.jsonl").read_text()
    assert kept == '{"id": "d299", "text": "a text", "metadata": {"n": 299}}\n'


def test_without_the_model_nothing_is_changed(path: Path) -> None:
    file = min((path / "segments").glob("*.fp16.faiss"))
    flip(file, file.stat().st_size - 5)
    with pytest.raises(ModelError, match="only be repaired with the model that built it: pass --model"):
        repair_index(path)
    with pytest.raises(ModelError, match="was built with model demo"):
        repair_index(path, load=lambda _: DemoAnalyser(seed=1))
    assert not list(path.glob("damaged-*"))
    assert repaired(path).lost == ()


def test_settings_are_not_taken_from_another_model(path: Path) -> None:
    damage(path, "DELETE FROM settings")
    with pytest.raises(ModelError, match="does not make the vectors that are in it"):
        repair_index(path, load=lambda _: DemoAnalyser(seed=1))


def test_a_model_that_cannot_be_compared_does_not_replace_the_vectors_that_are_there(path: Path) -> None:
    damage(path, "DELETE FROM settings")
    before = {file.name: file.read_bytes() for file in (path / "segments").iterdir()}
    with pytest.raises(ModelError, match="no vector of it can be compared with those of demo: pass the --model"):
        repair_index(path, load=lambda _: DemoAnalyser(dimension=24))
    assert {file.name: file.read_bytes() for file in (path / "segments").iterdir()} == before
    assert repaired(path).lost == ()


@pytest.mark.parametrize("sealed", [False, True])
def test_given_vectors_are_never_replaced_by_those_of_a_model(tmp_path: Path, sealed: bool) -> None:
    path = build_vector_index(tmp_path / "index", clustered(30, dimension=16), text="Ada sings")
    if sealed:
        with IndexWriter(path) as writer:
            writer.seal()
    before = content(path)
    damage(path, "DELETE FROM settings WHERE name = 'digests'")
    assert repair_index(path, load=lambda _: DemoAnalyser(dimension=24)).lost == ()
    assert content(path) == before
    damage(path, "DELETE FROM settings")
    with pytest.raises(ModelError, match="has lost its settings"):
        repair_index(path, load=lambda _: DemoAnalyser(dimension=24))


def test_what_was_kept_as_it_can_be_read_can_be_added_again(path: Path) -> None:
    before, document = content(path)["d7"][0], Document("d7", f"{TEXT} 7", {"n": 7, "tags": ["x"]})
    damage(path, "UPDATE documents SET text = 'Something else, quite' WHERE id = 'd7'")
    assert "add the document again" in repaired(path).lost[0].problem
    with IndexWriter(path) as writer:
        (plan,) = writer.plan([document], since=10**9)
        assert plan.action is store.Action.EMBED
        writer.write(entries([document], DemoAnalyser()))
    after = content(path)["d7"][0]
    assert (after.text, after.metadata_json, after.spans) == (before.text, before.metadata_json, before.spans)


def test_a_row_that_is_damaged_is_kept_under_the_id_that_leads_to_it(path: Path) -> None:
    """The id, the text and the metadata in the row are gone, but not in SQLite's index of the ids."""
    data = bytearray((path / "meta.sqlite").read_bytes())
    row = b"d7" + f"{TEXT} 7".encode()
    assert data.count(row) == 1
    data[(at := data.index(row)) : at + len(row)] = b"x" * len(row)
    (path / "meta.sqlite").write_bytes(data)
    assert [fault.place for fault in repaired(path).lost] == ["document 'd7'"]
    assert content(path)["d7"][0].text == "x" * (len(row) - 2)


def test_of_two_documents_with_one_id_the_one_that_is_not_proven_is_kept_as_a_record(path: Path) -> None:
    before = content(path)
    damage(
        path,
        "INSERT INTO documents SELECT 999, 'same', 'What was read', '{}', content_hash, label, label_score, 1, digest"
        " FROM documents WHERE id = 'd7'",
        "DELETE FROM documents WHERE id = 'd8'",
    )
    data = (path / "meta.sqlite").read_bytes()
    assert data.count(b"same") == 2  # in the table, and in SQLite's index of the ids
    (path / "meta.sqlite").write_bytes(data.replace(b"same", b"d100"))
    report = repaired(path)
    assert {fault.place for fault in report.lost} == {"document 'd100'", "document number 9"}
    assert content(path) == {id_: item for id_, item in before.items() if id_ != "d8"}
    assert json.loads((path / "damaged-1" / "lost.jsonl").read_text()) == {
        "id": "d100",
        "text": "What was read",
        "metadata": {},
    }


@pytest.mark.parametrize("number", [0, -7, 2**61])
def test_numbers_that_nothing_proves_are_given_anew(path: Path, number: int) -> None:
    """A reader asks for vectors behind number 0, and behind a very high one there are none left."""
    highest = max(passage.vid for stored, _ in content(path).values() for passage in stored.passages)
    damage(
        path,
        "UPDATE documents SET text = 'Something else, quite' WHERE id = 'd7'",
        "DELETE FROM passages WHERE doc = 8",
        f'INSERT INTO passages (vid, doc, start, "end", tokens) VALUES ({number}, 8, 0, 9, 2)',
    )
    assert [fault.place for fault in repaired(path).lost] == ["document 'd7'"]
    (passage,) = content(path)["d7"][0].passages
    assert highest < passage.vid < 10 * highest


@pytest.mark.parametrize("number", [0, 2**40])
def test_a_document_whose_number_is_not_one_is_kept_as_a_record(path: Path, number: int) -> None:
    before = content(path)
    damage(
        path,
        f"UPDATE documents SET doc = {number}, text = 'What was read', digest = zeroblob(16) WHERE id = 'd7'",
        "DELETE FROM documents WHERE id = 'd8'",
    )
    report = repaired(path)
    assert "document 'd7'" in {fault.place for fault in report.lost}
    assert content(path).keys() == before.keys() - {"d7", "d8"}
    assert json.loads((path / "damaged-1" / "lost.jsonl").read_text())["text"] == "What was read"


def test_an_update_that_is_lost_is_reported_where_the_older_version_is_sound(path: Path) -> None:
    """The page with the update went to another number in the log: a write to the wrong place."""
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer = IndexWriter(path)
    writer.write([store.Entry(Document("d7", f"{TEXT} 7", {"n": 777}), None)])
    damaged = Path(shutil.copytree(path, path.with_name("damaged")))
    writer._abandon()
    pages = DamagedDatabase(damaged / "meta.sqlite", whole_log=False).pages("documents")
    log = bytearray((damaged / "meta.sqlite-wal").read_bytes())
    for at in range(32, len(log), 24 + PAGE_SIZE):
        (number,) = struct.unpack_from(">I", log, at)
        if number in pages:
            struct.pack_into(">I", log, at, number + 2**20)
    (damaged / "meta.sqlite-wal").write_bytes(log)
    report = repaired(damaged)
    assert content(damaged)["d7"][0].metadata["n"] == 7
    assert [(fault.place, fault.problem.partition(",")[0]) for fault in report.lost] == [
        ("documents", "some are not as the last commit left them")
    ]


@pytest.mark.parametrize("name", ["LOCK", "repair.lost.json", "damaged.tmp", "segments/0000000009r0.ids.npy.tmp"])
def test_nothing_is_written_through_a_link(path: Path, tmp_path: Path, name: str) -> None:
    """In a folder that somebody else has made, it may lead to any file of the user's."""
    (mine := tmp_path / "mine").write_text("precious")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(mine)
    flip(min((path / "segments").glob("*.fp16.faiss")), 200)
    if name.endswith(".tmp") and "/" in name:
        with pytest.raises(OSError, match="symbolic links"):
            write_file(path / name.removesuffix(".tmp"), lambda _: None)
    else:
        with pytest.raises(StorageError, match=f"{name} is a symbolic link, which is not written through: remove it"):
            repair_index(path, load=lambda _: DemoAnalyser())
    assert mine.read_text() == "precious"


def test_a_log_that_is_gone_is_reported_where_the_row_of_the_last_commit_is_damaged_too(path: Path) -> None:
    last = len(content(path))
    (path / "meta.sqlite-wal").unlink()
    damage(path, "DELETE FROM commits")
    report = repaired(path)
    assert len(content(path)) == last - 5
    (fault,) = report.lost
    assert (fault.place, fault.problem.partition(",")[0]) == ("meta.sqlite-wal", "the last commit's row is lost")


def test_a_log_is_read_behind_its_damage_where_the_lock_file_does_not_say_what_is_missing(path: Path) -> None:
    before = content(path)
    (path / "LOCK").unlink()
    flip(path / "meta.sqlite-wal", 40_000)
    flip(min((path / "segments").glob("*.fp16.faiss")), 200)
    assert repaired(path).lost == ()
    assert content(path) == before


def test_rows_are_not_all_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the damaged database are put down one by one."""
    rows = DamagedDatabase.rows
    held: set[int] = set()
    most = 0

    def counted(self: DamagedDatabase, table: str) -> Iterator[Row]:
        nonlocal most
        for row in rows(self, table):
            if table != "documents" or len(row) != 9:
                yield row
                continue
            text = Text(row[2])
            held.add(id(text))
            weakref.finalize(text, held.discard, id(text))
            most = max(most, len(held))
            yield (*row[:2], text, *row[3:])
            del text

    monkeypatch.setattr(DamagedDatabase, "rows", counted)
    damage(path, "DELETE FROM fields")
    assert repaired(path).lost == ()
    assert 0 < most < 10


class Text(str):
    """A text of which it is known when it goes."""


def test_a_text_damaged_beyond_its_digest_is_kept_as_it_can_be_read_and_reported(path: Path) -> None:
    damage(path, "UPDATE documents SET text = 'Something else, quite' WHERE id = 'd7'")
    report = repaired(path)
    assert [fault.place for fault in report.lost] == ["document 'd7'"]
    assert content(path)["d7"][0].text == "Something else, quite"


def test_a_document_that_is_gone_is_reported(path: Path) -> None:
    before = content(path)
    damage(path, "DELETE FROM documents WHERE id = 'd7'")
    assert {fault.place for fault in repaired(path).lost} == {"document number 8"}
    assert content(path) == {id_: item for id_, item in before.items() if id_ != "d7"}


@pytest.mark.parametrize("at", [0, 17, 20, 60, 63, 70, 100, 103, 105, 110, 16_300])
def test_a_damaged_header_or_schema_is_restored(path: Path, at: int) -> None:
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = content(path)
    flip(path / "meta.sqlite", at, 0x10)
    try:
        assert verify_index(path).faults != ()
    except TagdexError as error:
        pytest.fail(f"raised {error!r}")
    assert repaired(path).lost == ()
    assert content(path) == before


@pytest.mark.parametrize("at", [0, 3, 4, 7, 8, 9, 12, 13])
def test_a_damaged_page_header_is_restored(path: Path, at: int) -> None:
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = content(path)
    for page in DamagedDatabase(path / "meta.sqlite", whole_log=False).pages("documents"):
        flip(path / "meta.sqlite", (page - 1) * PAGE_SIZE + at, 0x02)
    report = repaired(path)
    assert report.lost == ()
    assert content(path) == before


@pytest.mark.parametrize("at", [0, 9, 17, 30, 40, 5_000, 40_000])
def test_a_damaged_log_is_found_and_what_stands_behind_is_restored(path: Path, at: int) -> None:
    before = content(path)
    flip(path / "meta.sqlite-wal", at)
    places = {fault.place for fault in verify_index(path).faults}
    assert "meta.sqlite-wal" in places
    with pytest.raises(CorruptIndexError, match="was acknowledged"):
        IndexWriter(path)
    with pytest.raises(CorruptIndexError, match="was acknowledged"):
        IndexReader(path)
    assert repaired(path).lost == ()
    assert content(path) == before


def test_a_log_that_is_gone_is_found_and_reported(path: Path) -> None:
    (path / "meta.sqlite-wal").unlink()
    assert {fault.place for fault in verify_index(path).faults} == {"meta.sqlite-wal"}
    assert {fault.place for fault in repaired(path).lost} == {"meta.sqlite-wal"}
    assert content(path).keys() == {f"d{n}" for n in range(125)} - {"d4"}


@pytest.mark.parametrize("renamed", range(3))
def test_a_repair_that_was_cut_off_is_ended_by_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    """Killed before the first, the second, the third rename of `_finish`."""
    before = content(path)
    damage(path, "DELETE FROM fields", "UPDATE documents SET text = 'Else' WHERE id = 'd7'")
    real, calls = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        if str(target).endswith(("/meta.sqlite", "damaged.tmp/meta.sqlite", "damaged-1")):
            calls[0] += 1
            if calls[0] == renamed + 1:
                raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            repair_index(path, load=lambda _: DemoAnalyser())
    if renamed < 2:
        assert verify_index(path).faults != ()
        with pytest.raises(CorruptIndexError, match=r"a repair of .* was cut off"):
            IndexWriter(path)
    report = repaired(path)
    assert [fault.place for fault in report.lost] == ["document 'd7'"]
    assert report.kept == str(path / "damaged-1")
    after = content(path)
    assert {id_: item for id_, item in after.items() if id_ != "d7"} == {
        id_: item for id_, item in before.items() if id_ != "d7"
    }


def test_a_repair_of_which_only_the_log_was_left_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the damaged files get their last name."""
    model = DemoAnalyser()
    writer = IndexWriter(tmp_path / "whole", create=settings_of(model))
    writer._connection.execute("PRAGMA wal_autocheckpoint = 0")
    writer.write(entries([Document(f"d{n}", f"{TEXT} {n}") for n in range(5)], model))
    path = Path(shutil.copytree(tmp_path / "whole", tmp_path / "index"))
    before = content(path)
    writer._abandon()
    (path / "meta.sqlite").unlink()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if str(target).endswith("damaged-1"):
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            repair_index(path)
    assert repaired(path).kept == str(path / "damaged-1")
    assert (path / "damaged-1" / "meta.sqlite-wal").is_file()
    assert content(path) == before


def test_a_repair_on_a_full_disk_leaves_the_room_that_it_took(path: Path) -> None:
    flip(path / "meta.sqlite", 17)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100_000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StorageError, match=r"cannot be repaired: .*; run it again when that is mended"):
                repair_index(path, load=lambda _: DemoAnalyser())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(path.glob("meta.sqlite.r*"))
    assert repaired(path).lost == ()


def test_sectors_that_cannot_be_read_are_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of meta.sqlite: those with the fields, which are made again."""
    before = content(path)
    damage(path, "DELETE FROM fields WHERE doc = 8")
    bad = DamagedDatabase(path / "meta.sqlite", whole_log=False).pages("fields")
    real, failed = os.pread, [0]

    def pread(descriptor: int, length: int, at: int) -> bytes:
        for number in bad:
            sector = (number - 1) * PAGE_SIZE + 8_192
            if at < sector + 4_096 and at + length > sector:
                failed[0] += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, at)

    monkeypatch.setattr(os, "pread", pread)
    page = DamagedDatabase(path / "meta.sqlite", whole_log=False).page(bad[0])
    assert len(page) == PAGE_SIZE
    assert page[8_192:12_288] == bytes(4_096) != page[12_288:]
    assert failed[0] == 2  # the page, and of its sectors the one
    assert repaired(path).lost == ()
    assert content(path) == before


@pytest.mark.parametrize(("suffix", "embedded"), [("fp16.faiss", 41), ("ids.npy", 0), ("codes.npy", 0)])
def test_sectors_of_a_segment_that_cannot_be_read_are_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, embedded: int
) -> None:
    before, model = content(path), DemoAnalyser()
    bad = min((path / "segments").glob(f"*.{suffix}"))
    number = bad.stat().st_ino
    real, digest = os.pread, hashlib.file_digest

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if os.fstat(descriptor).st_ino == number and at < 4_096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, at)

    def file_digest(file: BinaryIO, name: str) -> Any:
        if os.fstat(file.fileno()).st_ino == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file, name)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    report = repair_index(path, load=lambda _: model)
    assert ((fault := report.found[0]).place, fault.problem) == (
        f"segments/{bad.name}",
        "cannot be read: Input/output error",
    )
    assert (report.lost, len(model.analysed)) == ((), embedded)
    assert not list((path / "segments").glob("tmp*"))
    assert verify_index(path).faults == ()
    assert content(path) == before


def test_a_file_that_cannot_be_read_is_named_with_the_way_out(path: Path) -> None:
    (path / "segments" / "codes.space.npy").unlink()
    (path / "segments" / "codes.space.npy").symlink_to("/proc/self/mem")  # a file whose first bytes cannot be read
    assert [(fault.place, fault.problem) for fault in verify_index(path).faults] == [
        ("segments/codes.space.npy", "cannot be read: Input/output error")
    ]
    with pytest.raises(StorageError, match=r"codes\.space\.npy cannot be read: .*, or move it away: then the repair"):
        repair_index(path, load=lambda _: DemoAnalyser())
    (path / "segments" / "codes.space.npy").unlink()
    assert repaired(path).lost == ()


def test_a_repaired_index_can_be_written_to(path: Path) -> None:
    damage(path, "DELETE FROM sqlite_sequence", "DELETE FROM changes")
    repaired(path)
    with IndexWriter(path) as writer:
        writer.write(entries([Document("d3", "Another text", {}), Document("new", "Rome", {})], DemoAnalyser()))
        writer.remove(["d60"])
        writer.compact(full=True)
    assert verify_index(path).faults == ()
    assert content(path).keys() == ({f"d{n}" for n in range(130)} | {"new"}) - {"d4", "d60"}


def test_an_index_that_is_written_to_is_not_repaired(path: Path) -> None:
    with IndexWriter(path), pytest.raises(LockedError):
        repair_index(path)


def test_a_database_without_a_row_is_refused(path: Path) -> None:
    (path / "meta.sqlite").write_bytes(b"\0" * 50_000)
    (path / "meta.sqlite-wal").unlink()
    assert verify_index(path).faults != ()
    with pytest.raises(CorruptIndexError, match="has no row that can be read"):
        repair_index(path)


def test_a_merge_does_not_copy_damage(path: Path) -> None:
    file = max((path / "segments").glob("*.fp16.faiss"))
    flip(file, file.stat().st_size - 5)
    with pytest.raises(TagdexError, match="is not what was written"), IndexWriter(path) as writer:
        writer.compact(full=True)
    assert f"segments/{file.name}" in {fault.place for fault in verify_index(path).faults}


def test_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.api._load", lambda *_: DemoAnalyser())
    assert CliRunner().invoke(cli, ["verify", str(path), "--repair"]).output == f"{path}: no fault\n"
    damage(path, "DELETE FROM fields WHERE doc = 8")
    result = CliRunner().invoke(cli, ["verify", str(path), "--repair"])
    assert "found: document 'd7': filters do not know its field 'n'" in result.output
    assert result.output.endswith(f"the damaged files are in {path}/damaged-1\n{path}: everything is restored\n")
    assert result.exit_code == 0
    damage(path, "DELETE FROM documents WHERE id = 'd7'")
    result = CliRunner().invoke(cli, ["verify", str(path), "--repair"])
    assert "lost: document number 8: it is lost" in result.output
    assert isinstance(result.exception, CorruptIndexError)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, corruption.Content, list[State]]]:
    """An index as a killed writer leaves it, with the small segments of the workload."""
    before = (compaction.TIERS, store.SEAL_ROWS, store.SEAL_ROWS_ON_CLOSE, merging.CODES_FROM, planner.SCAN_LIMIT)
    index, states = corruption.build(tmp_path_factory.mktemp("corruption"), documents=500, seed=1)
    yield index, corruption.read(index), states
    compaction.TIERS, store.SEAL_ROWS, store.SEAL_ROWS_ON_CLOSE, merging.CODES_FROM, planner.SCAN_LIMIT = before


@pytest.mark.parametrize("kind", ["flip", "truncation", "deletion"])
def test_damage_anywhere_is_found_and_restored_or_reported(
    killed: tuple[Path, corruption.Content, list[State]], tmp_path: Path, kind: str
) -> None:
    index, facts, states = killed
    tally = corruption.Tally()
    for seed in range(12 if kind == "flip" else 4):
        corruption.run_case(tmp_path, index, facts, states, kind, seed, tally)
    assert tally.cases == tally.harmless + tally.found
