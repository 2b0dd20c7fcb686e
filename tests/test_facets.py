"""Facets: against counting by hand in plain Python, over filters, hits, updates, removals, threads and commits."""

from __future__ import annotations

import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from command_line import Run
from fakes import (
    LABEL_OF,
    LABELS,
    TYPES,
    DemoAnalyser,
    as_text_model,
    build_index,
    build_vector_index,
    clustered,
    entries,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from indexer import columns as columns_module
from indexer.attributes import ClassNames, EntityTexts, FieldValues, part_of
from indexer.columns import Columns, make_column
from indexer.errors import FilterError, QueryError
from indexer.fields import Kind
from indexer.filters import DocumentFacts, matches, parse
from indexer.reader import IndexReader
from indexer.records import Document, Span
from indexer.store import Entry, IndexWriter
from search import Facet, Facets, Searcher
from search.counting import MAX_RANGES, log_likelihood, range_edges
from search.facet_names import name_of_field

MODEL = DemoAnalyser()
WORDS = ("Ada", "ADA", "Lovelace", "Zed", "Émile", "ball", "atom", "song", "x", "y")
NAMES = (
    "label",
    "entity",
    "entity:PER",
    "entity:LOC",
    "n",
    "tags",
    "flag",
    "author.name",
    "when:year",
    "when:month",
    "when:day",
    "n:histogram:7",
    "price:histogram:0.5",
    "tags:histogram:2",
)
FILTERS = (None, "n < 20", "n < 38", "label = sport or entity PER:Ada", "not exists label", "n = 4 and n = 5")
DATES = ("2019-02-28", "2020-02-29T23:00:00Z", "2020-02", "2021", "2021-02-29", "soon", 2020, 2021.0, 20200101, True)

Key = tuple[str, Any]
"""A value with the name of its kind, so that True is not 1."""


# The reference: what each document has, and how many documents have it


def kind_of(value: object) -> str:
    return "a boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "text"


def scalars(value: Any, keys: list[str]) -> set[Key]:
    """The scalars of a metadata value below some keys."""
    if isinstance(value, list):
        return {found for element in value for found in scalars(element, keys)}
    if isinstance(value, dict):
        return scalars(value[keys[0]], keys[1:]) if keys and keys[0] in value else set()
    return set() if keys or value is None else {(kind_of(value), value)}


def spans_of(text: str) -> list[tuple[str, str]]:
    """Type and text of the entities that `DemoAnalyser` finds."""
    return [(TYPES[(ord(word[0]) - 65) // 9], word) for word in re.findall(r"\w+", text) if "A" <= word[0] <= "Z"]


def label_of(text: str) -> str | None:
    return next((LABEL_OF[word] for word in re.findall(r"\w+", text) if word in LABEL_OF), None)


_FOUND: dict[tuple[int, str], tuple[Document, set[Any]]] = {}


def has(document: Document, name: str) -> set[Any]:
    """What a document has of a facet: (kind, value), or for `entity` (normalised text, type). Found once for each."""
    if (id(document), name) not in _FOUND:
        _FOUND[id(document), name] = document, _has(document, name)  # which keeps the document, and so its number
    return _FOUND[id(document), name][1]


def _has(document: Document, name: str) -> set[Any]:
    if name == "label":
        return {("text", label)} if (label := label_of(document.text)) else set()
    if name.startswith("entity"):
        wanted = name.removeprefix("entity").removeprefix(":") or None
        found = {(text.casefold(), type) for type, text in spans_of(document.text) if wanted in (None, type)}
        return found if wanted is None else {("text", norm) for norm, _ in found}
    path, _, unit = name.partition(":")
    values = scalars(document.metadata, path.split("."))
    if not unit:
        return values
    if unit.startswith("histogram"):
        width = Fraction(unit.removeprefix("histogram:"))
        return {("number", math.floor(Fraction(value) / width) * width) for kind, value in values if kind == "number"}
    length = {"year": 4, "month": 7, "day": 10}[unit]
    texts = [value[:10] for kind, value in values if kind == "text" and value not in ("soon", "2021-02-29")]
    texts += [f"{value:.0f}" for kind, value in values if kind == "number" and value < 9999 and unit == "year"]
    return {("text", text[:length]) for text in texts if len(text) >= length}


def brute(documents: Iterable[Document], name: str) -> tuple[list[tuple[Any, int]], int]:
    """The counts of a facet in order, and how many documents have none."""
    counts: Counter[Any] = Counter()
    missing = 0
    for document in documents:
        keys = has(document, name)
        counts.update(keys)
        missing += not keys
    in_order = ":histogram" in name or name.endswith((":year", ":month", ":day"))
    return sorted(counts.items(), key=lambda item: item[0] if in_order else (-item[1], item[0])), missing


def answer(facet: Facet) -> list[tuple[Any, int]]:
    """A facet as `brute` gives it."""
    if facet.name == "entity":
        return [((str(value.value).casefold(), value.type), value.count) for value in facet.values]
    if facet.name.startswith("entity:"):
        return [(("text", str(value.value).casefold()), value.count) for value in facet.values]
    return [((kind_of(value.value), value.value), value.count) for value in facet.values]


def check(facets: Facets, documents: dict[str, Document], chosen: list[Document], *, where: object = None) -> None:
    assert (facets.documents, facets.indexed) == (len(chosen), len(documents))
    for facet in facets.facets:
        counts, missing = brute(chosen, facet.name)
        assert answer(facet) == counts, (facet.name, where)
        assert (facet.distinct, facet.missing) == (len(counts), missing), (facet.name, where)
        totals = dict(brute(documents.values(), facet.name)[0])
        for value, (key, count) in zip(facet.values, counts, strict=True):
            assert value.total == totals[key], (facet.name, where)
            assert value.lift == pytest.approx((count / len(chosen)) / (value.total / len(documents)))


def allows(filter: str | None, document: Document) -> bool:
    facts = DocumentFacts(document.id, document.metadata, label_of(document.text), tuple(spans_of(document.text)))
    return filter is None or matches(parse(filter), facts)


def check_all(searcher: Searcher, documents: dict[str, Document]) -> None:
    for filter in FILTERS:
        chosen = [document for document in documents.values() if allows(filter, document)]
        check(searcher.facets(names=NAMES, filter=filter, top=1_000), documents, chosen, where=filter)


# Random documents and changes


def make_document(id_: str, chance: random.Random) -> Document:
    return Document(id_, " ".join(chance.choices(WORDS, k=chance.randrange(1, 6))), make_metadata(chance))


def make_metadata(chance: random.Random) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "n": chance.randrange(40),
        "tags": chance.choices([1, 1.0, True, "1", "ü", 2.5, None, 7], k=chance.randrange(4)),
        "flag": chance.choice([True, False, 1, 0, "true", [True, 1]]),
        "author": chance.choice(
            [{"name": "Ada"}, {"name": ["河", "🙂"]}, [{"name": "Ada"}, {"name": "x"}], "Ada", None]
        ),
        "when": chance.choice([*DATES, ["2020-02-01", "2020-02-29"]]),
        "price": chance.choice([chance.randrange(100) / 4, chance.randrange(9), "free"]),
    }
    return {key: value for key, value in parts.items() if chance.random() < 0.8}


def change(writer: IndexWriter, documents: dict[str, Document], turn: int, chance: random.Random) -> None:
    """One commit, in the index and in the reference."""
    id_ = f"d{chance.randrange(80)}"
    kind = turn % 6
    if kind in (0, 1):
        new = [make_document(id_, chance), make_document(f"new{turn}", chance)]
        writer.write(entries(new, MODEL))
        documents.update({document.id: document for document in new})
    elif kind == 2 and documents:
        known = documents[chance.choice(sorted(documents))]
        after = Document(known.id, known.text, make_metadata(chance))
        writer.write([Entry(after, None)])
        documents[after.id] = after
    elif kind == 3:
        gone = chance.sample(sorted(documents), 2)
        writer.remove(gone)
        for id_ in gone:
            del documents[id_]
    elif kind == 4:
        writer.seal()
    elif turn % 12 == 5:
        writer.compact(full=True)  # which forgets the names of entities that no document has any more
    else:
        document = make_document(id_, chance)
        writer.remove([id_])
        writer.write(entries([document], MODEL))
        documents[id_] = document


@pytest.fixture
def documents() -> dict[str, Document]:
    chance = random.Random(0)
    return {f"d{n}": make_document(f"d{n}", chance) for n in range(80)}


@pytest.fixture
def path(tmp_path: Path, documents: dict[str, Document]) -> Path:
    return build_index(tmp_path / "index", documents.values())


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The attributes that were read by SQL."""
    found: list[object] = []
    original = columns_module.read_column

    def read_column(connection: Any, attribute: Any, *, last: int) -> Any:
        found.append(attribute)
        return original(connection, attribute, last=last)

    monkeypatch.setattr(columns_module, "read_column", read_column)
    return found


@pytest.mark.parametrize(("every", "fold", "sparse"), [(1, 5, 8), (1, 4_096, 8), (3, 17, 10**9), (7, 4, 1)])
def test_counts_are_those_by_hand_while_documents_change(
    path: Path,
    documents: dict[str, Document],
    monkeypatch: pytest.MonkeyPatch,
    read: list[object],
    every: int,
    fold: int,
    sparse: int,
) -> None:
    monkeypatch.setattr(columns_module, "FOLD", fold)
    monkeypatch.setattr(columns_module, "SPARSE", sparse)
    chance = random.Random(every + fold)
    with Searcher(path) as searcher, IndexWriter(path) as writer:
        check_all(searcher, documents)
        for turn in range(24):
            change(writer, documents, turn, chance)
            if turn % every == 0:
                check_all(searcher, documents)
        check_all(searcher, documents)
    assert len(read) == len(set(read))  # each once; then they followed


@settings(deadline=None)
@given(st.data())
def test_any_part_of_a_column_counts_as_by_hand(data: st.DataObject) -> None:
    docs = data.draw(st.lists(st.integers(0, 300), max_size=60))
    codes = [data.draw(st.integers(0, 8)) for _ in docs]
    pairs = set(zip(docs, codes, strict=True))
    keys = [(Kind.NUMBER, code) for code in range(9)]
    column = make_column(keys, np.array(docs, dtype=np.int64), np.array(codes, dtype=np.int64), last=0)
    chosen = data.draw(st.sets(st.integers(0, 300)))
    from pyroaring import BitMap

    wanted = Counter(code for doc, code in pairs if doc in chosen)
    assert column.counts(BitMap(chosen)).tolist() == [wanted[code] for code in range(9)]
    groups = np.array([0, 0, 1, 1, 1, 2, 2, 0, 2])
    grouped = Counter(group for _, group in {(doc, int(groups[code])) for doc, code in pairs if doc in chosen})
    assert column.grouped(BitMap(chosen), groups, 3).tolist() == [grouped[group] for group in range(3)]
    assert column.present == BitMap(docs)


# What is counted


@pytest.fixture
def open_index(tmp_path: Path) -> Callable[..., Searcher]:
    opened: list[Searcher] = []

    def open_(*documents: Document, model: DemoAnalyser = MODEL) -> Searcher:
        path = build_index(tmp_path / f"index{len(opened)}", documents, model)
        opened.append(Searcher(path, model=as_text_model(model)))
        return opened[-1]

    yield open_  # type: ignore[misc]
    for searcher in opened:
        searcher.close()


def values(facet: Facet) -> list[tuple[Any, int]]:
    return [(value.value, value.count) for value in facet.values]


def test_over_hits_are_those_that_search_finds(path: Path, documents: dict[str, Document]) -> None:
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        for options in ({"of": 7}, {"of": 100}, {"of": 30, "min_score": 0.3}, {"of": 9, "filter": "n < 20"}):
            search = {"k" if key == "of" else key: value for key, value in options.items()}
            hits = searcher.search("Ada ball", **search)  # type: ignore[arg-type]
            found = searcher.facets("Ada ball", names=NAMES, top=1_000, **options)  # type: ignore[arg-type]
            check(found, documents, [documents[hit.id] for hit in hits])
            vector = MODEL.vector("Ada ball")
            assert searcher.facets(vector, names=NAMES, top=1_000, **options) == found  # type: ignore[arg-type]
        assert searcher.facets("Ada ball", filter="n = 4 and n = 5").documents == 0


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
def test_over_the_hits_of_every_mode(path: Path, documents: dict[str, Document], mode: str) -> None:
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        for options in ({"of": 7}, {"of": 1_000}, {"of": 30, "min_score": 0.01}, {"of": 9, "filter": "n < 20"}):
            search = {"k" if key == "of" else key: value for key, value in options.items()}
            hits = searcher.search("Ada ball", mode=mode, **search)  # type: ignore[arg-type]
            assert hits
            found = searcher.facets("Ada ball", mode=mode, names=NAMES, top=1_000, **options)  # type: ignore[arg-type]
            check(found, documents, [documents[hit.id] for hit in hits])
        assert searcher.facets("?!", mode="keyword").documents == 0


def test_over_the_hits_of_words_no_model_is_needed(path: Path) -> None:
    with Searcher(path, model="no/such-model") as searcher:
        assert searcher.facets("ball", mode="keyword").documents > 0


def test_an_array_counts_once_for_each_of_its_values(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(
        Document("a", "t", {"tags": ["x", "y", "x", ["y"]]}),
        Document("b", "t", {"tags": "x"}),
        Document("c", "t", {"tags": []}),
    )
    facet = searcher.facets(names=["tags"])["tags"]
    assert values(facet) == [("x", 2), ("y", 1)]
    assert (facet.distinct, facet.missing) == (2, 1)


def test_true_is_not_1_nor_is_the_text_but_1_is_1_0(open_index: Callable[..., Searcher]) -> None:
    given = [True, 1, 1.0, "1", "true", False, 0, -0.0, None]
    searcher = open_index(*[Document(f"{n}", "t", {"f": value}) for n, value in enumerate(given)])
    facet = searcher.facets(names=["f"])["f"]
    found = [(kind_of(value.value), value.value, value.count) for value in facet.values]
    assert found == [
        ("number", 0, 2),
        ("number", 1, 2),
        ("a boolean", False, 1),
        ("a boolean", True, 1),
        ("text", "1", 1),
        ("text", "true", 1),
    ]
    assert [type(value.value) for value in facet.values[:2]] == [int, int]
    assert facet.missing == 1


def test_large_integers_keep_their_last_digit(open_index: Callable[..., Searcher]) -> None:
    given = [2**53, 2**53 + 1, float(2**53), 2**63 - 1, 1e300]
    searcher = open_index(*[Document(f"{n}", "t", {"f": value}) for n, value in enumerate(given)])
    facet = searcher.facets(names=["f"])["f"]
    assert values(facet) == [(2**53, 2), (2**53 + 1, 1), (2**63 - 1, 1), (1e300, 1)]


def test_paths_and_values_of_every_script(open_index: Callable[..., Searcher]) -> None:
    metadata = {"väg": {"a.b": "河 ü"}, "label": "draft", "dc:date": "2020-01-01", "e\u0301": "nul\0in", "entity": 3}
    searcher = open_index(Document("a", "t", metadata), Document("b", "t", {"väg": {"a.b": "河 u\u0308"}}))
    names = ["väg.`a.b`", "`label`", "`dc:date`", "`dc:date`:month", "e\u0301", "`entity`"]
    facets = searcher.facets(names=names)
    assert [facet.name for facet in facets.facets] == names
    assert values(facets["väg.`a.b`"]) == [("河 u\u0308", 1), ("河 ü", 1)]
    assert values(facets["`label`"]) == [("draft", 1)]
    assert values(facets["`dc:date`:month"]) == [("2020-01", 1)]
    assert values(facets["e\u0301"]) == [("nul\0in", 1)]
    assert values(facets["`entity`"]) == [(3, 1)]
    assert {name_of_field(path) for path in ("väg.a\\.b", "label", "dc:date", "e\u0301", "entity")} == {
        *names[:3],
        *names[4:],
    }


def test_by_default_the_class_each_type_and_fields_of_few_values(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(
        *[Document(f"{n}", "Ada ball", {"many": n, "few": n % 100, "a": {"b": True}, "none": None}) for n in range(101)]
    )
    names = [facet.name for facet in searcher.facets().facets]
    assert names == ["label", "entity:PER", "entity:ORG", "entity:LOC", "a.b", "few"]
    assert searcher.facets(names=["few", "few"]).facets == searcher.facets(names=["few"]).facets


def test_default_stands_for_what_is_counted_without_names(open_index: Callable[..., Searcher]) -> None:
    docs = [Document("a", "ball Ada", {"n": 1, "default": "x", "when": "2024-05"}), Document("b", "x", {"n": 2.5})]
    searcher = open_index(*docs)
    usual = searcher.facets()
    assert [facet.name for facet in usual.facets][-3:] == ["`default`", "n", "when"]
    assert searcher.facets(names=["default"]) == usual
    more = searcher.facets(names=["when:month", "default", "n", "label"])
    assert more.facets == (searcher.facets(names=["when:month"]).facets[0], *usual.facets)
    assert searcher.facets(names=["`default`"]).facets == usual.facets[-3:-2]
    assert [facet.path for facet in more.facets] == ["when", None, None, None, None, "default", "n", "when"]


def test_every_name_that_is_offered_can_be_counted(open_index: Callable[..., Searcher]) -> None:
    odd = {"n": 1, "label": "x", "a:day": ["2024-05-01", 3], "a.b": {"`": "z"}, "y": "2020", "empty": [], "no": None}
    searcher = open_index(Document("a", "ball Ada", odd), Document("b", "x", {"y": True}))
    names = searcher.facet_names()
    assert names == [
        *("label", "entity", "entity:PER", "entity:ORG", "entity:LOC"),
        *("`a:day`", "`a:day`:year", "`a:day`:month", "`a:day`:day", "`a:day`:histogram", "`a.b`.`\\``"),
        *("`label`", "n", "n:histogram", "y", "y:year"),
    ]
    for facet in searcher.facets(names=names).facets:
        if not facet.name.startswith("entity:"):
            assert facet.values, facet.name


def test_an_empty_index_has_facets_without_values(open_index: Callable[..., Searcher]) -> None:
    facets = open_index().facets()
    assert facets.documents == 0
    assert [(facet.name, facet.values, facet.distinct, facet.missing) for facet in facets.facets] == [
        (name, (), 0, 0) for name in ("label", "entity:PER", "entity:ORG", "entity:LOC")
    ]


def test_top_cuts_what_ties_in_the_order_of_values(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(*[Document(f"{n}", "t", {"v": [f"v{n % 10}", "all"]}) for n in range(40)])
    facet = searcher.facets(names=["v"], top=4)["v"]
    assert values(facet) == [("all", 40), ("v0", 4), ("v1", 4), ("v2", 4)]
    assert facet.distinct == 11
    with IndexWriter(searcher._reader.path) as writer:  # a value that the arrays do not have yet stands in its place
        writer.write(entries([Document(f"more{n}", "t", {"v": "v0b"}) for n in range(4)], MODEL))
        assert values(searcher.facets(names=["v"], top=4)["v"]) == [("all", 40), ("v0", 4), ("v0b", 4), ("v1", 4)]


# Forms of entities


def test_an_entity_is_shown_in_its_most_common_form(open_index: Callable[..., Searcher]) -> None:
    texts = ["ACME", "Acme ACME", "acme Ball", "Acme", "Ａcme"]
    searcher = open_index(*[Document(f"{n}", text) for n, text in enumerate(texts)])
    assert values(searcher.facets(names=["entity:PER"])["entity:PER"]) == [
        ("ACME", 3),
        ("Ball", 1),
    ]  # a tie: A before a
    with IndexWriter(searcher._reader.path) as writer:
        writer.write(entries([Document("5", "Acme")], MODEL))
        assert values(searcher.facets(names=["entity:PER"])["entity:PER"]) == [("Acme", 4), ("Ball", 1)]
        writer.remove(["5"])
        assert values(searcher.facets(names=["entity:PER"])["entity:PER"]) == [("ACME", 3), ("Ball", 1)]


def test_a_form_behind_a_nul_character_and_with_line_breaks(tmp_path: Path) -> None:
    class Tagger(DemoAnalyser):
        def _analyse(self, text: str, *, tags: bool) -> Any:
            import dataclasses

            analysis = super()._analyse(text, tags=tags)
            return dataclasses.replace(analysis, spans=(Span("LOC", text.index("New"), len(text), 0.9),))

    path = build_index(tmp_path / "index", [Document("a", "nul\0: New\n York")], Tagger())
    with Searcher(path) as searcher:
        assert values(searcher.facets(names=["entity"])["entity"]) == [("New York", 1)]


# Dates and ranges


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024", ("2024", None, None)),
        ("2024-02", ("2024", "2024-02", None)),
        ("2024-02-29", ("2024", "2024-02", "2024-02-29")),
        ("2024-02-29T23:59:59.5+02:00", ("2024", "2024-02", "2024-02-29")),
        ("2024-02-29 23:59", ("2024", "2024-02", "2024-02-29")),
        ("2023-02-29", (None, None, None)),
        ("2024-13", (None, None, None)),
        ("2024-1-1", (None, None, None)),
        ("0000", (None, None, None)),
        ("٢٠٢٤", (None, None, None)),
        ("2024x", (None, None, None)),
        ("2024-02-29x", (None, None, None)),
        ("", (None, None, None)),
        (2024, ("2024", None, None)),
        (2024.0, ("2024", None, None)),
        (99, ("0099", None, None)),
        (2024.5, (None, None, None)),
        (0, (None, None, None)),
        (20240229, (None, None, None)),
        (True, (None, None, None)),
    ],
)
def test_what_is_a_date(value: Any, expected: tuple[str | None, ...]) -> None:
    kind = {bool: Kind.BOOLEAN, str: Kind.STRING}.get(type(value), Kind.NUMBER)
    found = [part_of(kind, value, part) for part in ("year", "month", "day")]  # type: ignore[arg-type]
    assert [key and key[1] for key in found] == list(expected)


def test_dates_stand_in_the_order_of_time_and_are_not_cut_off(open_index: Callable[..., Searcher]) -> None:
    dates = [f"{2000 + n % 20}-0{1 + n % 3}-05" for n in range(60)]
    searcher = open_index(*[Document(f"{n}", "t", {"d": [text, text]}) for n, text in enumerate([*dates, dates[0]])])
    assert values(searcher.facets(names=["d:year"], top=3)["d:year"]) == [
        ("2000", 4),
        *[(f"{year}", 3) for year in range(2001, 2020)],
    ]


@pytest.mark.parametrize(
    ("low", "high", "options", "expected"),
    [
        (3, 47, {}, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]),
        (0, 10, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (1, 3, {"whole": True}, [1, 2, 3, 4]),
        (1, 1, {}, [1, 2]),
        (-7, 7, {"width": Fraction(5)}, [-10, -5, 0, 5, 10]),
        (0.1, 0.3, {"width": Fraction("0.1")}, [0.1, 0.2, 0.3, 0.4]),
        (0, 0.7, {"width": Fraction("0.35")}, [0, 0.35, 0.7, 1.05]),
        (1e300, 1e300, {}, [1e300, 1e300, math.nextafter(1e300, math.inf)]),
        (-(2**63), 2**63 - 1, {"width": Fraction(2**62)}, [-(2**63), -(2**62), 0, 2**62, 2.0**63]),
    ],
)
def test_the_ends_of_ranges(low: float, high: float, options: dict[str, Any], expected: list[float]) -> None:
    assert range_edges(low, high, **options) == expected


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5
    )
)
def test_ranges_cover_all_numbers(numbers: list[float]) -> None:
    edges = range_edges(min(numbers), max(numbers))
    assert edges == sorted(edges)
    assert len(edges) <= 24
    assert edges[0] <= min(numbers)
    assert edges[-1] > max(numbers) or edges[-1] == math.inf


def test_ranges_count_a_document_once(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(
        Document("a", "t", {"p": [1, 2, 3, 12]}), Document("b", "t", {"p": 2}), Document("c", "t", {"p": ["x", True]})
    )
    facet = searcher.facets(names=["p:histogram:10"])["p:histogram:10"]
    assert [(value.value, value.below, value.count) for value in facet.values] == [(0, 10, 2), (10, 20, 1)]
    assert (facet.distinct, facet.missing) == (2, 1)
    facet = searcher.facets(names=["p:histogram"], filter="id = b")["p:histogram"]
    assert [(value.value, value.below, value.count, value.total) for value in facet.values] == [(2, 3, 1, 2)]
    assert searcher.facets(names=["p:histogram"], filter="id = c")["p:histogram"].values == ()


def test_ranges_of_a_reader_that_was_open_are_those_of_a_new_one(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document(f"d{n}", "t", {"p": n}) for n in (1, 2, 3)])

    def ranges(searcher: Searcher) -> list[tuple[Any, Any]]:
        return [(value.value, value.below) for value in searcher.facets(names=["p:histogram"])["p:histogram"].values]

    model = DemoAnalyser()
    with Searcher(path) as open_before, IndexWriter(path) as writer:
        whole = ranges(open_before)
        writer.write(entries([Document("half", "t", {"p": 1.5})], model))
        with Searcher(path) as new:
            assert ranges(open_before) == ranges(new) != whole
        writer.remove(["half"])
        assert ranges(open_before) == whole == [(1, 2), (2, 3), (3, 4)]


def test_ranges_without_a_beginning_or_an_end_are_json(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(Document("a", "t", {"p": [-1.7e308, 1.7e308]}))
    (facet,) = searcher.facets(names=["p:histogram"]).to_json()["facets"]
    assert facet["values"][0]["value"] is None
    assert facet["values"][-1]["below"] is None
    json.dumps(facet, allow_nan=False)


# What stands out


def test_what_stands_out_comes_first(open_index: Callable[..., Searcher]) -> None:
    """Of 100 documents 20 are about ships: "both" is in all, "ship" in 18 of the 20 and 2 more, "rare" once there."""
    documents = []
    for n in range(100):
        tags = ["both"] + (["ship"] if n < 18 or n in (50, 60) else []) + (["rare"] if n == 3 else [])
        documents.append(Document(f"{n}", "t", {"ships": n < 20, "tags": tags + (["other"] if n >= 20 else [])}))
    searcher = open_index(*documents)
    facet = searcher.facets(names=["tags"], filter="ships = true", significant=True)["tags"]
    assert [(value.value, value.count, value.total) for value in facet.values] == [("ship", 18, 20), ("rare", 1, 1)]
    assert [value.lift for value in facet.values] == pytest.approx([4.5, 5.0])
    assert facet.distinct == 3
    with pytest.raises(QueryError, match="need a query or a filter"):
        searcher.facets(significant=True)


def test_log_likelihood_is_that_of_the_formula() -> None:
    """G² = 2 Σ O ln(O / E) over the four cells, E from the margins (Dunning 1993)."""
    chance = random.Random(0)
    for _ in range(200):
        indexed = chance.randrange(2, 1_000)
        documents = chance.randrange(1, indexed + 1)
        count = chance.randrange(documents + 1)
        total = count + chance.randrange(indexed - documents + 1)
        cells = [
            (count, total * documents / indexed),
            (documents - count, (indexed - total) * documents / indexed),
            (total - count, total * (indexed - documents) / indexed),
            (indexed - documents - total + count, (indexed - total) * (indexed - documents) / indexed),
        ]
        wanted = 2 * sum(seen * math.log(seen / expected) for seen, expected in cells if seen)
        found = log_likelihood(np.array([count]), np.array([total]), documents, indexed)[0]
        more = count * indexed > total * documents
        assert found == (pytest.approx(wanted, abs=1e-6) if more else 0.0)


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"unknown facet 'nothing'; this index has label, entity, entity:PER, .*author\.name, flag, n, "),
        ("author.nam", r"unknown facet 'author\.nam'; .*author, author\.name"),
        ("n:hour", "unknown facet 'n:hour'"),
        ("n and tags", "unknown facet 'n and tags'"),
        ("", "unknown facet ''"),
        ("entity:XYZ", "unknown facet 'entity:XYZ'; the entity types of this index are PER, ORG, LOC"),
        ("n:histogram:0", "a range's width is a number above 0, got '0'"),
        ("n:histogram:x", "a range's width is a number above 0, got 'x'"),
        ("n:histogram:1/0", "a range's width is a number above 0, got '1/0'"),
        ("n:histogram:1e400000000", "a range's width is a number above 0, got '1e400000000'"),
        ("n:histogram:1e-5000", "a range's width is a number above 0, got '1e-5000'"),
        (
            "n:histogram:0.0001",
            r"would have [0-9]{3},[0-9]{3} ranges from \d+ to \d+, at most 10,000 .* of 0\.\d+ or more",
        ),
    ],
)
def test_a_name_that_is_no_facet_is_refused(path: Path, name: str, message: str) -> None:
    with Searcher(path) as searcher, pytest.raises(QueryError, match=message):
        searcher.facets(names=[name])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top": 0}, QueryError, "top must be at least 1"),
        ({"min_score": 0.5}, QueryError, "min_score needs a query"),
        ({"query": "x", "of": 0}, QueryError, "k must be at least 1"),
        ({"query": " "}, QueryError, "text is empty"),
        ({"query": " ", "mode": "keyword"}, QueryError, "text is empty"),
        ({"mode": "keyword"}, QueryError, "mode 'keyword' needs a query"),
        ({"query": "x", "mode": "words"}, QueryError, "unknown mode 'words'"),
        ({"query": np.ones(16, dtype=np.float32), "mode": "hybrid"}, QueryError, "'hybrid' needs a text, got a vector"),
        ({"query": np.zeros(3, dtype=np.float32)}, QueryError, r"has shape \(3,\)"),
        ({"filter": "label = x"}, FilterError, "unknown class 'x'"),
        ({"filter": "n <"}, FilterError, "at character 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Searcher(path, model=as_text_model(MODEL)) as searcher, pytest.raises(error, match=message):
        searcher.facets(**options)


def test_an_index_without_tags_counts_its_metadata_only(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index(Document("a", "Ada ball", {"n": 1}), model=DemoAnalyser(heads=False))
    assert [facet.name for facet in searcher.facets().facets] == ["n"]
    for name, what in (("label", "classes"), ("entity", "entities"), ("entity:PER", "entities")):
        with pytest.raises(QueryError, match=f"built without tags, so it has no {what} to count; `indexer retag`"):
            searcher.facets(names=[name])
    with pytest.raises(QueryError, match=r"unknown facet 'x'; this index has n$"):
        searcher.facets(names=["x"])


def test_the_limit_of_ranges_is_exact() -> None:
    assert len(range_edges(0, MAX_RANGES - 1, width=Fraction(1))) == MAX_RANGES + 1
    with pytest.raises(QueryError, match=r"take a width of 2 or more"):
        range_edges(0, MAX_RANGES, width=Fraction(1))


# Columns from commit to commit


def test_a_reader_that_missed_trimmed_changes_reads_again(
    path: Path, documents: dict[str, Document], read: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    with Searcher(path) as searcher, IndexWriter(path) as writer:
        check_all(searcher, documents)
        read.clear()
        documents["new"] = Document("new", "Ada has a ball", {"n": 3})
        writer.write(entries([documents["new"]], MODEL))
        writer.seal()
        check_all(searcher, documents)
        assert read


@pytest.mark.parametrize(("fold", "dense"), [(2, 10**9), (10_000, 10**9), (2, 0), (10_000, 0)])
def test_a_large_commit_is_followed_and_a_larger_one_is_read_again(
    path: Path,
    documents: dict[str, Document],
    read: list[object],
    monkeypatch: pytest.MonkeyPatch,
    fold: int,
    dense: int,
) -> None:
    monkeypatch.setattr(columns_module, "MAX_FOLLOWED", 30)
    monkeypatch.setattr(columns_module, "FOLD", fold)
    monkeypatch.setattr(columns_module, "BY_DOCUMENT", dense)
    monkeypatch.setattr(columns_module, "BY_DOCUMENTS", dense)
    monkeypatch.setattr(columns_module, "FREQUENT", 4)
    with Searcher(path) as searcher, IndexWriter(path) as writer:
        check_all(searcher, documents)
        for count in (30, 31):
            read.clear()
            new = [
                Document(f"d{n}" if n < 5 else f"new{n}", f"Ada{n} Zoe has a ball", {"n": n, "tags": ["x", str(count)]})
                for n in range(count)
            ]
            documents |= {document.id: document for document in new}
            writer.write(entries(new, MODEL))
            check_all(searcher, documents)
            assert bool(read) == (count == 31)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=120),
    st.booleans(),
    st.sets(st.integers(0, 60)),
    st.integers(1, 12),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_values_are_counted_alike_by_document_and_by_value(
    pairs: list[tuple[int, int]], single: bool, asked: set[int], frequent: int, gathered: int
) -> None:
    known = dict(pairs).items() if single else set(pairs)
    docs, codes = (np.array([pair[at] for pair in known], dtype=np.int64) for at in (0, 1))
    column = make_column([(Kind.NUMBER, code) for code in range(6)], docs, codes, last=0)
    chosen = BitMap(asked) & column.present
    expected = [sum(code == own and doc in chosen for doc, own in known) for code in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "FREQUENT", frequent)
        patch.setattr(columns_module, "_GATHERED", gathered)
        assert column.base.inverted().counts(chosen).tolist() == expected
        for dense in (0, 10**9):
            patch.setattr(columns_module, "BY_DOCUMENT", dense)
            patch.setattr(columns_module, "BY_DOCUMENTS", dense)
            assert column.base.counts(chosen).tolist() == expected
            assert column.counts(chosen).tolist() == expected


def test_older_snapshots_keep_their_counts_and_are_not_read_again(path: Path, read: list[object]) -> None:
    attribute = FieldValues("n")
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        with reader.snapshot() as first:
            before = first.column(attribute).totals.copy()
        with reader.snapshot() as old:
            for n in range(3):
                writer.write(entries([Document(f"new{n}", "t", {"n": 3})], MODEL))
                with reader.snapshot() as new:
                    assert new.column(attribute).totals.sum() == before.sum() + n + 1
                assert (old.column(attribute).totals == before).all()
    assert read == [attribute]


def test_columns_that_do_not_fit_are_forgotten_the_oldest_first(path: Path, read: list[object]) -> None:
    kept = [ClassNames(), FieldValues("n"), FieldValues("tags")]
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        for attribute in kept:
            snapshot.column(attribute)
        room = reader.columns.nbytes()
        small = Columns(max_bytes=room)
        for attribute in kept:
            small.get(snapshot.connection, attribute, snapshot.view.log)
        small.get(snapshot.connection, kept[0], snapshot.view.log)
        read.clear()
        small.get(snapshot.connection, EntityTexts("LOC"), snapshot.view.log)  # takes the place of `n`
        assert small.nbytes() <= room
        small.get(snapshot.connection, kept[0], snapshot.view.log)
        assert read == [EntityTexts("LOC")]
        small.get(snapshot.connection, kept[1], snapshot.view.log)
        assert read == [EntityTexts("LOC"), kept[1]]
        none = Columns(max_bytes=0)
        assert none.get(snapshot.connection, kept[0], snapshot.view.log).totals.sum() > 0
        assert none.nbytes() == 0


def test_threads_count_while_a_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commit changes all documents and adds one: `turn` is the same in all, and `size` is how many there are."""
    monkeypatch.setattr(columns_module, "FOLD", 100)
    path = build_index(tmp_path / "index", [Document(f"d{n}", "Ada ball", {"turn": 0, "size": 20}) for n in range(20)])
    stop, raised = threading.Event(), []

    def count(searcher: Searcher) -> None:
        try:
            seen = 0
            while not stop.is_set():
                facets = searcher.facets(names=["turn", "size", "entity:PER", "label"])
                (turn,), (size,) = facets["turn"].values, facets["size"].values
                assert turn.count == size.count == size.value == facets.documents == facets.indexed
                assert facets["label"].missing == 0
                assert [value.count for value in facets["entity:PER"].values] == [size.count]
                assert turn.value >= seen
                seen = turn.value
        except BaseException as error:
            raised.append(error)
            stop.set()

    with Searcher(path) as searcher, IndexWriter(path) as writer:
        threads = [threading.Thread(target=count, args=(searcher,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(1, 25):
            metadata = {"turn": turn, "size": 20 + turn}
            writer.write(entries([Document(f"d{n}", "Ada ball", metadata) for n in range(20 + turn)], MODEL))
            if stop.is_set():
                break
        stop.set()
        for thread in threads:
            thread.join()
    assert raised == []


# The command line


def test_the_command_prints_facets(run: Run, model: str, tmp_path: Path) -> None:
    lines = [{"id": f"{n}", "text": f"text {n}", "year": 2020 + n % 2, "on": n > 0, "code": "007"} for n in range(3)]
    (tmp_path / "docs.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    assert run("indexer", "add", "index", "docs.jsonl", "--model", model).code == 0
    result = run(
        "search", "facets", "index", "--facet", "year", "--facet", "on", "--facet", "code", "--where", "on = true"
    )
    assert result.out == (
        "2 of 3 documents\n"
        "\nyear  2 values, 0 without\n  1  2020  (0.8× its share of all, 2)\n  1  2021  (1.5× its share of all, 1)\n"
        "\non  1 value, 0 without\n  2  true  (1.5× its share of all, 2)\n"
        '\ncode  1 value, 0 without\n  2  "007"  (1.0× its share of all, 3)\n'
    )
    result = run("search", "facets", "index", "--facet", "year", "--top", 1)
    assert result.out == "3 documents\n\nyear  2 values, 0 without\n  2  2020\n  …\n"
    result = run("search", "facets", "index", "--json", "--query", "text 1", "--of", 1, "--facet", "year:histogram")
    assert orjson.loads(result.out) == {
        "documents": 1,
        "indexed": 3,
        "facets": [
            {
                "name": "year:histogram",
                "path": "year",
                "distinct": 1,
                "missing": 0,
                "values": [{"value": 2021, "below": 2022, "count": 1, "total": 1, "lift": 3.0}],
            }
        ],
    }
    words = run("search", "facets", "index", "--json", "--query", "1", "--mode", "keyword", "--facet", "year")
    assert orjson.loads(words.out)["documents"] == 1
    entity = orjson.loads(run("search", "facets", "index", "--json", "--facet", "entity").out)
    assert all(set(value) == {"type", "value", "count", "total", "lift"} for value in entity["facets"][0]["values"])
    result = run("search", "facets", "index", "--facet", "yaer")
    assert result.code == 1
    assert "unknown facet 'yaer'; this index has label, entity" in result.err


def test_facets_of_an_index_of_given_vectors(tmp_path: Path) -> None:
    table = clustered(200, dimension=16)
    path = build_vector_index(tmp_path / "index", table, metadata=lambda n: {"third": n % 3})
    with Searcher(path) as searcher:
        best = {f"d{row}" for row in np.argsort(-(table @ table[5]))[:20].tolist()}
        counts = Counter(int(id_[1:]) % 3 for id_ in best)
        facet = searcher.facets(table[5], of=20).facets[0]
        assert dict(values(facet)) == counts


def test_labels_of_the_demo_model() -> None:
    """The reference knows the model's rules."""
    for text in ("ball Ada", "Zed atom song", "nothing"):
        (analysis,) = MODEL.analyse([text])
        assert (analysis.label and analysis.label.name) == label_of(text)
        assert [(span.type, text[span.start : span.end]) for span in analysis.spans] == spans_of(text)
        assert label_of(text) in (None, *LABELS)
