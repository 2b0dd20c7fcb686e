"""Short forms of scripts/faults: kills, a disk that fails or is full, runs that are resumed, readers under a writer.

The long forms are those scripts' own commands.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import build_index

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "faults"))

import kill
import readers
import resume
import write_errors
from tracing import Kind, Work, run_traced, strace_missing
from workload import small_segments

from indexer import compaction, merging, pipeline, planner, store
from indexer.records import Document

WORK = Work(documents=480, batch=60)


@pytest.fixture(autouse=True)
def _small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (compaction, ["TIERS"]),
            (store, ["SEAL_ROWS", "SEAL_ROWS_ON_CLOSE"]),
            (merging, ["CODES_FROM"]),
            (planner, ["SCAN_LIMIT"]),
            (pipeline, ["BATCH_DOCUMENTS"]),
        ):
            for name in names:
                patch.setattr(module, name, getattr(module, name))  # so that it is put back
        small_segments()
        yield


@pytest.fixture
def strace() -> None:
    if (reason := strace_missing()) is not None:
        pytest.skip(reason)


def test_what_was_acknowledged_survives_kills_at_random_moments(tmp_path: Path) -> None:
    result = kill.kill_at_random(tmp_path, WORK, kills=3, step_seconds=0.05)
    assert result.bad == []
    assert result.kills == 3
    assert result.resumed >= 1


@pytest.mark.usefixtures("strace")
def test_what_was_acknowledged_survives_kills_at_system_calls(tmp_path: Path) -> None:
    only = [
        "fdatasync of meta.sqlite-wal",
        "fsync of merged fp16.tmp",
        "unlink of segment ids",
    ]
    result = kill.kill_at_calls(tmp_path, WORK, each=1, only=only)
    assert result.bad == []
    assert {str(kind) for kind in result.kinds} == set(only)
    assert result.resumed == result.kills == len(only)


@pytest.mark.usefixtures("strace")
def test_an_interrupt_while_a_commit_is_synced_loses_nothing(tmp_path: Path) -> None:
    only = ["fdatasync of meta.sqlite-wal"]
    result = kill.kill_at_calls(tmp_path, WORK, each=5, only=only, sent=signal.SIGINT)
    assert result.bad == []
    assert result.resumed == result.kills == 5
    assert result.kept >= 1  # Python hears of it when the commit is done


@pytest.mark.usefixtures("strace")
def test_a_disk_that_fails_is_an_error_and_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    only = [
        "pwrite64 of meta.sqlite-wal",
        "fsync of segment fp16.tmp",
        "rename of merged ids.tmp",
    ]
    subject = write_errors.workload_subject(tmp_path, WORK)
    result = write_errors.fail_calls(subject, each=1, errors=["EIO"], only=only)
    assert result.bad == []
    assert result.refused == {"pwrite64": 1, "fsync": 1, "rename": 1}


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("call", "problem"), [("pread64", "disk I/O error"), ("openat", "unable to open database file")]
)
def test_a_disk_that_cannot_be_read_is_not_taken_for_another_file(tmp_path: Path, call: str, problem: str) -> None:
    index = build_index(tmp_path / "index", [Document("a", "a")])
    command = [sys.executable, "-c", "from indexer.cli import main; main()", "info", str(index)]
    kind = Kind(call, "meta.sqlite", 1, (str(index / "meta.sqlite"),))
    outcome = run_traced(command, [kind], "error=EIO", "1+")
    assert outcome.code == 1
    assert outcome.error == f"Error: {index / 'meta.sqlite'} cannot be read: {problem}\n"


def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    result = write_errors.fill_disk(tmp_path, lambda disk: write_errors.workload_subject(disk, WORK), [700_000])
    if isinstance(result, str):
        pytest.skip(result)
    assert result.bad == []
    assert result.refused == {"workload": 1}


def test_a_run_that_is_killed_comes_to_the_same_index_and_embeds_one_batch_again_at_most(tmp_path: Path) -> None:
    result = resume.resume(tmp_path, kills=1, count=300, batch=64)
    assert result.bad == []
    assert result.kills == 1


def test_readers_in_other_processes_see_whole_commits_in_their_order(tmp_path: Path) -> None:
    steps, views = readers.write_and_watch(tmp_path, seconds=2.0, readers=2, ids=300)
    assert [view.bad for view in views] == [[], []]
    assert steps > 0
    assert all(view.snapshots and view.searches for view in views)
