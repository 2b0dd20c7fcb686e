"""A run that is killed again and again comes to the same index as one that was not, and embeds next to nothing twice.

    python scripts/faults/resume.py [--kills 20] [--documents 5000] [--batch 256] [--folder DIR]

`indexer.pipeline.index` fills an index with a small model of random weights, which notes every text before it embeds
it. The run is killed at random moments and each time started again with the same documents; another one is left
alone. Ids, texts, passages, classes and entities must be the same and vectors have a cosine of .9999 or more; no text
that was acknowledged is embedded again, and after each kill at most one batch of others. Ends with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from workload import META, IndexWriter, small_segments, verify_index

from indexer import pipeline
from indexer.reader import IndexReader
from indexer.records import Analysis, Document
from indexer.settings import settings_of
from indexer.snapshot import Snapshot
from indexer.stored import StoredDocument

WORDS = ["hello", "there", "the", "ada", "lovelace", "london", "paris", "acme", "met", "in", "angstrom", "zurich"]
COSINE = 0.9999


@dataclass(slots=True)
class Resumed:
    """What came of it. `again`: texts embedded in a run although an earlier one had embedded them, for each run."""

    kills: int = 0
    runs: int = 0
    again: list[int] = field(default_factory=list)
    lowest_cosine: float = 1.0
    bad: list[str] = field(default_factory=list)


def make_documents(count: int, seed: int = 0) -> list[Document]:
    """Documents of one passage, and some of several; each text is another."""
    random = np.random.default_rng(seed)
    lengths = np.where(random.random(count) < 0.05, 200, random.integers(3, 12, size=count))
    return [
        Document(f"d{n}", " ".join([*(WORDS[at] for at in random.integers(len(WORDS), size=length)), str(n)]), {"n": n})
        for n, length in enumerate(lengths.tolist())
    ]


def fill(index: Path, model: Path, log: Path, send: Connection, *, count: int, batch: int) -> None:
    """In a process of its own: index the documents; sends how many are durable, 0 as soon as the model is there."""
    from indexer.model import TextModel

    documents = make_documents(count)
    numbers = {document.text: n for n, document in enumerate(documents)}

    class NotingModel(TextModel):
        """Notes what it embeds, before it does so."""

        def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
            notes.write(json.dumps([numbers[text] for text in texts]) + "\n")
            notes.flush()
            return super().analyse(texts, tags=tags)

    small_segments()
    pipeline.BATCH_DOCUMENTS = batch
    text_model = NotingModel.load(model, device="cpu")
    send.send(0)
    with log.open("a") as notes, IndexWriter(index, create=settings_of(text_model)) as writer:
        pipeline.index(documents, text_model, writer, on_commit=lambda report: send.send(report.documents))


def resume(folder: Path, *, kills: int, count: int, batch: int, seed: int = 0) -> Resumed:
    """One run that is killed so often, one that is not, and their comparison."""
    from fakes import save_tiny_model

    model, result, random = save_tiny_model(folder / "model"), Resumed(), np.random.default_rng(seed)
    index, log = folder / "killed", folder / "killed.log"
    clean = run_fill(folder / "clean", model, folder / "clean.log", count, batch)
    if clean.code or clean.acknowledged != count:
        result.bad.append(f"the run that was left alone ended with {clean.code}")
        return result
    batches = -(-count // batch)
    for_one = clean.seconds / batches
    acknowledged, before = 0, set[int]()
    while acknowledged < count:
        log.write_text("")
        if result.kills < kills:
            # Behind some batch of those that are left, and somewhere in the next one.
            done, left = acknowledged // batch, kills - result.kills
            done += int(random.integers(0, max(1, 2 * (batches - done) // (left + 1))))
            outcome = run_fill(index, model, log, count, batch, batches=done, seconds=random.uniform(0, for_one))
        else:
            outcome = run_fill(index, model, log, count, batch)
        if outcome.code not in (0, -9):
            result.bad.append(f"run {result.runs} ended with {outcome.code}")
            return result
        embedded = [n for line in log.read_text().splitlines() if line.endswith("]") for n in json.loads(line)]
        if early := [n for n in embedded if n < acknowledged]:
            result.bad.append(f"run {result.runs}: {len(early)} of {acknowledged} acknowledged texts embedded again")
        result.again.append(len(before.intersection(embedded)) + len(embedded) - len(set(embedded)))
        before |= set(embedded)
        acknowledged = max(acknowledged, outcome.acknowledged)
        result.runs += 1
        result.kills += outcome.code == -9
        if outcome.code == -9 and (index / META).is_file() and acknowledged:
            result.bad += [f"verify after kill {result.kills}: {fault}" for fault in verify_index(index).faults[:3]]
    if (most := max(result.again)) > batch:
        result.bad.append(f"{most} texts embedded again after one kill, a batch is {batch}")
    compare(folder / "clean", index, result)
    return result


@dataclass(frozen=True, slots=True)
class Run:
    """How a run of `fill` ended: documents that it said were durable, exit code, seconds without loading the model."""

    acknowledged: int
    code: int | None
    seconds: float


def run_fill(
    index: Path, model: Path, log: Path, count: int, batch: int, *, batches: int = 0, seconds: float | None = None
) -> Run:
    """`fill` as a process, killed so many seconds after it said that so many batches were done; `None`: never.

    It is forked from a server that has imported what takes long, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["indexer.model", "transformers.models.bert.modeling_bert"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=fill, args=(index, model, log, send), kwargs={"count": count, "batch": batch})
    process.start()
    send.close()
    started, said = time.monotonic(), []
    try:
        while True:
            said.append(receive.recv())
            if len(said) == 1:
                started = time.monotonic()
            if seconds is not None and len(said) == 1 + batches:
                time.sleep(seconds)
                process.kill()
    except (EOFError, OSError):  # the process has ended, maybe within a message
        process.join()
    return Run(max(said, default=0), process.exitcode, time.monotonic() - started)


def compare(clean: Path, killed: Path, result: Resumed) -> None:
    """Everything but the numbering."""
    with IndexReader(clean) as one, one.snapshot() as wanted, IndexReader(killed) as two, two.snapshot() as found:
        documents = {stored.id: stored for stored in wanted.documents(_numbers(wanted)).values()}
        others = {stored.id: stored for stored in found.documents(_numbers(found)).values()}
        if documents.keys() != others.keys():
            result.bad.append(f"{len(documents)} ids without kills, {len(others)} with them")
            return
        for id_, stored in documents.items():
            other = others[id_]
            if _facts(stored) != _facts(other):
                result.bad.append(f"{id_}: {_facts(stored)} without kills, {_facts(other)} with them")
            vectors = [_vectors(wanted, stored), _vectors(found, other)]
            cosine = float((vectors[0] * vectors[1]).sum(axis=1).min())
            result.lowest_cosine = min(result.lowest_cosine, cosine)
    if result.lowest_cosine < COSINE:
        result.bad.append(f"the lowest cosine of a vector is {result.lowest_cosine}")
    result.bad += [f"verify: {fault}" for fault in verify_index(killed).faults[:3]]


def _numbers(snapshot: Snapshot) -> list[int]:
    return [doc for (doc,) in snapshot.connection.execute("SELECT doc FROM documents")]


def _facts(stored: StoredDocument) -> tuple[object, ...]:
    label = None if stored.label is None else (stored.label.name, round(stored.label.score, 4))
    spans = [(span.type, span.start, span.end, round(span.score, 4)) for span in stored.spans]
    passages = [(passage.start, passage.end, passage.tokens) for passage in stored.passages]
    return stored.text, stored.metadata, label, spans, passages


def _vectors(snapshot: Snapshot, stored: StoredDocument) -> NDArray[np.float64]:
    """Of its passages and of the whole, of length 1: fp64 (passages + 1, dimension)."""
    sql = "SELECT vid FROM passages WHERE doc = ? ORDER BY vid"
    vids = [vid for (vid,) in snapshot.connection.execute(sql, (stored.doc,))]
    rows = [snapshot.document_vector(stored.doc)]
    for vid in vids:
        for segment in snapshot.view.all:
            at = int(np.searchsorted(segment.vids, vid))
            if at < len(segment) and segment.vids[at] == vid:
                rows.append(segment.table[at])
    table = np.stack(rows).astype(np.float64)
    if len(table) != len(vids) + 1:
        raise AssertionError(f"{stored.id}: {len(vids)} passages, {len(table) - 1} vectors")
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def main() -> None:
    """Run it and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--documents", type=int, default=5_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the indexes are made; default: a temporary folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = resume(Path(folder), kills=arguments.kills, count=arguments.documents, batch=arguments.batch)
    again = sum(result.again)
    print(
        f"{arguments.documents:,} documents in batches of {arguments.batch}, killed {result.kills} times in "
        f"{time.monotonic() - started:.0f} s: {len(result.bad)} differences, lowest cosine {result.lowest_cosine:.6f}, "
        f"{again} texts embedded again in all, at most {max(result.again, default=0)} after one kill"
    )
    for line in result.bad[:10]:
        print(f"  BAD {line}")
    sys.exit(1 if result.bad or result.kills < arguments.kills else 0)


if __name__ == "__main__":
    main()
