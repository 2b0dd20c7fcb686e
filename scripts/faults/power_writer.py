"""The process that power_loss.py records: part of the workload, in one of the ways that a writer ends, maybe a mutant.

A mutant is the product with one thing left out that makes it durable, so that the test shows that it would notice.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tests")]

from fakes import DemoAnalyser  # noqa: E402
from workload import DIMENSION, Step, apply, make_steps, perform, states  # noqa: E402

from indexer import codes, compaction, durable, manifest, merging, segments, store  # noqa: E402
from indexer.settings import settings_of  # noqa: E402

SEGMENT_ROWS = 36
CHECKPOINT_PAGES = 100  # of the log, so that it is emptied and begun again many times
DOCUMENTS, BATCH, SEED = 288, 18, 1

CLOSED, KILLED, KILLED_AT_FIRST_SYNC = "closed", "killed", "killed at the first sync"
KILLED_CODE = 9


@dataclass(frozen=True, slots=True)
class Session:
    """One process: the steps from `first` to `last`, and how it ends."""

    first: int
    last: int
    end: str


def power_steps() -> list[Step]:
    """The workload, as small as it can be with every kind of step in it."""
    return make_steps(documents=DOCUMENTS, batch=BATCH, seed=SEED)


def sessions(steps: Sequence[Step]) -> list[Session]:
    """The workload in four processes: the first is killed before it has made the index, the third in its work."""
    third = len(steps) // 3
    return [
        Session(0, 0, KILLED_AT_FIRST_SYNC),
        Session(0, third, CLOSED),
        Session(third, 2 * third, KILLED),
        Session(2 * third, len(steps), CLOSED),
    ]


def smaller_segments() -> None:
    """Limits for the few documents of this work: many seals, merges, and segments with codes."""
    compaction.TIERS = (SEGMENT_ROWS, 4 * SEGMENT_ROWS, 16 * SEGMENT_ROWS)
    store.SEAL_ROWS, store.SEAL_ROWS_ON_CLOSE = SEGMENT_ROWS, SEGMENT_ROWS // 3
    merging.CODES_FROM = 2 * SEGMENT_ROWS


def say(steps: int) -> None:
    """Acknowledge."""
    os.write(1, b"ack %d\n" % steps)


def write(index: Path, session: Session, *, early: bool = False) -> None:
    """Do the steps of a session; with `early`, acknowledge each before it is done."""
    smaller_segments()
    steps = power_steps()
    analyser, state = DemoAnalyser(dimension=DIMENSION), states(steps)[session.first]
    if session.end == KILLED_AT_FIRST_SYNC:
        os.fsync = lambda _descriptor: os._exit(KILLED_CODE)
    with store.IndexWriter(index, create=settings_of(analyser)) as writer:
        say(session.first)
        for number, step in enumerate(steps[session.first : session.last], start=session.first + 1):
            if early:
                say(number)
            perform(step, writer, analyser, state)
            state = apply(step, state)
            say(number)
        if session.end == KILLED:
            # With a log that is not empty, and maybe merges that are written but not named. While one is being written
            # nobody could say whether its last call took effect.
            for merge in writer._merger._under_way:
                merge.written.result()
            os._exit(KILLED_CODE)


def _after_connecting(*pragmas: str) -> None:
    """Pragmas of the writer's connection, once it is set up."""
    connect = store.connect_writer

    def connect_writer(path: Path) -> Any:
        connection = connect(path)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    store.connect_writer = connect_writer


def _no_fsync(skipped: Callable[[os.stat_result, str], bool]) -> None:
    """`os.fsync`, but not of what is to be skipped, by its status and path. SQLite's own calls stay."""
    fsync = os.fsync

    def some(descriptor: int) -> None:
        if not skipped(os.fstat(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")):
            fsync(descriptor)

    os.fsync = some


def _no_parents() -> None:
    store.sync_with_parents = durable.sync


def _settings_before_folders() -> None:
    """As it was once: whoever is killed between the two leaves an index whose folders nobody syncs any more."""
    open_settings = store.IndexWriter._open_settings

    def settings_first(self: Any, create: Any, *, empty: bool) -> Any:
        new = store.read_settings(self._connection) is None
        settings = open_settings(self, create, empty=empty)
        if new:
            durable.sync_with_parents(self.path)
        return settings

    store.sync_with_parents = lambda _folder: None
    store.IndexWriter._open_settings = settings_first  # type: ignore[method-assign]


def _rename_before_sync() -> None:
    def write_file(path: Path, write_it: Callable[[Any], None]) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            write_it(file)
            file.flush()
            temporary.rename(path)
            os.fsync(file.fileno())

    segments.write_file = codes.write_file = write_file


def _named_before_files() -> None:
    """Files and folders are synced, but only after the transaction that names them."""
    fsync, waiting = os.fsync, []
    os.fsync = lambda descriptor: waiting.append(os.dup(descriptor))
    transaction = store.transaction

    @contextmanager
    def first_commit(connection: Any) -> Iterator[None]:
        with transaction(connection):
            yield
        while waiting:
            fsync(descriptor := waiting.pop())
            os.close(descriptor)

    store.transaction = merging.transaction = manifest.transaction = first_commit  # type: ignore[attr-defined]


def _merged_deleted_early() -> None:
    """What a merge has read is deleted before the transaction that names what it wrote."""
    finish_first = merging.Merger._finish_first

    def delete_first(self: Any) -> None:
        merge = self._under_way[0]
        merge.written.result()
        for record in merge.records:
            for file in record.files:
                (self._folder / file.name).unlink()
        finish_first(self)

    merging.Merger._finish_first = delete_first  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "synchronous-normal": lambda: _after_connecting("synchronous = NORMAL"),
    "synchronous-off": lambda: _after_connecting("synchronous = OFF"),
    "no-fsync": lambda: _no_fsync(lambda _status, _path: True),
    "no-file-sync": lambda: _no_fsync(lambda status, _path: stat.S_ISREG(status.st_mode)),
    "no-folder-sync": lambda: _no_fsync(lambda status, _path: stat.S_ISDIR(status.st_mode)),
    "no-segment-folder-sync": lambda: _no_fsync(lambda _status, path: path.endswith("/segments")),
    "no-parent-sync": _no_parents,
    "settings-before-folders": _settings_before_folders,
    "segment-named-before-files": _named_before_files,
    "merged-deleted-early": _merged_deleted_early,
    "acknowledged-early": lambda: None,  # `write` does it
    "rename-before-sync": _rename_before_sync,
}
"""What is left out or done in another order, by name."""

HARMLESS = ("rename-before-sync",)
"""Mutants that lose nothing: a file counts once a row names it, so that the order of its own rename does not matter."""


def main() -> None:
    """Run one session."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("end", choices=[CLOSED, KILLED, KILLED_AT_FIRST_SYNC])
    parser.add_argument("--mutant", choices=MUTANTS)
    arguments = parser.parse_args()
    _after_connecting(f"wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if arguments.mutant is not None:
        MUTANTS[arguments.mutant]()
    session = Session(arguments.first, arguments.last, arguments.end)
    write(arguments.index, session, early=arguments.mutant == "acknowledged-early")


if __name__ == "__main__":
    main()
