"""A commit that SQLite says has failed may stand in the log whole: either way, nothing that it names may be missing."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes import DemoAnalyser, build_index, check_consistent, entries

from indexer import manifest, merging, metadata, store
from indexer.codes import load_code_space
from indexer.errors import StorageError
from indexer.records import Document
from indexer.segments import VECTORS_SUFFIX, new_name
from indexer.store import IndexWriter
from indexer.verify import verify_index


def documents(first: int, count: int) -> list[Document]:
    return [Document(f"d{n}", f"text {n} Ada ball") for n in range(first, first + count)]


@contextmanager
def committed_but_failed(connection: sqlite3.Connection) -> Iterator[None]:
    """As a transaction whose last fsync fails: the log holds it, SQLite says that it does not."""
    with metadata.transaction(connection):
        yield
    raise sqlite3.OperationalError("disk I/O error")


@contextmanager
def failed(connection: sqlite3.Connection) -> Iterator[None]:
    """As a transaction whose last write fails."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    raise sqlite3.OperationalError("disk I/O error")


def segments(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "segments").iterdir())


def test_a_failed_commit_that_is_in_the_log_keeps_its_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 20)
    path, copy, model = build_index(tmp_path / "index", documents(0, 15)), tmp_path / "copy", DemoAnalyser()
    writer = IndexWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "transaction", committed_but_failed)
        with pytest.raises(StorageError, match="disk I/O error"):
            writer.write(entries(documents(15, 10), model))
        shutil.copytree(path, copy)  # as a crash leaves it
    with IndexWriter(copy) as again:
        assert again.state.documents == 25
    assert verify_index(copy).faults == ()
    check_consistent(copy)
    writer.close()


def test_a_failed_commit_leaves_no_file_and_the_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 20)
    path, model = build_index(tmp_path / "index", documents(0, 15)), DemoAnalyser()
    failures = iter([failed])
    monkeypatch.setattr(manifest, "transaction", lambda connection: next(failures, metadata.transaction)(connection))
    with IndexWriter(path) as writer:
        with pytest.raises(StorageError, match="disk I/O error"):
            writer.write(entries(documents(15, 10), model))
        assert segments(path) == []
        writer.write(entries(documents(15, 10), model))
        assert len(segments(path)) == 2
    assert verify_index(path).faults == ()
    check_consistent(path)


def test_no_segment_gets_the_name_of_a_file_that_is_there(tmp_path: Path) -> None:
    assert new_name(tmp_path, "0000000007") == "0000000007"
    for name in ("0000000007", "0000000007-1"):
        (tmp_path / f"{name}{VECTORS_SUFFIX}").touch()
    assert new_name(tmp_path, "0000000007") == "0000000007-2"


def test_files_that_no_row_names_are_deleted_behind_a_commit(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", documents(0, 3))
    with IndexWriter(path) as writer:
        before = writer.state.number
    (path / "segments" / f"0000000009{VECTORS_SUFFIX}").touch()
    with IndexWriter(path) as writer:
        assert segments(path) == []
        assert writer.state.number == before + 1
    with IndexWriter(path) as writer:
        assert writer.state.number == before + 1


def test_a_rotation_whose_commit_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_index(tmp_path / "index", documents(0, 100), seal=True)
    monkeypatch.setattr(merging, "CODES_FROM", 1)
    file = path / "segments" / "codes.space.npy"
    with IndexWriter(path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(merging, "transaction", failed)
            with pytest.raises(StorageError):
                writer.compact(full=True)
        before = file.read_bytes()
        writer.remove([f"d{n}" for n in range(50)])
        writer.compact(full=True)
    assert file.read_bytes() == before
    assert load_code_space(file, dimension=16).dimension == 16
    assert verify_index(path).faults == ()


@pytest.mark.parametrize("call", ["pwrite"])
def test_a_lock_that_cannot_be_written_is_a_storage_error_and_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = build_index(tmp_path / "index", documents(0, 3))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match=f"{path} cannot be written: No space left on device"):
            IndexWriter(path)
    IndexWriter(path).close()


def test_what_a_run_left_in_the_log_goes_into_the_database_when_the_next_one_opens(tmp_path: Path) -> None:
    path, copy = build_index(tmp_path / "index", documents(0, 3)), tmp_path / "copy"
    with IndexWriter(path) as writer:
        writer.write(entries(documents(3, 5), DemoAnalyser()))
        shutil.copytree(path, copy)
    (copy / "meta.sqlite-shm").unlink()
    with IndexWriter(copy):
        alone = tmp_path / "alone.sqlite"
        shutil.copyfile(copy / "meta.sqlite", alone)
    with sqlite3.connect(alone) as connection:
        assert connection.execute("SELECT count(*) FROM documents").fetchone() == (8,)
    connection.close()
