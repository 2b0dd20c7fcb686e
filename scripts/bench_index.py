"""Index a file and query it; print documents per second, peak memory, index size and query times as JSON.

    python scripts/bench_index.py DOCUMENTS.jsonl INDEX [--queries 100] [--limit N] [--text-field F]…

Indexing and querying run in processes of their own, so that their peak memory is theirs. Queries are the first words
of evenly spaced documents. Times depend on the machine: state it with the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from itertools import islice
from typing import Any


def index(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the index; rates count documents that were written."""
    from indexer import ReadOptions, add_documents, read_documents

    options = ReadOptions(id_field=arguments.id_field, text_fields=tuple(arguments.text_field or ()))
    documents = islice(read_documents([arguments.documents], options), arguments.limit)
    started = time.perf_counter()
    report = add_documents(arguments.index, documents, model=arguments.model)
    seconds = time.perf_counter() - started
    return {
        "documents": report.added,
        "unchanged": report.unchanged,
        "seconds": round(seconds, 1),
        "documents_per_second": round(report.documents / seconds, 1),
        "peak_memory_mb": peak_memory_mb(),
    }


def query(arguments: argparse.Namespace) -> dict[str, Any]:
    """Query times, the text's embedding included and apart, after one query that loads the model."""
    from search import Searcher

    with Searcher(arguments.index, model=arguments.model) as searcher:
        info = searcher.info
        texts = [" ".join(hit.text.split()[:12]) for hit in searcher.search("a", k=min(1000, info.documents))]
        texts = texts[:: max(1, len(texts) // arguments.queries)][: arguments.queries]
        whole, vectors = [], []
        for text in texts:
            started = time.perf_counter()
            searcher.search(text)
            whole.append(1000 * (time.perf_counter() - started))
        for vector in searcher.model.encode(texts):
            started = time.perf_counter()
            searcher.search_vector(vector)
            vectors.append(1000 * (time.perf_counter() - started))
    return {
        "passages": info.passages,
        "segments": len(info.segments),
        "disk_mb": round(info.disk_bytes / 2**20, 1),
        "disk_bytes_per_document": round(info.disk_bytes / info.documents),
        "query_ms_p50": round(statistics.median(whole), 1),
        "query_ms_p99": round(sorted(whole)[int(0.99 * (len(whole) - 1))], 1),
        "query_without_embedding_ms_p50": round(statistics.median(vectors), 1),
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> int:
    """Of this process so far, resident, in MiB; mapped pages of the index count where they are resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("documents")
    parser.add_argument("index")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--id-field")
    parser.add_argument("--text-field", action="append")
    parser.add_argument("--model")
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    results = {}
    for step in (index, query):
        with spawn.Pool(1) as pool:
            results[step.__name__] = pool.apply(step, (arguments,))
    print(json.dumps({"cores": os.cpu_count(), **results}, indent=1))


if __name__ == "__main__":
    main()
