"""A commit that SQLite says has failed may stand in the log whole: either way, nothing that it names may be missing."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fakes import DemoAnalyser, build_index, check_consistent, entries

from indexer import manifest, merging, metadata, pipeline, store
from indexer.codes import load_code_space
from indexer.errors import CorruptIndexError, StorageError
from indexer.lock import acknowledged_commit
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


class LeftOpen:
    """A transaction that an interrupt leaves just before its end, so that it neither commits nor rolls back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["close", "write"])
def test_an_interrupt_that_leaves_a_transaction_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    path, model = build_index(tmp_path / "index", documents(0, 3)), DemoAnalyser()
    writer = IndexWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "transaction", LeftOpen)
        with pytest.raises(KeyboardInterrupt):
            writer.write(entries(documents(3, 5), model))
    assert writer.state.documents == 3
    if then == "write":
        report = pipeline.index(documents(3, 5), model, writer)
        assert (report.added, report.unchanged) == (5, 0)
    writer.close()
    with IndexWriter(path) as again:  # nothing was acknowledged that is not there
        assert again.state.documents == (8 if then == "write" else 3)
    check_consistent(path)


def test_a_transaction_that_was_left_does_not_end_another(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        left = metadata.transaction(connection)
        left.__enter__()
        connection.execute("ROLLBACK")
        with metadata.transaction(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            del left
            connection.execute("INSERT INTO t VALUES (2)")
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_batch_that_is_there_is_acknowledged_although_a_merge_behind_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 5)
    path, model = build_index(tmp_path / "index", documents(0, 3)), DemoAnalyser()
    with IndexWriter(path) as writer:
        with monkeypatch.context() as patch:

            def full(_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(merging.Merger, "keep_few", full)
            writer.write(entries(documents(3, 5), model))
        assert acknowledged_commit(path / store.LOCK) == writer.state.number
        with pytest.raises(StorageError, match="No space left on device"):
            writer.write(entries(documents(8, 5), model))
        assert writer.state.documents == 8
        writer.write(entries(documents(8, 5), model))
        assert writer.state.documents == 13
    assert verify_index(path).faults == ()


def test_what_cannot_be_read_while_planning_is_said_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_index(tmp_path / "index", documents(0, 3))

    def damaged(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with IndexWriter(path) as writer, monkeypatch.context() as patch:
        patch.setattr(store, "select_in", damaged)
        with pytest.raises(CorruptIndexError, match="malformed; run 'indexer verify"):
            pipeline.index(documents(3, 2), DemoAnalyser(), writer)
        patch.setattr(store, "read_commit", damaged)
        for read in (lambda: writer.state, lambda: pipeline.retag(DemoAnalyser(), writer)):
            with pytest.raises(CorruptIndexError):
                read()


def test_a_second_interrupt_while_a_merge_ends_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_index(tmp_path / "index", documents(0, 3))
    close, interrupts = merging.Merger.close, [1, 2]

    def interrupted(self: merging.Merger) -> None:
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        close(self)

    monkeypatch.setattr(merging.Merger, "close", interrupted)
    with pytest.raises(KeyboardInterrupt), IndexWriter(path):
        raise KeyboardInterrupt
    IndexWriter(path).close()


def test_an_interrupt_while_the_lock_is_taken_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_index(tmp_path / "index", documents(0, 3))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            IndexWriter(path)
    IndexWriter(path).close()
