"""`verify_index` finds damage of every kind, names the place, and finds none in a sound index."""

from __future__ import annotations

import errno
import re
import sqlite3
import tempfile
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import DemoAnalyser, build_index, build_vector_index, clustered, entries

from indexer.cli import cli
from indexer.durable import is_scarcity, vector_crc
from indexer.errors import CorruptIndexError, NotAnIndexError, StorageError
from indexer.metadata import connect_reader
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.repair import repair_index
from indexer.settings import read_settings
from indexer.store import IndexWriter
from indexer.verify import _check_vectors, verify_index

TEXT = "Ada rode a race through Oslo with Nora and a song and a ball at the end of it"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Sealed and pending vectors, one document replaced and one removed."""
    model = DemoAnalyser()
    documents = [Document(f"d{n}", f"{TEXT} {n}", {"n": n, "tags": ["x", "y"]}) for n in range(20)]
    build_index(tmp_path / "index", documents, model, seal=True)
    with IndexWriter(tmp_path / "index") as writer:
        writer.write(entries([Document("d3", "Another text", {}), Document("new", "Paul sings", {})], model))
        writer.remove(["d4"])
    return tmp_path / "index"


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def faults(path: Path) -> str:
    return "\n".join(f"{fault.place}: {fault.problem}" for fault in verify_index(path).faults)


def test_a_sound_index_has_no_fault(path: Path) -> None:
    report = verify_index(path)
    assert (report.documents, report.faults) == (20, ())


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE documents SET text = text || '.' WHERE id = 'd7'", "document number 8: does not match its digest"),
        ("UPDATE documents SET metadata = '{}' WHERE id = 'd7'", "document number 8: does not match its digest"),
        ("UPDATE documents SET content_hash = x'00' WHERE id = 'd7'", "document number 8: does not match its digest"),
        ("DELETE FROM documents WHERE id = 'd7'", "documents: the sum of their digests"),
        ("UPDATE entities SET score = 1 WHERE doc = 8", "document number 8: does not match its digest"),
        ("DELETE FROM entities WHERE doc = 8", "entities: 53 rows, but the last commit left 56"),
        ("UPDATE entity_terms SET norm = 'ida' WHERE norm = 'ada'", "its entities are not those that filters know"),
        ("DELETE FROM fields WHERE doc = 8 AND kind = 1", "document 'd7': filters do not know its field 'n'"),
        ("INSERT INTO fields VALUES (1, 1, 99, 8)", "fields: "),
        ("UPDATE passages SET start = 1 WHERE doc = 8", "document number 8: does not match its digest"),
        ("UPDATE pending SET vector = zeroblob(32)", "pending: pending vector"),
        ("DELETE FROM pending", "passages have no vector"),
        ("DELETE FROM changes WHERE op = 'remove'", "vectors have no passage"),
        ("UPDATE commits SET documents = 19", "documents: 20 rows, but the last commit left 19"),
        ("DELETE FROM settings", "the settings are gone"),
        ("CREATE TRIGGER more AFTER DELETE ON documents BEGIN SELECT 1; END", "meta.sqlite: it has a trigger 'more'"),
    ],
)
def test_damaged_rows_are_found(path: Path, statement: str, expected: str) -> None:
    damage(path, statement)
    assert expected in faults(path)


@pytest.mark.parametrize("suffix", [".fp16.faiss", ".ids.npy"])
def test_damaged_segment_files_are_found(path: Path, suffix: str) -> None:
    (file,) = (path / "segments").glob(f"*{suffix}")
    sound = file.read_bytes()
    for bytes_, expected in (
        (sound[:-1] + bytes([sound[-1] ^ 1]), "its SHA-256 is not the one that was written"),
        (sound[:-8], f"{len(sound) - 8} bytes, but {len(sound)} were written"),
    ):
        file.write_bytes(bytes_)
        assert f"segments/{file.name}: {expected}" in faults(path)
    file.unlink()
    assert f"segments/{file.name}: the file is gone" in faults(path)


def test_a_schema_of_which_sqlite_s_own_message_is_no_text_is_damage(path: Path) -> None:
    data = (path / "meta.sqlite").read_bytes()
    (path / "meta.sqlite").write_bytes(data.replace(b'"end" INTEGER NOT', b'"end"\xa0INTEGER NOT', 1))
    assert "meta.sqlite" in faults(path)
    with pytest.raises(NotAnIndexError, match="is not an index's database"):
        IndexReader(path)


def test_every_flipped_bit_of_the_database_that_matters_is_found(path: Path) -> None:
    """A bit is flipped in each page; what the index would answer must be the same, or the fault be found."""
    file = path / "meta.sqlite"
    sound = file.read_bytes()
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT id, text, metadata FROM documents ORDER BY doc").fetchall()
    for at in range(16_384 + 77, len(sound), 1_009):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        try:
            found = verify_index(path).faults
        except (NotAnIndexError, CorruptIndexError):
            continue
        if not found:
            with closing(sqlite3.connect(file)) as connection:
                assert connection.execute("SELECT id, text, metadata FROM documents ORDER BY doc").fetchall() == rows


def test_a_vector_that_is_there_twice_or_with_another_document_is_named(path: Path) -> None:
    damage(path, "UPDATE passages SET doc = 9 WHERE vid = 1")
    with closing(sqlite3.connect(path / "meta.sqlite")) as connection:
        blob = connection.execute("SELECT vector FROM pending").fetchone()[0]
        connection.execute("INSERT INTO pending VALUES (5, 2, ?, ?)", (blob, vector_crc(5, 2, blob)))
        connection.commit()
    found = faults(path).splitlines()
    assert "vector 1: it belongs to document 1, its passage to 9" in found
    assert "vector 5: it is there twice" in found


def test_numbers_of_vectors_are_held_as_arrays(tmp_path: Path) -> None:
    """A set and two dicts of a million vectors took 300 MB."""
    index = build_vector_index(tmp_path / "index", clustered(9_000, dimension=2), batch=9_000)
    with closing(connect_reader(index / "meta.sqlite")) as connection:
        settings = read_settings(connection)
        assert settings is not None
        tracemalloc.start()
        try:
            assert list(_check_vectors(connection, index / "segments", settings, [])) == []
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 200 * 9_000


def test_the_command_prints_the_faults_and_fails(path: Path) -> None:
    assert CliRunner().invoke(cli, ["verify", str(path)]).output == f"{path}: 20 documents and 56 passages, no fault\n"
    damage(path, "DELETE FROM fields WHERE doc = 8 AND kind = 1")
    result = CliRunner().invoke(cli, ["verify", str(path)])
    assert "document 'd7': filters do not know its field 'n'" in result.output
    assert isinstance(result.exception, CorruptIndexError)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError("no memory"),
    ],
    ids=str,
)
def test_what_runs_out_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}

    def scarce(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", scarce)
        for check in (verify_index, repair_index):
            with pytest.raises(StorageError, match=f"{re.escape(str(error))}; that says nothing about the index"):
                check(path)
    assert {file: file.read_bytes() for file in before} == before
    assert not list(path.glob("damaged*"))
    assert verify_index(path).faults == ()


def test_what_sqlite_and_faiss_say_of_things_that_run_out() -> None:
    with pytest.raises(sqlite3.OperationalError) as failed:
        sqlite3.connect("file:/no/such/folder/a.sqlite?mode=ro", uri=True).execute("SELECT 1")
    assert is_scarcity(failed.value)
    assert is_scarcity(RuntimeError("could not open x for reading: Too many open files"))
    assert not is_scarcity(RuntimeError("could not open x for reading: Input/output error"))
    assert not is_scarcity(OSError(errno.EIO, "Input/output error"))
    assert not is_scarcity(sqlite3.DatabaseError("database disk image is malformed"))
