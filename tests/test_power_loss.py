"""A power cut: the model of what it may leave, and the short form of scripts/faults/power_loss.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

FAULTS = Path(__file__).resolve().parents[1] / "scripts" / "faults"
sys.path.append(str(FAULTS))

from disk import EVERYTHING, Disk, Survival  # noqa: E402
from recording import (  # noqa: E402
    ROOT,
    Event,
    Names,
    Pending,
    Recorder,
    Recording,
    Returned,
    SyncDone,
    SyncStarted,
    Truncate,
    Write,
)

from indexer.durable import sync_with_parents  # noqa: E402

FILE, FOLDER = 1, 2
MADE = Names(((ROOT, "file", FILE),))
NAMED = (SyncStarted(ROOT, 1), SyncDone(ROOT, 1))
SYNCED = (SyncStarted(FILE, 2), SyncDone(FILE, 2))


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace here")


def left(events: Iterable[Event], tmp_path: Path, *, draws: int = 120) -> set[tuple[tuple[str, bytes], ...]]:
    """The states that so many power cuts leave after these events: the files with their content."""
    disk, states = Disk(Recording(folders={ROOT: {}}, new_folders={FOLDER})), set()
    for at, event in enumerate(events):
        disk.follow(at, event)
    for number in range(draws):
        random = np.random.default_rng(number)
        place = tmp_path / str(number)
        place.mkdir()
        disk.lose_power(place, Survival.draw(random), random)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        states.add(tuple((str(file.relative_to(place)), file.read_bytes()) for file in files))
    return states


# The model


def test_what_was_synced_with_its_name_is_there(tmp_path: Path) -> None:
    assert left([MADE, Write(FILE, 0, b"abc"), *SYNCED, *NAMED], tmp_path) == {(("file", b"abc"),)}


def test_a_synced_file_may_have_no_name(tmp_path: Path) -> None:
    assert left([MADE, Write(FILE, 0, b"abc"), *SYNCED], tmp_path) == {(), (("file", b"abc"),)}


def test_a_name_may_be_there_before_the_data(tmp_path: Path) -> None:
    states = {dict(state)["file"] for state in left([MADE, Write(FILE, 0, b"abc"), *NAMED], tmp_path)}
    assert {b"", b"abc", bytes(3)} <= states
    assert {len(content) for content in states} == {0, 3}


def test_a_file_in_a_folder_without_a_name_is_lost(tmp_path: Path) -> None:
    made = Names(((ROOT, "folder", FOLDER),))
    inside = [Names(((FOLDER, "file", FILE),)), SyncStarted(FOLDER, 1), SyncDone(FOLDER, 1), *SYNCED]
    assert left([made, *inside], tmp_path) == {(), (("folder/file", b""),)}


def test_of_a_write_any_sectors_may_be_there(tmp_path: Path) -> None:
    before = [MADE, Write(FILE, 0, b"o" * 1_536), *SYNCED, *NAMED]
    states = {dict(state)["file"] for state in left([*before, Write(FILE, 0, b"n" * 1_536)], tmp_path, draws=400)}
    assert {len(content) for content in states} == {1_536}
    whole = {bytes(content[at] for at in (511, 1_023, 1_535)) for content in states}
    assert whole == {bytes(three) for three in ((a, b, c) for a in b"on" for b in b"on" for c in b"on")}
    assert any(re.search(rb"n+o+", content[:512]) for content in states), "no sector was torn"
    assert not any(re.search(rb"o+n+", content[:512]) for content in states)


def test_bytes_beside_a_write_stay_as_they_are(tmp_path: Path) -> None:
    before = [MADE, Write(FILE, 0, b"o" * 1_000), *SYNCED, *NAMED]
    for state in left([*before, Write(FILE, 300, b"n" * 300)], tmp_path):
        content = dict(state)["file"]
        assert content[:300] + content[600:] == b"o" * 700


def test_of_two_writes_the_second_may_be_there_alone(tmp_path: Path) -> None:
    before = [MADE, Write(FILE, 0, b"o" * 1_024), *SYNCED, *NAMED]
    states = left([*before, Write(FILE, 0, b"1" * 512), Write(FILE, 512, b"2" * 512)], tmp_path)
    assert (("file", b"o" * 512 + b"2" * 512),) in states


def test_a_block_that_was_never_written_may_hold_what_was_cut_off(tmp_path: Path) -> None:
    old = b"x" * 4_096
    states = left(
        [MADE, Write(FILE, 0, old), Truncate(FILE, 0), *SYNCED, *NAMED, Write(FILE, 0, b"n" * 4_096)], tmp_path
    )
    contents = {dict(state)["file"] for state in states}
    assert {old, bytes(4_096), b"n" * 4_096, b""} <= contents


def test_a_truncation_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    before = [MADE, Write(FILE, 0, b"o" * 1_536), *SYNCED, *NAMED]
    assert left([*before, Truncate(FILE, 700)], tmp_path) == {(("file", b"o" * n),) for n in (700, 1_536)}


def test_after_a_rename_there_may_be_either_name_or_both_or_none(tmp_path: Path) -> None:
    renamed = Names(((ROOT, "file", None), (ROOT, "new", FILE)))
    states = left([MADE, Write(FILE, 0, b"abc"), *SYNCED, *NAMED, renamed], tmp_path)
    assert {tuple(name for name, _ in state) for state in states} == {(), ("file",), ("new",), ("file", "new")}


def test_a_deleted_file_may_come_back_until_its_folder_is_synced(tmp_path: Path) -> None:
    deleted = [MADE, Write(FILE, 0, b"abc"), *SYNCED, *NAMED, Names(((ROOT, "file", None),))]
    (tmp_path / "a").mkdir()
    assert left(deleted, tmp_path / "a") == {(), (("file", b"abc"),)}
    (tmp_path / "b").mkdir()
    assert left([*deleted, *NAMED], tmp_path / "b") == {()}


def test_an_fsync_covers_only_calls_that_had_returned_when_it_was_entered(tmp_path: Path) -> None:
    events: list[Event] = [MADE, *NAMED, Write(FILE, 0, b"abc"), *SYNCED]
    running = Write(FILE, 0, b"new")
    events += [running, Pending(len(events)), SyncStarted(FILE, 3), Returned(len(events)), SyncDone(FILE, 3)]
    (tmp_path / "a").mkdir()
    assert {(("file", b"abc"),), (("file", b"new"),)} <= left(events, tmp_path / "a")
    (tmp_path / "b").mkdir()
    assert left([*events, SyncStarted(FILE, 4), SyncDone(FILE, 4)], tmp_path / "b") == {(("file", b"new"),)}


def test_an_fsync_covers_what_returned_while_another_threads_call_had_not(tmp_path: Path) -> None:
    other = Names(((ROOT, "other", FOLDER + 1),))
    events: list[Event] = [other, Pending(0), MADE, *NAMED]
    assert {tuple(name for name, _ in state) for state in left(events, tmp_path)} == {("file",), ("file", "other")}


# The recording


@needs_strace
def test_a_recording_leads_to_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_bytes(b"old")
    program = """
import os, sys, threading
os.chdir("/")
root = sys.argv[1]
os.makedirs(root + "/a/b")
with open(root + "/a/b/file", "wb") as file:
    file.write(b"x" * 100_000); file.flush(); file.seek(5); file.write(b"\\x00\\xff"); file.flush()
    os.pwrite(file.fileno(), b"y", 120_000); os.ftruncate(file.fileno(), 130_000); os.fsync(file.fileno())
    os.write(os.dup(file.fileno()), b"z")
os.rename(root + "/a/b/file", root + "/a/ñ")
open(root + "/old", "wb").close()
open(root + "/gone", "wb").close(); os.unlink(root + "/gone")
def other():
    with open(root + "/other", "wb") as file: file.write(b"thread")
thread = threading.Thread(target=other); thread.start(); thread.join()
os.write(1, b"ack 7\\n")
"""
    recorder = Recorder(tmp_path / "real")
    recorder.run([sys.executable, "-c", program, str(tmp_path / "real")], environment=os.environ)
    disk = Disk(recorder.recording)
    for at, event in enumerate(recorder.recording.events):
        disk.follow(at, event)
    (tmp_path / "replayed").mkdir()
    disk.lose_power(tmp_path / "replayed", EVERYTHING, np.random.default_rng(0))
    assert disk.acknowledged == 7
    assert files_of(tmp_path / "replayed") == files_of(tmp_path / "real")
    assert set(files_of(tmp_path / "real")) == {"a", "a/b", "a/ñ", "old", "other"}


@needs_strace
@pytest.mark.parametrize(
    "change",
    [
        "os.link(root + '/old', root + '/new')",
        "os.posix_fallocate(os.open(root + '/old', os.O_RDWR), 0, 10)",
        "mmap.mmap(os.open(root + '/old', os.O_RDWR), 3)",
        "open(root + '/old', 'ab')",
    ],
)
def test_a_change_that_is_not_known_is_an_error(tmp_path: Path, change: str) -> None:
    (tmp_path / "old").write_bytes(b"old")
    program = f"import mmap, os; root = {str(tmp_path)!r}; {change}"
    with pytest.raises(RuntimeError, match=r"known here|mapped for writing"):
        Recorder(tmp_path).run([sys.executable, "-c", program], environment=os.environ)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


# The product


def test_a_new_folder_is_synced_with_all_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    folder = tmp_path / "new" / "folders" / "index"
    folder.mkdir(parents=True)
    sync_with_parents(folder)
    assert synced[:4] == [str(folder), str(folder.parent), str(folder.parent.parent), str(tmp_path)]


@needs_strace
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--states", "30", "--again", "0"], "product: 30 states, 0 bad"),
        (["--states", "200", "--mutant", "synchronous-normal"], "mutant synchronous-normal: caught by state"),
    ],
)
def test_what_was_acknowledged_survives_a_power_cut(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FAULTS / "power_loss.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
