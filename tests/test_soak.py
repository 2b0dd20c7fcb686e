"""A short form of scripts/faults/soak.py, and the write-ahead log beside readers that never pause or never end."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indexer import store, upkeep
from indexer.reader import IndexReader
from indexer.settings import settings_of_vectors
from indexer.store import META, IndexWriter

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "faults"))

import soak
from fakes import vector_entries
from workload import check_sound

MEGABYTE = 2**20


def log_bytes(path: Path) -> int:
    log = path / f"{META}-wal"
    return log.stat().st_size if log.exists() else 0


def test_searching_and_writing_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOG_BYTES", MEGABYTE)
    monkeypatch.setattr(store, "SEAL_ROWS", 200)
    before = len(os.listdir("/proc/self/fd"))
    samples = list(soak.soak(tmp_path / "i", searches=400, updates=400, documents=500, batch=20, threads=2))
    assert (samples[-1].searches, samples[-1].updates) == (400, 400)
    assert max(sample.log for sample in samples) < 8 * MEGABYTE
    assert len(os.listdir("/proc/self/fd")) == before
    check_sound(tmp_path / "i")


def sample(n: int, *, resident: float = 100.0, log: int = 0, descriptors: int = 10) -> soak.Sample:
    return soak.Sample(n, n, n, int(resident * MEGABYTE), 50, log, descriptors, 3, 0)


def test_what_a_soak_is_judged_by() -> None:
    assert soak.judge([sample(n, resident=80 + min(n, 10)) for n in range(40)]).problems == ()
    grown = soak.judge([sample(n, resident=100 + n / 2) for n in range(40)])
    assert grown.problems == ("resident memory has grown by 10.8%, less than 5% are allowed",)
    assert soak.judge([sample(n, descriptors=10 + n // 30) for n in range(40)]).problems == (
        "1 file descriptors were gained",
    )
    assert soak.judge([sample(n, log=64 * MEGABYTE * (n == 7)) for n in range(40)]).problems == (
        "the write-ahead log had 67,108,864 bytes, less than 67,108,864 are allowed",
    )


def write(writer: IndexWriter, batch: int) -> None:
    table = np.random.default_rng(batch).normal(size=(20, 2_000)).astype(np.float32)
    writer.write(vector_entries(table, first=20 * batch))


def test_the_log_is_emptied_beside_readers_of_which_there_is_always_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOG_BYTES", MEGABYTE)
    path, ended = tmp_path / "index", threading.Event()
    largest = 0
    with IndexWriter(path, create=settings_of_vectors(2_000)) as writer, IndexReader(path) as reader:
        turn = threading.Barrier(2)

        def read() -> None:
            # Each of the two begins before the other ends.
            while not ended.is_set():
                with reader.snapshot() as snapshot:
                    snapshot.count()
                    try:
                        turn.wait(timeout=0.05)
                    except threading.BrokenBarrierError:
                        turn.reset()

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for batch in range(40):
                write(writer, batch)
                largest = max(largest, log_bytes(path))
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert largest < 4 * MEGABYTE


def test_a_reader_that_stays_is_waited_for_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOG_BYTES", 4 * MEGABYTE)
    monkeypatch.setattr(upkeep, "LOG_PATIENCE", 0.3)
    path = tmp_path / "index"
    with IndexWriter(path, create=settings_of_vectors(2_000)) as writer:
        write(writer, 0)
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            waits = 0
            for batch in range(1, 50):
                started = time.monotonic()
                write(writer, batch)
                waits += time.monotonic() - started >= 0.3
            assert snapshot.count() == 20
            grown = log_bytes(path)
            assert grown > 4 * MEGABYTE  # nothing that it may need is taken away
            assert 1 <= waits <= 1 + grown // MEGABYTE
        write(writer, 50)
        for batch in range(51, 80):
            write(writer, batch)
        assert log_bytes(path) < 8 * MEGABYTE
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            assert snapshot.count() == 80 * 20
