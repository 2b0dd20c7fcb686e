"""Snapshots while a writer adds, updates, removes, seals and compacts; and snapshots that are killed.

    python scripts/faults/backup.py FOLDER [--documents 20000] [--batch 200] [--kills 200] [--least 20]

A process runs `workload.py`; snapshots are taken in a loop meanwhile, by turns as copies and as hard links. Each must
verify, hold exactly what some number of steps leaves, at least those acknowledged before it was begun, and not fewer
than the one before. Afterwards some are restored, and must give the same answers to the last bit of the scores. Then
the command `indexer snapshot` is killed so many times, at system calls (by strace) or, where there is no strace, at
moments: DEST must be whole or not there, and making it again must leave nothing else behind.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import workload

from indexer.api import restore_index, snapshot_index
from indexer.verify import verify_index
from search import Searcher
from search.query import Query

CALLS = ("openat", "mkdir", "pwrite64", "write", "fsync", "unlink", "rename", "copy_file_range", "flock", "lseek")


class Writer:
    """The process that writes, and how many steps it has acknowledged."""

    def __init__(self, index: Path, documents: int, batch: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("workload.py")), str(index)]
        options = ["--documents", str(documents), "--batch", str(batch)]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for line in self.process.stdout or ():
            self.acknowledged = int(line)

    @property
    def running(self) -> bool:
        """False when it has ended."""
        return self.process.poll() is None

    def finish(self) -> int:
        """Wait for it; its exit code."""
        self._thread.join()
        return self.process.wait()


def count_steps(copy: Path, states: Sequence[workload.State], least: int) -> int | None:
    """The smallest number of steps, at least so many, that leaves what a copy holds; `None` where none does."""
    there = workload.content(copy)
    return next((n for n in range(least, len(states)) if states[n] == there), None)


def answers(index: Path, *, seed: int) -> list[Any]:
    """What searches give in full, by the vectors alone and with the codes."""
    queries = np.random.default_rng(seed).normal(size=(5, workload.DIMENSION)).astype(np.float32)
    with Searcher(index) as searcher:
        return [
            [hit.to_json() for hit in searcher.answer_vector(query, Query(k=20), path=path).hits]
            for query in queries
            for path in ("scan", "codes")
        ]


def under_load(folder: Path, *, documents: int, batch: int, least: int) -> bool:
    """Snapshots in a loop while the writer works; prints what was found."""
    steps = workload.make_steps(documents=documents, batch=batch, seed=1)
    states = workload.states(steps)
    index, started = folder / "index", time.monotonic()
    writer = Writer(index, documents, batch)
    while writer.running and not writer.acknowledged:
        time.sleep(0.01)
    taken, torn, backward, other, before, log, seconds = 0, 0, 0, 0, 0, 0, []
    kept: list[Path] = []
    while writer.running or taken < least:
        copy, acknowledged = folder / f"copy{taken}", writer.acknowledged
        begun = time.monotonic()
        snapshot_index(index, copy, link=taken % 2 == 1)  # verifies, or raises
        seconds.append(time.monotonic() - begun)
        wal = index / "meta.sqlite-wal"
        log = max(log, wal.stat().st_size if wal.exists() else 0)
        count = count_steps(copy, states, max(acknowledged, before))
        if count is not None:
            before = count
        elif count_steps(copy, states, 0) is not None:
            backward += 1
        else:
            torn += 1
        taken += 1
        kept.append(copy)
        if len(kept) > 10:
            shutil.rmtree(kept.pop(0))
    if writer.finish() != 0:
        raise SystemExit("the writer failed")
    for at, copy in enumerate(kept):
        restored = folder / "restored"
        restore_index(copy, restored)
        other += answers(copy, seed=at) != answers(restored, seed=at)
        shutil.rmtree(restored)
        shutil.rmtree(copy)
    print(
        f"{taken} snapshots of up to {len(states[-1]):,} documents in {time.monotonic() - started:.0f} s, under "
        f"{len(steps)} steps of the writer: {torn} torn, {backward} backward, {other} other answers of {len(kept)} "
        f"that were restored; a snapshot took {np.median(seconds):.2f} s (median), {max(seconds):.2f} s (most); "
        f"the writer's log had at most {log / 1e6:.1f} MB"
    )
    return not (torn or backward or other)


def killed(folder: Path, *, kills: int) -> bool:
    """Kill `indexer snapshot`; prints what was left."""
    index, copy = folder / "index", folder / "copy"
    wanted, chance, started = workload.content(index), random.Random(1), time.monotonic()
    whole = absent = half = survived = left = 0
    strace = shutil.which("strace")
    command = [sys.executable, "-c", "from indexer.cli import main; main()", "snapshot", str(index), str(copy)]
    for kill in range(kills):
        if strace:
            call = CALLS[kill % len(CALLS)]
            # Without --seccomp-bpf, with which a signal that is put on a call is not delivered. Only what is done in or
            # beside the copy counts: the interpreter's own start has thousands of calls.
            when = chance.randint(1, {"fsync": 8, "pwrite64": 120, "openat": 40, "unlink": 4, "lseek": 20}.get(call, 5))
            paths = [
                *("-P", str(copy)),
                *("-P", str(copy.with_name(".copy.unfinished"))),
                *(f"-P{copy.with_name('.copy.unfinished')}/{name}" for name in ("meta.sqlite", "segments")),
                *(f"-P{copy.with_name('.copy.unfinished')}/segments/{f.name}" for f in (index / "segments").iterdir()),
            ]
            inject = f"inject={call}:signal=SIGKILL:when={when}"
            options = ["-f", "-qq", "-o", "/dev/null", *paths, "-e", f"trace={call}", "-e", inject]
            process = subprocess.Popen(
                [strace, *options, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        else:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not copy.with_name(".copy.unfinished").exists():
                time.sleep(0.001)
            time.sleep(chance.random() * 0.2)
            process.send_signal(signal.SIGKILL)
        survived += process.wait() == 0
        if not copy.exists():
            absent += 1
        elif verify_index(copy).faults or workload.content(copy) != wanted:
            half += 1
        else:
            whole += 1
        if copy.exists():
            shutil.rmtree(copy)
        if kill % 10 == 9:
            snapshot_index(index, copy)
            left += sorted(file.name for file in folder.iterdir()) != ["copy", "index"]
            half += workload.content(copy) != wanted
            shutil.rmtree(copy)
    print(
        f"{kills} kills at {'system calls' if strace else 'moments'} in {time.monotonic() - started:.0f} s: {absent} "
        f"times nothing, {whole} times a whole snapshot ({survived} had finished before), {half} times half of one; "
        f"{left} times something left behind by the next one"
    )
    return not (half or left)


def main() -> None:
    """Both parts; exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="An empty folder to work in.")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--least", type=int, default=20, help="snapshots")
    arguments = parser.parse_args()
    workload.small_segments()
    sound = under_load(arguments.folder, documents=arguments.documents, batch=arguments.batch, least=arguments.least)
    if arguments.kills:
        sound &= killed(arguments.folder, kills=arguments.kills)
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    main()
