"""What facets cost on an index of a million: the first time, after that, under filters, and after a commit.

    python scripts/bench_facets.py --cache CACHE -n 1000000

The index is made once and kept in CACHE: documents with one to nine entities of three types (names as frequent as words
are, by Zipf's law), a class, and metadata of few and of many values; vectors play no part. Each figure is the best and
the median of several runs in milliseconds, and the least processor time, which says more on a machine that does other
things as well.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from bench_search import memory

from indexer.records import Analysis, Document, Label, Passage, Span
from indexer.settings import IndexSettings
from indexer.store import Entry, IndexWriter
from search import Searcher

DIMENSION = 16
BATCH = 8_192
TYPES = ("PER", "ORG", "LOC")
CLASSES = tuple(f"class {number}" for number in range(14))
LANGUAGES = ("en", "de", "fr", "es", "it", "pl", "pt", "nl", "sv", "cs", "ja", "zh")
NAMES = 300_000  # that Zipf's law draws from
FILTERS = {"all": None, "90 %": "chance < 900", "50 %": "chance < 500", "10 %": "chance < 100", "1 %": "chance < 10"}
NAMED = (
    *("label", "entity", "entity:ORG", "year", "lang", "tags", "author.name", "published"),
    *("published:month", "price:histogram"),
)


@click.command()
@click.option("--cache", required=True, type=click.Path(path_type=Path))
@click.option("-n", "n", default=1_000_000, show_default=True, help="How many documents.")
@click.option("--runs", default=9, show_default=True, help="Of each question.")
def main(cache: Path, n: int, runs: int) -> None:
    """Time facets."""
    folder = cache / f"facets-{n}"
    report: dict[str, Any] = {"documents": n}
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        with IndexWriter(folder / "index", create=_settings()) as writer:
            for entries in _batches(n):
                writer.write(entries)
        (folder / "done").touch()
        report["build_seconds"] = round(time.perf_counter() - started, 1)
    with Searcher(folder / "index") as searcher:
        columns = searcher._reader.columns
        report["entities"] = searcher.info.entities
        before = memory("RssAnon")
        report["cold_ms"] = {}
        for name in NAMED:
            report["cold_ms"][name] = _once(lambda name=name: searcher.facets(names=[name]))
        report["cold_ms"]["default, the rest"] = _once(searcher.facets)
        report["columns_mb"] = round(columns.nbytes() / 2**20, 1)
        report["memory_grown_mb"] = round((memory("RssAnon") - before) / 2**20, 1)
        default = [facet.name for facet in searcher.facets().facets]
        report["default_facets"] = default
        for share, filter in FILTERS.items():
            report[f"warm {share}"] = {
                "documents": searcher.facets(filter=filter, names=["label"]).documents,
                "default": _best(lambda filter=filter: searcher.facets(filter=filter), runs),
                **{
                    name: _best(lambda filter=filter, name=name: searcher.facets(filter=filter, names=[name]), runs)
                    for name in NAMED
                },
            }
        query = np.random.default_rng(5).normal(size=DIMENSION).astype(np.float32)
        report["100 hits"] = {
            "search alone": _best(lambda: searcher.search_vector(query, k=100), runs),
            "default": _best(lambda: searcher.facets(query), runs),
            "entity, significant": _best(lambda: searcher.facets(query, names=["entity"], significant=True), runs),
        }
        with IndexWriter(folder / "index") as writer:
            report["first after a commit of 200"] = _after(searcher, writer, n, runs, documents=min(200, n))
            report["first after a commit of 8192"] = _after(searcher, writer, n, 2, documents=min(BATCH, n))
    click.echo(json.dumps(report, indent=1))


def _after(searcher: Searcher, writer: IndexWriter, n: int, runs: int, *, documents: int) -> dict[str, float]:
    """Change documents, then ask for the default facets."""
    times = []
    for turn in range(runs):
        chosen = np.random.default_rng(turn).choice(n, documents, replace=False).tolist()
        writer.write([_entry(number, turn + 1) for number in chosen])
        searcher.info  # noqa: B018  # the new commit's vectors are read by any query, not by facets
        times.append(_timed(searcher.facets))
    return _summary(times)


def _best(ask: Callable[[], Any], runs: int) -> dict[str, float]:
    ask()
    return _summary([_timed(ask) for _ in range(runs)])


def _once(ask: Callable[[], Any]) -> dict[str, float]:
    return _summary([_timed(ask)])


def _timed(ask: Callable[[], Any]) -> tuple[float, float]:
    started, computed = time.perf_counter(), time.process_time()
    ask()
    return time.perf_counter() - started, time.process_time() - computed


def _summary(times: list[tuple[float, float]]) -> dict[str, float]:
    """Milliseconds."""
    walls = [wall for wall, _ in times]
    return {
        "best": round(1000 * min(walls), 1),
        "median": round(1000 * float(np.median(walls)), 1),
        "processor": round(1000 * min(computed for _, computed in times), 1),
    }


def _settings() -> IndexSettings:
    return IndexSettings("bench", "0" * 64, "0" * 64, DIMENSION, CLASSES, TYPES)


def _batches(n: int) -> Iterator[list[Entry]]:
    for start in range(0, n, BATCH):
        yield [_entry(number, 0) for number in range(start, min(n, start + BATCH))]


def _entry(number: int, turn: int) -> Entry:
    """A document that follows from its number; another one at each turn."""
    random = np.random.default_rng((number, turn))
    names = random.zipf(1.3, size=int(random.integers(1, 10))) % NAMES
    text, spans = f"{number} {turn}:", []
    for at, name in zip(random.integers(3, size=len(names)).tolist(), names.tolist(), strict=True):
        word = f"Name {name}" if random.random() < 0.9 else f"NAME {name}"
        spans.append(Span(TYPES[at], len(text) + 1, len(text) + 1 + len(word), 0.9))
        text += f" {word}"
    label = None if random.random() < 0.1 else Label(CLASSES[int(random.integers(14) * random.random())], 0.8)
    metadata = {
        "year": int(1975 + 50 * random.random() ** 0.5),
        "lang": LANGUAGES[int(12 * random.random() ** 2)],
        "open": bool(random.random() < 0.3),
        "tags": [f"tag {tag}" for tag in random.integers(60, size=int(random.integers(4))).tolist()],
        "published": (date(2015, 1, 1) + timedelta(days=int(random.integers(3_650)))).isoformat(),
        "price": round(float(random.lognormal(3, 1)), 2),
        "author": {"name": f"Author {int(random.integers(100_000))}"},
        "chance": int(random.integers(1_000)),
    }
    vector = random.normal(size=DIMENSION).astype(np.float32)
    analysis = Analysis((Passage(0, len(text), 1),), vector[None], vector, label, tuple(spans))
    return Entry(Document(str(number), text, metadata), analysis)


if __name__ == "__main__":
    main()
