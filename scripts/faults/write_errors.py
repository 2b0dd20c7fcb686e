"""A disk that fails or is full: a clear error, no false acknowledgement, and on with it when the fault is gone.

    python scripts/faults/write_errors.py [--each 3] [--documents 1000] [--folder DIR]

strace makes calls on files of the index fail with EIO and ENOSPC: write, pwrite64, fsync, fdatasync, rename, ftruncate
and openat, each at the first, the last and some calls between on every kind of file, once, and from a call on for good
on all files. So it does with the workload (adds, updates, removals, seals, compactions) and with `indexer add` of JSONL
and vectors. Then both run on a real file system (tmpfs, where this may be mounted) of 10 sizes until it is full.

A run must end with 1 and one line on stderr, or do all its work as if nothing had been; what it acknowledged, and no
part of a step, must be there; a file whose fsync failed must not be renamed to its name; and run again without the
fault it must come to the same end as a run that was never hurt.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tracing import Kind, Outcome, Work, run_command, run_plain, run_traced, spread, strace_missing, survey
from workload import check_sound, content, small_segments, steps_done, unit_fp16, verify_index

from indexer.reader import IndexReader
from indexer.records import FloatArray

NAMES = ("write", "pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "openat")
ERRORS = ("EIO", "ENOSPC")
GIVEN_BATCH = 8_192  # documents that bring their vector, in one commit of `indexer add`


@dataclass(slots=True)
class Errors:
    """What came of faults. `refused`: runs that ended with an error; `absorbed`: that did all their work nevertheless.

    `missed`: the run had no such call left. Both are counted by call, `absorbed` by kind.
    """

    cases: int = 0
    missed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    absorbed: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is hurt: a command that makes an index, the check of what a run left, and the check of the end.

    `left` raises where something acknowledged is missing, or anything is there in part.
    """

    name: str
    index: Path
    command: list[str]
    left: Callable[[Outcome], None]
    finish: Callable[[Outcome], None]


def workload_subject(folder: Path, work: Work) -> Subject:
    """The workload, which goes on behind the steps that are done."""
    index = folder / "workload"

    def left(outcome: Outcome) -> None:
        done = steps_done(index, work.states, acknowledged=max(0, outcome.acknowledged))
        check_sound(index, state=work.states[done], queries=4)

    def finish(outcome: Outcome) -> None:
        done = steps_done(index, work.states, acknowledged=max(0, outcome.acknowledged))
        again = run_plain(work, index, done)
        if again.code or again.acknowledged != len(work.steps):
            raise AssertionError(f"the run after it ended with {again.code}: {again.error}")
        left(again)

    return Subject("workload", index, work.command(index, 0), left, finish)


def add_subject(folder: Path, inputs: Path, documents: int) -> Subject:
    """`indexer add` of JSONL and vectors; one commit for each 8,192 documents, a seal at the end."""
    index, source, rows = folder / "added", inputs / "documents.jsonl", inputs / "vectors.npy"
    table = np.random.default_rng(0).normal(size=(documents, 16)).astype(np.float32)
    np.save(rows, table)
    source.write_text("".join(f'{{"id": "d{n}", "text": "text {n}", "n": {n}}}\n' for n in range(documents)))
    command = [sys.executable, "-c", "from indexer.cli import main; main()"]
    command += ["add", str(index), str(source), "--vectors", str(rows)]

    def left(outcome: Outcome) -> None:
        there = len(check_given(index, table))
        if there != documents and (outcome.code == 0 or there % GIVEN_BATCH):
            raise AssertionError(f"{there} of {documents} documents after exit code {outcome.code}")

    def finish(_: Outcome) -> None:
        again = run_command(command)
        if again.code:
            raise AssertionError(f"the run after it ended with {again.code}: {again.error}")
        left(again)

    return Subject("indexer add", index, command, left, finish)


def check_given(index: Path, table: FloatArray) -> Sequence[str]:
    """The ids d0, d1, … of an index of given vectors, after all was compared with what was given."""
    there = content(index)
    if sorted(there) != sorted(f"d{n}" for n in range(len(there))):
        raise AssertionError(f"{len(there)} documents, and they are not the first")
    if not there:
        return ()
    if faults := verify_index(index).faults:
        raise AssertionError(f"verify: {faults[:3]}")
    wanted = unit_fp16(table[: len(there)])
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        for n, row in enumerate(wanted):
            document = there[f"d{n}"]
            if (document.text, document.metadata) != (f"text {n}", {"n": n}):
                raise AssertionError(f"d{n} is {document}")
            doc = snapshot.number_of(f"d{n}")
            if doc is None or not np.array_equal(snapshot.document_vector(doc), row):
                raise AssertionError(f"the vector of d{n} is not the one that was given")
    return list(there)


def fail_calls(
    subject: Subject, *, each: int, errors: Sequence[str] = ERRORS, only: Sequence[str] | None = None
) -> Errors:
    """Every kind of call (or those named) fails at `each` of its numbers, once; then all of a name from a number on."""
    result = Errors()
    shutil.rmtree(subject.index, ignore_errors=True)
    found = [kind for kind in survey(subject.command, subject.index) if kind.name in NAMES]
    for kind in found:
        if only is None or str(kind) in only:
            for number in spread(kind.count, each):
                for error in errors:
                    fail(subject, [kind], error, str(number), result)
    for name in NAMES:
        group = [kind for kind in found if kind.name == name]
        if group and (only is None or name in only):
            for number in spread(sum(kind.count for kind in group), each):
                for error in errors:
                    fail(subject, group, error, f"{number}+", result)
    return result


def fail(subject: Subject, kinds: Sequence[Kind], error: str, when: str, result: Errors) -> None:
    """One run with one fault, judged."""
    shutil.rmtree(subject.index, ignore_errors=True)
    outcome = run_traced(
        subject.command, kinds, f"error={error}", when, also=[n for n in ("rename", "openat") if n != kinds[0].name]
    )
    if not any("(INJECTED)" in line for line in outcome.seen):
        result.missed += 1
        return
    what = f"{subject.name}: {error} at {kinds[0] if len(kinds) == 1 else kinds[0].name}, number {when}"
    result.cases += 1
    judge(subject, outcome, what, result, absorbed=str(kinds[0]) if len(kinds) == 1 else f"{kinds[0].name}, for good")
    if outcome.code:
        result.refused[kinds[0].name] += 1
    if named := renamed_after_failed_fsync(outcome.seen):
        result.bad.append(f"{what}: {named} was renamed after its fsync had failed")


def judge(subject: Subject, outcome: Outcome, what: str, result: Errors, *, absorbed: str) -> None:
    """The message, what is there, and the end of the next run."""
    if outcome.code == 0:
        result.absorbed[absorbed] += 1
        if outcome.error:
            result.bad.append(f"{what}: no error, but on stderr: {outcome.error[:300]}")
    elif outcome.code != 1 or not re.fullmatch(r"Error: [^\n]+\n", outcome.error) or "unexpected" in outcome.error:
        result.bad.append(f"{what}: ended with {outcome.code}: {outcome.error[-600:]}")
    else:
        result.messages[re.sub(r"\S*/\S*", "PATH", outcome.error).strip()] += 1
    try:
        subject.left(outcome)
        subject.finish(outcome)
    except Exception as error:  # whatever reading the index raises is a finding
        result.bad.append(f"{what}: {type(error).__name__}: {error}")


def renamed_after_failed_fsync(seen: Sequence[str]) -> str | None:
    """A file that got its name although its last fsync had failed and it was not written anew."""
    failed: set[str] = set()
    for line in seen:
        if found := re.search(r"fsync\(\d+<(.*)>\) .*\(INJECTED\)", line):
            failed.add(found[1])
        elif (found := re.search(r'openat\(.*"(.*)", .*O_CREAT.* = \d', line)) or (
            found := re.search(r"fsync\(\d+<(.*)>\) += 0", line)
        ):
            failed.discard(found[1])
        elif (found := re.search(r'rename\("(.*)", ".*"\) += 0', line)) and found[1] in failed:
            return found[1]
    return None


def fill_disk(folder: Path, make: Callable[[Path], Subject], sizes: Sequence[int]) -> Errors | str:
    """The command on file systems of so many bytes, then on the same with room; why not, where none can be mounted."""
    result = Errors()
    for size in sizes:
        disk = folder / "disk"
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
        if mounted.returncode:
            return f"no file system can be mounted here: {mounted.stderr.strip()}"
        try:
            subject = make(disk)
            what = f"{subject.name}: a disk of {size:,} bytes"
            outcome = run_command(subject.command)
            subprocess.run(["mount", "-o", f"remount,size={2**30}", str(disk)], check=True)
            result.cases += 1
            result.refused[subject.name] += outcome.code != 0
            judge(subject, outcome, what, result, absorbed=f"{size:,} bytes are enough")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    return result


def main() -> None:
    """All parts, with their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=3, help="faults for each kind of call, file and error")
    parser.add_argument("--documents", type=int, default=1_000, help="of the workload")
    parser.add_argument("--folder", type=Path, help="where the indexes are made; default: a temporary folder")
    arguments = parser.parse_args()
    small_segments()
    work, bad = Work(arguments.documents, 100), []
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        if (reason := strace_missing()) is not None:
            print(f"faults at system calls are left out: {reason}")
        else:
            for subject, each in (
                (workload_subject(folder, work), arguments.each),
                (add_subject(folder, folder, 1_500), 1),
            ):
                started = time.monotonic()
                result = fail_calls(subject, each=each)
                bad += show(subject.name, result, time.monotonic() - started)
        sizes = [int(200_000 * 1.5**n) for n in range(10)]
        for name, make in (
            ("workload", lambda disk: workload_subject(disk, work)),
            ("indexer add", lambda disk: add_subject(disk, folder, 9_000)),
        ):
            started = time.monotonic()
            full = fill_disk(folder, make, sizes)
            if isinstance(full, str):
                print(f"{name} on a full disk is left out: {full}")
            else:
                bad += show(f"{name} on disks of {sizes[0]:,} to {sizes[-1]:,} bytes", full, time.monotonic() - started)
    sys.exit(1 if bad else 0)


def show(name: str, result: Errors, seconds: float) -> list[str]:
    """The numbers of one part; returns what was bad."""
    print(
        f"{name}: {result.cases} faults in {seconds:.0f} s, {sum(result.refused.values())} ended with an error, "
        f"{sum(result.absorbed.values())} did all their work; {len(result.bad)} bad; {result.missed} not reached",
        flush=True,
    )
    print(f"  refused: {json.dumps(result.refused)}")
    print(f"  absorbed: {json.dumps(result.absorbed)}")
    for message, count in result.messages.most_common():
        print(f"  {count} × {message}")
    for line in result.bad[:20]:
        print(f"  BAD {line}")
    return result.bad


if __name__ == "__main__":
    main()
