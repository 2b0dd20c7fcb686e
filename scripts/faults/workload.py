"""A writer's work that is the same each time, and what the index must hold after each step of it.

    python scripts/faults/workload.py INDEX [--documents 20000] [--batch 200] [--seed 1]

Runs the steps on INDEX, going on behind those that its content shows to be done, and prints the number of steps done
after each: a line that was printed is an acknowledgement. The tests of faults run it as a process, hurt that, and
compare the index with `state_after`. Vectors, classes and entities come from the tests' `DemoAnalyser`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import DemoAnalyser, entries, passage_scores  # noqa: E402

from indexer import compaction, merging, store, vectors  # noqa: E402
from indexer.metadata import connect_reader  # noqa: E402
from indexer.records import Document  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import META, Entry, IndexWriter  # noqa: E402
from indexer.stored import read_documents  # noqa: E402
from indexer.verify import verify_index  # noqa: E402
from search import Searcher  # noqa: E402

DIMENSION = 64
WORDS = ("ball", "race", "atom", "cell", "song", "Ada", "Kafka", "Rome", "Zed", "ox", "tea", "sky", "Gdańsk", "河", "🙂")

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
    random = np.random.default_rng(seed)
    steps: list[Step] = []
    known: list[int] = []
    for first in range(0, documents, batch):
        numbers = list(range(first, min(first + batch, documents)))
        steps.append(Step("put", tuple(make_document(n, 0, random) for n in numbers)))
        known += numbers
        some = [known[at] for at in random.permutation(len(known))[: max(1, batch // 4)]]
        turn = first // batch % 8
        if turn in (1, 5):
            steps.append(Step("put", tuple(make_document(n, first, random) for n in some)))
        elif turn == 2:
            metadata = {"step": len(steps), "part": [1, True, "x"]}
            steps.append(Step("metadata", ids=tuple(f"d{n}" for n in some), documents=(Document("", "-", metadata),)))
        elif turn in (3, 6):
            steps.append(Step("remove", ids=tuple(f"d{n}" for n in some)))
            known = [n for n in known if n not in set(some)]
        elif turn == 4:
            steps.append(Step("seal"))
        elif turn == 7:
            steps.append(Step("compact"))
    return steps


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
    vectors.SCAN_LIMIT = 200


def content(index: Path) -> State:
    """What an index holds, by its metadata; nothing for a folder that is no index yet."""
    if not (index / META).is_file() or (index / META).stat().st_size == 0:
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
    for count in (acknowledged + 1, acknowledged):
        if count < len(all_states) and there == all_states[count]:
            return count
    wanted = all_states[acknowledged]
    lost = [id_ for id_ in wanted if there.get(id_) != wanted[id_]]
    extra = [id_ for id_ in there if id_ not in wanted]
    raise AssertionError(
        f"after {acknowledged} acknowledged steps: {len(lost)} documents lost or other than written {lost[:3]}, "
        f"{len(extra)} unexpected {extra[:3]}"
    )


def check_sound(index: Path, *, queries: int = 5, seed: int = 0) -> None:
    """Index = metadata: no fault by `verify`, and search by codes and by scan equals brute force over the content."""
    report = verify_index(index)
    if report.faults:
        raise AssertionError(f"verify: {report.faults[:3]}")
    analyser, state = DemoAnalyser(dimension=DIMENSION), content(index)
    random = np.random.default_rng(seed)
    with Searcher(index) as searcher:
        for _ in range(queries if state else 0):
            query = random.normal(size=DIMENSION).astype(np.float32)
            best: dict[str, float] = {}
            for (id_, _), score in passage_scores(
                {id_: document.text for id_, document in state.items()}, query, analyser
            ).items():
                best[id_] = max(score, best.get(id_, -2.0))
            wanted = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:10]
            found = [(hit.id, hit.score) for hit in searcher.search_vector(query, k=10)]
            if [id_ for id_, _ in found] != [id_ for id_, _ in wanted] or not np.allclose(
                [score for _, score in found], [score for _, score in wanted], atol=1e-9
            ):
                raise AssertionError(f"search: got {found[:3]}, brute force says {wanted[:3]}")


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
    small_segments()
    steps = make_steps(documents=arguments.documents, batch=arguments.batch, seed=arguments.seed)
    for number in run(arguments.index, steps, arguments.done):
        print(number, flush=True)


if __name__ == "__main__":
    main()
