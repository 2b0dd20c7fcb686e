"""Snapshots and their way back: one commit, whole or not there, while a writer adds, removes and compacts."""

from __future__ import annotations

import fcntl
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_fails
from fakes import DemoAnalyser, build_index, check_consistent, clustered, entries, table_rows

from indexer import backup
from indexer.api import compact_index, restore_index, snapshot_index
from indexer.errors import CorruptIndexError, DestinationError, LockedError, NotAnIndexError, StorageError
from indexer.export import export_documents
from indexer.manifest import add_segment, drop_segments, read_segments
from indexer.metadata import connect_writer, transaction
from indexer.records import Document
from indexer.repair import repair_index
from indexer.settings import settings_of
from indexer.store import IndexWriter
from indexer.verify import verify_index
from search import Searcher

ROOT = Path(__file__).parent.parent
MODEL = DemoAnalyser()


def documents(first: int, last: int) -> list[Document]:
    return [
        Document(f"d{n}", f"text {n} Ada ball song {n % 7}", {"n": n, "part": {"of": [n]}}) for n in range(first, last)
    ]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IndexWriter]:
    """Open, with two segments, removed documents, and pending vectors."""
    with IndexWriter(tmp_path / "index", create=settings_of(MODEL)) as opened:
        for first in (0, 200, 400):
            if first:
                opened.seal()
            opened.write(entries(documents(first, first + 200), MODEL))
        opened.remove(["d1", "d201", "d401"])
        yield opened


@pytest.fixture
def index(writer: IndexWriter) -> Path:
    return writer.path


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "copy"


def answers(path: Path) -> list[Any]:
    """What a search says, down to the last bit of the scores."""
    with Searcher(path) as searcher:
        return [
            [hit.to_json() for hit in searcher.search_vector(query, k=20, filter=where)]
            for query in clustered(3, dimension=MODEL.dimension, seed=5)
            for where in (None, "n >= 150 and entity PER:Ada")
        ]


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def only(path: Path, *names: str) -> None:
    """Nothing else lies in a folder, not even hidden."""
    assert {file.name for file in path.iterdir()} == set(names)


# A snapshot


def test_a_snapshot_is_the_index_as_of_the_last_commit(writer: IndexWriter, index: Path, dest: Path) -> None:
    copied = snapshot_index(index, dest)
    assert (copied.commit, copied.documents) == (writer.state.number, 597)
    assert copied.bytes == sum(file.stat().st_size for file in dest.rglob("*") if file.is_file())
    assert files(dest) == files(index) - {"LOCK", "meta.sqlite-wal", "meta.sqlite-shm"}
    assert verify_index(dest).faults == ()
    assert answers(dest) == answers(index)
    for table in ("documents", "passages", "pending", "entities", "fields", "segments", "changes", "commits"):
        assert table_rows(dest, table) == table_rows(index, table)
    only(dest.parent, "index", "copy")


def test_a_snapshot_shares_nothing_with_its_index(index: Path, dest: Path) -> None:
    snapshot_index(index, dest)
    assert {(dest / name).stat().st_nlink for name in files(dest)} == {1}
    assert not {(dest / name).stat().st_ino for name in files(dest)} & {
        (index / name).stat().st_ino for name in files(index)
    }


def test_what_is_written_later_is_not_in_it(writer: IndexWriter, index: Path, dest: Path) -> None:
    before = answers(index)
    snapshot_index(index, dest)
    writer.write(entries([Document("new", "Ada ball")], MODEL))
    writer.compact(full=True)
    assert answers(dest) == before
    assert verify_index(dest).documents == 597


def test_a_snapshot_can_be_written_to(index: Path, dest: Path) -> None:
    snapshot_index(index, dest)
    with IndexWriter(dest) as writer:
        writer.write(entries(documents(598, 620), MODEL))
        writer.compact(full=True)
    check_consistent(dest)
    assert verify_index(dest).documents == 617
    assert verify_index(index).documents == 597


def test_codes_are_copied_too(tmp_path: Path, dest: Path) -> None:
    index = build_index(tmp_path / "index", documents(0, 300))
    with IndexWriter(index) as writer:
        writer.compact(full=True, codes="always")
    snapshot_index(index, dest)
    assert "segments/codes.space.npy" in files(dest)
    assert any(name.endswith(".codes.faiss") for name in files(dest))
    assert answers(dest) == answers(index)


def test_files_that_compaction_took_away_meanwhile_mean_a_newer_commit(
    writer: IndexWriter, index: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = backup.segment_files, []

    def compact_behind_the_back(connection: sqlite3.Connection) -> list[str]:
        names = read(connection)
        if not calls:
            writer.compact(full=True)
        calls.append(names)
        return names

    monkeypatch.setattr(backup, "segment_files", compact_behind_the_back)
    copied = snapshot_index(index, dest)
    assert len(calls) == 2
    assert not set(calls[0]) & set(calls[1])
    assert copied.commit == writer.state.number
    assert files(dest / "segments") == set(calls[1])
    assert verify_index(dest).faults == ()


def test_files_that_vanish_while_they_are_copied_are_copied_all_the_same(
    writer: IndexWriter, index: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, copy = answers(index), backup._copy_file

    def compact_first(*arguments: Any) -> None:
        writer.compact(full=True)
        copy(*arguments)

    monkeypatch.setattr(backup, "_copy_file", compact_first)
    snapshot_index(index, dest)
    assert len(table_rows(index, "segments")) == 1
    assert len(table_rows(dest, "segments")) == 2
    assert answers(dest) == before


def test_the_log_is_held_only_while_the_database_is_copied(
    writer: IndexWriter, index: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, busy = backup._copy_file, []

    def checkpoint_first(*arguments: Any) -> None:
        busy.append(writer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        copy(*arguments)

    monkeypatch.setattr(backup, "_copy_file", checkpoint_first)
    snapshot_index(index, dest)
    assert busy == [0] * 4
    assert (index / "meta.sqlite-wal").stat().st_size == 0


def test_snapshots_under_a_writer_in_another_process_never_tear_nor_go_back(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "faults" / "backup.py")]
    options = ["--documents", "400", "--batch", "40", "--kills", "0", "--least", "3"]
    done = subprocess.run([*command, str(tmp_path), *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 torn, 0 backward, 0 other answers" in done.stdout


# Links


def test_links_share_files_until_the_writer_replaces_its_own(writer: IndexWriter, index: Path, dest: Path) -> None:
    before = answers(index)
    snapshot_index(index, dest, link=True)
    assert {file.stat().st_nlink for file in (dest / "segments").iterdir()} == {2}
    assert (dest / "meta.sqlite").stat().st_nlink == 1
    writer.compact(full=True)
    assert {file.stat().st_nlink for file in (dest / "segments").iterdir()} == {1}
    assert answers(dest) == before
    assert verify_index(dest).faults == ()


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("link", [False, True])
def test_to_another_file_system_it_is_a_copy(index: Path, other_disk: Path, link: bool) -> None:
    snapshot_index(index, other_disk / "copy", link=link)
    assert answers(other_disk / "copy") == answers(index)


# What is refused


@pytest.mark.parametrize("kind", ["file", "empty folder", "index", "link"])
def test_what_is_there_is_not_replaced(index: Path, dest: Path, kind: str) -> None:
    if kind == "file":
        dest.write_text("mine")
    elif kind == "link":
        dest.symlink_to("nowhere")
    elif kind == "index":
        build_index(dest, documents(0, 1))
    else:
        dest.mkdir()
    for make in (snapshot_index, restore_index):
        with pytest.raises(DestinationError, match="copy exists already: choose another name, or move it away first"):
            make(index, dest)
    only(dest.parent, "index", "copy")
    assert kind != "index" or verify_index(dest).documents == 1


def test_no_folder_is_made_to_put_it_in(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="disk is not a folder: make it first"):
        snapshot_index(index, tmp_path / "disk" / "copy")
    only(tmp_path, "index")


@pytest.mark.parametrize("place", ["index/copy", "index/segments/copy"])
def test_an_index_is_not_copied_into_itself(index: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(DestinationError, match="lie within each other"):
        snapshot_index(index, tmp_path / place)


def test_what_is_no_index_is_not_copied(tmp_path: Path, dest: Path) -> None:
    with pytest.raises(NotAnIndexError, match="there is no such folder"):
        snapshot_index(tmp_path / "nothing", dest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAnIndexError, match=r"it has no meta\.sqlite"):
        snapshot_index(tmp_path / "empty", dest)
    only(tmp_path, "empty")


def test_a_snapshot_that_is_being_made_is_not_made_twice(index: Path, dest: Path) -> None:
    unfinished = dest.with_name(".copy.unfinished")
    unfinished.mkdir()
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="copy is being made by another process: wait until it is done"):
            snapshot_index(index, dest)
    finally:
        os.close(descriptor)
    snapshot_index(index, dest)
    only(dest.parent, "index", "copy")


def test_other_people_s_files_are_not_deleted(index: Path, dest: Path) -> None:
    unfinished = dest.with_name(".copy.unfinished")
    unfinished.mkdir()
    (unfinished / "letter.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"holds other files such as letter\.txt: move it away first"):
        snapshot_index(index, dest)
    assert (unfinished / "letter.txt").read_text() == "mine"


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file can grow beyond this, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [3_000, 200_000])
def test_a_full_disk_leaves_nothing(index: Path, dest: Path, limit: int) -> None:
    with file_size_limit(limit), pytest.raises(StorageError, match=r"copy|meta\.sqlite"):
        snapshot_index(index, dest)
    only(dest.parent, "index")
    snapshot_index(index, dest)
    assert verify_index(dest).faults == ()


# Damage


def damage(index: Path, kind: str) -> None:
    if kind == "segment":
        (file, *_) = sorted((index / "segments").glob("*.fp16.faiss"))
        data = bytearray(file.read_bytes())
        data[-5] ^= 4
        file.write_bytes(data)
    elif kind == "gone":
        next((index / "segments").glob("*.ids.npy")).unlink()
    else:
        with closing(sqlite3.connect(index / "meta.sqlite", isolation_level=None)) as connection:
            connection.execute("UPDATE documents SET text = text || '.' WHERE id = 'd7'")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("segment", "source is damaged: segments/.*: its SHA-256 is not the one that was written; nothing was written"),
        ("row", "source is damaged: document number 8: does not match its digest, and 1 more; nothing was written"),
        ("gone", r"ids\.npy is named by the index but is not there; run 'indexer verify"),
    ],
)
def test_a_damaged_snapshot_is_not_restored_nor_a_damaged_index_copied(
    tmp_path: Path, dest: Path, kind: str, message: str
) -> None:
    source = build_index(tmp_path / "source", documents(0, 50), seal=True)
    damage(source, kind)
    for make in (snapshot_index, restore_index):
        with pytest.raises(CorruptIndexError, match=message):
            make(source, dest)
        only(tmp_path, "source")


def name_files_elsewhere(index: Path) -> Path:
    """An index that somebody made to do harm: the files of its segment are in a folder beside it."""
    (elsewhere := index.parent / "elsewhere").mkdir()
    connection = connect_writer(index / "meta.sqlite")
    with closing(connection), transaction(connection):
        (record,) = read_segments(connection)
        drop_segments(connection, [record])
        named = [replace(file, name=f"../../elsewhere/{file.name}") for file in record.files]
        add_segment(connection, replace(record, name=f"../../elsewhere/{record.name}", files=tuple(named)))
    for file in record.files:
        (index / "segments" / file.name).rename(elsewhere / file.name)
    return elsewhere


def test_an_index_names_no_files_of_other_folders(tmp_path: Path) -> None:
    source = build_index(tmp_path / "source", documents(0, 50), seal=True)
    elsewhere = name_files_elsewhere(source)
    before = {file.name for file in elsewhere.iterdir()}
    (other := tmp_path / "other").mkdir()
    (other / "elsewhere").mkdir()
    message = "names files that are not its own"
    assert message in verify_index(source).faults[0].problem
    for make in (
        lambda: restore_index(source, other / "copy"),
        lambda: snapshot_index(source, other / "copy", verify=False),
        lambda: compact_index(source),
        lambda: list(export_documents(source, vectors=True)),
    ):
        with pytest.raises(CorruptIndexError, match=message):
            make()
    assert list((other / "elsewhere").iterdir()) == []
    repair_index(source, load=lambda _: MODEL)
    assert {file.name for file in elsewhere.iterdir()} == before


def test_a_damaged_index_can_be_copied_as_it_is(tmp_path: Path, dest: Path) -> None:
    source = build_index(tmp_path / "source", documents(0, 50), seal=True)
    damage(source, "segment")
    damage(source, "row")
    snapshot_index(source, dest, verify=False)
    assert verify_index(dest) == verify_index(source)
    assert len(verify_index(dest).faults) == 3


# Restoring


def test_a_restored_index_answers_the_same_and_goes_on(index: Path, dest: Path, tmp_path: Path) -> None:
    wanted = answers(index)
    snapshot_index(index, dest)
    copied = restore_index(dest, tmp_path / "again")
    assert copied.documents == 597
    assert answers(tmp_path / "again") == wanted == answers(dest)
    with IndexWriter(tmp_path / "again") as writer:
        writer.write(entries(documents(590, 700), MODEL))
    check_consistent(tmp_path / "again")
    assert verify_index(tmp_path / "again").documents == 697
    assert verify_index(dest).documents == 597


# Kills

_KILLED = """
import os, signal, sys
from pathlib import Path
from indexer import backup
from indexer.api import snapshot_index

def die_at(owner, name, call):
    real, calls = getattr(owner, name), []
    def counted(*arguments, **options):
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(name)
        return real(*arguments, **options)
    setattr(owner, name, counted)

owner = {"backup": backup, "Path": Path}[sys.argv[3]]
die_at(owner, sys.argv[4], int(sys.argv[5]))
snapshot_index(sys.argv[1], sys.argv[2])
"""

KILLS = [
    ("backup", "read_settings", 0, False),
    ("backup", "_copy_file", 1, False),
    ("backup", "verify_index", 0, False),
    ("Path", "rename", 0, False),
    ("backup", "sync", 3, True),  # of the folder that holds the copy, which has its name
]


def test_a_killed_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    index = build_index(tmp_path / "index", documents(0, 60), seal=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(index), str(tmp_path / f"copy{at}"), owner, name, str(call)]
        )
        for at, (owner, name, call, _) in enumerate(KILLS)
    ]
    assert [process.wait() for process in running] == [-9] * len(KILLS)
    for at, (_, _, _, there) in enumerate(KILLS):
        copy = tmp_path / f"copy{at}"
        assert copy.exists() is there
        assert copy.with_name(f".copy{at}.unfinished").exists() is not there
        if not there:
            snapshot_index(index, copy)
        assert verify_index(copy).faults == ()
    only(tmp_path, "index", *(f"copy{at}" for at in range(len(KILLS))))


# The commands


def test_the_commands(run: Run, tmp_path: Path) -> None:
    build_index(tmp_path / "index", documents(0, 50))
    made = run("indexer", "snapshot", "index", "copy")
    size = sum(file.stat().st_size for file in Path("copy").rglob("*") if file.is_file())
    assert (made.code, made.err) == (0, "")
    assert made.out == f"copy: 50 documents of commit 1, {size:,} bytes, no fault\n"
    assert_fails(
        run("indexer", "snapshot", "index", "copy"), "copy exists already: choose another name, or move it away first"
    )
    assert run("indexer", "snapshot", "index", "quick", "--link", "--no-verify").out == (
        f"quick: 50 documents of commit 1, {size:,} bytes, not verified\n"
    )
    assert run("indexer", "restore", "copy", "again").out == made.out.replace("copy", "again")
    assert run("indexer", "verify", "again").code == 0
    assert_fails(
        run("indexer", "restore", "copy", "again"), "again exists already: choose another name, or move it away first"
    )


def test_a_copy_whose_name_cannot_be_synced_is_said_to_be_there(
    index: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = backup.sync

    def failing(path: Path) -> None:
        if path == dest.parent:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(backup, "sync", failing)
    with pytest.raises(StorageError, match=f"{dest} is there and whole, but its name may not survive a power cut"):
        snapshot_index(index, dest)
    assert verify_index(dest).faults == ()


def test_an_interrupt_while_a_place_is_taken_leaves_it_free(
    index: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(fcntl, "flock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            snapshot_index(index, dest)
    snapshot_index(index, dest)
