"""The filter language as text: a recursive descent over `Scanner`. docs/FILTERS.md has the grammar.

Every fault raises FilterError with its place in the text and what was expected there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from indexer.errors import FilterError
from indexer.fields import Scalar, has_lone_surrogate, path_of
from indexer.filters.ast import (
    MAX_DEPTH,
    And,
    Between,
    Compare,
    Everything,
    Exists,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    Not,
    Or,
    Origin,
    any_of,
    check_size,
    checked_kind,
)
from indexer.filters.scanner import RESERVED, SPECIAL, Scanner, printable

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NEAR_NUMBER = re.compile(r"[+-]?(?=\.?[0-9])[0-9]*\.[0-9]*([eE][+-]?[0-9]+)?")
_COMPARISONS = ("==", "!=", "<=", ">=", "=", "<", ">")  # longer ones first
_OPERATORS_EXPECTED = "expected an operator (= != < <= > >= in)"

T = TypeVar("T")


def parse(text: str) -> Filter:
    """The filter that a text describes.

    >>> parse("year >= 2020 and not lang in [de, fr]")
    And(parts=(Compare(path='year', op='>=', value=2020), Not(part=In(path='lang', values=('de', 'fr')))))
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.scanner = Scanner(text)
        self.level = 0
        self.nodes = 0

    def parse(self) -> Filter:
        scanner = self.scanner
        if has_lone_surrogate(scanner.text):
            at = next(at for at, character in enumerate(scanner.text) if has_lone_surrogate(character))
            scanner.text = printable(scanner.text)
            scanner.fail("expected valid Unicode, got a lone surrogate", at)
        result = self.disjunction()
        scanner.skip_space()
        if scanner.next_is(")"):
            scanner.fail("expected 'and', 'or' or the end; this ')' closes nothing")
        if scanner.at < len(scanner.text):
            scanner.fail("expected 'and', 'or' or the end (a value with spaces or signs needs quotes)")
        return result

    # One method per rule of the grammar, from the loosest to the tightest.

    def disjunction(self) -> Filter:
        start = self.scanner.skip_space()
        parts = [self.conjunction()]
        while self.scanner.take_keyword("or"):
            parts.append(self.conjunction())
        return parts[0] if len(parts) == 1 else self.build(start, Or, tuple(parts))

    def conjunction(self) -> Filter:
        start = self.scanner.skip_space()
        parts = [self.negation()]
        while self.scanner.take_keyword("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else self.build(start, And, tuple(parts))

    def negation(self) -> Filter:
        starts = [self.scanner.skip_space()]
        while self.scanner.take_keyword("not"):
            self.enter(starts[-1])
            starts.append(self.scanner.skip_space())
        result = self.primary(starts.pop())
        self.level -= len(starts)
        for start in reversed(starts):
            result = self.build(start, Not, result)
        return result

    def primary(self, start: int) -> Filter:
        scanner = self.scanner
        self.count(start)
        if start == len(scanner.text):
            scanner.fail("expected a condition, such as year >= 2020")
        if scanner.take("("):
            self.enter(start)
            result = self.disjunction()
            scanner.skip_space()
            if not scanner.take(")"):
                scanner.fail(f"expected 'and', 'or' or a ')' for the '(' at character {start + 1}")
            self.level -= 1
            return result
        if scanner.take("*"):
            return self.build(start, Everything)
        if scanner.take_keyword("exists"):
            return self.exists(start)
        word = scanner.peek_name()
        if word.lower() in RESERVED:
            scanner.fail(f"expected a condition; a field called {word!r} needs backticks: `{word}`")
        if not self.special_next(word):
            return self.comparison(start)
        scanner.at += len(word)
        if word == "entity":
            return self.entity()
        return self.label(start) if word == "label" else self.id(start)

    def special_next(self, word: str) -> bool:
        """Whether the word here means a class, an entity or an id, and not the first key of a path."""
        scanner = self.scanner
        return word in SPECIAL and not scanner.text.startswith(".", scanner.at + len(word))

    def exists(self, start: int) -> Filter:
        scanner = self.scanner
        scanner.skip_space()
        word = scanner.peek_name()
        if not self.special_next(word):
            return self.build(start, Exists, self.field())
        if word == "id":
            scanner.fail("every document has an id; a metadata field of this name is written `id`")
        if word == "entity":
            scanner.fail("write entity * for any entity; a metadata field of this name is written `entity`")
        scanner.at += len(word)
        return self.build(start, HasLabel, None)

    def comparison(self, start: int) -> Filter:
        scanner = self.scanner
        path = self.field()
        operator = self.operator()
        at = scanner.skip_space()
        if operator != "in":
            value = self.value()
            if scanner.next_is(".."):
                scanner.fail("a range is written with in, as in year in 2019..2021; a text with .. needs quotes")
            return self.build(at, Compare, path, operator, value)
        if scanner.next_is("["):
            return self.build(start, In, path, tuple(self.bracketed(self.value)))
        if scanner.next_is("("):
            scanner.fail("expected a list in brackets, as in [a, b], or a range, as in 2019..2021")
        low = None if scanner.next_is("..") else self.value()
        dots = scanner.skip_space()
        if not scanner.take(".."):
            scanner.fail("expected two dots (a range as in 2019..2021); a list stands in brackets: [a, b]")
        if scanner.next_is("."):
            scanner.fail("expected two dots, got three; a value that starts with a dot needs quotes here", dots)
        at = scanner.skip_space()
        word = scanner.peek_value(stop_at_dots=True)
        open_end = at == len(scanner.text) or scanner.next_is(")") or word.lower() in RESERVED
        if low is None and open_end:
            scanner.fail("expected a value; a range needs at least one end")
        high = None if open_end else self.value()
        return self.build(dots if open_end else at, Between, path, low, high)

    def label(self, start: int) -> Filter:
        names = self.names("label")
        self.count(start, nodes=len(names))
        return self.build(start, lambda: any_of(HasLabel(name, self.origin(at)) for at, name in names))

    def id(self, start: int) -> Filter:
        return self.build(start, HasId, tuple(name for _, name in self.names("id")))

    def names(self, subject: str) -> list[tuple[int, str]]:
        """What follows `label` or `id`: = and a name, or in and a list of names. With the place of each."""
        scanner = self.scanner
        at = scanner.skip_space()
        operator = self.operator()
        if operator == "=":
            return [(scanner.skip_space(), self.name())]
        if operator == "!=":
            scanner.fail(f"{subject} has no !=; write not {subject} = …", at)
        if operator != "in":
            scanner.fail(
                f"{subject} has only = and in; a metadata field of this name is written `{subject}`",
                at,
            )
        scanner.skip_space()
        if not scanner.next_is("["):
            scanner.fail(f"expected a list in brackets; {subject} has no ranges")
        return self.bracketed(lambda: (scanner.at, self.name()))

    def entity(self) -> Filter:
        scanner = self.scanner
        at = scanner.skip_space()
        type: str | None = None
        quoted = scanner.next_is('"') or scanner.next_is("'")
        if quoted:
            type = scanner.take_quoted()
        elif not scanner.take("*"):
            type = scanner.peek_type()
            scanner.at += len(type)
            if not type or (type.lower() in RESERVED and not scanner.next_is(":")):
                scanner.fail(
                    "expected an entity such as ORG:acme; a metadata field of this name is written `entity`",
                    at,
                )
        if not scanner.take(":"):
            if quoted or scanner.next_is("*"):
                scanner.fail("expected a colon: an entity is written TYPE:text, or *:text for any type")
            return self.build(at, HasEntity, type, None, "any", self.origin(at))
        if scanner.take("*"):
            return self.build(at, HasEntity, type, None, "any", self.origin(at))
        text = self.name(what="a text or * right after the colon", reserved_allowed=True)
        return self.build(at, HasEntity, type, text, "prefix" if scanner.take("*") else "exact", self.origin(at))

    def field(self) -> str:
        """A path: keys with dots between them, each bare or in backticks."""
        scanner = self.scanner
        keys: list[str] = []
        while True:
            if scanner.next_is("`"):
                keys.append(scanner.take_quoted())
            else:
                word = scanner.peek_name()
                if not word:
                    scanner.fail("expected a field name (in `backticks` unless made of letters, digits, _ and -)")
                if not keys and word.lower() in RESERVED:
                    scanner.fail(f"expected a field name; a field called {word!r} needs backticks: `{word}`")
                keys.append(word)
                scanner.at += len(word)
            if scanner.next_is("..") or not scanner.take("."):
                return path_of(tuple(keys))

    def operator(self) -> str:
        """One of = != < <= > >= in; == counts as =."""
        scanner = self.scanner
        scanner.skip_space()
        if scanner.take_keyword("in"):
            return "in"
        if scanner.next_is("<>"):
            scanner.fail(f"{_OPERATORS_EXPECTED}; 'not equal' is !=")
        if scanner.next_is("=>") or scanner.next_is("=<"):
            scanner.fail(_OPERATORS_EXPECTED)
        for operator in _COMPARISONS:
            if scanner.take(operator):
                return "=" if operator == "==" else operator
        misplaced_not = scanner.peek_name().lower() == "not"
        hint = "; 'not' stands in front, as in not lang in [de, fr]" if misplaced_not else ""
        return scanner.fail(f"{_OPERATORS_EXPECTED}{hint}")

    def bracketed(self, item: Callable[[], T]) -> list[T]:
        """Items with commas between them, in brackets."""
        scanner = self.scanner
        scanner.take("[")
        scanner.skip_space()
        items: list[T] = []
        if scanner.take("]"):
            return items
        while True:
            scanner.skip_space()
            items.append(item())
            scanner.skip_space()
            if scanner.take("]"):
                return items
            if not scanner.take(","):
                scanner.fail("expected ',' or ']' (a value with spaces or signs needs quotes)")

    def value(self) -> Scalar:
        """A quoted or bare text, a number, true or false."""
        scanner = self.scanner
        at = scanner.at
        if scanner.next_is('"') or scanner.next_is("'"):
            return scanner.take_quoted()
        word = self.name(stop_at_dots=True)
        if word in ("true", "false"):
            return word == "true"
        if word.lower() in ("true", "false"):
            scanner.fail(f"write {word.lower()} for the boolean, or quotes around a text", at)
        if word.lower() == "null":
            scanner.fail("null counts as missing: write not exists and the field; a text needs quotes", at)
        if _JSON_NUMBER.fullmatch(word):
            return self.number(word, at)
        if _NEAR_NUMBER.fullmatch(word):
            scanner.fail("expected a number as JSON writes it, such as 0.5 or 1.0; a text needs quotes", at)
        return word

    def number(self, word: str, at: int) -> int | float:
        if set(word) & set(".eE"):
            number: int | float = float(word)
        elif len(word) <= len("-9223372036854775808"):  # int() refuses thousands of digits
            number = int(word)
        else:
            number = 2**64
        self.build(at, checked_kind, number)
        return number

    def name(self, *, what: str = "a value", reserved_allowed: bool = False, stop_at_dots: bool = False) -> str:
        """A quoted or bare text, taken as it stands: 007 and true are texts as well."""
        scanner = self.scanner
        if scanner.next_is('"') or scanner.next_is("'"):
            return scanner.take_quoted()
        word = scanner.peek_value(stop_at_dots=stop_at_dots)
        if not word:
            scanner.fail(f"expected {what}")
        if word.lower() in RESERVED and not reserved_allowed:
            scanner.fail(f"expected {what}; the text {word!r} needs quotes")
        scanner.at += len(word)
        return word

    # Limits, and the place of faults that the constructors find.

    def enter(self, at: int) -> None:
        self.level += 1
        if self.level > MAX_DEPTH:
            self.scanner.fail(f"the filter is nested too deeply; {MAX_DEPTH} levels are allowed", at)

    def count(self, at: int, nodes: int = 1) -> None:
        self.nodes += nodes
        self.build(at, check_size, 1, self.nodes)

    def origin(self, at: int) -> Origin:
        return Origin(text=self.scanner.text, position=at)

    def build(self, at: int, make: Callable[..., T], *arguments: object) -> T:
        try:
            return make(*arguments)
        except FilterError as error:
            self.scanner.fail(error.problem, at)
