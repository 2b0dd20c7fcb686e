"""Random filters with awkward strings over documents in a real index, in every form that a filter has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from test_filters import AWKWARD, ENTITIES, KEYS, LABELS, NUMBERS, TYPES, filters

from indexer.errors import FilterError
from indexer.fields import path_of
from indexer.filters import (
    Compare,
    DocumentFacts,
    Exists,
    Field,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    all_of,
    entity,
    format_filter,
    from_json,
    ids,
    label,
    matches,
    parse,
    to_json,
)
from indexer.records import Analysis, Document, Label, Passage, Span
from indexer.settings import settings_of_vectors
from indexer.store import Entry, IndexWriter
from search import Searcher

EXAMPLES = 5_000 if os.environ.get("TAGDEX_LONG_TESTS") else 300
DIMENSION = 4


def awkward_metadata(random: np.random.Generator) -> dict[str, Any]:
    """A few fields, nested and in arrays, of values that are easily taken for others."""

    def value(depth: int) -> Any:
        kind = int(random.integers(8))
        if kind == 0 and depth < 3:
            return [value(depth + 1) for _ in range(int(random.integers(4)))]
        if kind == 1 and depth < 3:
            return fields(depth + 1)
        if kind == 2:
            return None
        if kind == 3:
            return bool(random.integers(2))
        source = NUMBERS if kind < 6 else AWKWARD
        return source[int(random.integers(len(source)))]

    def fields(depth: int) -> dict[str, Any]:
        return {KEYS[int(random.integers(len(KEYS)))]: value(depth) for _ in range(int(random.integers(1, 5)))}

    return fields(0)


def awkward_documents() -> list[tuple[Document, Analysis]]:
    random = np.random.default_rng(7)
    made = []
    ids_of = dict.fromkeys([*(id_ for id_ in AWKWARD if id_), *"abcdef", *(f"d{n}" for n in range(30))])
    for id_ in ids_of:
        names = [ENTITIES[at] for at in random.permutation(len(ENTITIES))[: int(random.integers(4))]]
        text, spans = "A text", []
        for name in names:
            type = TYPES[int(random.integers(len(TYPES)))]
            spans.append(Span(type, len(text) + 1, len(text) + 1 + len(name), 0.5))
            text += f" {name}"
        name = [None, *LABELS][int(random.integers(1 + len(LABELS)))]
        vector = random.normal(size=DIMENSION).astype(np.float32)
        analysis = Analysis(
            (Passage(0, len(text), 3),), vector[None], vector, None if name is None else Label(name, 0.5), tuple(spans)
        )
        made.append((Document(id_, text, awkward_metadata(random)), analysis))
    return made


DOCUMENTS = awkward_documents()
FACTS = [
    DocumentFacts(
        document.id,
        document.metadata,
        None if analysis.label is None else analysis.label.name,
        tuple((span.type, document.text[span.start : span.end]) for span in analysis.spans),
    )
    for document, analysis in DOCUMENTS
]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    path = tmp_path_factory.mktemp("filters") / "index"
    tagged = replace(settings_of_vectors(DIMENSION), class_labels=tuple(LABELS), entity_types=tuple(TYPES))
    with IndexWriter(path, create=tagged) as writer:
        writer.write([Entry(document, analysis) for document, analysis in DOCUMENTS])
    with Searcher(path) as opened:
        yield opened


@given(filters())
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_random_filters_allow_what_plain_python_allows(searcher: Searcher, filter: Filter) -> None:
    everything = [facts.id for facts in FACTS]
    expected = {facts.id for facts in FACTS if matches(filter, facts)}
    text, obj = format_filter(filter), json.loads(json.dumps(to_json(filter)))
    assert parse(text) == filter == from_json(obj)
    assert searcher.present(everything, filter=text) == expected
    assert searcher.present(everything, filter=~filter) == set(everything) - expected


def test_hits_are_what_a_filter_allows(searcher: Searcher) -> None:
    vector = np.ones(DIMENSION, dtype=np.float32)
    for filter in ("exists a", "not entity ORG", "label in [Company, Person] or a = true", 'entity *:"東京"*'):
        expected = {facts.id for facts in FACTS if matches(parse(filter), facts)}
        assert expected
        for form in (filter, parse(filter), to_json(parse(filter))):
            assert {hit.id for hit in searcher.search_vector(vector, k=1_000, filter=form)} == expected


LONE = "a\ud800b"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compare("a", "=", LONE),
        lambda: Compare(LONE, "=", 1),
        lambda: In("a", ("b", LONE)),
        lambda: Exists(LONE),
        lambda: HasLabel(LONE),
        lambda: HasEntity("ORG", LONE, "exact"),
        lambda: HasEntity(LONE, None, "any"),
        lambda: HasId((LONE,)),
        lambda: Field(LONE),
        lambda: Field("a") == LONE,
        lambda: Field("a").between(LONE, None),
        lambda: parse(f'a = "{LONE}"'),
        lambda: parse(f"`{LONE}` = 1"),
        lambda: parse(f"entity ORG:{LONE}"),
        lambda: parse(r'a = "\ud800"'),
        lambda: from_json({"path": "a", "op": "=", "value": LONE}),
        lambda: from_json({"label": LONE}),
    ],
    ids=range(17),
)
def test_lone_surrogates_are_refused(make: Any) -> None:
    with pytest.raises(FilterError) as caught:
        make()
    str(caught.value).encode("utf-8")


# Filters as Python expressions

YEAR = Field("year")


@pytest.mark.parametrize(
    ("filter", "text"),
    [
        (YEAR == 2020, "year = 2020"),
        (YEAR != 2020, "year != 2020"),
        (YEAR < 2020, "year < 2020"),
        (YEAR <= 2020, "year <= 2020"),
        (YEAR > 2020.5, "year > 2020.5"),
        (YEAR >= 2020, "year >= 2020"),
        (Field("open") == True, "open = true"),  # noqa: E712
        (Field("lang").isin(["de", "fr"]), "lang in [de, fr]"),
        (Field("lang").isin(x for x in ()), "lang in []"),
        (YEAR.between(2019, 2021), "year in 2019..2021"),
        (Field("date").between("2024-01-01", None), 'date in "2024-01-01"..'),
        (YEAR.between(None, 2021), "year in ..2021"),
        (Field("author").exists(), "exists author"),
        (Field("author.name") == 'A "b" \\ %', r'author.name = "A \"b\" \\ %"'),
        (Field(r"file\.name") == "b.txt", '`file.name` = "b.txt"'),
        (Field(path_of(("a.b", "c d"))) == "東京", "`a.b`.`c d` = 東京"),
        (label("Company"), "label = Company"),
        (label("Company", "Person"), "label = Company or label = Person"),
        (label(), "exists label"),
        (entity("ORG", "acme"), "entity ORG:acme"),
        (entity("ORG", "acme", prefix=True), "entity ORG:acme*"),
        (entity("ORG"), "entity ORG"),
        (entity(text="acme"), "entity *:acme"),
        (entity(), "entity *"),
        (ids("a1"), "id = a1"),
        (ids("a1", "a2"), "id in [a1, a2]"),
        (
            (YEAR >= 2020) & (label("Company") | entity("ORG", "acme", prefix=True)) & ~Field("lang").isin(["de"]),
            "year >= 2020 and (label = Company or entity ORG:acme*) and not lang in [de]",
        ),
    ],
)
def test_python_expressions_are_the_same_as_text(filter: Filter, text: str) -> None:
    assert filter == parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: YEAR == None,  # noqa: E711
        lambda: YEAR == [2020],
        lambda: YEAR > True,
        lambda: float("nan") < YEAR,
        lambda: YEAR == YEAR,
        lambda: YEAR.isin([None]),
        lambda: YEAR.between(1, "b"),
        lambda: YEAR.between(None, None),
        lambda: Field("a\\b"),
        lambda: entity("ORG", "acme", prefix=True) & entity("ORG", prefix=True),
        lambda: entity("ORG", " "),
    ],
    ids=range(11),
)
def test_expressions_that_no_document_can_fulfil_are_refused(make: Any) -> None:
    with pytest.raises(FilterError):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: 2019 <= YEAR <= 2021,
        lambda: YEAR == 2020 and label("x"),
        lambda: not label("x"),
        lambda: bool(all_of([YEAR == 2020])),
    ],
    ids=range(4),
)
def test_the_words_of_python_do_not_join_filters(make: Any) -> None:
    with pytest.raises(TypeError, match=r"join filters with & \| ~ instead of and, or, not"):
        make()


def test_a_field_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        {YEAR}  # noqa: B018
