"""Load on `search serve`: throughput and times with batching on and off, the overhead of HTTP, and overload.

    python scripts/load_test.py --index /tmp/load-index --documents 200000 --seconds 20

The index is made where there is none: embeddings of the sample corpus with the default model, each with noise of its
own, until there are as many documents as asked for. Every part starts a service of its own on a free port of this
machine, and asks it over connections that are kept open. All figures are printed as JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CORPUS = ROOT / "scripts" / "sample" / "corpus.jsonl"
NOISE = 0.6  # length of the noise that is added to an embedding of length 1
TURN = 25  # searches over HTTP, then as many from Python


@dataclass(slots=True)
class Figures:
    """What clients saw: seconds of the requests that were answered with 200, and how many had which status."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    wall: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Figures to print; times in milliseconds."""
        times = sorted(self.seconds)
        return {
            "requests_per_second": round(len(times) / self.wall, 1),
            **{
                f"p{part}_ms": round(1_000 * times[min(len(times) - 1, len(times) * part // 100)], 2)
                for part in (50, 99)
            },
            "statuses": dict(self.statuses),
            "429_without_retry_after": self.without_retry_after,
        }


def make_index(path: Path, documents: int) -> None:
    """An index of this many documents, if it is not there."""
    from indexer import Document, TextModel, add_documents

    if (path / "meta.sqlite").exists():
        return
    model = TextModel.load()
    records = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    table = model.encode([record["text"] for record in records])
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    random = np.random.default_rng(0)

    def generate() -> Iterator[Document]:
        for number in range(documents):
            record = records[number % len(records)]
            noise = random.normal(size=table.shape[1])
            vector = table[number % len(records)] + NOISE * noise / np.linalg.norm(noise)
            yield Document(str(number), record["text"], {"n": number}, vector=vector.astype(np.float32))

    add_documents(path, generate(), model=model, tags=False)


def queries() -> list[str]:
    """Texts to search for: the titles of the sample corpus, and pairs of them."""
    titles = [json.loads(line).get("title", "") for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    titles = [title for title in titles if title]
    return titles + [f"{first} and {second}" for first, second in itertools.pairwise(titles)]


@contextmanager
def serving(index: Path, *options: object) -> Iterator[tuple[int, int]]:
    """A service of its own: its port and its process id."""
    command = [sys.executable, "-c", "from search.cli import main; main()", "serve", str(index), "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, options)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r":(\d+)$", line.strip())
    if found is None:
        raise RuntimeError(line + process.stderr.read())
    drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        yield int(found.group(1)), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        drained.wait()
        process.stderr.close()


def request(text: str) -> bytes:
    """One search, as bytes."""
    body = json.dumps({"query": text, "k": 10}).encode()
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> tuple[int, bytes]:
    """Send a request on an open connection; the status and the head of the answer."""
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    await reader.readexactly(int(length.group(1)) if length else 0)
    return int(head.split(None, 2)[1]), head


async def load(port: int, *, clients: int, seconds: float, pause: float = 0.0) -> Figures:
    """Clients that each ask again as soon as they have their answer; after a 429 they pause."""
    figures = Figures()
    texts = itertools.cycle([request(text) for text in queries()])
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            status, head = await ask(reader, writer, next(texts))
            figures.statuses[status] += 1
            if status == 200:
                figures.seconds.append(time.perf_counter() - started)
            else:
                figures.without_retry_after += b"retry-after:" not in head.lower()
                await asyncio.sleep(pause)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    figures.wall = time.perf_counter() - started
    return figures


def overhead(port: int, index: Path, *, rounds: int) -> dict[str, float]:
    """Median milliseconds of a search over HTTP and from Python, one client, by turns of `TURN` searches each.

    Not query by query: threads of the one that has just answered would still be spinning beside the other.
    """
    from search import Searcher

    async def run() -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        http, python = [], []
        with Searcher(index) as searcher:
            texts = list(itertools.islice(itertools.cycle(queries()), rounds + TURN))
            for start in range(0, len(texts), TURN):
                turn = texts[start : start + TURN]
                for text in turn:
                    started = time.perf_counter()
                    await ask(reader, writer, request(text))
                    http.append(time.perf_counter() - started)
                for text in turn:
                    started = time.perf_counter()
                    searcher.search(text)
                    python.append(time.perf_counter() - started)
        writer.close()
        medians = [1_000 * statistics.median(times[TURN:]) for times in (http, python)]
        return {"http_p50_ms": medians[0], "python_p50_ms": medians[1], "overhead_p50_ms": medians[0] - medians[1]}

    return asyncio.run(run())


def resident(pid: int) -> float:
    """MB that a process has in memory, by its own pages."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) / 1_024  # type: ignore[union-attr]


def show(part: str, **figures: Any) -> None:
    """One JSON line."""
    print(json.dumps({"part": part, **figures}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=300, help="searches to measure the overhead by")
    arguments = parser.parse_args()
    make_index(arguments.index, arguments.documents)

    for name, options in (("batching on", ()), ("batching off", ("--batch-texts", 1))):
        with serving(arguments.index, *options) as (port, _):
            asyncio.run(load(port, clients=arguments.clients, seconds=min(3.0, arguments.seconds)))  # warm
            figures = asyncio.run(load(port, clients=arguments.clients, seconds=arguments.seconds))
        show(name, clients=arguments.clients, **figures.summary())
    with serving(arguments.index) as (port, pid):
        show(
            "overhead",
            **{
                name: round(value, 3)
                for name, value in overhead(port, arguments.index, rounds=arguments.rounds).items()
            },
        )
        before = resident(pid)
        figures = asyncio.run(load(port, clients=640, seconds=arguments.overload_seconds, pause=0.05))
        show("overload", clients=640, limit=64, memory_mb=[round(before), round(resident(pid))], **figures.summary())
        after = asyncio.run(load(port, clients=1, seconds=2.0))
        show("after overload", clients=1, **after.summary())


if __name__ == "__main__":
    main()
