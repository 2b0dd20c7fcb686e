"""The filter language: its grammar, its errors, its JSON form, and SQL against the reference semantics."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

import indexer.filters
from indexer.errors import FilterError
from indexer.fields import flatten, normalise_entity, path_of
from indexer.filters import (
    MAX_DEPTH,
    MAX_NODES,
    And,
    Between,
    Compare,
    DocumentFacts,
    Everything,
    Exists,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    Not,
    Or,
    all_of,
    allowed,
    any_of,
    check_names,
    format_filter,
    from_json,
    matches,
    parse,
    parse_entity_flag,
    to_json,
)
from indexer.filters.ast import Op, keys_of
from indexer.filters.sql import statements
from indexer.metadata import m001_create_tables

DOCS = Path(__file__).parent.parent / "docs" / "FILTERS.md"
OPS: list[Op] = ["=", "!=", "<", "<=", ">", ">="]

A, B, C = Compare("a", "=", 1), Compare("b", "=", 2), Compare("c", "=", 3)


# The grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1", A),
        ("a == 1", A),
        ("a=1", A),
        (" \n a\t=\n1 ", A),
        ("a != -1.5", Compare("a", "!=", -1.5)),
        ("a < 1e3", Compare("a", "<", 1000.0)),
        ("a <= 0", Compare("a", "<=", 0)),
        ("a > x", Compare("a", ">", "x")),
        ("a >= 9223372036854775807", Compare("a", ">=", 2**63 - 1)),
        ("a >= -9223372036854775808", Compare("a", ">=", -(2**63))),
        ("a = true", Compare("a", "=", True)),
        ("a = false", Compare("a", "=", False)),
        ("a = '1'", Compare("a", "=", "1")),
        ('a = "true"', Compare("a", "=", "true")),
        ("a = 007", Compare("a", "=", "007")),
        ("a = +4930", Compare("a", "=", "+4930")),
        ("a = 1.2.3", Compare("a", "=", "1.2.3")),
        ("a = .pdf", Compare("a", "=", ".pdf")),
        ("a = 2024-01-31", Compare("a", "=", "2024-01-31")),
        ("a = 2024-01-31T10:00:00Z", Compare("a", "=", "2024-01-31T10:00:00Z")),
        ("a = me@x.org", Compare("a", "=", "me@x.org")),
        ("a = 東京", Compare("a", "=", "東京")),
        ("a = हिन्दी", Compare("a", "=", "हिन्दी")),
        ("a = e\u0301t\u00e9", Compare("a", "=", "e\u0301t\u00e9")),
        (r'''a = "\\ \" \' \` \n \t \u00e9 \U0001F600"''', Compare("a", "=", "\\ \" ' ` \n \t é 😀")),
        ("""a = 'say "hi"'""", Compare("a", "=", 'say "hi"')),
        ("a = ''", Compare("a", "=", "")),
        ("a = 'two\nlines'", Compare("a", "=", "two\nlines")),
        ("städte-2_x = 1", Compare("städte-2_x", "=", 1)),
        ("author.name = Ada", Compare("author.name", "=", "Ada")),
        ("a.`b.c`.d = 1", Compare(r"a.b\.c.d", "=", 1)),
        (r"`a\`b\\` = 1", Compare("a`b\\\\", "=", 1)),
        ("`` = 1", Compare("", "=", 1)),
        ("`strange name`=1", Compare("strange name", "=", 1)),
        ("a.in = 1", Compare("a.in", "=", 1)),
        ("`not` = 1", Compare("not", "=", 1)),
        ("true = 1", Compare("true", "=", 1)),
        ("`label` = x", Compare("label", "=", "x")),
        ("`id` in [1]", In("id", (1,))),
        ("exists `entity`", Exists("entity")),
        ("label.name = x", Compare("label.name", "=", "x")),
        ("exists id.x", Exists("id.x")),
        ("Label = x and ID = y", And((Compare("Label", "=", "x"), Compare("ID", "=", "y")))),
        ("a in [de, 'f r', 1, 1.0, true]", In("a", ("de", "f r", 1, 1.0, True))),
        ("a in[x]", In("a", ("x",))),
        ("a in []", In("a", ())),
        ("year in 2019..2021", Between("year", 2019, 2021)),
        ("year in 2019 .. 2021", Between("year", 2019, 2021)),
        ("year in -1.5..1.5", Between("year", -1.5, 1.5)),
        ("year in 2019..", Between("year", 2019, None)),
        ("year in ..2021", Between("year", None, 2021)),
        ("(year in 2019..)", Between("year", 2019, None)),
        ("year in 2019.. and a = 1", And((Between("year", 2019, None), A))),
        ("d in 2024-01-01..2024-06-30", Between("d", "2024-01-01", "2024-06-30")),
        ("d in 'a'..\"b\"", Between("d", "a", "b")),
        ("d in 'and'..'or'", Between("d", "and", "or")),
        ("exists a.b", Exists("a.b")),
        ("label = Company", HasLabel("Company")),
        ("label = true", HasLabel("true")),
        ("label in [A]", HasLabel("A")),
        ("label in [A, 'B c', 3]", Or((HasLabel("A"), HasLabel("B c"), HasLabel("3")))),
        ("label in []", Not(Everything())),
        ("exists label", HasLabel(None)),
        ("id = 007", HasId(("007",))),
        ("id = a..b", HasId(("a..b",))),
        ("id in [1, x, 'y z']", HasId(("1", "x", "y z"))),
        ("id in []", HasId(())),
        ("entity ORG:acme", HasEntity("ORG", "acme", "exact")),
        ("entity ORG:acme*", HasEntity("ORG", "acme", "prefix")),
        ("entity ORG:a:b..c", HasEntity("ORG", "a:b..c", "exact")),
        ("entity ORG", HasEntity("ORG", None, "any")),
        ("entity ORG:*", HasEntity("ORG", None, "any")),
        ("entity *:acme", HasEntity(None, "acme", "exact")),
        ("entity *:acme*", HasEntity(None, "acme", "prefix")),
        ("entity *", HasEntity(None, None, "any")),
        ("entity *:*", HasEntity(None, None, "any")),
        ('entity PER:"Ada Lovelace"', HasEntity("PER", "Ada Lovelace", "exact")),
        ('entity ORG:"acme corp"*', HasEntity("ORG", "acme corp", "prefix")),
        ('entity ORG:"acme*"', HasEntity("ORG", "acme*", "exact")),
        ('entity "my type":x', HasEntity("my type", "x", "exact")),
        ('entity "*":x', HasEntity("*", "x", "exact")),
        ("entity ORG:and and a = 1", And((HasEntity("ORG", "and", "exact"), A))),
        ("entity or:x", HasEntity("or", "x", "exact")),
        ("entity ORG and a = 1", And((HasEntity("ORG", None, "any"), A))),
        ("*", Everything()),
        ("not *", Not(Everything())),
        ("a = 1 and b = 2 and c = 3", And((A, B, C))),
        ("a = 1 or b = 2 or c = 3", Or((A, B, C))),
        ("a = 1 and b = 2 or c = 3", Or((And((A, B)), C))),
        ("a = 1 or b = 2 and c = 3", Or((A, And((B, C))))),
        ("(a = 1 or b = 2) and c = 3", And((Or((A, B)), C))),
        ("(a = 1 and b = 2) and c = 3", And((And((A, B)), C))),
        ("not a = 1 and b = 2", And((Not(A), B))),
        ("not (a = 1 and b = 2)", Not(And((A, B)))),
        ("not(a = 1)", Not(A)),
        ("not not a = 1", Not(Not(A))),
        ("((a = 1))", A),
        ("a = 1 AND NOT b IN [2] OR EXISTS c", Or((And((A, Not(In("b", (2,))))), Exists("c")))),
        (
            "year >= 2020 and (label = Company or entity ORG:acme*) and not lang in [de, fr]",
            And(
                (
                    Compare("year", ">=", 2020),
                    Or((HasLabel("Company"), HasEntity("ORG", "acme", "prefix"))),
                    Not(In("lang", ("de", "fr"))),
                )
            ),
        ),
    ],
)  # fmt: skip
def test_parse(text: str, expected: Filter) -> None:
    assert repr(parse(text)) == repr(expected)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 0, "expected a condition"),
        ("  ", 2, "expected a condition"),
        ("year", 4, "expected an operator (= != < <= > >= in)"),
        ("year >=", 7, "expected a value"),
        ("= 3", 0, "expected a field name"),
        ("'a' = 3", 0, "expected a field name"),
        ("a = 1 and", 9, "expected a condition"),
        ("a = 1 b = 2", 6, "expected 'and', 'or' or the end"),
        ("name = foo bar", 11, "a value with spaces or signs needs quotes"),
        ("name = foo*", 10, "a value with spaces or signs needs quotes"),
        ("(a = 1", 6, "')' for the '(' at character 1"),
        ("a = 1)", 5, "this ')' closes nothing"),
        ("lang not in [de]", 5, "'not' stands in front"),
        ("lang <> de", 5, "'not equal' is !="),
        ("a => 1", 2, "expected an operator"),
        ("a = #1", 4, "expected a value"),
        ("label != X", 6, "write not label = …"),
        ("id != X", 3, "write not id = …"),
        ("label < X", 6, "label has only = and in"),
        ("label in A..B", 9, "label has no ranges"),
        ("exists id", 7, "every document has an id"),
        ("exists entity", 7, "write entity *"),
        ("year = 2019..2021", 11, "a range is written with in"),
        ("year in (1, 2)", 8, "expected a list in brackets"),
        ("year in 2019", 12, "expected two dots"),
        ("year in ..", 10, "a range needs at least one end"),
        ("year in 1...2", 9, "expected two dots, got three"),
        ("year in 1..a", 11, "a range needs two numbers or two texts"),
        ("year in true..", 12, "true and false have no order"),
        ("a in [1, 2", 10, "expected ',' or ']'"),
        ("a in [1 2]", 8, "expected ',' or ']'"),
        ("a in [1, ]", 9, "expected a value"),
        ("flag < true", 7, "true and false have no order"),
        ("flag = True", 7, "write true for the boolean"),
        ("a = null", 4, "null counts as missing"),
        ("a != NULL", 5, "null counts as missing"),
        ("a in [b, Null]", 9, "null counts as missing"),
        ("a = .5", 4, "expected a number as JSON writes it"),
        ("a = 5.", 4, "expected a number as JSON writes it"),
        ("a = 9223372036854775808", 4, "must fit in 64 bits"),
        ("a = " + "9" * 5000, 4, "must fit in 64 bits"),
        ("a = 1e999", 4, "a number must be finite"),
        ("a = or", 4, "the text 'or' needs quotes"),
        ("and = 1", 0, "needs backticks: `and`"),
        ("exists in", 7, "needs backticks: `in`"),
        ("a = 'x", 4, "expected a closing '"),
        (r'a = "x\q"', 6, "expected an escape"),
        (r'a = "\u12"', 5, "expected 4 hexadecimal digits"),
        (r'a = "\ud83d"', 5, "expected a Unicode character"),
        (r'a = "\U00110000"', 5, "expected a Unicode character"),
        ("a. = 1", 2, "expected a field name"),
        ("a.`b = 1", 2, "expected a closing `"),
        ("entity", 6, "expected an entity such as ORG:acme"),
        ("entity = x", 7, "expected an entity such as ORG:acme"),
        ("entity and a = 1", 7, "expected an entity such as ORG:acme"),
        ("entity ORG:", 11, "expected a text or * right after the colon"),
        ("entity ORG: acme", 11, "expected a text or * right after the colon"),
        ('entity ORG:" "', 7, "an entity text cannot be empty"),
        ('entity "":x', 7, "an entity type cannot be empty"),
        ('entity "Ada"', 12, "expected a colon"),
        ("entity acme*", 11, "expected a colon"),
        ("a = x\ud800", 5, "expected valid Unicode"),
    ],
)
def test_parse_errors(text: str, position: int, expected: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert expected in caught.value.problem
    assert caught.value.position == position
    str(caught.value).encode("utf-8")


@given(st.text(alphabet="ab1.,:*'\"`\\()[]<=>!~ \nandorinexistslabel\ud800é😀", max_size=40))
def test_parse_never_fails_in_another_way(text: str) -> None:
    try:
        filter = parse(text)
    except FilterError as error:
        position = error.position
    else:
        position = 0
        assert repr(parse(format_filter(filter))) == repr(filter)
    assert position is not None
    assert 0 <= position <= len(text)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("ORG:Acme", HasEntity("ORG", "Acme", "exact")),
        ("ORG:Acme Corp: a*b", HasEntity("ORG", "Acme Corp: a*b", "exact")),
        ("ORG:Acme C*", HasEntity("ORG", "Acme C", "prefix")),
        ("ORG", HasEntity("ORG", None, "any")),
        ("ORG:*", HasEntity("ORG", None, "any")),
        ("*:Acme", HasEntity(None, "Acme", "exact")),
        ("*", HasEntity(None, None, "any")),
        ("!ORG:Acme", Not(HasEntity("ORG", "Acme", "exact"))),
    ],
)
def test_entity_flag(flag: str, expected: Filter) -> None:
    assert parse_entity_flag(flag) == expected


@pytest.mark.parametrize(
    ("flag", "position"), [("", 0), ("!", 1), (":x", 0), ("ORG:", 4), ("ORG: ", 0), ("ORG:\ud800", 0)]
)
def test_entity_flag_errors(flag: str, position: int) -> None:
    with pytest.raises(FilterError) as caught:
        parse_entity_flag(flag)
    assert caught.value.position == position
    str(caught.value).encode("utf-8")


# Filters as data


def test_python_operators() -> None:
    conjunction, disjunction, nested = A & B & C, A | B | C, A & (B | ~C)
    assert conjunction == And((A, B, C))
    assert disjunction == Or((A, B, C))
    assert nested == And((A, Or((B, Not(C)))))
    with pytest.raises(TypeError):
        A & True  # type: ignore[operator]


def test_all_of_and_any_of() -> None:
    assert [all_of([A, B][:n]) for n in range(3)] == [Everything(), A, And((A, B))]
    assert [any_of([A, B][:n]) for n in range(3)] == [Not(Everything()), A, Or((A, B))]


def test_kinds_are_part_of_equality() -> None:
    assert Compare("a", "=", True) != A
    assert In("a", (True,)) != In("a", (1,))
    assert len({Compare("a", "=", False), Compare("a", "=", 0)}) == 2
    assert Compare("a", "=", 1.0) == A


def test_filters_pickle() -> None:
    filter = parse("a in [1, true] and not (b in 1..2 or entity ORG:x)")
    assert pickle.loads(pickle.dumps(filter)) == filter


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Compare("a", "=", math.nan), "must be finite, got nan"),
        (lambda: Compare("a", "<", -math.inf), "must be finite, got -inf"),
        (lambda: Compare("a", "=", 2**63), "must fit in 64 bits"),
        (lambda: Compare("a", "=", "\ud800"), "lone surrogate"),
        (lambda: Compare("\ud800", "=", 1), "lone surrogate"),
        (lambda: Compare("a\\b", "=", 1), "a backslash stands only before"),
        (lambda: Compare("a\\", "=", 1), "a backslash stands only before"),
        (lambda: Compare("a", "~", 1), "unknown operator '~'"),  # type: ignore[arg-type]
        (lambda: Compare("a", "=", None), "got null"),  # type: ignore[arg-type]
        (lambda: Compare("a", ">", False), "have no order"),
        (lambda: In("a", (1, math.inf)), "must be finite"),
        (lambda: In("a", [1]), "values must be a tuple, got list"),  # type: ignore[arg-type]
        (lambda: Between("a", None, None), "at least one end"),
        (lambda: Between("a", 1, "b"), "two numbers or two texts"),
        (lambda: Between("a", True, None), "have no order"),
        (lambda: HasId("ab"), "ids must be a tuple"),  # type: ignore[arg-type]
        (lambda: HasId((1,)), "an id must be a string, got int"),  # type: ignore[arg-type]
        (lambda: HasLabel("\udfff"), "lone surrogate"),
        (lambda: HasEntity("ORG", "x", "fuzzy"), "unknown match 'fuzzy'"),  # type: ignore[arg-type]
        (lambda: HasEntity("ORG", None, "exact"), "an entity text must be a string, got null"),
        (lambda: HasEntity("ORG", "x", "any"), "takes no entity text"),
        (lambda: HasEntity("", "x", "exact"), "type cannot be empty"),
        (lambda: HasEntity("ORG", " \u00a0", "prefix"), "text cannot be empty"),
        (lambda: And((A,)), "expected at least 2 filters, got 1"),
        (lambda: Or(()), "expected at least 2 filters, got 0"),
        (lambda: Not("a"), "expected a filter, got str"),  # type: ignore[arg-type]
    ],
)
def test_constructors_refuse(make: Any, expected: str) -> None:
    with pytest.raises(FilterError, match=re.escape(expected)):
        make()


def test_keys_of_undoes_path_of() -> None:
    for keys in [("a",), ("",), ("a.b", "c\\", "\\.", "")]:
        assert keys_of(path_of(keys)) == keys


# Limits


def test_keys_of_a_long_path() -> None:
    started = time.perf_counter()
    assert keys_of("a" * 1_000_000) == ("a" * 1_000_000,)
    assert time.perf_counter() - started < 3


def test_parse_refuses_deep_nesting() -> None:
    for deep in ["(" * 101 + "a = 1" + ")" * 101, "not " * 101 + "a = 1", "not (" * 100_000]:
        with pytest.raises(FilterError, match="nested too deeply; 100 levels"):
            parse(deep)
    assert parse("(" * 100 + "a = 1" + ")" * 100) == A


def test_deepest_filter_works_everywhere() -> None:
    filter: Filter = A
    for level in range(MAX_DEPTH - 1):
        filter = Not(filter) if level % 3 == 0 else And((filter, B)) if level % 3 == 1 else Or((C, filter))
    assert filter.depth == MAX_DEPTH
    assert from_json(to_json(filter)) == filter
    assert parse(format_filter(filter)) == filter
    assert hash(filter) == hash(parse(format_filter(filter)))
    facts = DocumentFacts("x", {"a": 1})
    assert answer([facts], filter) == [1] * matches(filter, facts)
    with pytest.raises(FilterError, match="nested too deeply"):
        Not(filter)


def test_from_json_refuses_deep_nesting() -> None:
    obj: dict[str, Any] = {"everything": True}
    for _ in range(50_000):
        obj = {"not": obj}
    with pytest.raises(FilterError, match=r"^not\.not\..*: the filter is nested too deeply"):
        from_json(obj)
    while "not" in obj:  # freeing it in one go would recurse
        obj = obj["not"]


def test_number_of_nodes_is_limited() -> None:
    largest = any_of([A] * (MAX_NODES - 1))
    assert largest.nodes == MAX_NODES
    assert parse(format_filter(largest)) == largest
    with pytest.raises(FilterError, match="too many conditions; 10,000"):
        any_of([A] * MAX_NODES)
    for text in (" or ".join(["a = 1"] * 10_001), "label in [" + ", ".join(["x"] * 10_000) + "]"):
        with pytest.raises(FilterError, match="too many conditions"):
            parse(text)
    with pytest.raises(FilterError, match=r"^or\[9999\]: the filter has too many conditions"):
        from_json({"or": [{"label": "x"}] * 20_000})


# JSON


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (None, "filter: expected an object or a text, got null"),
        ([], "filter: expected an object or a text, got an array"),
        ({}, "filter: expected one of the keys path, label, entity, id, and, or, not, everything; got"),
        ({"foo": 1}, "got 'foo'"),
        ({"path": "a", "op": "~"}, "op: expected one of = != < <= > >= in between exists, got"),
        ({"path": "a", "op": ["="], "value": 1}, "op: expected one of"),
        ({"path": "a", "value": 1}, "filter: the key 'op' is missing"),
        ({"path": "a", "op": "="}, "filter: the key 'value' is missing"),
        ({"path": "a", "op": "=", "value": 1, "x": 2}, "filter: unexpected key 'x'; expected path, op"),
        ({"path": "a", "op": "=", "value": None}, "value: expected a text, a number or a boolean, got null"),
        ({"path": "a", "op": "=", "value": [1]}, "value: expected a text, a number or a boolean, got list"),
        ({"path": "a", "op": "=", "value": 2**64}, "value: an integer must fit in 64 bits"),
        ({"path": "a", "op": "<", "value": True}, "value: true and false have no order"),
        ({"path": 1, "op": "exists"}, "path: a path must be a string, got int"),
        ({"path": "a\\b", "op": "exists"}, "path: path 'a\\\\b': a backslash stands only before"),
        ({"path": "a", "op": "in", "values": "x"}, "values: expected an array, got a string"),
        ({"path": "a", "op": "in", "values": [1, {}]}, "values[1]: expected a text"),
        ({"path": "a", "op": "between", "low": 1, "high": []}, "high: expected a text"),
        ({"path": "a", "op": "between", "low": 1, "high": "b"}, "filter: a range needs two numbers or"),
        ({"path": "a", "op": "between"}, "filter: a range needs at least one end"),
        ({"label": 1}, "label: a class name must be a string, got int"),
        ({"label": "A", "id": ["x"]}, "filter: unexpected key 'id'; expected label"),
        ({"id": "x"}, "id: expected an array, got a string"),
        ({"id": ["x", 2]}, "id[1]: an id must be a string, got int"),
        ({"entity": "ORG"}, "entity: expected an object, got a string"),
        ({"entity": {"type": "ORG"}}, "entity: the key 'match' is missing"),
        ({"entity": {"type": "ORG", "match": "any", "x": 1}}, "entity: unexpected key 'x'"),
        ({"entity": {"type": "ORG", "match": "exact"}}, "entity: an entity text must be a string, got null"),
        ({"and": {}}, "and: expected an array, got an object"),
        ({"or": []}, "or: expected at least one filter, got an empty array"),
        ({"not": 1}, "not: expected an object or a text, got a number"),
        ("year >=", "filter: expected a"),
        ({"and": [{"label": "A"}, "a = 1 or"]}, "and[1]: expected a condition"),
        ({"not": "a ~ 1"}, "not: expected "),
        ({"or": ["a = 1", " or ".join(["a = 1"] * 9_999)]}, "or[1]: the filter has too many conditions"),
        ({"not": {"not": "not " * 99 + "a = 1"}}, "not.not: the filter is nested too deeply"),
        ({"everything": 1}, "everything: expected true, got a number"),
        (
            {"and": [{"label": "A"}, {"path": "a", "op": "?", "value": 1}]},
            "and[1].op: expected one of",
        ),
        (
            {"not": {"or": [{"and": [{"label": "A"}, {"id": ["x"]}, {"id": [3]}]}]}},
            "not.or[0].and[2].id[0]: an id must be a string",
        ),
    ],
)  # fmt: skip
def test_from_json_errors(obj: object, expected: str) -> None:
    with pytest.raises(FilterError) as caught:
        from_json(obj)
    if re.match(r"[a-z\[\]0-9.]+: ", expected):
        assert str(caught.value).startswith(expected)
    assert expected in str(caught.value)


def test_a_text_stands_wherever_a_filter_may_in_an_object() -> None:
    assert from_json("year >= 2020 or lang = de") == parse("year >= 2020 or lang = de")
    assert from_json({"not": {"and": ["year >= 2020 or lang = de", {"label": "A"}]}}) == parse(
        "not ((year >= 2020 or lang = de) and label = A)"
    )
    with pytest.raises(FilterError) as caught:
        from_json({"and": ["a = 1", "b = 'x"]})
    assert caught.value.text == "b = 'x"
    assert caught.value.position is not None


def test_from_json_takes_and_and_or_of_one() -> None:
    assert from_json({"and": [{"label": "A"}]}) == HasLabel("A") == from_json({"or": [{"label": "A"}]})


# SQL


def index_of(documents: Sequence[DocumentFacts]) -> sqlite3.Connection:
    """A real index database; document number i + 1 is documents[i]."""
    connection = sqlite3.connect(":memory:")
    m001_create_tables(Database(connection))

    def number(table: str, key: str, **columns: str) -> int:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        values = tuple(columns.values())
        connection.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", values)
        where = " AND ".join(f"{name} = ?" for name in columns)
        row = connection.execute(f"SELECT {key} FROM {table} WHERE {where}", values).fetchone()
        return int(row[0])

    for doc, facts in enumerate(documents, start=1):
        label = None if facts.label is None else number("labels", "label", name=facts.label)
        connection.execute(
            "INSERT INTO documents (doc, id, text, metadata, content_hash, label, written, digest)"
            " VALUES (?, ?, '', '{}', x'', ?, 0, x'')",
            (doc, facts.id, label),
        )
        for start, (type, text) in enumerate(facts.entities):
            term = number("entity_terms", "term", type=type, norm=normalise_entity(text))
            connection.execute("INSERT INTO entities VALUES (?, ?, ?, ?, 1.0)", (doc, start, start, term))
        for path, kind, value in flatten(facts.metadata):
            row = (number("paths", "path", name=path), int(kind), value, doc)
            connection.execute("INSERT INTO fields VALUES (?, ?, ?, ?)", row)
    return connection


def answer(documents: Sequence[DocumentFacts], filter: Filter) -> list[int]:
    """`allowed`, of an index made for the purpose."""
    with closing(index_of(documents)) as connection:
        return list(allowed(connection, filter))


AWKWARD = ["", "a", "A", "b", "1", "true", "'", '"', "\\", "%", "_", "a%", "a.b", "a\\.b", "\0", "a\0b",
           "a\0", "東京", "😀", "\uffff", "\ue000", "e\u0301", "é", "ﬁ", "ß", "..", "2024-01-31", "a b",
           "\n", "and", "İ"]  # fmt: skip
KEYS = ["a", "b", "a.b", "a\\", "", ".", "label", "in", "strange name", "`", "東", "e\u0301", "/", "a/", "😀"]
ENTITIES = ["Acme", "ACME  corp", "acme corporation", "acmé", "東京", "東京都", "😀", "\U0010ffff", "\ud7ff",
            "%", "ﬁrst", "First", "straße", "STRASSE", "a\0b", "a", "b"]  # fmt: skip
NUMBERS = [0, 1, -1, 0.0, -0.0, 1.0, 0.5, 2**53, 2**53 + 1, 2**53 - 1, float(2**53), float(2**53 + 2),
           2**63 - 1, -(2**63), float(2**63), -float(2**63), 1e308, 5e-324, 0.1, 1e16, 10**16]  # fmt: skip
TYPES = ["ORG", "PER", "org", "*", "my type", "or"]
LABELS = ["Company", "company", "Person", "A 'b'", "true"]

texts = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = st.sampled_from(NUMBERS) | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | numbers | texts
keys = st.sampled_from(KEYS)
json_values = st.recursive(
    st.none() | scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
paths = st.lists(keys, min_size=1, max_size=3).map(lambda keys: path_of(tuple(keys)))
entity_texts = st.sampled_from(ENTITIES)
documents = st.lists(
    st.builds(
        DocumentFacts,
        id=texts,
        metadata=st.dictionaries(keys, json_values, max_size=4),
        label=st.none() | st.sampled_from(LABELS),
        entities=st.lists(st.tuples(st.sampled_from(TYPES), entity_texts), max_size=3).map(tuple),
    ),
    max_size=5,
    unique_by=lambda facts: facts.id,
)


def filters(
    *,
    paths: st.SearchStrategy[str] = paths,
    scalars: st.SearchStrategy[Any] = scalars,
    ids: st.SearchStrategy[str] = texts,
) -> st.SearchStrategy[Filter]:
    ordered = scalars.filter(lambda value: not isinstance(value, bool))
    ends = st.tuples(ordered, ordered | st.none()).filter(
        lambda pair: pair[1] is None or isinstance(pair[0], str) == isinstance(pair[1], str)
    )
    types = st.none() | st.sampled_from(TYPES)
    prefixes = st.tuples(entity_texts, st.integers(1, 6)).map(lambda cut: cut[0][: cut[1]])
    leaves: st.SearchStrategy[Filter] = st.one_of(
        st.builds(Compare, paths, st.sampled_from(OPS), ordered),
        st.builds(Compare, paths, st.sampled_from(OPS[:2]), scalars),
        st.builds(In, paths, st.lists(scalars, max_size=4).map(tuple)),
        st.builds(lambda path, pair: Between(path, *pair), paths, ends),
        st.builds(lambda path, pair: Between(path, *reversed(pair)), paths, ends),
        st.builds(Exists, paths),
        st.builds(HasLabel, st.none() | st.sampled_from(LABELS)),
        st.builds(HasEntity, types, prefixes | entity_texts, st.sampled_from(["exact", "prefix"])),
        st.builds(HasEntity, types, st.none(), st.just("any")),
        st.builds(HasId, st.lists(ids, max_size=3).map(tuple)),
        st.just(Everything()),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Not, inner),
        ),
        max_leaves=8,
    )


@given(filters())
@settings(max_examples=300)
def test_text_round_trip(filter: Filter) -> None:
    text = format_filter(filter)
    assert parse(text) == filter
    assert repr(parse(text)) == repr(filter)
    assert format_filter(parse(text)) == text


@given(filters())
@settings(max_examples=300)
def test_json_round_trip(filter: Filter) -> None:
    obj = to_json(filter)
    assert from_json(obj) == filter
    assert repr(from_json(json.loads(json.dumps(obj)))) == repr(filter)
    assert to_json(from_json(obj)) == obj


def check_against_reference(facts: Sequence[DocumentFacts], filters: Iterable[Filter]) -> None:
    with closing(index_of(facts)) as connection:
        for filter in filters:
            expected = [doc for doc, document in enumerate(facts, start=1) if matches(filter, document)]
            assert list(allowed(connection, filter)) == expected, filter
            others = [doc for doc in range(1, len(facts) + 1) if doc not in expected]
            assert list(allowed(connection, ~filter)) == others, filter


# Few paths and values, so that conditions are often true.
few_values = st.sampled_from([True, False, 0, -0.0, 1, 1.0, "1", "", "a", "é", "e\u0301", "😀", "\uffff",
                              "a\0", "a\0b", "'%_\\", 2**53, float(2**53), 2**53 + 1])  # fmt: skip
few_keys = st.sampled_from(["a", "b", "a.b"])
few_documents = st.lists(
    st.builds(
        DocumentFacts,
        id=st.sampled_from("abcde"),
        metadata=st.dictionaries(
            few_keys,
            st.lists(few_values, min_size=1, max_size=4) | st.dictionaries(few_keys, few_values, min_size=1),
            min_size=1,
        ),
        label=st.none() | st.sampled_from(LABELS[:2]),
        entities=st.lists(st.tuples(st.sampled_from(TYPES), entity_texts), max_size=3).map(tuple),
    ),
    min_size=3,
    max_size=5,
    unique_by=lambda facts: facts.id,
)
few_filters = filters(
    paths=st.sampled_from(["a", "a", "b", r"a\.b", "a.b", "b.a"]),
    scalars=few_values,
    ids=st.sampled_from("abcdef"),
)


@given(few_documents, st.lists(few_filters, min_size=1, max_size=6))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_sql_agrees_with_the_reference(facts: list[DocumentFacts], filters: list[Filter]) -> None:
    check_against_reference(facts, filters)


@given(documents, st.lists(filters(), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_sql_agrees_with_the_reference_on_anything(facts: list[DocumentFacts], filters: list[Filter]) -> None:
    check_against_reference(facts, filters)


def test_sql_agrees_on_every_pair_of_values() -> None:
    ordered: list[int | float | str] = [*NUMBERS, *AWKWARD]
    values = [True, False, *ordered]
    facts = [DocumentFacts(str(n), {"v": value}) for n, value in enumerate(values)]
    check_against_reference(facts, [Compare("v", op, value) for op in OPS for value in ordered])
    check_against_reference(facts, [Compare("v", op, value) for op in OPS[:2] for value in (True, False)])
    check_against_reference(facts, [In("v", (value,)) for value in values])
    check_against_reference(facts, [Between("v", value, None) for value in ordered])
    for same_kind in (NUMBERS, AWKWARD):
        pairs = [(low, high) for low in same_kind for high in same_kind]
        check_against_reference(facts, [Between("v", low, high) for low, high in pairs])


def test_sql_agrees_on_every_pair_of_paths() -> None:
    nested = [(outer, inner) for outer in KEYS for inner in KEYS]
    facts = [DocumentFacts(f"{n}", {key: 1}) for n, key in enumerate(KEYS)]
    facts += [DocumentFacts(f"n{n}", {outer: {inner: 1}}) for n, (outer, inner) in enumerate(nested)]
    all_paths = [path_of(keys) for keys in [*((key,) for key in KEYS), *nested]]
    check_against_reference(facts, map(Exists, all_paths))
    check_against_reference(facts, [Compare(path, "=", 1) for path in all_paths])


def test_sql_agrees_on_every_pair_of_entities() -> None:
    facts = [DocumentFacts(f"{n}", {}, None, ((TYPES[n % 3], text),)) for n, text in enumerate(ENTITIES)]
    prefixes = {text[:end] for text in ENTITIES for end in range(1, len(text) + 1)}
    for type in (None, *TYPES):
        check_against_reference(facts, [HasEntity(type, text, "exact") for text in ENTITIES])
        check_against_reference(facts, [HasEntity(type, text, "prefix") for text in sorted(prefixes)])


@pytest.mark.parametrize(
    ("metadata", "text", "expected"),
    [
        ({"a": True}, "a = 1", False),
        ({"a": 1}, "a = true", False),
        ({"a": "1"}, "a = 1", False),
        ({"a": 1.0}, "a = 1", True),
        ({"a": -0.0}, "a = 0", True),
        ({}, "a != 1", False),
        ({"a": None}, "a != 1", False),
        ({"a": "x"}, "a != 1", False),
        ({"a": "x"}, "not a = 1", True),
        ({"a": [1, 2]}, "a = 2", True),
        ({"a": [1, 2]}, "a != 2", True),
        ({"a": [1, [True]]}, "a = true", True),
        ({"a": [0, 9]}, "a >= 1 and a <= 3", True),
        ({"a": [0, 9]}, "a in 1..3", False),
        ({"a": 2}, "a in 3..1", False),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.b = 2", True),
        ({"a.b": 1}, "a.b = 1", False),
        ({"a.b": 1}, "exists a", False),
        ({"a": {"b": 1}}, "exists a", True),
        ({"a": {"b": None}}, "exists a", False),
        ({"a": {}}, "exists a", False),
        ({"ab": 1}, "exists a", False),
        ({"a": "B"}, "a < a", True),
        ({"a": "\uffff"}, "a < '😀'", True),
    ],
)
def test_meaning(metadata: dict[str, Any], text: str, expected: bool) -> None:
    facts = DocumentFacts("x", metadata)
    assert matches(parse(text), facts) is expected
    assert answer([facts], parse(text)) == [1] * expected


def test_long_lists() -> None:
    facts = [DocumentFacts(f"id {n}", {"n": n, "s": f"s{n}"}) for n in range(1, 1201)]
    ids = HasId(tuple(f"id {n}" for n in range(600, 50_600)))
    values = In("n", (*range(600, 50_600), *(f"s{n}" for n in range(50_000)), True))
    with closing(index_of(facts)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # that of old builds
        assert list(allowed(connection, ids)) == list(range(600, 1201))
        assert list(allowed(connection, values)) == list(range(600, 1201))
    assert parse(format_filter(ids & values)) == ids & values
    assert from_json(to_json(ids & values)) == ids & values


def test_and_stops_when_empty() -> None:
    asked = statements_asked("a = 3 and a = 1 and not a = 2")
    assert len(asked) == 1


def test_all_documents_are_read_at_most_once() -> None:
    asked = statements_asked("not (not a = 1 or not a = 2) or not a = 1 or *")
    assert sum(sql == "SELECT doc FROM documents" for sql in asked) == 1
    assert "SELECT doc FROM documents" not in statements_asked("a = 1 and not a = 2")


def statements_asked(text: str) -> list[str]:
    with closing(index_of([DocumentFacts("x", {"a": 1}), DocumentFacts("y", {"a": 2})])) as connection:
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        allowed(connection, parse(text))
        return asked


def test_everything_survives_its_use_in_other_parts() -> None:
    facts = [DocumentFacts(str(n), {"a": n}) for n in range(3)]
    assert answer(facts, parse("(* and a = 1 and not a = 1) or (* and not a = 0) or not *")) == [2, 3]


@pytest.mark.parametrize("analysed", [False, True])
def test_statements_use_the_indexes(analysed: bool) -> None:
    facts = [
        DocumentFacts(f"{n}", {"a": n, "b": [n, "x"]}, "A", tuple(("ORG", f"{word} {n}") for word in "xyz"))
        for n in range(300 if analysed else 0)
    ]
    texts = (
        "a = 1", "a != 1", "a < 1", "a <= 1", "a > x", "a >= 1", "a in [1, 2, x, true]", "a in 1..2",
        "a in 1..", "a in ..2", "exists a", "entity ORG:x", "entity ORG:x*", "entity ORG:*", "entity *:x",
        "entity *:x*", 'entity ORG:"\U0010ffff"*', "label = A", "exists label", "id = x", "id in [x, y]",
    )  # fmt: skip
    with closing(index_of(facts)) as connection:
        if analysed:
            connection.execute("ANALYZE")
        for sql, values in chain.from_iterable(statements(parse(text)) for text in texts):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
            assert not [step for step in plan if re.match(r"SCAN (fields|entities|documents)\b", step)], plan


def test_row_factory_of_the_caller_does_not_matter() -> None:
    with closing(index_of([DocumentFacts("x", {})])) as connection:
        connection.row_factory = lambda _cursor, _row: {"doc": "no"}
        assert list(allowed(connection, HasId(("x",)))) == [1]


# Names that the index knows


def test_check_names() -> None:
    filter = parse("not (entity ORG:x or label in [A, B]) and entity * and exists label and a = 1")
    check_names(filter, labels={"A", "B"}, entity_types=["ORG", "PER"])
    with pytest.raises(
        FilterError,
        match=r"^unknown entity type 'ORG' \(this index knows LOC, PER\) at character 13: not \(entity ⟨here⟩ORG:x",
    ):
        check_names(filter, labels={"A", "B"}, entity_types=["PER", "LOC"])
    with pytest.raises(
        FilterError, match=r"^unknown class 'B' \(this index knows A\) at character 35: .*label in \[A, ⟨here⟩B\]"
    ):
        check_names(filter, labels={"A"}, entity_types={"ORG"})
    with pytest.raises(FilterError, match=r"knows l0, l1, .* and 5 more\)$"):
        check_names(HasLabel("x"), labels=[f"l{n}" for n in range(25)], entity_types=None)


def test_check_names_tells_the_place_in_a_json_object() -> None:
    obj = {"and": ["a = 1", {"not": {"label": "B"}}]}
    with pytest.raises(FilterError, match=r"^and\[1\]\.not\.label: unknown class 'B' \(this index knows A\)$"):
        check_names(from_json(obj), labels={"A"}, entity_types=None)
    obj = {"or": [{"entity": {"type": "ORG", "match": "any"}}, "a = 1"]}
    with pytest.raises(FilterError, match=r"^or\[0\]\.entity\.type: unknown entity type 'ORG'"):
        check_names(from_json(obj), labels=None, entity_types={"PER"})
    with pytest.raises(FilterError, match=r"^unknown class 'B' .* at character 9: label = ⟨here⟩B$"):
        check_names(from_json({"not": "label = B"}), labels={"A"}, entity_types=None)
    assert HasLabel("B") == parse("label = B")
    assert hash(HasLabel("B")) == hash(parse("label = B"))


@pytest.mark.parametrize(("text", "by"), [("entity *", "entity"), ("entity ORG:x", "entity"),
                                          ("exists label", "class"), ("not label = A", "class")])  # fmt: skip
def test_check_names_of_an_index_without_tags(text: str, by: str) -> None:
    with pytest.raises(FilterError, match=f"was built without tags, so it cannot be filtered by {by};"):
        check_names(parse(text), labels=None, entity_types=None)
    check_names(parse("year = 1 and id = x"), labels=None, entity_types=None)


# docs/FILTERS.md


def block(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0]).splitlines()


def table(section: str) -> list[list[str]]:
    text = DOCS.read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert rows
    return rows


def example_documents() -> list[DocumentFacts]:
    objects = [json.loads(line) for line in block("json")]
    return [
        DocumentFacts(**{**obj, "entities": tuple((type, text) for type, text in obj["entities"])}) for obj in objects
    ]


@pytest.mark.parametrize("line", block("filters"))
def test_docs_examples(line: str) -> None:
    text, expected = re.split(r"\s+→ ", line)
    facts = example_documents()
    filter = parse(text)
    assert [document.id for document in facts if matches(filter, document)] == expected.split()
    assert [facts[doc - 1].id for doc in answer(facts, filter)] == expected.split()


@pytest.mark.parametrize("line", block("errors"))
def test_docs_errors(line: str) -> None:
    text, expected = re.split(r"\s+→ ", line)
    with pytest.raises(FilterError, match=re.escape(expected)):
        parse(text)


def test_docs_conditions_parse() -> None:
    for row in table("Conditions"):
        for text in re.findall(r"`([^`]+)`", row[0]):
            parse(text if not text.startswith(("<", ">")) else f"year {text} 2020")
    intro = DOCS.read_text("utf-8").split("## ")[0]
    assert parse(re.findall(r"^    (year .*)$", intro, re.MULTILINE)[0]).nodes == 7
    assert parse(re.findall(r"--where '(.*)'", intro)[0]).nodes == 3


def test_docs_flags() -> None:
    for flag, text in table("The flag `--entity`"):
        assert parse_entity_flag(flag.strip("`")) == parse(text.strip("`"))


def test_docs_json_form() -> None:
    for obj, text in table("The JSON form"):
        assert from_json(json.loads(obj.strip("`"))) == parse(text.strip("`"))
        assert to_json(parse(text.strip("`"))) == json.loads(obj.strip("`"))


def test_docs_python() -> None:
    names = {name: getattr(indexer.filters, name) for name in ("Field", "entity", "ids", "label")}
    rows = table("In Python")
    assert len(rows) >= 20
    for expression, text in rows:
        made = eval(expression.strip("` ").replace("\\|", "|"), names)  # our own document
        assert made == parse(text.strip("` ") if "``" not in text else text.replace("``", "").strip())
    code = DOCS.read_text("utf-8").split("## In Python\n")[1].split("```python\n")[1].split("```")[0]
    asked: list[Filter] = []
    searcher = SimpleNamespace(search=lambda _, filter: asked.append(filter))
    exec(code, {"searcher": searcher})
    assert asked == [parse(re.findall(r"^    (year .*)$", DOCS.read_text("utf-8"), re.MULTILINE)[0])]


def test_docs_numbers() -> None:
    assert f"{MAX_NODES:,} conditions" in DOCS.read_text("utf-8")
    assert f"on {MAX_DEPTH} levels" in DOCS.read_text("utf-8")


def test_kinds_of_filters() -> None:
    # A new one has to be added to `filters()` above.
    assert {kind.__name__ for kind in Filter.__args__} == {
        "Compare", "In", "Between", "Exists", "HasLabel", "HasEntity", "HasId",
        "And", "Or", "Not", "Everything",
    }  # fmt: skip
    assert all(dataclasses.is_dataclass(kind) for kind in Filter.__args__)


# Spellings of one name


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("IBM", "ibm"),
        ("I.B.M.", "ibm"),
        ("I.B.M", "ibm"),
        ("IBM's", "ibm"),
        ("I.B.M.’s", "ibm"),
        ("Acme  Corp.", "acme corp"),
        ("@Acme_Corp", "acme_corp"),
        ("#London's", "london"),
        ("##x", "##x"),
        ("#", "#"),
        ("the Joneses'", "the joneses"),
        ("J.R.R. Tolkien", "jrr tolkien"),
        ("St. Ives", "st ives"),
        ("O'Neill", "o'neill"),
        ("Amazon.com", "amazon.com"),
        ("3.5", "3.5"),
        ("...", "..."),
        ("'s", "'s"),
    ],
)
def test_spellings_of_a_name_have_one_form(text: str, form: str) -> None:
    assert normalise_entity(text) == form


@given(st.text(alphabet="aSs.'’ I\u00a0Bé@#", max_size=12))
def test_the_form_of_a_name_is_its_own_form(text: str) -> None:
    form = normalise_entity(text)
    assert normalise_entity(form) == form
    assert bool(form) == bool(text.split())


def test_a_name_of_many_possessives_takes_no_longer_than_others() -> None:
    started = time.perf_counter()
    assert normalise_entity("x" + "'s" * 10_000) == "x"
    assert normalise_entity("x." + "'s." * 10_000) == "x"
    assert time.perf_counter() - started < 2
