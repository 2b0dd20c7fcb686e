"""Running the workload as a process, whole, or with strace that kills it or makes one of its system calls fail.

An unhurt run (`survey`) shows which calls touch which files of the index. A fault is put on one kind of call and of
file, such as fsync of a segment's vectors: strace looks only at the paths that the survey has found for that kind, so
that its count is the same each time, whatever else the process does.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import workload
from workload import State, Step

WORKLOAD = Path(workload.__file__)
TIMEOUT = 3_600.0  # seconds for one run: what hangs must fail, what is slow must not


@dataclass(frozen=True)
class Work:
    """What the workload does."""

    documents: int
    batch: int
    seed: int = 1

    @cached_property
    def steps(self) -> list[Step]:
        """Its steps."""
        return workload.make_steps(documents=self.documents, batch=self.batch, seed=self.seed)

    @cached_property
    def states(self) -> list[State]:
        """The content after each step."""
        return workload.states(self.steps)

    def command(self, index: Path, done: int) -> list[str]:
        """The command that does what is left after so many steps."""
        numbers = {"--documents": self.documents, "--batch": self.batch, "--seed": self.seed, "--done": done}
        return [sys.executable, str(WORKLOAD), str(index), *(str(part) for pair in numbers.items() for part in pair)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `acknowledged`: the steps that it said were done; `seen`: the traced calls."""

    acknowledged: int
    code: int
    out: str
    error: str
    seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of system call on one kind of file of the index, how many there were and which files."""

    name: str
    place: str
    count: int
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} of {self.place}"


def strace_missing() -> str | None:
    """Why strace cannot be used here, `None` where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False, text=True)
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()[:200]}"


def environment() -> dict[str, str]:
    """One thread for numerics, so that threads and calls are the same each time."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_plain(work: Work, index: Path, done: int) -> Outcome:
    """Do what is left, unhurt."""
    return run_command(work.command(index, done))


def run_command(command: Sequence[str]) -> Outcome:
    """Run a command to its end; what it prints are numbers of steps, if it is the workload."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=TIMEOUT, errors="replace"
    )
    return Outcome(_acknowledged(ended.stdout), ended.returncode, ended.stdout, ended.stderr)


def run_killed_after(
    work: Work, index: Path, done: int, steps: int, seconds: float, sent: signal.Signals = signal.SIGKILL
) -> Outcome:
    """Send a signal so many seconds after the process has done so many steps; after 0 it is ready to open the index."""
    with subprocess.Popen(
        work.command(index, done), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as child:
        assert child.stdout is not None
        first = "".join(child.stdout.readline() for _ in range(1 + steps))
        time.sleep(seconds)
        child.send_signal(sent)
        out, error = child.communicate()
    return Outcome(_acknowledged(first + out), child.returncode, first + out, error)


def run_traced(
    command: Sequence[str], kinds: Sequence[Kind], fault: str, when: str, *, also: Sequence[str] = ()
) -> Outcome:
    """Run with a fault, such as "signal=SIGKILL" or "error=EIO", at a call of these kinds, all of one name.

    `when`: its number, counted for each thread, or "3+" for that and all later ones; see strace's `--inject`. `also`:
    other calls on the same files that are seen.
    """
    (name,) = {kind.name for kind in kinds}
    paths = [part for kind in kinds for path in kind.paths for part in ("-P", path)]
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        inject = ["-e", f"trace={','.join([name, *also])}", "-e", f"inject={name}:{fault}:when={when}"]
        # A signal that is put on a call is not delivered where seccomp has stopped the process.
        fast = [] if fault.startswith("signal") else _FAST
        outcome = run_command([*_STRACE, *fast, "-o", log.name, *paths, *inject, *command])
        return replace(outcome, seen=tuple(log.read().splitlines()))


def survey(command: Sequence[str], index: Path) -> list[Kind]:
    """The kinds of calls of an unhurt run that touch files of the index; the run must end well."""
    found: dict[tuple[str, str], list[str]] = {}
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        outcome = run_command([*_STRACE, *_FAST, "-e", "trace=%file,%desc", "-o", log.name, *command])
        if outcome.code:
            raise AssertionError(f"the unhurt run ended with {outcome.code}: {outcome.error}")
        for line in log:
            call = _CALL.match(line)
            path = _path(line, index)
            if call is not None and path is not None:
                found.setdefault((call[1], place_of(path, index)), []).append(path)
    return [Kind(name, place, len(all_), tuple(dict.fromkeys(all_))) for (name, place), all_ in sorted(found.items())]


def place_of(path: str, index: Path) -> str:
    """What kind of file of the index a path is."""
    if path == str(index.parent):
        return "parent folder"
    name = path.removeprefix(str(index)).strip("/")
    if not name:
        return "folder"
    numbered = re.match(r"segments/\d+(m?)[-\d]*\.(\w+)\.\w+(\.tmp)?$", name)
    if numbered is not None:
        return f"{'merged' if numbered[1] else 'segment'} {numbered[2]}{numbered[3] or ''}"
    return name.removeprefix("segments/")


def spread(count: int, n: int) -> list[int]:
    """At most n of the numbers from 1 to `count`, the first and the last among them."""
    return sorted({1 + round(i * (count - 1) / max(1, n - 1)) for i in range(n)})


_STRACE = ("strace", "-f", "-qq", "-y", "-s", "0")
_FAST = ["--seccomp-bpf"]  # the process stops at the calls that are traced only
_CALL = re.compile(r"\d+ +(\w+)\(")


def _path(line: str, index: Path) -> str | None:
    found = re.search(re.escape(str(index)) + r"(?:/[^\s\"<>,()]*)?(?=[\"<>])", line)
    if found is None:
        found = re.search(re.escape(f"<{index.parent}>") + r"\) ", line)
        return None if found is None else str(index.parent)
    return found[0].rstrip("/")


def _acknowledged(out: str) -> int:
    """The number in the last whole line; the first line is printed before the index is opened."""
    numbers = [int(line) for line in out.splitlines(keepends=True) if line.endswith("\n") and line.strip().isdigit()]
    return numbers[-1] if numbers else -1
