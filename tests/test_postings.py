"""Bitmaps of filters that follow the commits: always what SQL would give now, and seldom read by SQL again."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import DemoAnalyser, build_index, entries
from hypothesis import HealthCheck, given, settings
from pyroaring import BitMap
from test_filter_index import DOCUMENTS, FACTS
from test_filters import filters

from indexer import postings as postings_module
from indexer.fields import Kind, Scalar, flatten
from indexer.filters import (
    Between,
    Compare,
    Everything,
    Exists,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    Or,
    allowed,
    matches,
    parse,
)
from indexer.filters.sql import leaves
from indexer.postings import Delta, LogPosition
from indexer.reader import IndexReader
from indexer.records import Document, Metadata
from indexer.settings import settings_of
from indexer.store import Entry, IndexWriter
from indexer.stored import StoredDocument

MODEL = DemoAnalyser()
FILTERS = [
    parse(text)
    for text in (
        "n < 20",
        "n in [1, 2, 30]",
        "n in 5..25",
        "exists n",
        "label = sport",
        "exists label",
        "entity PER:Ada",
        "entity PER:ad*",
        "entity *:Ada",
        "entity ORG",
        "entity *",
        "id in [d1, d2, new0]",
        "*",
        "not n < 20",
        "n < 20 and not entity PER:Ada or label = science",
    )
]
WORDS = ("Ada", "Lovelace", "Zed", "ball", "atom", "song", "x", "y")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    texts = [" ".join(random.Random(n).choices(WORDS, k=4)) for n in range(60)]
    return build_index(tmp_path / "index", [Document(f"d{n}", text, {"n": n % 40}) for n, text in enumerate(texts)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Filter]:
    """The conditions that were read by SQL."""
    from indexer.filters import sql

    found: list[Filter] = []
    original = sql.statements

    def statements(leaf: Filter) -> object:
        found.append(leaf)
        return original(leaf)

    monkeypatch.setattr(sql, "statements", statements)
    return found


def check(reader: IndexReader) -> None:
    with reader.snapshot() as snapshot:
        for filter in FILTERS:
            assert snapshot.allowed(filter) == allowed(snapshot.connection, filter), filter


def change(writer: IndexWriter, number: int, chance: random.Random) -> None:
    """One commit or several."""
    id_ = f"d{chance.randrange(60)}"
    text = " ".join(chance.choices(WORDS, k=4))
    kind = number % 7
    if kind == 0:
        writer.write(entries([Document(f"new{number}", text, {"n": chance.randrange(40)})], MODEL))
    elif kind == 1:
        writer.write(entries([Document(id_, text, {"n": [1, 30]})], MODEL))
    elif kind == 2 and (known := writer.documents_after(0, 100, characters=10**6)):
        stored = chance.choice(known)
        writer.write([Entry(Document(stored.id, stored.text, {"other": number}), None)])
    elif kind == 3:
        writer.remove([id_, "nowhere"])
    elif kind == 4:
        writer.seal()
    elif kind == 5:
        stored = writer.documents_after(chance.randrange(30), 3, characters=10**6)
        writer.retag(stored, MODEL.analyse([text] * len(stored)))
    else:
        writer.remove([id_])
        writer.write(entries([Document(id_, text, {"n": 2})], MODEL))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_bitmaps_follow_every_kind_of_change(path: Path, every: int) -> None:
    chance = random.Random(every)
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        check(reader)
        for number in range(70):
            change(writer, number, chance)
            if number % every == 0:
                check(reader)


def test_a_commit_makes_no_condition_be_read_again(path: Path, asked: list[Filter]) -> None:
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        for number in range(3):
            with reader.snapshot() as snapshot:
                for filter in FILTERS:
                    snapshot.allowed(filter)
            assert bool(asked) == (number == 0)
            asked.clear()
            writer.write(entries([Document(f"new{number}", "Ada has a ball", {"n": 3})], MODEL))
            writer.seal()  # which trims the log, but keeps the latest changes


def test_a_reader_that_missed_trimmed_changes_reads_again(
    path: Path, asked: list[Filter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        check(reader)
        asked.clear()
        writer.write(entries([Document("new", "Ada has a ball", {"n": 3})], MODEL))
        writer.seal()
        check(reader)
        assert asked


def test_too_many_changes_are_read_again(path: Path, asked: list[Filter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings_module, "MAX_CHANGED", 3)
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        for count in (3, 4):
            check(reader)
            asked.clear()
            writer.write(entries([Document(f"{count} {n}", "Ada", {"n": 3}) for n in range(count)], MODEL))
            with reader.snapshot() as snapshot:
                for filter in FILTERS:
                    snapshot.allowed(filter)
            assert bool(asked) == (count == 4)


def test_an_older_snapshot_keeps_its_answer(path: Path) -> None:
    filter = parse("n < 20")
    with IndexReader(path) as reader, IndexWriter(path) as writer, reader.snapshot() as old:
        before = old.allowed(filter).copy()
        writer.remove(["d3", "d4"])
        with reader.snapshot() as new:
            assert len(new.allowed(filter)) == len(before) - 2
        assert old.allowed(filter) == before
        with reader.snapshot() as new:
            assert len(new.allowed(filter)) == len(before) - 2


def test_many_entities_in_one_filter(tmp_path: Path) -> None:
    names = [f"Name{n}" for n in range(400)]
    documents = [Document(f"d{n}", f"{name} and {names[n - 1]} met", {}) for n, name in enumerate(names)]
    path = build_index(tmp_path / "index", documents)
    wanted = Or(tuple(HasEntity("ORG", name, "exact") for name in names[:300:3]))
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        for number in range(4):
            with reader.snapshot() as snapshot:
                found = snapshot.allowed(wanted)
                assert found == allowed(snapshot.connection, wanted)
                assert len(found) == 200 + number
            writer.write(entries([Document(f"more{number}", "Name3 and Nobody")], MODEL))


CHANGED = Delta(
    BitMap(range(len(DOCUMENTS))),
    [
        StoredDocument(doc, made.id, made.text, json.dumps(made.metadata), b"", analysis.label, (), analysis.spans)
        for doc, (made, analysis) in enumerate(DOCUMENTS)
    ],
)


@given(filters())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_changed_is_what_plain_python_allows(filter: Filter) -> None:
    for leaf in leaves(filter):
        assert CHANGED.matching(leaf) == BitMap(doc for doc, facts in enumerate(FACTS) if matches(leaf, facts)), leaf


def test_what_changed_is_read_once_for_all_conditions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flattened = []

    def counted(metadata: Metadata) -> set[tuple[str, Kind, Scalar]]:
        flattened.append(metadata)
        return flatten(metadata)

    for module in ("indexer.postings", "indexer.filters.matching"):
        monkeypatch.setattr(f"{module}.flatten", counted, raising=False)
    wanted = Or(tuple(parse(f"n {op} {n}") for n in range(100) for op in ("=", "!=", "<", ">=")))
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        with reader.snapshot() as snapshot:
            snapshot.allowed(wanted)
        writer.write(entries([Document(f"d{n}", "Ada has a ball", {"m": n}) for n in range(30)], MODEL))
        with reader.snapshot() as snapshot:
            assert snapshot.allowed(wanted) == allowed(snapshot.connection, wanted)
    assert len(flattened) == 30


def test_an_index_without_changes_has_all_its_documents(tmp_path: Path) -> None:
    with (
        IndexWriter(tmp_path / "index", create=settings_of(MODEL)) as writer,
        IndexReader(tmp_path / "index") as reader,
    ):
        for count in range(3):
            with reader.snapshot() as snapshot:
                assert len(snapshot.allowed(Everything())) == count
            writer.write(entries([Document(f"d{count}", "text")], MODEL))


def test_the_values_that_a_filter_lists_count_as_well() -> None:
    postings, position = postings_module.Postings(max_bytes=2**20), LogPosition(1, 0)
    tracemalloc.start()
    try:
        for number in range(40):  # each of them takes a third of a megabyte
            values = tuple(f"{number} {value} {'x' * 100}" for value in range(2_000))
            postings.put(In("n", values) if number % 2 else ~HasId(values) | HasId(values[:1]), BitMap([1]), position)
        assert tracemalloc.get_traced_memory()[0] < 1.5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [
        lambda text: Compare("a", "=", text),
        lambda text: Between("a", text, None),
        lambda text: Compare(text, "=", 1),
        Exists,
        HasLabel,
        lambda text: HasEntity("ORG", text, "exact"),
    ],
    ids=range(6),
)
def test_long_texts_in_a_filter_count_as_well(make: Callable[[str], Filter]) -> None:
    postings, position = postings_module.Postings(max_bytes=2**20), LogPosition(1, 0)
    tracemalloc.start()
    try:
        for number in range(200):
            postings.put(make(f"{number}{'x' * 20_000}"), BitMap([1]), position)
        assert tracemalloc.get_traced_memory()[0] < 1.5 * 2**20
    finally:
        tracemalloc.stop()


def test_a_filter_is_remembered_without_the_text_around_it(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        tracemalloc.start()
        try:
            for number in range(100):
                filter = parse(f"entity PER:x{number} or not label = sport {' ' * 20_000}")
                assert snapshot.allowed(filter) is snapshot.allowed(filter)
            assert tracemalloc.get_traced_memory()[0] < 2**20
        finally:
            tracemalloc.stop()
