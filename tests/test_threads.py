"""One searcher for many threads while a writer works: answers are those of one commit, and nothing is left open."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DemoAnalyser, as_text_model, build_index, clustered, document_scores, entries, vector_entries
from pyroaring import BitMap

from indexer import compaction, store
from indexer.errors import FilterError, QueryError
from indexer.filters import Compare, parse
from indexer.postings import Postings
from indexer.reader import IndexReader
from indexer.records import Analysis, Document, FloatArray
from indexer.settings import settings_of_vectors
from indexer.store import Entry, IndexWriter
from search import Hit, Searcher
from search.query import Query

SECONDS = 60.0 if os.environ.get("TAGDEX_LONG_TESTS") == "1" else 4.0
WIDTH = 16


@pytest.fixture(autouse=True)
def _fast_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "TIERS", (50, 200, 800))
    monkeypatch.setattr(store, "SEAL_ROWS", 50)
    monkeypatch.setattr("indexer.merging.CODES_FROM", 100)
    monkeypatch.setattr("indexer.planner.SCAN_LIMIT", 100)
    monkeypatch.setattr("indexer.planner.PARALLEL_ROWS", 100)


def open_files() -> int:
    """Files and sockets that this process has open, and files that it has mapped."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        mapped = sum(".faiss" in line or ".npy" in line for line in maps)
    return len(os.listdir("/proc/self/fd")) + mapped


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run `work` in so many threads; returns what they raised."""
    raised: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_search_while_a_writer_adds_updates_removes_and_compacts(tmp_path: Path) -> None:
    """Each commit of the writer raises `generation`, the same in all documents that it touches and in "clock"."""
    table = clustered(600, dimension=WIDTH)
    random = np.random.default_rng(0)
    stop = threading.Event()
    path = tmp_path / "index"

    def batch(numbers: list[int], generation: int) -> list[Entry]:
        """Documents of this generation, the clock among them, whose vector is its own."""
        made = [
            vector_entries(
                table[n : n + 1], first=n, metadata=lambda _: {"generation": generation, "half": generation % 2}
            )[0]
            for n in numbers
        ]
        clock = vector_entries(table[:1], first=0, metadata=lambda _: {"generation": generation, "half": 2})
        return [Entry(Document("clock", f"{generation}", clock[0].document.metadata), clock[0].analysis), *made]

    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        writer.write(batch(list(range(1, 300)), 0))
        searcher = Searcher(path)
        searched = [0] * 8

        def write() -> None:
            generation = 0
            while not stop.is_set():
                generation += 1
                numbers = sorted(set(random.integers(1, 600, size=30).tolist()))
                if generation % 5 == 0:
                    writer.remove([f"d{n}" for n in numbers])
                elif generation % 5 == 1:
                    known = {
                        plan.document.id
                        for plan in writer.plan([e.document for e in batch(numbers, 0)], since=0)
                        if plan.exists
                    }
                    changed = [e for e in batch(numbers, generation) if e.document.id in known - {"clock"}]
                    writer.write([Entry(entry.document, None) for entry in changed] + batch([], generation))
                else:
                    writer.write(batch(numbers, generation))
                if generation % 7 == 0:
                    writer.compact(full=generation % 21 == 0)

        def search(number: int) -> None:
            seen, rng = -1, np.random.default_rng(number)
            while not stop.is_set():
                kind = searched[number] % 4
                searched[number] += 1
                query = table[int(rng.integers(600))]
                if kind == 0:
                    (clock,) = searcher.search_vector(query, filter="id = clock")
                    now = clock.metadata["generation"]
                    assert clock.text == f"{now}"
                    assert now >= seen
                    seen = now
                elif kind == 1:
                    hits = searcher.search_vector(
                        query, k=20, filter=f"half = {number % 2} and generation >= {seen - 3}"
                    )
                    assert all(h.metadata["half"] == number % 2 for h in hits)
                    assert all(h.metadata["generation"] >= seen - 3 for h in hits)
                    assert_exact(hits, query)
                elif kind == 2:
                    hits = searcher.search_vector(query, k=10)
                    assert len(hits) == 10
                    assert_exact(hits, query)
                else:
                    hits = searcher.similar("clock", k=5, filter="not id in [d1, d2, d3]")
                    assert len(hits) == 5
                    assert not {"clock", "d1", "d2", "d3"} & {hit.id for hit in hits}

        def assert_exact(hits: list[Hit], query: np.ndarray) -> None:
            """Every score is that of the hit's own vector, no document comes twice, best first."""
            assert len({hit.id for hit in hits}) == len(hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            for hit in hits:
                row = 0 if hit.id == "clock" else int(hit.id[1:])
                assert hit.score == pytest.approx(float(table[row] @ query), abs=2e-3)

        searcher.search_vector(table[0])
        before = open_files()
        timer = threading.Timer(SECONDS, stop.set)
        timer.start()

        def work(number: int) -> None:
            try:
                write() if number == 8 else search(number)
            except BaseException:
                stop.set()
                raise

        raised = in_threads(9, work)
        timer.cancel()
        assert raised == []
        assert min(searched) > 10
        searcher.search_vector(table[0])
        # 8 connections of 3 files each, and 3 of each segment, here and in the writer; those that went are closed.
        assert open_files() <= before + 24 + 6 * len(searcher.info.segments)
        searcher.close()
    assert open_files() <= before


def test_a_fast_writer_starves_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread follows a commit, others wait; each must get a commit, however many come meanwhile."""
    monkeypatch.setattr(store, "SEAL_ROWS", 10**9)
    path = build_index(tmp_path / "index", [Document("a", "text")])
    follow = IndexReader._follow
    stop = threading.Event()

    def slow(self: IndexReader, *arguments: object) -> object:
        time.sleep(0.005)
        return follow(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexReader, "_follow", slow)
    model = DemoAnalyser()
    with IndexWriter(path) as writer, IndexReader(path) as reader:

        def work(number: int) -> None:
            if number == 12:
                for at in range(250):
                    writer.write([Entry(Document("a", "text", {"n": at}), None)])
                stop.set()
            while not stop.is_set():
                with reader.snapshot() as snapshot:
                    assert snapshot.count() == 1

        assert in_threads(13, work) == []
        writer.write(entries([Document("b", "text")], model))
        with reader.snapshot() as snapshot:
            assert snapshot.count() == 2


def test_connections_are_used_again(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document("a", "text")])
    with IndexReader(path) as reader:
        reader.info()
        before = open_files()
        for _ in range(50):
            with reader.snapshot() as snapshot:
                snapshot.count()
        assert open_files() == before
    assert open_files() < before


def test_a_snapshot_left_by_an_error_leaves_nothing_open(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document("a", "text")])
    before = open_files()

    def fail(reader: IndexReader) -> None:
        with reader.snapshot():
            raise ZeroDivisionError

    with IndexReader(path) as reader:
        for _ in range(20):
            with pytest.raises(ZeroDivisionError):
                fail(reader)
        assert (
            open_files() <= before + 4
        )  # the connection that stays open, and a file that SQLite keeps for the next one
        with reader.snapshot() as snapshot:
            assert snapshot.count() == 1
    assert open_files() == before


def test_several_texts_at_once_get_the_answers_that_each_gets_alone(tmp_path: Path) -> None:
    model = DemoAnalyser(passage_words=3)
    words = ["ball", "atom", "song", "Ada", "Rome", "Zed", "x", "ok"]
    random = np.random.default_rng(0)
    texts = {f"d{n}": " ".join(random.choice(words, size=1 + n % 9)) for n in range(200)}
    path = build_index(
        tmp_path / "index", [Document(id_, text, {"n": n}) for n, (id_, text) in enumerate(texts.items())], model
    )
    queries = [" ".join(random.choice(words, size=3)) for _ in range(12)]
    with Searcher(path, model=as_text_model(model)) as searcher:
        for options in ({}, {"k": 3, "filter": "n >= 70"}, {"offset": 5, "min_score": 0.2}, {"filter": "n < 0"}):
            assert searcher.search_many(queries, **options) == [
                searcher.search(query, **options)  # type: ignore[arg-type]
                for query in queries
            ]
        assert searcher.search_many([]) == []
        for query, hits in zip(queries[:3], searcher.search_many(queries[:3], k=300), strict=True):
            scores = document_scores(texts, model.vector(query), model)
            assert {hit.id: hit.score for hit in hits} == pytest.approx(scores, abs=1e-12)


def test_several_queries_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    """Alike or not: texts and vectors, with filters that only look alike, and with options that keep them apart."""
    model = DemoAnalyser(passage_words=3)
    words = ["ball", "atom", "song", "Ada", "Rome", "Zed", "x", "ok"]
    random = np.random.default_rng(0)
    docs = [
        Document(f"d{n}", " ".join(random.choice(words, size=1 + n % 9)), {"n": (n % 3 == 1) if n % 2 else n % 3})
        for n in range(200)
    ]
    path = build_index(tmp_path / "index", docs, model)
    options: list[dict[str, Any]] = [
        {},
        {},
        {"filter": parse("n = 1")},
        {"filter": parse("n = true")},
        {"filter": parse("n = 1")},
        {"k": 3, "offset": 7},
        {"k": 4, "offset": 6, "min_score": 0.3},
        {"mode": "hybrid"},
        {"mode": "keyword"},
        {"distinct": 0.9},
        {"entities": "boost", "boost": 0.5},
        {"filter": parse("n = 99")},
        {"filter": parse("n = 99"), "k": 300},
        {"highlight": True, "passages": 2},
    ]
    with Searcher(path, model=as_text_model(model)) as searcher:
        asked: list[tuple[str | FloatArray, Query, Analysis | None]] = []
        alone = []
        for at, given in enumerate(options):
            text, query = " ".join(random.choice(words, size=3)), Query(**given)
            (analysis,) = model.analyse([text])
            asked.append((text, query, analysis if at % 2 else None))
            alone.append(searcher.answer(text, query).hits)
            if query.mode == "cosine" and query.entities is None:
                asked.append((analysis.pooled, query, None))
                alone.append(searcher.answer_vector(analysis.pooled, query).hits)
        assert [answer.hits for answer in searcher.answer_many(asked)] == alone
        assert [answer.hits for answer in searcher.answer_many(asked[::-1])] == alone[::-1]
        assert searcher.answer_many([]) == []
        with pytest.raises(QueryError, match="the query's text is empty"):
            searcher.answer_many([*asked, (" ", Query(), None)])


def test_several_texts_at_once_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    model = DemoAnalyser()
    path = build_index(tmp_path / "index", [Document("a", "text")], model)
    with Searcher(path, model=as_text_model(model)) as searcher:
        model.analysed.clear()
        with pytest.raises(QueryError, match="the query's text is empty"):
            searcher.search_many(["good", " "])
        with pytest.raises(FilterError, match="unknown class 'x'"):
            searcher.search_many(["good"], filter="label = x")
        with pytest.raises(QueryError, match="k must be at least 1"):
            searcher.search_many(["good"], k=0)
        assert model.analysed == []


def test_several_texts_are_answered_from_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DemoAnalyser()
    path = build_index(tmp_path / "index", [Document("a", "text")], model)
    with Searcher(path, model=as_text_model(model)) as searcher, IndexWriter(path) as writer:
        from search import retrieval as module

        rank = module.rank_documents

        def writing(*arguments: object, **options: object) -> object:
            with mutex:
                if writer.state.documents == 1:
                    writer.write(entries([Document("b", "text")], model))
            return rank(*arguments, **options)  # type: ignore[arg-type]

        mutex = threading.Lock()
        monkeypatch.setattr(module, "rank_documents", writing)
        assert [[hit.id for hit in hits] for hits in searcher.search_many(["text"] * 6)] == [["a"]] * 6
        assert [hit.id for hit in searcher.search("text")] == ["a", "b"]


def test_two_threads_may_ask_for_the_same_filter_at_once(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document(f"{n}", "text", {"n": n}) for n in range(100)])
    with IndexReader(path) as reader:

        def work(_: int) -> None:
            for at in range(60):
                with reader.snapshot() as snapshot:
                    assert len(snapshot.allowed(Compare("n", "<", at))) == at

        assert in_threads(6, work) == []


def test_threads_that_fill_what_is_remembered_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document(f"{n}", "text", {"n": n}) for n in range(30)])
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        small, log = Postings(max_bytes=2_400), snapshot.view.log

        def work(number: int) -> None:
            for at in range(20_000):
                filter = Compare("n", "<", (at + number) % 30)
                small.put(filter, BitMap(), log)
                small.get(filter, snapshot.connection, log)

        assert in_threads(6, work) == []
        assert len(small._known) == 3
        assert len(small.allowed(snapshot.connection, Compare("n", "<", 100), log)) == 30
