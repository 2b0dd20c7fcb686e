"""A writer's work that is the same each time, and what the index must hold after each step of it.

    python scripts/faults/workload.py INDEX [--documents 20000] [--batch 200] [--seed 1]

Runs the steps behind the first `--done` on INDEX, and prints the number of steps done, before the index is opened and
after each step: a line that was printed is an acknowledgement. The tests of faults run it as a process, hurt that, and
compare the index with `states`. Vectors, classes and entities come from the tests' `DemoAnalyser`. An error of the
index ends it with one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import DemoAnalyser, entries, unit_fp16  # noqa: E402

from indexer import compaction, merging, planner, store  # noqa: E402
from indexer.errors import TagdexError  # noqa: E402
from indexer.fields import normalise_entity  # noqa: E402
from indexer.filters import Filter, parse  # noqa: E402
from indexer.metadata import connect_reader  # noqa: E402
from indexer.records import Document, FloatArray  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import META, Entry, IndexWriter  # noqa: E402
from indexer.stored import read_documents  # noqa: E402
from indexer.verify import verify_index  # noqa: E402
from search import Searcher  # noqa: E402
from search.query import Query  # noqa: E402

DIMENSION = 64
WORDS = ("ball", "race", "atom", "cell", "song", "Ada", "Kafka", "Rome", "Zed", "ox", "tea", "Gdańsk", "河", "🙂")

State = dict[str, Document]
"""Documents by id."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the writer that is one commit, or with "seal" and "compact" some that change no content.

    `kind`: "put", texts and metadata of documents new or known; "metadata", of known ones; "remove"; "seal"; "compact".
    """

    kind: str
    documents: tuple[Document, ...] = ()
    ids: tuple[str, ...] = ()


def make_steps(*, documents: int, batch: int, seed: int) -> list[Step]:
    """Steps that add so many documents in batches, with updates, removals, seals and compactions between."""
    return list(endless_steps(batch=batch, seed=seed, documents=documents))


def endless_steps(*, batch: int, seed: int, documents: int | None = None, ids: int | None = None) -> Iterator[Step]:
    """The steps one by one, without an end where `documents` is `None`. With `ids` there are only so many ids: a
    document comes back under the id of an earlier one with another text, and the index stays small."""
    random = np.random.default_rng(seed)
    known: dict[int, None] = {}
    made = 0
    for first in count(0, batch):
        if documents is not None and first >= documents:
            return
        numbers = range(first, first + batch if documents is None else min(first + batch, documents))
        new = {n % ids if ids else n: n // ids if ids else 0 for n in numbers}
        steps = [Step("put", tuple(make_document(n, generation, random) for n, generation in new.items()))]
        known |= dict.fromkeys(new)
        every = list(known)
        some = [every[at] for at in random.permutation(len(every))[: max(1, batch // 4)]]
        turn = first // batch % 8
        if turn in (1, 5):
            steps.append(Step("put", tuple(make_document(n, first, random) for n in some)))
        elif turn == 2:
            metadata = {"step": made + 1, "part": [1, True, "x"]}
            steps.append(Step("metadata", ids=tuple(f"d{n}" for n in some), documents=(Document("", "-", metadata),)))
        elif turn in (3, 6):
            steps.append(Step("remove", ids=tuple(f"d{n}" for n in some)))
            for n in some:
                del known[n]
        elif turn == 4:
            steps.append(Step("seal"))
        elif turn == 7:
            steps.append(Step("compact"))
        made += len(steps)
        yield from steps


def make_document(number: int, generation: int, random: np.random.Generator) -> Document:
    """A document of one or several passages."""
    words = [WORDS[at] for at in random.integers(len(WORDS), size=int(random.integers(2, 14)))]
    return Document(f"d{number}", " ".join([*words, f"n{number}g{generation}"]), {"n": number, "step": generation})


def apply(step: Step, state: State) -> State:
    """What the index holds after a step."""
    if step.kind == "put":
        return {**state, **{document.id: document for document in step.documents}}
    if step.kind == "metadata":
        metadata = step.documents[0].metadata
        return {**state, **{id_: Document(id_, state[id_].text, metadata) for id_ in step.ids}}
    if step.kind == "remove":
        return {id_: document for id_, document in state.items() if id_ not in set(step.ids)}
    return state


def states(steps: Sequence[Step]) -> list[State]:
    """The content after 0, 1, 2, … steps."""
    result: list[State] = [{}]
    for step in steps:
        result.append(apply(step, result[-1]))
    return result


def perform(step: Step, writer: IndexWriter, analyser: DemoAnalyser, before: State) -> None:
    """Do a step; it is durable when this returns."""
    if step.kind == "put":
        writer.write(entries(step.documents, analyser))
    elif step.kind == "metadata":
        metadata = step.documents[0].metadata
        writer.write([Entry(Document(id_, before[id_].text, metadata), None) for id_ in step.ids])
    elif step.kind == "remove":
        writer.remove(step.ids)
    elif step.kind == "seal":
        writer.seal()
    else:
        writer.compact(full=True)


def small_segments() -> None:
    """Limits so small that sealing, merging and codes happen all the time."""
    compaction.TIERS = (500, 2_000, 8_000)
    store.SEAL_ROWS, store.SEAL_ROWS_ON_CLOSE = 500, 100
    merging.CODES_FROM = 1_000
    planner.SCAN_LIMIT = 200


def is_index(index: Path) -> bool:
    """False for a folder whose making was cut short: there is no database yet, or none with tables and settings."""
    if not (index / META).is_file() or (index / f"{META}-journal").is_file():
        return False  # the journal is that of the first transaction of all, before there was a log
    with closing(sqlite3.connect(f"{(index / META).resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            return False
        return connection.execute("SELECT count(*) FROM settings").fetchone() != (0,)


def content(index: Path) -> State:
    """What an index holds, by its metadata; nothing for a folder whose making was cut short."""
    if not is_index(index):
        return {}
    connection = connect_reader(index / META)
    try:
        docs = [doc for (doc,) in connection.execute("SELECT doc FROM documents")]
        found = read_documents(connection, docs).values()
        return {stored.id: Document(stored.id, stored.text, stored.metadata) for stored in found}
    finally:
        connection.close()


def steps_done(index: Path, all_states: Sequence[State], *, acknowledged: int) -> int:
    """How many steps an index holds: those acknowledged, and maybe the one that was under way. Raises where neither.

    Several steps may leave the same content; then the most that are possible.
    """
    there = content(index)
    for done in (acknowledged + 1, acknowledged):
        if done < len(all_states) and there == all_states[done]:
            return done
    wanted = all_states[acknowledged]
    lost = [id_ for id_ in wanted if there.get(id_) != wanted[id_]]
    extra = [id_ for id_ in there if id_ not in wanted]
    raise AssertionError(
        f"after {acknowledged} acknowledged steps: {len(lost)} documents lost or other than written {lost[:3]}, "
        f"{len(extra)} unexpected {extra[:3]}"
    )


FILTERS = (None, "label = sport", "entity PER:Ada", "not entity LOC:rome and step >= 0")
"""Filters that `check_sound` asks with; `allows` is their meaning in plain Python."""


def check_sound(index: Path, *, state: State | None = None, queries: int = 5, seed: int = 0) -> None:
    """Index = metadata: no fault by `verify`, and searches, filtered ones too, equal brute force over the content.

    The scan must find exactly the best documents; the codes, which may miss some of these, nothing that is not there
    and no score that is not its own. Nothing to check where the making of the index was cut short. `state`: the
    content, where the caller has compared it already.
    """
    state = content(index) if state is None else state
    if not is_index(index):
        return
    report = verify_index(index)
    if report.faults:
        raise AssertionError(f"verify: {report.faults[:3]}")
    random = np.random.default_rng(seed)
    with Searcher(index) as searcher:
        for at in range(queries):
            query = random.normal(size=DIMENSION).astype(np.float32)
            condition = FILTERS[at % len(FILTERS)]
            scores = dict(brute_force(state, query, condition))
            for path in ("codes", "scan"):
                hits = searcher.answer_vector(query, Query(k=10, filter=as_filter(condition)), path=path).hits
                found, wanted = [(hit.id, hit.score) for hit in hits], list(scores.items())[:10]
                if path == "codes" and len({id_ for id_, _ in found} & set(list(scores)[:10])) >= len(wanted) / 2:
                    wanted = sorted(
                        ((id_, scores.get(id_, -2.0)) for id_ in dict(found)), key=lambda item: (-item[1], item[0])
                    )
                if not same_hits(found, wanted) or len(found) < min(10, len(scores)):
                    raise AssertionError(
                        f"search by {path}, filter {condition}: got {found[:3]}, brute force says {wanted[:3]}"
                    )


@lru_cache
def as_filter(condition: str | None) -> Filter | None:
    """A filter's tree."""
    return None if condition is None else parse(condition)


@dataclass(frozen=True, slots=True)
class Analysed:
    """What an index must know of a text: class, entities as filters see them, vectors fp64 (passages, DIMENSION)."""

    label: str | None
    entities: frozenset[tuple[str, str]]
    table: NDArray[np.float64]


@lru_cache(maxsize=100_000)
def analysed(text: str) -> Analysed:
    """A text's class, entities and vectors by `DemoAnalyser`."""
    analysis = DemoAnalyser(dimension=DIMENSION)._analyse(text, tags=True)
    return Analysed(
        analysis.label.name if analysis.label else None,
        frozenset((span.type, normalise_entity(text[span.start : span.end])) for span in analysis.spans),
        unit_fp16(analysis.vectors),
    )


def allows(document: Document, condition: str | None) -> bool:
    """Whether a document is one that a filter of `FILTERS` allows."""
    known = analysed(document.text)
    if condition == FILTERS[1]:
        return known.label == "sport"
    if condition == FILTERS[2]:
        return ("PER", "ada") in known.entities
    if condition == FILTERS[3]:
        return ("LOC", "rome") not in known.entities and document.metadata["step"] >= 0
    return True


def brute_force(state: State, query: FloatArray, condition: str | None) -> list[tuple[str, float]]:
    """Ids and scores of all allowed documents by the plain formula, best first."""
    allowed = [document for document in state.values() if allows(document, condition)]
    if not allowed:
        return []
    exact = query.astype(np.float64)
    unit = (exact / np.linalg.norm(exact)).astype(np.float32).astype(np.float64)
    tables = [analysed(document.text).table for document in allowed]
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    scores = np.maximum.reduceat(np.clip(np.concatenate(tables) @ unit, -1.0, 1.0), starts)
    best = zip((document.id for document in allowed), scores.tolist(), strict=True)
    return sorted(best, key=lambda item: (-item[1], item[0]))


def same_hits(found: Sequence[tuple[str, float]], wanted: Sequence[tuple[str, float]]) -> bool:
    """The same ids in the same order, with scores that are equal up to the order of a sum in fp64."""
    return [id_ for id_, _ in found] == [id_ for id_, _ in wanted] and np.allclose(
        [score for _, score in found], [score for _, score in wanted], atol=1e-9
    )


def run(index: Path, steps: Sequence[Step], done: int) -> Iterator[int]:
    """Do the steps behind the first `done`; yields how many are done, each time one more."""
    analyser, state = DemoAnalyser(dimension=DIMENSION), states(steps)[done]
    with IndexWriter(index, create=settings_of(analyser)) as writer:
        for number, step in enumerate(steps[done:], start=done + 1):
            perform(step, writer, analyser, state)
            state = apply(step, state)
            yield number


def main() -> None:
    """Run the steps that are left."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--done", type=int, default=0, help="steps that the index holds already")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    small_segments()
    steps = make_steps(documents=arguments.documents, batch=arguments.batch, seed=arguments.seed)
    print(arguments.done, flush=True)
    try:
        for number in run(arguments.index, steps, arguments.done):
            print(number, flush=True)
    except TagdexError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
