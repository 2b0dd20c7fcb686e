"""What was acknowledged survives a power cut: random states that one may leave, and what the index holds in each.

    python scripts/faults/power_loss.py [--states 2000] [--seed 0] [--again 20]
    python scripts/faults/power_loss.py --mutant synchronous-normal     # or: --mutant all
    python scripts/faults/power_loss.py --state 1234 [--mutant NAME] --keep FOLDER

A writer's processes are recorded with strace (`recording.py`, `power_writer.py`). A state is a point of the recording
and one of the ways in which what was not synced then may have fared (`disk.py`). In it, all that had been acknowledged
must be there, nothing half done, the index must be sound, open for writing, and the work must go on from there.
With `--again`, the work that goes on is recorded in turn, and the power fails again. States follow from their
numbers; `--state` makes one again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tests")]

from disk import EVERYTHING, SHARED_MEMORY, Disk, Survival, turning_points  # noqa: E402
from fakes import DemoAnalyser  # noqa: E402
from power_writer import (  # noqa: E402
    CLOSED,
    HARMLESS,
    KILLED,
    KILLED_CODE,
    MUTANTS,
    Session,
    power_steps,
    sessions,
    smaller_segments,
)
from recording import Recorder, Recording  # noqa: E402
from workload import DIMENSION, State, Step, check_sound, content, run, states, steps_done  # noqa: E402

from indexer import planner  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import IndexWriter  # noqa: E402

INDEX = Path("new") / "folders" / "index"
"""The index in the recorded folder: the folders above it are made with it."""

TO_THE_END = 10  # one state in so many goes on to the end of the work, the others for one step
STEPS_AGAIN = 5  # of work after a power cut that are recorded, until the next
STATES_AGAIN = 25  # for each such recording


@dataclass(frozen=True, slots=True)
class Work:
    """The steps, and what the index holds after each number of them."""

    steps: Sequence[Step]
    states: Sequence[State]

    @classmethod
    def make(cls) -> Work:
        """The work of `power_writer.py`."""
        steps = power_steps()
        return cls(steps, states(steps))


@dataclass(frozen=True, slots=True)
class Cut:
    """A state: its number, behind how many events the power fails, and how what was not synced fares."""

    number: int
    events: int
    survival: Survival

    @classmethod
    def draw(cls, number: int, recording: Recording, points: Sequence[int]) -> Cut:
        """The state of a number. Half of them are within two events of one that changes what must be there."""
        random = np.random.default_rng(number)
        total = len(recording.events)
        near = int(points[int(random.integers(len(points)))]) + int(random.integers(0, 3))
        events = near if random.random() < 0.5 else int(random.integers(0, total + 1))
        return cls(number, min(events, total), Survival.draw(random))


@dataclass(frozen=True, slots=True)
class Bad:
    """A state in which something is wrong."""

    cut: Cut
    acknowledged: int | None
    problem: str


def record(place: Path, mutant: str | None = None) -> Recording:
    """The whole work, in its several processes. Raises `RuntimeError` where the recording is not what happened."""
    recorder, followed = Recorder(place), 0
    disk, events = Disk(recorder.recording), recorder.recording.events
    for session in sessions(power_steps()):
        _record(recorder, place, session, mutant)
        for at in range(followed, len(events)):
            disk.follow(at, events[at])
        followed = len(events)
        with folder() as replayed:
            disk.lose_power(replayed, EVERYTHING, np.random.default_rng(0))
            if _tree(replayed) != _tree(place):
                raise RuntimeError(f"the recording of {session} does not lead to the files that are there")
    return recorder.recording


def check_states(
    recording: Recording,
    numbers: Iterable[int],
    work: Work,
    *,
    acknowledged: int | None = None,
    keep: Path | None = None,
) -> Iterator[tuple[Cut, Bad | None]]:
    """Make each state and look at it, in the order of their points. `acknowledged`: before the recording began."""
    points = turning_points(recording.events)
    cuts = sorted((Cut.draw(n, recording, points) for n in numbers), key=lambda cut: (cut.events, cut.number))
    disk, followed = Disk(recording), 0
    disk.acknowledged = acknowledged
    for cut in cuts:
        for at in range(followed, cut.events):
            disk.follow(at, recording.events[at])
        followed = cut.events
        with folder(keep) as place:
            disk.lose_power(place, cut.survival, np.random.default_rng([cut.number, 1]))
            yield cut, check_state(place / INDEX, cut, disk.acknowledged, work)


def check_state(index: Path, cut: Cut, acknowledged: int | None, work: Work) -> Bad | None:
    """Is everything there that was acknowledged, and does the work go on? `acknowledged` `None`: not even the index."""
    try:
        done = 0
        if acknowledged is not None:
            done = steps_done(index, work.states, acknowledged=acknowledged)
            check_sound(index, queries=1, seed=cut.number)
        go_on(index, done, work, steps=len(work.steps) if cut.number % TO_THE_END == 0 else 1, seed=cut.number)
    except Exception as error:  # whatever it is, it is what a user would meet
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Bad(cut, acknowledged, problem)
    return None


def go_on(index: Path, done: int, work: Work, *, steps: int, seed: int) -> None:
    """Open the index for writing, do so many of the steps that are left, and close it."""
    last = min(done + steps, len(work.steps))
    for _ in run(index, work.steps[:last], done):
        pass
    if done == last:  # nothing was left to do: open and close it all the same
        with IndexWriter(index, create=settings_of(DemoAnalyser(dimension=DIMENSION))):
            pass
    if content(index) != work.states[last]:
        raise AssertionError(f"after going on from step {done} to {last} the content is another one")
    if steps > 1:
        check_sound(index, queries=1, seed=seed)


def record_again(recording: Recording, number: int, work: Work) -> tuple[Recording, int | None]:
    """What a writer does on the state of a number; and how many steps must be there before, `None`: no index."""
    cut = Cut.draw(number, recording, turning_points(recording.events))
    disk, done = Disk(recording), None
    for at in range(cut.events):
        disk.follow(at, recording.events[at])
    with folder() as place:
        disk.lose_power(place, cut.survival, np.random.default_rng([cut.number, 1]))
        if disk.acknowledged is not None:
            with folder() as copied:  # because reading leaves traces
                shutil.copytree(place, copied, dirs_exist_ok=True)
                done = steps_done(copied / INDEX, work.states, acknowledged=disk.acknowledged)
        recorder, first = Recorder(place), done or 0
        session = Session(first, min(first + STEPS_AGAIN, len(work.steps)), KILLED if number % 2 else CLOSED)
        _record(recorder, place, session, None)
        return recorder.recording, done


def prepare() -> None:
    """Set this process up as `power_writer.py` is; texts are analysed once for all states.

    Search scans vectors, so that it must equal brute force: codes may miss one of the best. That the codes are those
    that were written follows from their checksum.
    """
    smaller_segments()
    planner.SCAN_LIMIT = 1_000_000
    analyse = DemoAnalyser._analyse
    cached = lru_cache(maxsize=None)(lambda text, tags: analyse(DemoAnalyser(dimension=DIMENSION), text, tags=tags))
    DemoAnalyser._analyse = lambda _self, text, *, tags: cached(text, tags)  # type: ignore[method-assign]


@contextmanager
def folder(keep: Path | None = None) -> Iterator[Path]:
    """An empty folder, in memory where there is such a file system; `keep`: this one, which stays."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(prefix="power", dir=memory if os.access(memory, os.W_OK) else None)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place)


def _record(recorder: Recorder, place: Path, session: Session, mutant: str | None) -> None:
    command = [sys.executable, str(HERE / "power_writer.py"), str(place / INDEX)]
    command += [str(session.first), str(session.last), session.end]
    command += ["--mutant", mutant] if mutant is not None else []
    code = 0 if session.end == CLOSED else KILLED_CODE
    recorder.run(command, environment={**os.environ, "OMP_NUM_THREADS": "1"}, codes=(code,))


def _tree(place: Path) -> dict[str, bytes | None]:
    """All files and folders (`None`) below a folder, but for SQLite's shared memory."""
    return {
        str(path.relative_to(place)): None if path.is_dir() else path.read_bytes()
        for path in place.rglob("*")
        if not path.name.endswith(SHARED_MEMORY)
    }


def _show(bad: Bad) -> None:
    survival = bad.cut.survival
    print(
        f"  state {bad.cut.number}: after {bad.cut.events} events, acknowledged {bad.acknowledged}, "
        f"data {survival.data}, sizes {survival.sizes}, names {survival.names}: {bad.problem[:300]}"
    )


def _check_product(recording: Recording, numbers: range, work: Work, again: int) -> int:
    """All states of the product; returns how many are bad."""
    started, count, worst = time.perf_counter(), 0, 0
    for _, bad in check_states(recording, numbers, work):
        count += 1
        if bad is not None:
            worst += 1
            _show(bad)
    print(f"product: {count} states, {worst} bad, {time.perf_counter() - started:.0f} s", flush=True)
    started, count, second = time.perf_counter(), 0, 0
    for number in numbers[:again]:
        later, done = record_again(recording, number, work)
        first = number * 1_000
        for _, bad in check_states(later, range(first, first + STATES_AGAIN), work, acknowledged=done):
            count += 1
            if bad is not None:
                second += 1
                print(f"  on state {number}:", end="")
                _show(bad)
    if again:
        print(f"power lost again: {count} states, {second} bad, {time.perf_counter() - started:.0f} s", flush=True)
    return worst + second


def _check_mutant(mutant: str, numbers: range, work: Work) -> bool:
    """Is a mutant caught, or where it is harmless, is nothing found?"""
    with folder() as place:
        recording = record(place, mutant)
    started = time.perf_counter()
    # In the order of their numbers, in small lots, so that the first that shows it is near the number of states made.
    for lot in range(0, len(numbers), 20):
        found = [bad for _, bad in check_states(recording, numbers[lot : lot + 20], work) if bad is not None]
        if found:
            first = min(found, key=lambda bad: bad.cut.number)
            print(f"mutant {mutant}: caught by state {first.cut.number}, {time.perf_counter() - started:.0f} s")
            _show(first)
            sys.stdout.flush()
            return mutant not in HARMLESS
    print(f"mutant {mutant}: {len(numbers)} states, 0 bad, {time.perf_counter() - started:.0f} s", flush=True)
    return mutant in HARMLESS


def main() -> None:
    """Check the product, mutants, or one state."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--states", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first state")
    parser.add_argument("--again", type=int, default=20, help="states from which the work goes on to another cut")
    parser.add_argument("--mutant", choices=[*MUTANTS, "all"])
    parser.add_argument("--state", type=int, help="make this one only")
    parser.add_argument("--keep", type=Path, help="with --state: where, and there it stays")
    arguments = parser.parse_args()
    prepare()
    work, numbers = Work.make(), range(arguments.seed, arguments.seed + arguments.states)
    if arguments.state is None and arguments.mutant is not None:
        names = list(MUTANTS) if arguments.mutant == "all" else [arguments.mutant]
        as_expected = [_check_mutant(name, numbers, work) for name in names]
        sys.exit(0 if all(as_expected) else 1)
    started = time.perf_counter()
    with folder() as place:
        recording = record(place, arguments.mutant)
    print(
        f"recorded {len(recording.events)} events of {len(work.steps)} steps, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    if arguments.state is None:
        sys.exit(1 if _check_product(recording, numbers, work, arguments.again) else 0)
    for cut, bad in check_states(recording, [arguments.state], work, keep=arguments.keep):
        print(cut)
        if bad is not None:
            _show(bad)
            sys.exit(1)


if __name__ == "__main__":
    main()
