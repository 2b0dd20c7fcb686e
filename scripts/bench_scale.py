"""Two more questions about an index of a million: what a filter costs by itself, and what removing a third does.

    python scripts/bench_scale.py entities --cache CACHE -n 1000000
    python scripts/bench_scale.py churn --cache CACHE -n 1000000

Both take the texts, tags and vectors that bench_search.py has put into CACHE. `entities` evaluates a filter of 1,000
entities over documents with the entities of real texts: read by SQL, remembered as a whole, put together from parts
that are remembered, and brought forward after a commit. `churn` removes 30 % of a copy of the index that
`bench_search.py build tagdex` made, and compacts it, while another process asks queries without a pause and checks
every answer; then it compares the size with that of an index made of the rest. Times mean something on a machine that
does nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import bench_data
from bench_data import Dataset, Integers, K
from bench_peers import documents
from bench_search import folder_of, memory, milliseconds

TERMS = 1_000
DIMENSION = 16  # of the index for filters: vectors play no part
BATCH = 8_192
REMOVED_SHARE = 0.3
REMOVALS = 30  # commits in which that share goes
DEPTH = 200  # of each query's nearest vectors, known beforehand


@click.group()
def cli() -> None:
    """Filters by entity, and removals, at scale."""


cache_option = click.option("--cache", required=True, type=click.Path(path_type=Path))
size_option = click.option("-n", "n", default=1_000_000, show_default=True, help="How many documents.")


@cli.command()
@cache_option
@size_option
def entities(cache: Path, n: int) -> None:
    """Time the filter of 1,000 entities."""
    from indexer.fields import normalise_entity
    from indexer.filters import HasEntity, Or
    from indexer.reader import IndexReader
    from indexer.store import IndexWriter

    _, tags = bench_data.load_real(cache)
    folder = cache / str(n) / "entities"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with IndexWriter(folder / "index", create=_tagged_settings()) as writer:
            for start in range(0, n, BATCH):
                writer.write([_tagged_entry(number, tags) for number in range(start, min(n, start + BATCH))])
        (folder / "done").touch()
    counts = Counter(
        (kind, normalise_entity(tag["text"][start:end])) for tag in tags for kind, start, end, _ in tag["spans"]
    )
    terms = [term for term, _ in counts.most_common(2 * TERMS)]
    common, mixed = terms[:TERMS], terms[TERMS // 2 : TERMS // 2 + TERMS]
    rare = [term for term, _ in counts.most_common()[-TERMS:]]

    def any_of(wanted: list[tuple[str, str]]) -> Or:
        return Or(tuple(HasEntity(kind, norm, "exact") for kind, norm in wanted))

    with IndexReader(folder / "index") as reader:

        def evaluate(wanted: list[tuple[str, str]]) -> tuple[float, int]:
            filter = any_of(wanted)
            with reader.snapshot() as snapshot:
                started = time.perf_counter()
                allowed = snapshot.allowed(filter)
                return time.perf_counter() - started, len(allowed)

        def median(wanted: list[tuple[str, str]]) -> float:
            return milliseconds([evaluate(wanted)[0] for _ in range(50)], 50)

        first, allowed = evaluate(common)
        report = {"documents": n, "terms": TERMS, "allowed": allowed, "by_sql_ms": round(1000 * first, 1)}
        report["warm_ms"] = median(common)
        evaluate(terms)
        unions = []
        for seed in range(20):  # each time another thousand of those that are remembered
            order = np.random.default_rng(seed).permutation(len(terms))[:TERMS]
            unions.append(evaluate([terms[at] for at in order])[0])
        report["from_remembered_parts_ms"] = milliseconds(unions, 50)
        report["rare_by_sql_ms"] = round(1000 * evaluate(rare)[0], 1)
        report["rare_warm_ms"] = median(rare)
        with IndexWriter(folder / "index") as writer:
            after = []
            for turn in range(10):
                writer.write([_tagged_entry(number, tags, turn=turn) for number in range(turn, n, n // 200)])
                after.append(evaluate(mixed)[0])
        report["after_a_commit_of_200_ms"] = milliseconds(after, 50)
    click.echo(json.dumps(report, indent=1))


def _tagged_settings() -> Any:
    from indexer.settings import IndexSettings

    return IndexSettings("bench", "0" * 64, "0" * 64, DIMENSION, ("one", "other"), ("PER", "ORG", "LOC"))


def _tagged_entry(number: int, tags: list[dict[str, Any]], *, turn: int = 0) -> Any:
    """A document with a real text and the entities that were found in it."""
    from indexer.records import Analysis, Document, Label, Passage, Span
    from indexer.store import Entry

    tag = tags[number % len(tags)]
    vector = np.random.default_rng(number).normal(size=DIMENSION).astype(np.float32)
    spans = tuple(Span(kind, start, end, score) for kind, start, end, score in tag["spans"])
    text = f"{tag['text']} {number} {turn}"
    return Entry(
        Document(str(number), text, {"n": number}),
        Analysis((Passage(0, len(text), 1),), vector[None], vector, Label("one", 0.9), spans),
    )


@cli.command()
@cache_option
@size_option
def churn(cache: Path, n: int) -> None:
    """Remove 30 %, compact, and compare; queries go on meanwhile."""
    from indexer.api import add_documents
    from indexer.reader import folder_bytes
    from indexer.store import IndexWriter
    from indexer.verify import verify_index

    data = bench_data.prepare(cache, n)
    folder = cache / str(n) / "churn"
    shutil.rmtree(folder, ignore_errors=True)
    index = folder / "index"
    shutil.copytree(folder_of(cache, n, "tagdex") / "index", index)
    before, chance = folder_bytes(index), data.columns["chance"]
    spawn = multiprocessing.get_context("spawn")
    stop, answers, acknowledged = spawn.Event(), spawn.Queue(), spawn.Value("i", 0)
    reader = spawn.Process(target=_ask, args=(cache, n, index, stop, answers, acknowledged))
    reader.start()
    answers.get()  # it is ready
    with IndexWriter(index) as writer:
        started = time.perf_counter()
        for turn in range(REMOVALS):
            low, high = (round(n * REMOVED_SHARE * at / REMOVALS) for at in (turn, turn + 1))
            writer.remove(str(row) for row in np.flatnonzero((chance >= low) & (chance < high)))
            acknowledged.value = turn + 1
        removed = time.perf_counter() - started
        writer.compact(full=True)
        compacted = time.perf_counter() - started - removed
    time.sleep(2.0)
    stop.set()
    asked = answers.get()
    reader.join()
    after = folder_bytes(index)
    faults = verify_index(index).faults
    kept = np.flatnonzero(chance >= round(n * REMOVED_SHARE))
    add_documents(folder / "fresh", _chosen(data, kept))
    with IndexWriter(folder / "fresh") as writer:
        writer.compact(full=True)
    fresh = folder_bytes(folder / "fresh")
    report = {
        "remove_seconds": round(removed, 1),
        "compact_seconds": round(compacted, 1),
        "writer_memory_mb": round(memory("RssAnon") / 2**20),
        "bytes_before": before,
        "bytes_after": after,
        "bytes_of_a_fresh_build": fresh,
        "after_to_fresh": round(after / fresh, 4),
        "faults": len(faults),
        **asked,
    }
    shutil.rmtree(folder)
    click.echo(json.dumps(report, indent=1))


def _chosen(data: Dataset, rows: Integers) -> Iterator[Any]:
    """Documents of some of the vectors."""
    wanted = np.zeros(len(data), dtype=bool)
    wanted[rows] = True
    return (document for number, document in enumerate(documents(data)) if wanted[number])


def _ask(cache: Path, n: int, index: Path, stop: Any, answers: Any, acknowledged: Any) -> None:
    """In a process of its own: query without a pause, and check every answer against the truth of its moment.

    An answer is that of some number of removals, at least those acknowledged when it was asked for, at most one more
    than those acknowledged when it came. Its share of the exact ten best at that number is the recall; a hit that was
    live at none of them is wrong.
    """
    from search import Searcher

    data = bench_data.prepare(cache, n)
    chance, ends = data.columns["chance"], [round(n * REMOVED_SHARE * at / REMOVALS) for at in range(REMOVALS + 1)]
    nearest = _nearest(data)
    asked, wrong, short, failed, recalls, seconds = 0, 0, 0, 0, [], []
    with Searcher(index) as searcher:
        searcher.search_vector(data.queries[0], k=K)
        answers.put("ready")
        while not stop.is_set():
            at = asked % len(data.queries)
            asked += 1
            first, started = acknowledged.value, time.perf_counter()
            try:
                hits = [int(hit.id) for hit in searcher.search_vector(data.queries[at], k=K)]
            except Exception as error:
                failed += 1
                print(f"a query failed: {error}", file=sys.stderr)
                continue
            seconds.append(time.perf_counter() - started)
            short += len(set(hits)) < K
            shares = []
            for end in ends[first : acknowledged.value + 2]:
                if all(chance[hit] >= end for hit in hits):
                    exact = nearest[at][chance[nearest[at]] >= end][:K]
                    shares.append(len(set(exact.tolist()) & set(hits)) / K)
            wrong += not shares
            recalls += [max(shares)] if shares else []
    answers.put(
        {
            "queries": asked,
            "failed": failed,
            "wrong": wrong,
            "short": short,
            "recall": round(float(np.mean(recalls)), 4),
            "query_p50_ms": milliseconds(seconds, 50),
            "query_p99_ms": milliseconds(seconds, 99),
            "query_max_ms": milliseconds(seconds, 100),
        }
    )


def _nearest(data: Dataset) -> Integers:
    """The numbers of the `DEPTH` nearest vectors of each query, best first; int64 (queries, DEPTH)."""
    scores = np.empty((len(data.queries), len(data)), dtype=np.float32)
    for start, block in data.blocks():
        scores[:, start : start + len(block)] = data.queries @ block.T
    best = np.argpartition(-scores, DEPTH, axis=1)[:, :DEPTH]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


if __name__ == "__main__":
    cli()
