"""Measure what scanning vectors and scanning codes cost, at several selectivities: the figures behind the planner.

    python scripts/bench_vectors.py [--rows 131072] [--dimension 1536]

One segment of clustered random vectors, one thread. Times are medians, in milliseconds; the last column is the share
of the exact ten best that the code scan found after reranking. `indexer.planner.SCAN_LIMIT` belongs where the two ways
cost the same in an index of about a million vectors, that is, eight such segments.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np

from indexer.codes import new_code_space
from indexer.planner import search_segments
from indexer.segments import Block, open_segment, write_segment

BLOCK = 8_192
SELECTIVITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001, 0.0001)
K = 10


def blocks(rows: int, dimension: int) -> Iterator[Block]:
    """Unit vectors around 500 centres, in blocks."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((500, dimension)).astype(np.float32)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = random.standard_normal((count, dimension)).astype(np.float32)
        table = centres[random.integers(0, len(centres), count)] + 1.2 * noise
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        numbers = np.arange(start, start + count)
        yield Block(numbers, numbers, table.astype(np.float16))


def milliseconds(action: Callable[[], object], times: int = 15) -> float:
    """Median time of an action, after one run that is not counted."""
    action()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return 1000 * sorted(seconds)[times // 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--dimension", type=int, default=1536)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        space = new_code_space(next(blocks(BLOCK, arguments.dimension))[2])
        print(f"rotation and centre: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        record = write_segment(
            Path(folder),
            "bench",
            blocks(arguments.rows, arguments.dimension),
            dimension=arguments.dimension,
            space=space,
        )
        seconds = time.perf_counter() - started
        print(f"segment of {record.rows:,} rows written in {seconds:.1f} s, rerank factor {record.rerank}")
        segment = open_segment(Path(folder), record, dimension=arguments.dimension)
        queries = [segment.table[at].astype(np.float32) for at in random.integers(0, record.rows, 20)]
        queries = [query / np.linalg.norm(query) for query in queries]
        print(f"{'share':>7} {'allowed':>9} {'scan':>9} {'codes':>9} {'recall@10':>9}")
        for share in SELECTIVITIES:
            allowed = random.random(record.rows) < share if share < 1 else None

            def search(
                path: str, at: int = 0, allowed: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = allowed
            ) -> set[int]:
                found, _ = search_segments([segment], queries[at], K, space=space, allowed_docs=allowed, path=path)
                return set(found.vids.tolist())

            same = [len(search("codes", at) & search("scan", at)) / max(1, len(search("scan", at))) for at in range(20)]
            count = record.rows if allowed is None else int(allowed.sum())
            times = [milliseconds(lambda path=path: search(path)) for path in ("scan", "codes")]
            print(f"{share:>7.2%} {count:>9,} {times[0]:>9.2f} {times[1]:>9.2f} {np.mean(same):>9.3f}")


if __name__ == "__main__":
    main()
