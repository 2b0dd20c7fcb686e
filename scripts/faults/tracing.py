"""Running the workload as a process, whole, or with strace that kills it or makes one of its system calls fail.

strace counts calls for each thread by itself; the writer's thread and the one that merges segments are two. A fault in
the writer's thread is put at a number of a call that an unhurt run (`survey`) has shown to touch the index. For the
other thread strace is attached to it alone, as soon as it is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import workload
from workload import State, Step

WORKLOAD = Path(workload.__file__)
TIMEOUT = 300.0  # seconds for one run


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
    """How a run ended. `acknowledged`: the steps that it said were done; `call`: the call that the fault was put on."""

    acknowledged: int
    code: int
    error: str
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: its name, what kind of file it touched, and its number among the thread's calls of that name.

    `thread`: "writer" or "merge".
    """

    name: str
    place: str
    number: int
    thread: str


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
    return run_command(work.command(index, done), done)


def run_command(command: Sequence[str], done: int = 0) -> Outcome:
    """Run a command to its end; what it prints are numbers of steps, if it is the workload."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=TIMEOUT, errors="replace"
    )
    return Outcome(_acknowledged(ended.stdout, done), ended.returncode, ended.stderr)


def run_killed_after(work: Work, index: Path, done: int, seconds: float) -> Outcome:
    """SIGKILL so many seconds after the process is ready to open the index."""
    with subprocess.Popen(
        work.command(index, done), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as child:
        assert child.stdout is not None  # noqa: S101
        first = child.stdout.readline()
        time.sleep(seconds)
        child.kill()
        out, error = child.communicate()
    return Outcome(_acknowledged(first + out, done), child.returncode, error)


def run_traced(command: Sequence[str], index: Path, fault: str, call: Call, done: int = 0) -> Outcome:
    """Run with a fault, such as "signal=SIGKILL" or "error=EIO", at a call; see strace's `--inject`.

    The call of the outcome is the one that the fault was put on, `None` where the run ended before it.
    """
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        traced = ["strace", *_TRACE, "-f", "-o", log.name, *_inject(call.name, fault, str(call.number)), *command]
        outcome = run_command(traced, done)
        return Outcome(outcome.acknowledged, outcome.code, outcome.error, _hit(log.read(), call.name, index, "writer"))


def run_merge_traced(
    command: Sequence[str], index: Path, fault: str, *, name: str, number: int, done: int = 0
) -> Outcome:
    """As `run_traced`, in the thread that merges; `number` counts from the moment when strace is attached to it."""
    with (
        tempfile.NamedTemporaryFile("r", prefix="strace-") as log,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as error,
        subprocess.Popen(command, stdout=out, stderr=error, env=environment()) as child,
    ):
        tracer = None
        while child.poll() is None and tracer is None:
            if others := _other_threads(child.pid):
                inject = _inject(name, fault, str(number))
                tracer = subprocess.Popen(["strace", *_TRACE, "-o", log.name, *inject, "-p", str(others[0])])
            time.sleep(0.001)
        child.wait(timeout=TIMEOUT)
        if tracer is not None:
            tracer.wait(timeout=TIMEOUT)
        out.seek(0)
        error.seek(0)
        call = _hit(log.read(), name, index, "merge")
        return Outcome(_acknowledged(out.read(), done), child.returncode, error.read(), call)


def survey(command: Sequence[str], index: Path) -> list[Call]:
    """Every call of an unhurt run that touches a file of the index, in order; the run must end well."""
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        traced = ["strace", *_TRACE, "-f", "-e", "trace=%file,%desc", "-o", log.name, *command]
        outcome = run_command(traced)
        if outcome.code:
            raise AssertionError(f"the unhurt run ended with {outcome.code}: {outcome.error}")
        counts: Counter[tuple[str, str]] = Counter()
        calls, writer = [], None
        for line in log:
            if (parsed := _LINE.match(line)) is None or "resumed>" in line:
                continue
            thread, name, rest = parsed.groups()
            writer = writer or thread
            counts[thread, name] += 1
            if (place := place_of(rest, index)) is not None:
                role = "writer" if thread == writer else "merge"
                calls.append(Call(name, place, counts[thread, name], role))
        return calls


def place_of(arguments: str, index: Path) -> str | None:
    """What kind of file of the index a call's arguments name, `None` where they name none."""
    found = re.search(re.escape(str(index)) + r"(?P<name>[^\s\"<>,()]*)", arguments)
    if found is None:
        return None
    name = found["name"].strip("/")
    if not name:
        return "folder"
    merged = re.match(r"segments/\d+(m?)\w*\.(\w+)\.\w+(\.tmp)?$", name)
    if merged is not None:
        return f"{'merged' if merged[1] else 'segment'} {merged[2]}{merged[3] or ''}"
    return name


def kinds(calls: Sequence[Call]) -> dict[tuple[str, str], list[Call]]:
    """Calls by name and place, in the order of the names."""
    found: dict[tuple[str, str], list[Call]] = {}
    for call in sorted(calls, key=lambda call: (call.name, call.place)):
        found.setdefault((call.name, call.place), []).append(call)
    return found


def spread(calls: Sequence[Call], n: int) -> list[Call]:
    """At most n of some calls, the first and the last among them."""
    at = {round(i * (len(calls) - 1) / max(1, n - 1)) for i in range(n)} if calls else set()
    return [calls[i] for i in sorted(at)]


_TRACE = ("-qq", "-y", "-s", "0", "--seccomp-bpf")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")


def _inject(name: str, fault: str, when: str) -> list[str]:
    return ["-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={when}"]


def _acknowledged(out: str, done: int) -> int:
    """The last whole line of numbers."""
    numbers = [int(line) for line in out.splitlines(keepends=True) if line.endswith("\n") and line.strip().isdigit()]
    return numbers[-1] if numbers else done


def _other_threads(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid)
    except FileNotFoundError:
        return []


def _hit(log: str, name: str, index: Path, thread: str) -> Call | None:
    """The call that a log shows as killed or as made to fail."""
    number = 0
    for line in log.splitlines():
        found = re.match(rf"(?:\d+ +)?{name}\((.*)", line)
        if found is None:
            continue
        number += 1
        # A killed call has no result.
        if "(INJECTED)" in line or re.search(r"\)\s+= \?", line) or line.endswith("<unfinished ...>"):
            return Call(name, place_of(found[1], index) or "elsewhere", number, thread)
    return None
