"""Hits on a terminal: entities marked, colours only where wanted, nothing raw, lines that fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.records import Label
from search.hits import BestPassage, Entity, Hit
from search.render import colour_of, render_hit, render_hits, wants_colour

TEXT = "Ada met Bob at Acme in Rome."
ENTITIES = (
    Entity("PER", "Ada", 0, 3, 0.9),
    Entity("PER", "Bob", 8, 11, 0.9),
    Entity("ORG", "Acme", 15, 19, 0.9),
    Entity("LOC", "Rome", 23, 27, 0.9),
)

_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


def hit(
    text: str = TEXT,
    *,
    id_: str = "doc-1",
    metadata: dict[str, Any] | None = None,
    label: Label | None = None,
    entities: Sequence[Entity] = (),
    passage: tuple[int, int] | None = None,
) -> Hit:
    return Hit(
        id=id_,
        score=0.51239,
        text=text,
        metadata=metadata or {},
        label=label,
        entities=tuple(entities),
        passage=BestPassage(*(passage or (0, len(text)))),
    )


def plain(text: str) -> str:
    return _COLOUR_CODES.sub("", text)


@pytest.mark.parametrize(
    ("terminal", "variable", "expected"),
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False), (False, "1", False)],
)
def test_colours_are_for_terminals_without_no_color(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variable: str | None, expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("NO_COLOR", variable)
    assert wants_colour(terminal=terminal) is expected


def test_without_colours_entities_are_in_brackets() -> None:
    shown = render_hit(
        hit(entities=ENTITIES, label=Label("sport", 0.875), metadata={"year": 2020, "tags": ["a", "b"]}),
        3,
        colour=False,
        width=100,
    )
    assert shown == (
        "  3. 0.5124  doc-1  [sport 0.88]\n"
        "     [Ada PER] met [Bob PER] at [Acme ORG] in [Rome LOC].\n"
        "     year=2020 · tags=['a', 'b']"
    )


def test_with_colours_entities_are_in_the_colour_of_their_type() -> None:
    shown = render_hit(hit(entities=ENTITIES), 1, colour=True, width=100)
    assert shown.splitlines()[1] == (
        "     \x1b[36m\x1b[1mAda\x1b[0m met \x1b[36m\x1b[1mBob\x1b[0m at \x1b[33m\x1b[1mAcme\x1b[0m"
        " in \x1b[32m\x1b[1mRome\x1b[0m."
    )


def test_with_colours_the_words_are_those_of_the_text() -> None:
    shown = render_hit(hit(entities=ENTITIES, metadata={"year": 2020}), 1, colour=True, width=100)
    assert plain(shown) == f"  1. 0.5124  doc-1\n     {TEXT}\n     year=2020"


def test_an_entity_of_several_words_is_coloured_throughout() -> None:
    shown = render_hit(hit("by Ada  Lovelace", entities=[Entity("PER", "", 3, 16, 1.0)]), 1, colour=True, width=100)
    assert shown.splitlines()[1] == "     by \x1b[36m\x1b[1mAda\x1b[0m \x1b[36m\x1b[1mLovelace\x1b[0m"


def test_entities_that_overlap_are_shown_once() -> None:
    both = [Entity("PER", "Ada met", 0, 7, 1.0), Entity("ORG", "met Bob", 4, 11, 1.0)]
    assert "     [Ada met PER] Bob at" in render_hit(hit(entities=both), 1, colour=False, width=100)
    assert TEXT in plain(render_hit(hit(entities=both), 1, colour=True, width=100))


def test_a_type_always_has_the_same_colour() -> None:
    assert [colour_of(kind) for kind in ("PER", "ORG", "LOC")] == ["cyan", "yellow", "green"]
    assert colour_of("WORK") == colour_of("WORK")


def test_hits_are_numbered_from_the_offset() -> None:
    shown = render_hits([hit("one"), hit("two")], colour=False, offset=10)
    assert shown == " 11. 0.5124  doc-1\n     one\n\n 12. 0.5124  doc-1\n     two"


EVIL = "\x1b[2Jwipe\x07\x9b31m\r\x00\u202egnp.exe\u2066\x7f"


@pytest.mark.parametrize("colour", [False, True])
def test_control_characters_never_reach_the_terminal(colour: bool) -> None:
    shown = render_hit(
        hit(
            f"a {EVIL} b",
            id_=f"id{EVIL}",
            metadata={f"key{EVIL}": [EVIL, {"x": EVIL}], "plain": EVIL},
            label=Label(f"label{EVIL}", 0.5),
            entities=[Entity(f"T{EVIL}", EVIL, 2, 2 + len(EVIL), 1.0)],
        ),
        1,
        colour=colour,
        width=100,
    )
    left = plain(shown) if colour else shown
    assert all(character.isprintable() or character == "\n" for character in left)
    assert r"\x1b[2Jwipe\x07\x9b31m" in left


@pytest.mark.parametrize("colour", [False, True])
@given(text=st.text(min_size=1), id_=st.text(min_size=1), value=st.text())
def test_whatever_the_text_only_printable_characters_are_shown(colour: bool, text: str, id_: str, value: str) -> None:
    entities = [Entity("PER", text[: len(text) // 2], 0, len(text) // 2, 1.0)] if len(text) > 1 else []
    shown = render_hit(hit(text, id_=id_, metadata={"value": value}, entities=entities), 1, colour=colour, width=60)
    assert all(character.isprintable() or character == "\n" for character in plain(shown))


def test_a_long_text_is_cut_around_its_best_passage() -> None:
    text = "before " * 200 + "the best passage" + " after" * 200
    start = text.index("the best")
    for colour in (False, True):
        shown = render_hit(hit(text, passage=(start, start + 16)), 1, colour=colour, width=100)
        assert plain(shown).splitlines()[1] == "     … the best passage …"


def test_a_long_passage_is_cut_at_its_end() -> None:
    text = "word " * 1000
    for colour in (False, True):
        shown = " ".join(plain(render_hit(hit(text), 1, colour=colour, width=100)).split("\n", 1)[1].split())
        assert shown == "word " * 120 + "…"


def test_entities_outside_of_the_best_passage_are_not_marked() -> None:
    shown = render_hit(hit(entities=ENTITIES, passage=(0, 14)), 1, colour=False, width=100)
    assert shown.splitlines()[1] == "     [Ada PER] met [Bob PER] at …"


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    "text",
    ["word " * 300, "x" * 500, "short " + "y" * 300 + " short", TEXT * 12, "漢" * 300],
    ids=["words", "one long word", "a long word within", "entities", "no spaces"],
)
def test_no_line_is_wider_than_the_terminal(colour: bool, text: str) -> None:
    shown = render_hit(
        hit("before " + text, entities=ENTITIES if text.startswith(TEXT) else (), passage=(7, 7 + len(text) - 1)),
        1,
        colour=colour,
        width=60,
    )
    lines = plain(shown).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("colour", [False, True])
def test_long_metadata_is_shortened(colour: bool) -> None:
    shown = plain(render_hit(hit(metadata={"a": 1, "note": "many words " * 100}), 1, colour=colour, width=60))
    lines = shown.splitlines()[2:]
    assert lines[0].startswith("     a=1 · note=many words")
    assert lines[-1].endswith("…")
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 60


def test_metadata_of_one_long_word_is_shown_as_far_as_it_fits() -> None:
    shown = render_hit(hit(metadata={"url": "http://example.org/" + "x" * 300}), 1, colour=False, width=60)
    assert shown.splitlines()[2].startswith("     url=http://example.org/xxx")


def test_white_space_is_collapsed() -> None:
    for colour in (False, True):
        shown = render_hit(hit("a\n\n b\tc\u00a0d"), 1, colour=colour, width=60)
        assert plain(shown).splitlines()[1:] == ["     a b c d"]
