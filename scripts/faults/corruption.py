"""Damage to an index, one place at a time: is it found, is what can be restored restored, is the rest reported?

    python scripts/faults/corruption.py [--flips 500] [--truncations 100] [--deletions 50] [--kills 30] [--seed 1]

Builds an index with sealed, coded, pending and removed vectors, and with commits that are only in the write-ahead log,
as a killed writer leaves it. Each case damages a copy of it:

- where `verify` finds nothing, content, filters and searches must be those of the sound index;
- where it does, the place that it names must be in the damaged file; then the copy is repaired: `verify` must find no
  fault, and every document must be what it was, vectors and tags included, or be reported.

With --kills, repairs of damaged copies are killed at random moments and run again, with the same result.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent)]

import workload  # noqa: E402
from fakes import DemoAnalyser  # noqa: E402

from indexer.errors import CorruptIndexError, TagdexError  # noqa: E402
from indexer.reader import IndexReader  # noqa: E402
from indexer.records import Document, Metadata  # noqa: E402
from indexer.repair import RepairReport, repair_index  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import LOCK, META, SEGMENTS, IndexWriter  # noqa: E402
from indexer.stored import StoredDocument, read_documents  # noqa: E402
from indexer.verify import verify_index  # noqa: E402
from search import Searcher  # noqa: E402

FILTERS = ("n < 100 and step = 0", "entity PER:Ada", "label = music")
QUERIES, SIMILAR = 4, ("d3", "d500")


@dataclass(frozen=True, slots=True)
class Content:
    """What an index holds and answers. `vectors`: of each document, those of its passages and that of the whole."""

    documents: dict[str, StoredDocument]
    vectors: dict[str, np.ndarray]
    answers: list[list[tuple[str, float]]]


@dataclass
class Tally:
    """What became of the cases of one kind."""

    cases: int = 0
    harmless: int = 0
    found: int = 0
    restored: int = 0
    reported: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def build(folder: Path, *, documents: int, seed: int) -> tuple[Path, list[workload.State]]:
    """The index as a killed writer leaves it, and the states that it was in since its log was empty, that one last."""
    workload.small_segments()
    steps = workload.make_steps(documents=documents, batch=100, seed=seed)
    states = workload.states(steps)
    analyser, cut = DemoAnalyser(dimension=workload.DIMENSION), len(steps) * 3 // 4
    built = folder / "built"
    with IndexWriter(built, create=settings_of(analyser)) as writer:
        for number, step in enumerate(steps[:cut]):
            workload.perform(step, writer, analyser, states[number])
    writer = IndexWriter(built)
    writer._connection.execute("PRAGMA wal_autocheckpoint = 0")
    for number, step in enumerate(steps[cut:], start=cut):
        if step.kind != "compact":
            workload.perform(step, writer, analyser, states[number])
    shutil.copytree(built, folder / "sound")
    writer._abandon()
    return folder / "sound", states[cut:]


def read(index: Path) -> Content:
    """Everything that an index says. Raises `TagdexError`."""
    documents: dict[str, StoredDocument] = {}
    vectors: dict[str, np.ndarray] = {}
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        docs = [doc for (doc,) in snapshot.connection.execute("SELECT doc FROM documents ORDER BY doc")]
        rows = {
            int(vid): segment.table[at]
            for segment in snapshot.view.all
            for at, vid in enumerate(segment.vids.tolist())
            if segment.live[at]
        }
        for stored in read_documents(snapshot.connection, docs).values():
            documents[stored.id] = stored
            own = [rows[passage.vid].astype(np.float32) for passage in stored.passages]
            vectors[stored.id] = np.stack([*own, snapshot.document_vector(stored.doc)])
    answers = []
    random_ = np.random.default_rng(7)
    with Searcher(index) as searcher:
        for number in range(QUERIES):
            query = random_.normal(size=workload.DIMENSION).astype(np.float32)
            for filter_ in (None, FILTERS[number % len(FILTERS)]):
                hits = searcher.search_vector(query, k=20, filter=filter_)
                answers.append([(hit.id, hit.score) for hit in hits])
        for id_ in SIMILAR:
            if id_ in documents:
                answers.append([(hit.id, hit.score) for hit in searcher.similar(id_, k=20)])
    return Content(documents, vectors, answers)


def damage(index: Path, kind: str, chance: random.Random) -> str:
    """Damage one place; returns the file's name in the index. Each file, or else each byte, has the same chance."""
    files = sorted(file for file in index.rglob("*") if file.is_file() and file.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    file = chance.choice(files) if chance.random() < 0.5 else chance.choices(files, sizes)[0]
    size = file.stat().st_size
    if kind == "flip":
        data = bytearray(file.read_bytes())
        data[chance.randrange(size)] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    elif kind == "truncation":
        os.truncate(file, chance.randrange(size))
    else:
        file.unlink()
    return str(file.relative_to(index))


def names(places: Sequence[str], file: str) -> bool:
    """Is one of the places in the damaged file? Every place that is not under segments/ is a table of meta.sqlite."""
    if file.startswith(SEGMENTS):
        stem = Path(file).name.split(".")[0]
        return any(place.startswith(f"{SEGMENTS}/{stem}") for place in places)
    return file == LOCK or any(not place.startswith(SEGMENTS) for place in places)


def check_restored(index: Path, sound: Content, states: Sequence[workload.State], report: RepairReport) -> None:
    """Every document is what it was, or is reported. Raises `AssertionError`."""
    faults = verify_index(index).faults
    assert not faults, f"after the repair verify finds {faults[:3]}"
    after = read(index)
    reported = {fault.place for fault in report.lost}
    log_lost = any(place.startswith(META) for place in reported)
    unknown = "documents" in reported
    if log_lost:  # then it is at an older commit
        there = {id_: (item.text, item.metadata) for id_, item in after.documents.items()}
        close = [
            [id_ for id_ in state.keys() | there.keys() if there.get(id_) != facts_of(state.get(id_))]
            for state in states
        ]
        wrong = min(close, key=lambda ids: len([id_ for id_ in ids if f"document '{id_}'" not in reported]))
    else:
        wrong = [id_ for id_ in sound.documents.keys() | after.documents.keys() if not same(sound, after, id_)]
    numbers = {id_: f"document number {item.doc}" for id_, item in sound.documents.items()}
    wrong = [
        id_ for id_ in wrong if f"document '{id_}'" not in reported and numbers.get(id_) not in reported and not unknown
    ]
    assert not wrong, f"{len(wrong)} documents are not what they were, and are not reported: {sorted(wrong)[:3]}"
    if not report.lost:
        assert len(after.answers) == len(sound.answers), "other answers"
        for got, wanted in zip(after.answers, sound.answers, strict=True):
            assert [id_ for id_, _ in got] == [id_ for id_, _ in wanted], "a search gives other documents"
            assert np.allclose([s for _, s in got], [s for _, s in wanted], atol=1e-3), "other scores"


def facts_of(document: Document | None) -> tuple[str, Metadata] | None:
    """What a state of the workload says of a document."""
    return None if document is None else (document.text, document.metadata)


def same(one: Content, other: Content, id_: str) -> bool:
    """The same text, metadata, class, entities and passages, and vectors of a cosine of at least .9999."""
    a, b = one.documents.get(id_), other.documents.get(id_)
    if a is None or b is None:
        return a is b
    facts = [
        (item.text, item.metadata_json, item.label, item.spans, [(p.start, p.end, p.tokens) for p in item.passages])
        for item in (a, b)
    ]
    if facts[0] != facts[1]:
        return False
    x, y = one.vectors[id_], other.vectors[id_]
    cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return bool((cosines >= 0.9999).all())


def run_case(
    folder: Path,
    sound: Path,
    facts: Content,
    states: Sequence[workload.State],
    kind: str,
    seed: int,
    tally: Tally,
) -> None:
    """Damage a copy, verify, repair, compare; what is wrong goes into the tally."""
    chance = random.Random(f"{kind} {seed}")
    index = folder / "case"
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(sound, index)
    file = damage(index, kind, chance)
    tally.cases += 1
    started = time.monotonic()
    try:
        places = [fault.place for fault in verify_index(index).faults]
    except TagdexError as error:
        places = [META if META in str(error) else f"none: {error}"]
    if not places:
        after = read(index)
        assert after.documents == facts.documents, "other content, and verify finds nothing"
        assert all(np.array_equal(after.vectors[id_], row) for id_, row in facts.vectors.items()), "other vectors"
        assert after.answers == facts.answers, "other answers, and verify finds nothing"
        tally.harmless += 1
        return
    tally.found += 1
    assert names(places, file), f"{file} was damaged, verify names {places[:3]}"
    try:
        report = repair_index(index, load=lambda _: DemoAnalyser(dimension=workload.DIMENSION))
    except CorruptIndexError:
        if file == META and kind != "flip":
            tally.reported += 1  # with hardly a row left, there is nothing to restore
            return
        raise
    check_restored(index, facts, states, report)
    tally.restored += not report.lost
    tally.reported += bool(report.lost)
    tally.seconds += time.monotonic() - started


def kill_repairs(folder: Path, sound: Path, facts: Content, states: Sequence[workload.State], count: int) -> Tally:
    """Kill the repair of a damaged copy at a random moment, run it again: it must restore as much as one that ends."""
    tally = Tally()
    index = folder / "killed"
    for seed in range(10 * count):
        if tally.found == count:
            break
        chance = random.Random(f"kill {seed}")
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(sound, index)
        vectors = sorted((index / SEGMENTS).glob("*.fp16.faiss"))
        data = bytearray(vectors[0].read_bytes())
        for _ in range(50):
            data[chance.randrange(len(data))] ^= 4
        vectors[0].write_bytes(data)
        damage(index, "flip", chance)
        tally.cases += 1
        command = [sys.executable, __file__, "--repair", str(index)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # it is about to begin
        time.sleep(chance.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = process.returncode == -signal.SIGKILL  # else it had ended
        tally.found += killed
        try:
            report = repair_index(index, load=lambda _: DemoAnalyser(dimension=workload.DIMENSION))
            check_restored(index, facts, states, report)
            tally.restored += killed and not report.lost
            tally.reported += killed and bool(report.lost)
        except Exception as error:
            tally.failures.append(f"kill {seed}: {error!r}")
    return tally


def main() -> None:
    """Run the cases and print a table; exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--truncations", type=int, default=100)
    parser.add_argument("--deletions", type=int, default=50)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repair", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repair:
        workload.small_segments()
        print("begin", flush=True)
        repair_index(arguments.repair, load=lambda _: DemoAnalyser(dimension=workload.DIMENSION))
        return
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound, states = build(folder, documents=arguments.documents, seed=arguments.seed)
        facts = read(sound)
        for kind, count in (
            ("flip", arguments.flips),
            ("truncation", arguments.truncations),
            ("deletion", arguments.deletions),
        ):
            tally = tallies[kind] = Tally()
            for seed in range(arguments.seed * 1_000, arguments.seed * 1_000 + count):
                try:
                    run_case(folder, sound, facts, states, kind, seed, tally)
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    tally.failures.append(f"{kind} {seed}: {error!r} ({Path(where.filename).name}:{where.lineno})")
                    print(tally.failures[-1], file=sys.stderr, flush=True)
        if arguments.kills:
            tallies["killed repair"] = kill_repairs(folder, sound, facts, states, arguments.kills)
    print(f"{'damage':<15}{'cases':>6}{'harmless':>10}{'found':>7}{'restored':>10}{'reported':>10}{'failures':>10}")
    for kind, tally in tallies.items():
        counts = (tally.harmless, tally.found, tally.restored, tally.reported, len(tally.failures))
        print(f"{kind:<15}{tally.cases:>6}{counts[0]:>10}{counts[1]:>7}{counts[2]:>10}{counts[3]:>10}{counts[4]:>10}")
        for failure in tally.failures:
            print(f"  {failure}")
    print(Counter({kind: len(tally.failures) for kind, tally in tallies.items()}))
    if any(tally.failures for tally in tallies.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
