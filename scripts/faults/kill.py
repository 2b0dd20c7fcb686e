"""What was acknowledged survives SIGKILL: at random moments, and at every kind of system call that touches the index.

    python scripts/faults/kill.py [--kills 200] [--documents 20000] [--each 4] [--call-documents 2000] [--folder DIR]
    python scripts/faults/kill.py --signal INT

SIGINT, which is Ctrl-C, is a `KeyboardInterrupt` in the writer, which tidies up and closes the index.

At random moments: one long run of the workload (it adds, updates, changes metadata, removes, seals, compacts), killed
again and again and each time resumed on what was left. At system calls: an unhurt run shows which calls touch which
files; for each kind of call and of file, a fresh run is killed by strace at the first, the last and some calls between,
and then resumed to its end. After every kill all acknowledged steps must be there and nothing but, save the one step
that was under way, whole; `verify` must find no fault, and searches must equal brute force. Ends with 1 otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tracing import (
    Kind,
    Outcome,
    Work,
    run_killed_after,
    run_plain,
    run_traced,
    spread,
    strace_missing,
    survey,
)
from workload import check_sound, run, small_segments, steps_done

OPENING = 0.1  # seconds, about, in which an index is opened and the first step begins


@dataclass(slots=True)
class Kills:
    """What came of kills by the signal `sent`.

    `kept`: the step under way turned out to be done; `kinds`: kills by call and file.
    """

    sent: signal.Signals = signal.SIGKILL
    kills: int = 0
    kept: int = 0
    opening: int = 0
    resumed: int = 0
    missed: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def killed(self, outcome: Outcome) -> bool:
        """Whether the signal ended a process, as Python or a shell tells it."""
        return outcome.code in (-self.sent, 128 + self.sent)


def check(index: Path, work: Work, outcome: Outcome, result: Kills, what: str) -> int:
    """Compare the index with what was acknowledged; returns how many steps it holds."""
    try:
        done = steps_done(index, work.states, acknowledged=outcome.acknowledged)
        check_sound(index, state=work.states[done], queries=4)
    except Exception as error:  # whatever reading the index raises is a finding
        result.bad.append(f"{what}: {type(error).__name__}: {error}")
        return -1
    result.kept += work.states[done] != work.states[outcome.acknowledged]
    return done


def resume(index: Path, work: Work, done: int, result: Kills, what: str) -> None:
    """Do what is left, unhurt and in this process, and check the end."""
    try:
        for _ in run(index, work.steps, done):
            pass
        if steps_done(index, work.states, acknowledged=len(work.steps)) == len(work.steps):
            check_sound(index, state=work.states[-1], queries=4)
    except Exception as error:
        result.bad.append(f"{what}, resumed: {type(error).__name__}: {error}")
        return
    result.resumed += 1


def kill_at_random(
    folder: Path,
    work: Work,
    *,
    kills: int,
    step_seconds: float,
    seed: int = 0,
    sent: signal.Signals = signal.SIGKILL,
) -> Kills:
    """One long run, killed so many times on its way, and at the end resumed to its end.

    The process dies behind some of the steps that are left, as many for each kill, and then somewhere in the next one,
    or, behind none, in its opening; `step_seconds`: how long a step takes. Where the run comes to its end first,
    another one begins.
    """
    random, result, index, done = np.random.default_rng(seed), Kills(sent), folder / "random", 0
    while result.kills < kills:
        steps = int(random.integers(0, 2 + 2 * (len(work.steps) - done) // (kills - result.kills + 1)))
        pause = random.uniform(0, 2 * step_seconds if steps else OPENING)
        outcome = run_killed_after(work, index, done, min(steps, len(work.steps) - done), float(pause), sent)
        what = f"random kill {result.kills} behind step {outcome.acknowledged}"
        if not result.killed(outcome) and outcome.code != 0:
            result.bad.append(f"{what}: ended with {outcome.code}: {outcome.error}")
            return result
        result.kills += result.killed(outcome)
        result.opening += outcome.acknowledged == done
        done = check(index, work, outcome, result, what)
        if done < 0:
            return result
        if outcome.code == 0:
            resume(index, work, done, result, what)
            shutil.rmtree(index)
            done = 0
    resume(index, work, done, result, "random kills")
    return result


def kill_at_calls(
    folder: Path,
    work: Work,
    *,
    each: int,
    only: Sequence[str] | None = None,
    sent: signal.Signals = signal.SIGKILL,
) -> Kills:
    """Fresh runs, each killed at one system call: `each` calls of every kind (or those named) on every kind of file."""
    result, index = Kills(sent), folder / "calls"
    for kind in survey(work.command(index, 0), index):
        if only is not None and str(kind) not in only:
            continue
        for number in spread(kind.count, each):
            shutil.rmtree(index, ignore_errors=True)
            outcome = run_traced(work.command(index, 0), [kind], f"signal={sent.name}", str(number))
            if outcome.code == 0:
                result.missed += 1  # two threads share the calls of this kind, and neither has made so many
                continue
            what = f"killed at {kind}, number {number}, behind step {outcome.acknowledged}"
            if not result.killed(outcome):
                result.bad.append(f"{what}: ended with {outcome.code}: {outcome.error}")
                continue
            result.kills += 1
            result.kinds[kind] += 1
            done = check(index, work, outcome, result, what)
            if done >= 0:
                resume(index, work, done, result, what)
    shutil.rmtree(index, ignore_errors=True)
    return result


def main() -> None:
    """Both parts, with their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments")
    parser.add_argument("--documents", type=int, default=20_000, help="of the run that is killed at random")
    parser.add_argument("--each", type=int, default=4, help="kills for each kind of call and of file")
    parser.add_argument("--call-documents", type=int, default=2_000, help="of each run that is killed at a call")
    parser.add_argument("--signal", choices=("KILL", "INT"), default="KILL")
    parser.add_argument("--folder", type=Path, help="where the indexes are made; default: a temporary folder")
    arguments = parser.parse_args()
    sent = signal.Signals[f"SIG{arguments.signal}"]
    small_segments()
    bad: list[str] = []
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        if arguments.kills:
            started = time.monotonic()
            work = Work(arguments.documents, 50)
            run_plain(work, folder / "clean", 0)
            clean = time.monotonic() - started
            print(f"unhurt: {arguments.documents:,} documents, {len(work.steps)} steps in {clean:.1f} s")
            result = kill_at_random(
                folder, work, kills=arguments.kills, step_seconds=clean / len(work.steps), sent=sent
            )
            show(result, time.monotonic() - started)
            print(f"  of which before a step of their run was done: {result.opening}")
            bad += result.bad
        if (reason := strace_missing()) is not None:
            print(f"kills at system calls are left out: {reason}")
        elif arguments.each:
            started = time.monotonic()
            result = kill_at_calls(folder, Work(arguments.call_documents, 100), each=arguments.each, sent=sent)
            show(result, time.monotonic() - started)
            for name in sorted({kind.name for kind in result.kinds}):
                found = [(kind.place, kills) for kind, kills in result.kinds.items() if kind.name == name]
                places = ", ".join(f"{place} {kills}" for place, kills in found)
                print(f"  {name} {sum(kills for _, kills in found)}: {places}")
            bad += result.bad
    sys.exit(1 if bad else 0)


def show(result: Kills, seconds: float) -> None:
    """The numbers of one part, and what was bad."""
    print(
        f"{result.kills} kills in {seconds:.0f} s: {len(result.bad)} with a loss, a fault or a difference; the step "
        f"under way was kept whole in {result.kept}; {result.resumed} resumed to the end",
        flush=True,
    )
    for line in result.bad[:10]:
        print(f"  BAD {line}")


if __name__ == "__main__":
    main()
