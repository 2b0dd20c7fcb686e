"""One process that searches and writes for a long time: its memory, its log and its open files must not grow.

    python scripts/faults/soak.py INDEX [--searches 1000000] [--updates 100000] [--documents 20000]

Makes INDEX, then does rounds: each writes one batch (texts, metadata, removals and documents put back, in turn) while
threads of the same process search by vector, without and with filters of every kind, half of them never seen before.
Prints a line for every 1/50 of the way, and at the end compares the windows after the warm-up, which is the first
quarter. Ends with exit code 1 where a limit is broken: resident memory has grown by 5 %, the write-ahead log has had
64 MB, a file descriptor was gained, or the index is not sound.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts" / "faults")]

from fakes import LABELS, TYPES, DemoAnalyser  # noqa: E402
from workload import (  # noqa: E402
    DIMENSION,
    State,
    Step,
    apply,
    check_sound,
    content,
    make_document,
    perform,
    small_segments,
)

from indexer.errors import QueryError  # noqa: E402
from indexer.filters import Between, Compare, Exists, Filter, HasEntity, HasId, HasLabel, In  # noqa: E402
from indexer.records import Document  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import META, IndexWriter  # noqa: E402
from search import Searcher  # noqa: E402

SAMPLES = 50
WARM_UP = 0.25  # of the way
MAX_DRIFT, MAX_LOG_BYTES = 0.05, 64 * 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds at one moment: bytes, counts and seconds since the start.

    `anonymous`: resident memory without mapped files. `log`: the most that the write-ahead log had since the last one.
    """

    searches: int
    updates: int
    seconds: float
    resident: int
    anonymous: int
    log: int
    descriptors: int
    threads: int
    disk: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The samples of a run, and what is wrong with them."""

    samples: tuple[Sample, ...]
    drift: float
    anonymous_drift: float
    problems: tuple[str, ...]


def soak(
    index: Path, *, searches: int, updates: int, documents: int, batch: int, threads: int, seed: int = 1
) -> Iterator[Sample]:
    """Do the rounds; yields a sample now and then, the last one when all is done. `index` must be new."""
    random = np.random.default_rng(seed)
    analyser = DemoAnalyser(dimension=DIMENSION)
    rounds = max(1, updates // batch)
    started, log = time.monotonic(), 0
    with (
        IndexWriter(index, create=settings_of(analyser)) as writer,
        Searcher(index) as searcher,
        ThreadPoolExecutor(threads, thread_name_prefix="soak") as pool,
    ):
        state: State = {}
        for first in range(0, documents, 500):
            numbers = range(first, min(first + 500, documents))
            state = _do(Step("put", tuple(make_document(n, 0, random) for n in numbers)), writer, analyser, state)
        with ExitStack() as at_once:  # each has a connection, which is kept: those of the busiest moment, from here on
            for _ in range(threads + 1):
                at_once.enter_context(searcher._reader.snapshot())
        gone: list[str] = []
        for turn in range(rounds):
            share = [searches * (turn + 1) // rounds - searches * turn // rounds]
            parts = [share[0] // threads + (thread < share[0] % threads) for thread in range(threads)]
            seeds = [int(random.integers(2**60)) for _ in parts]
            under_way = [
                pool.submit(_search, searcher, count, documents, thread_seed)
                for count, thread_seed in zip(parts, seeds, strict=True)
            ]
            step, gone = _next_step(turn, state, gone, batch, random)
            state = _do(step, writer, analyser, state)
            for part in under_way:
                part.result()
            analyser.analysed.clear()  # the tests' own list of texts, which would grow
            log = max(log, _log_bytes(index))
            if (turn + 1) * SAMPLES // rounds > turn * SAMPLES // rounds:
                done = searches * (turn + 1) // rounds
                yield _sample(index, done, (turn + 1) * batch, time.monotonic() - started, log)
                log = 0
    if content(index) != state:
        raise AssertionError("the index does not hold what was written to it")


def judge(samples: Sequence[Sample]) -> Outcome:
    """Compare the first quarter of what came after the warm-up with the last quarter, by their medians."""
    warm = samples[int(len(samples) * WARM_UP) :]
    window = max(1, len(warm) // 4)

    def drift(of: str) -> float:
        before = statistics.median(getattr(sample, of) for sample in warm[:window])
        after = statistics.median(getattr(sample, of) for sample in warm[-window:])
        return after / before - 1.0

    resident, problems = drift("resident"), []
    if resident >= MAX_DRIFT:
        problems.append(f"resident memory has grown by {resident:.1%}, less than {MAX_DRIFT:.0%} are allowed")
    if (most := max(sample.log for sample in samples)) >= MAX_LOG_BYTES:
        problems.append(f"the write-ahead log had {most:,} bytes, less than {MAX_LOG_BYTES:,} are allowed")
    # A snapshot that is being taken has its connection; a leak shows in the least that there are.
    before, after = (min(sample.descriptors for sample in part) for part in (warm[:window], warm[-window:]))
    if after > before:
        problems.append(f"{after - before} file descriptors were gained")
    return Outcome(tuple(samples), resident, drift("anonymous"), tuple(problems))


def _next_step(
    turn: int, state: State, gone: list[str], batch: int, random: np.random.Generator
) -> tuple[Step, list[str]]:
    """What is written in a round, and which documents are then missing, to be put back in the next round."""
    known = list(state)
    some = [known[at] for at in random.permutation(len(known))[:batch]]
    if gone:
        return Step("put", tuple(make_document(int(id_[1:]), turn, random) for id_ in gone)), []
    if turn % 5 == 2:
        metadata = {"n": turn, "step": turn, "part": [1, "x"]}
        return Step("metadata", ids=tuple(some), documents=(Document("", "-", metadata),)), []
    if turn % 5 == 3:
        return Step("remove", ids=tuple(some)), some
    return Step("put", tuple(make_document(int(id_[1:]), turn, random) for id_ in some)), []


def _do(step: Step, writer: IndexWriter, analyser: DemoAnalyser, state: State) -> State:
    perform(step, writer, analyser, state)
    return apply(step, state)


def _search(searcher: Searcher, count: int, documents: int, seed: int) -> None:
    """So many searches. Raises where one has fewer hits than it must have, or others than its filter allows."""
    random = np.random.default_rng(seed)
    for number in range(count):
        filter = _filter(number, documents, random)
        query = random.normal(size=DIMENSION).astype(np.float32)
        hits = searcher.search_vector(query, k=int(random.integers(1, 5)), filter=filter)
        if filter is None and not hits:
            raise AssertionError("a search of all documents found none")
        if isinstance(filter, HasLabel) and any(hit.label is None or hit.label.name != filter.name for hit in hits):
            raise AssertionError(f"a hit does not have the class {filter.name}")
        if number % 10 == 9:
            with suppress(QueryError):  # it is among those that are removed just now
                searcher.similar(f"d{random.integers(documents)}", k=3)


def _filter(number: int, documents: int, random: np.random.Generator) -> Filter | None:
    """One of ten kinds, in turn; half of them with values that hardly ever come again."""
    n = int(random.integers(documents))
    match number % 10:
        case 0 | 1:
            return None
        case 2:
            return HasLabel(LABELS[n % 3])
        case 3:
            return HasEntity("PER", "ada", "exact") | HasEntity("LOC", "z", "prefix")
        case 4:
            return HasEntity(TYPES[n % 3], None, "any") & ~HasLabel(LABELS[n % 2])
        case 5:
            return Between("n", n, n + int(random.integers(1, 200)))
        case 6:
            return In("n", tuple(int(value) for value in random.integers(documents, size=50)))
        case 7:
            return Compare("step", "=", n) | Compare("n", "=", n) & HasLabel("sport")
        case 8:
            return HasId(tuple(f"d{value}" for value in random.integers(documents, size=20)))
        case _:
            return Exists("part") | Compare("n", "<", n % 50)


def _sample(index: Path, searches: int, updates: int, seconds: float, log: int) -> Sample:
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if ":" in line
    )

    def kilobytes(name: str) -> int:
        return int(status[name].split()[0]) * 1024

    return Sample(
        searches,
        updates,
        seconds,
        kilobytes("VmRSS"),
        kilobytes("RssAnon"),
        log,
        _descriptors(),
        int(status["Threads"]),
        sum(file.stat().st_size for file in index.rglob("*") if file.is_file()),
    )


def _descriptors() -> int:
    """Open files, without those of the index's segments, of which there are now more and now fewer.

    A segment's file that was deleted counts: its descriptor should have been given back, if perhaps a moment later.
    """
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            target = os.readlink(f"/proc/self/fd/{name}")
            count += "/segments/" not in target or target.endswith(" (deleted)")
    return count


def _log_bytes(index: Path) -> int:
    log = index / (META + "-wal")
    return log.stat().st_size if log.exists() else 0


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--searches", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=20, help="documents of one commit")
    parser.add_argument("--threads", type=int, default=2, help="that search")
    parser.add_argument("--small-segments", action="store_true", help="seal and merge sixteen times as often")
    arguments = parser.parse_args()
    if arguments.small_segments:
        small_segments()
    samples = []
    names = ("searches", "updates", "s", "RSS MB", "anon MB", "WAL MB", "fds", "disk MB")
    print("{:>10} {:>8} {:>6} {:>8} {:>8} {:>7} {:>4} {:>8}".format(*names))
    for sample in soak(
        arguments.index,
        searches=arguments.searches,
        updates=arguments.updates,
        documents=arguments.documents,
        batch=arguments.batch,
        threads=arguments.threads,
    ):
        samples.append(sample)
        print(
            f"{sample.searches:>10,} {sample.updates:>8,} {sample.seconds:>6.0f} {sample.resident / 2**20:>8.1f}"
            f" {sample.anonymous / 2**20:>8.1f} {sample.log / 2**20:>7.1f} {sample.descriptors:>4}"
            f" {sample.disk / 2**20:>8.1f}",
            flush=True,
        )
    outcome = judge(samples)
    check_sound(arguments.index)
    print(f"drift: resident {outcome.drift:+.2%}, without mapped files {outcome.anonymous_drift:+.2%}")
    for problem in outcome.problems:
        print(problem)
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
