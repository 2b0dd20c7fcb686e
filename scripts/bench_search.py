"""Recall, latency, memory and disk of tagdex beside other engines, with and without filters, on the same vectors.

    python scripts/bench_search.py embed --data DATA --cache CACHE
    python scripts/bench_search.py build --cache CACHE -n 1000000 [ENGINE…]
    python scripts/bench_search.py query --cache CACHE -n 1000000 [ENGINE…]
    python scripts/bench_search.py report --cache CACHE -n 1000000 --picture recall.svg

`DATA` holds wiki-en, acl-anthology and oewn. Their passages are embedded with the default model, once; beyond their
number, real vectors are shifted along differences of real vectors. Each engine runs in a process of its own, one after
the other; each step leaves its result in `CACHE`. The peers are installed by hand: pip install lancedb chromadb
qdrant-client txtai hnswlib sqlite-vec apsw matplotlib. Times mean something on a machine that does nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import bench_data
from bench_data import Dataset, K
from bench_peers import ENGINES, versions

CELL_SECONDS = 2.0  # for one filter at one level, then the rest of the queries is left out
LEAST_QUERIES = 8
ENOUGH = 0.99  # recall at which engines are compared


def memory(kind: str) -> int:
    """Bytes of this process: "RssAnon", its own memory, or "RssFile", pages of mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return 1024 * int(line.split()[1])
    raise ValueError(kind)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """The most own memory that the process had inside the block, beyond what it had before."""
    result, before, done = {"bytes": 0}, memory("RssAnon"), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            result["bytes"] = max(result["bytes"], memory("RssAnon") - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()


def folder_of(cache: Path, n: int, engine: str) -> Path:
    """Where an engine keeps its index."""
    return cache / str(n) / "engines" / engine


def build(cache: Path, n: int, name: str) -> dict[str, Any]:
    """Build an engine's index, in this process."""
    data = bench_data.prepare(cache, n)
    folder = folder_of(cache, n, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.perf_counter()
    with peak_memory() as peak:
        ENGINES[name]().build(data, folder)
    seconds = time.perf_counter() - started
    return {
        "build_seconds": round(seconds, 1),
        "vectors_per_second": round(n / seconds),
        "build_memory_mb": round(peak["bytes"] / 2**20),
        "disk_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20),
    }


def query(cache: Path, n: int, name: str) -> dict[str, Any]:
    """Ask an engine every query under every filter, in this process."""
    data = bench_data.prepare(cache, n)
    engine = ENGINES[name]()
    _ = [data.columns[column].sum() for column in data.columns]
    before, started = memory("RssAnon"), time.perf_counter()
    engine.open(data, folder_of(cache, n, name))
    engine.search(data.queries[0], K, None, engine.levels[0])
    first = time.perf_counter() - started
    cells = [measure(engine, data, kind, share, level) for level in engine.levels for kind, share in bench_data.cells()]
    result = {
        "first_answer_seconds": round(first, 3),
        "memory_mb": round((memory("RssAnon") - before) / 2**20),
        "cells": cells,
        "queries_per_second": {},
    }
    for kind, share in (("independent", 1.0), ("near", 0.01)):
        level = next(
            (c["level"] for c in cells if (c["kind"], c["share"]) == (kind, share) and c["recall"] >= ENOUGH),
            engine.levels[-1],
        )
        if name not in ("sqlite-vec", "chroma", "txtai"):  # one connection each, for one thread at a time
            result["queries_per_second"][f"{kind} {share}"] = throughput(engine, data, kind, share, level)
    return result


def measure(engine: Any, data: Dataset, kind: str, share: float, level: Any) -> dict[str, Any]:
    """One cell: all queries twice; recall and times are those of the second time, when filters may be remembered."""
    truth, vectors = data.truth[f"{kind} {share}"], data.vectors
    cold, warm, recalls, short, wrong = [], [], [], 0, 0
    for seconds in (cold, warm):
        begun = time.perf_counter()
        for number, vector in enumerate(data.queries):
            if number >= LEAST_QUERIES and time.perf_counter() - begun > CELL_SECONDS:
                break
            where = data.filter(kind, share, number)
            started = time.perf_counter()
            found = engine.search(vector, K, where, level)
            seconds.append(time.perf_counter() - started)
            if seconds is cold:
                continue
            limit, count = truth[number]
            scores = vectors[found].astype(np.float32) @ vector if found else np.zeros(0)
            recalls.append(np.count_nonzero(scores >= limit - 1e-5) / count)
            short += int(len(set(found)) < count)
            if where is not None and found:
                values = data.columns[where.column][found]
                wrong += bool(((values < where.low) | (values >= where.high)).any())
    return {
        "kind": kind,
        "share": share,
        "level": level,
        "queries": len(recalls),
        "recall": round(float(np.mean(recalls)), 4),
        "short": short,
        "wrong": wrong,
        "p50_ms": milliseconds(warm, 50),
        "p99_ms": milliseconds(warm, 99),
        "cold_p50_ms": milliseconds(cold, 50),
    }


def throughput(engine: Any, data: Dataset, kind: str, share: float, level: Any) -> float:
    """Queries per second of as many threads as there are cores."""
    filters = [data.filter(kind, share, number) for number in range(len(data.queries))]
    ends = time.perf_counter() + CELL_SECONDS

    def work(thread: int) -> int:
        done = 0
        while time.perf_counter() < ends:
            at = (done * (os.cpu_count() or 1) + thread) % len(filters)
            engine.search(data.queries[at], K, filters[at], level)
            done += 1
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        total = sum(pool.map(work, range(os.cpu_count() or 1)))
    return round(total / (time.perf_counter() - started), 1)


def milliseconds(seconds: Sequence[float], percentile: float) -> float:
    """A percentile of times."""
    return round(1000 * float(np.percentile(seconds, percentile)), 2)


def results_of(cache: Path, n: int) -> dict[str, dict[str, Any]]:
    """What was measured so far, by engine."""
    found = {}
    for name in ENGINES:
        file = cache / str(n) / "results" / f"{name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text())
    return found


def best_level(cells: Sequence[dict[str, Any]], kind: str, share: float) -> dict[str, Any]:
    """The fastest level with enough recall under a filter, or the one with the most."""
    here = [cell for cell in cells if (cell["kind"], cell["share"]) == (kind, share)]
    enough = [cell for cell in here if cell["recall"] >= ENOUGH]
    return min(enough, key=lambda cell: cell["p50_ms"]) if enough else max(here, key=lambda cell: cell["recall"])


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown."""
    yield "| engine | build | build memory | memory | disk | first answer | queries/s | queries/s, 1 % near |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, result in results.items():
        rates = result.get("queries_per_second", {})

        def shown(key: str, unit: str, result: dict[str, Any] = result) -> str:
            return f"{result[key]:,}{unit}" if key in result else "–"

        yield (
            f"| {name} | {shown('build_seconds', ' s')} ({shown('vectors_per_second', '/s')}) "
            f"| {shown('build_memory_mb', ' MB')} | {shown('memory_mb', ' MB')} "
            f"| {shown('disk_mb', ' MB')} | {shown('first_answer_seconds', ' s')} "
            f"| {rates.get('independent 1.0', '–')} | {rates.get('near 0.01', '–')} |"
        )
    yield ""
    names = [name for name, result in results.items() if "cells" in result]
    yield "| filter | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for kind, share in bench_data.cells():
        columns = []
        for name in names:
            cell = best_level(results[name]["cells"], kind, share)
            faults = f", **{cell['short']} short**" if cell["short"] else ""
            faults += f", **{cell['wrong']} wrong**" if cell["wrong"] else ""
            columns.append(f"{cell['p50_ms']} / {cell['p99_ms']} ms, {cell['recall']:.3f}{faults}")
        yield f"| {'none' if share == 1 else f'{kind} {share:.2%}'} | " + " | ".join(columns) + " |"


def draw(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Recall against latency, one panel for each filter, one line for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [cell for cell in bench_data.cells() if cell[1] in (1.0, 0.1, 0.01, 0.0001)]
    figure, axes = plt.subplots(2, 5, figsize=(22, 8), sharey=True)
    for axis, (kind, share) in zip(axes.flat, panels, strict=True):
        for number, (name, result) in enumerate(results.items()):
            cells = [c for c in result.get("cells", ()) if (c["kind"], c["share"]) == (kind, share)]
            cells.sort(key=lambda cell: cell["p50_ms"])
            axis.plot(
                [cell["p50_ms"] for cell in cells],
                [cell["recall"] for cell in cells],
                marker="osv^D<>ph"[number],
                label=name,
            )
        axis.set_xscale("log")
        axis.set_title("no filter" if share == 1 else f"{kind}, {share:.2%}")
        axis.set_xlabel("p50, ms")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("recall@10")
    axes.flat[0].legend()
    figure.tight_layout()
    figure.savefig(file)


@click.group()
def cli() -> None:
    """Compare engines for filtered vector search."""


cache_option = click.option("--cache", required=True, type=click.Path(path_type=Path))
size_option = click.option("-n", "n", default=1_000_000, show_default=True, help="How many vectors.")


@cli.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@cache_option
@click.option("--part", type=click.IntRange(min=0), default=0, help="Which share of the work, from 0 on.")
@click.option("--parts", type=click.IntRange(min=1), default=1, help="Into how many shares the work is divided.")
def embed(data: Path, cache: Path, part: int, parts: int) -> None:
    """Embed the real texts; goes on where it was stopped."""
    from indexer.model import TextModel

    bench_data.embed(data, cache, model=TextModel.load(), part=part, parts=parts)


def run_step(step: Any, cache: Path, n: int, engines: Sequence[str]) -> None:
    """Run a step for each engine in a process of its own, and keep its result."""
    bench_data.prepare(cache, n)
    spawn = multiprocessing.get_context("spawn")
    for name in engines or ENGINES:
        with spawn.Pool(1) as pool:
            measured = pool.apply(step, (cache, n, name))
        file = cache / str(n) / "results" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **measured}, indent=1))
        shown = {key: value for key, value in measured.items() if key != "cells"}
        click.echo(f"{name}: {json.dumps(shown)}")


@cli.command("build")
@cache_option
@size_option
@click.argument("engines", nargs=-1, type=click.Choice(list(ENGINES)))
def build_command(cache: Path, n: int, engines: Sequence[str]) -> None:
    """Build the engines' indexes."""
    run_step(build, cache, n, engines)


@cli.command("query")
@cache_option
@size_option
@click.argument("engines", nargs=-1, type=click.Choice(list(ENGINES)))
def query_command(cache: Path, n: int, engines: Sequence[str]) -> None:
    """Ask the engines all queries under all filters."""
    run_step(query, cache, n, engines)


@cli.command()
@cache_option
@size_option
@click.option("--picture", type=click.Path(path_type=Path), help="Recall against latency, as .svg or .png.")
def report(cache: Path, n: int, picture: Path | None) -> None:
    """Print what was measured as Markdown."""
    results = results_of(cache, n)
    click.echo(f"{n:,} vectors, {os.cpu_count()} cores; {versions()}\n")
    click.echo("\n".join(table(results)))
    if picture is not None:
        draw(results, picture)


if __name__ == "__main__":
    cli()
