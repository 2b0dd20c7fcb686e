"""Filters as data; `matching.py` says what they mean.

Paths are those of `fields.path_of`: nested keys joined by dots. Building a filter checks it: a value that an
index cannot hold, or a tree too deep or too large to walk, raises `FilterError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn, cast

from indexer.errors import FilterError
from indexer.fields import (
    INT64_MAX,
    INT64_MIN,
    Kind,
    Scalar,
    has_lone_surrogate,
    instead_of,
    kind_of,
    normalise_entity,
)

MAX_DEPTH = 100
MAX_NODES = 10_000

Op = Literal["=", "!=", "<", "<=", ">", ">="]
EntityMatch = Literal["exact", "prefix", "any"]

OPERATORS: tuple[Op, ...] = ("=", "!=", "<", "<=", ">", ">=")


class _Node:
    """`&`, `|` and `~`; `depth` and `nodes` of a leaf."""

    __slots__ = ()

    @property
    def depth(self) -> int:
        """Levels of the tree, this node included."""
        return 1

    @property
    def nodes(self) -> int:
        """Nodes of the tree, this node included."""
        return 1

    def __and__(self, other: Filter) -> And:
        if not isinstance(other, _Node):
            return NotImplemented
        return And((*_parts_of(And, self), *_parts_of(And, other)))

    def __or__(self, other: Filter) -> Or:
        if not isinstance(other, _Node):
            return NotImplemented
        return Or((*_parts_of(Or, self), *_parts_of(Or, other)))

    def __invert__(self) -> Not:
        return Not(cast("Filter", self))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a filter is neither true nor false: join filters with & | ~ instead of and, or, not, with parentheses "
            "around each comparison, and write a range with between"
        )


@dataclass(frozen=True, slots=True)
class Compare(_Node):
    """Some value under `path`, of the same kind as `value`, compares so. Booleans have only = and !=."""

    path: str
    op: Op
    value: Scalar
    kind: Kind = field(init=False, repr=False)  # compared as well, since True == 1 in Python

    def __post_init__(self) -> None:
        keys_of(self.path)
        if self.op not in OPERATORS:
            raise FilterError(f"unknown operator {self.op!r}; expected one of {' '.join(OPERATORS)}")
        object.__setattr__(self, "kind", checked_kind(self.value))
        if self.kind is Kind.BOOLEAN and self.op not in ("=", "!="):
            raise FilterError(f"true and false have no order, so {self.op} cannot compare them; use = or !=")


@dataclass(frozen=True, slots=True)
class In(_Node):
    """Some value under `path` equals one of `values`; no values match nothing."""

    path: str
    values: tuple[Scalar, ...]
    kinds: tuple[Kind, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys_of(self.path)
        _check_tuple("values", self.values)
        object.__setattr__(self, "kinds", tuple(map(checked_kind, self.values)))


@dataclass(frozen=True, slots=True)
class Between(_Node):
    """Some value under `path` is at least `low` and at most `high`; `None` leaves a side open."""

    path: str
    low: str | int | float | None
    high: str | int | float | None
    kind: Kind = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys_of(self.path)
        kinds = {checked_kind(end) for end in (self.low, self.high) if end is not None}
        if not kinds:
            raise FilterError("a range needs at least one end")
        if Kind.BOOLEAN in kinds:
            raise FilterError("true and false have no order, so they cannot be the ends of a range")
        if len(kinds) > 1:
            raise FilterError(
                f"a range needs two numbers or two texts, got {self.low!r} and {self.high!r}; "
                "put both in quotes to compare texts"
            )
        object.__setattr__(self, "kind", kinds.pop())


@dataclass(frozen=True, slots=True)
class Exists(_Node):
    """Some value that is not null stands at `path` or below it."""

    path: str

    def __post_init__(self) -> None:
        keys_of(self.path)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a condition was written: at `position` in `text`, or at `place` in a JSON object."""

    place: str = ""
    text: str | None = None
    position: int | None = None

    def error(self, problem: str) -> FilterError:
        """What is wrong there."""
        return FilterError(
            f"{self.place}: {problem}" if self.place else problem, text=self.text, position=self.position
        )


@dataclass(frozen=True, slots=True)
class HasLabel(_Node):
    """The document's class has this name; with `None`, it has a class."""

    name: str | None
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_text("a class name", self.name)


@dataclass(frozen=True, slots=True)
class HasEntity(_Node):
    """Some entity has this type (`None`: any) and this text, in the form of `fields.normalise_entity`.

    `match` "exact" and "prefix" need a text, "any" has none.
    """

    type: str | None
    text: str | None
    match: EntityMatch
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.match not in ("exact", "prefix", "any"):
            raise FilterError(f"unknown match {self.match!r}; expected 'exact', 'prefix' or 'any'")
        if self.type is not None:
            _check_text("an entity type", self.type)
            if not self.type:
                raise FilterError("an entity type cannot be empty; use * for any type")
        if self.match == "any":
            if self.text is not None:
                raise FilterError(f"match 'any' takes no entity text, got {self.text!r}")
            return
        _check_text("an entity text", self.text)
        if not normalise_entity(cast("str", self.text)):
            raise FilterError("an entity text cannot be empty; use * for any text")


@dataclass(frozen=True, slots=True)
class HasId(_Node):
    """The document's id is one of `ids`; no ids match nothing."""

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_tuple("ids", self.ids)
        for id in self.ids:
            _check_text("an id", id)


@dataclass(frozen=True, slots=True)
class And(_Node):
    """All of at least two parts are true."""

    parts: tuple[Filter, ...]
    depth: int = field(init=False, repr=False, compare=False)
    nodes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _measure(self, self.parts, at_least=2)


@dataclass(frozen=True, slots=True)
class Or(_Node):
    """At least one of at least two parts is true."""

    parts: tuple[Filter, ...]
    depth: int = field(init=False, repr=False, compare=False)
    nodes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _measure(self, self.parts, at_least=2)


@dataclass(frozen=True, slots=True)
class Not(_Node):
    """The part is false."""

    part: Filter
    depth: int = field(init=False, repr=False, compare=False)
    nodes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _measure(self, (self.part,), at_least=1)


@dataclass(frozen=True, slots=True)
class Everything(_Node):
    """True for every document."""


Filter = Compare | In | Between | Exists | HasLabel | HasEntity | HasId | And | Or | Not | Everything


def all_of(filters: Iterable[Filter]) -> Filter:
    """And of any number of filters: of none `Everything`, of one that filter itself."""
    parts = tuple(filters)
    if not parts:
        return Everything()
    return parts[0] if len(parts) == 1 else And(parts)


def any_of(filters: Iterable[Filter]) -> Filter:
    """Or of any number of filters: of none `Not(Everything())`, of one that filter itself."""
    parts = tuple(filters)
    if not parts:
        return Not(Everything())
    return parts[0] if len(parts) == 1 else Or(parts)


def without_origins(filter: Filter) -> Filter:
    """An equal filter that does not hold on to the text in which it was written."""
    match filter:
        case HasLabel() | HasEntity():
            return filter if filter.origin is None else replace(filter, origin=None)
        case And(parts) | Or(parts):
            bare = tuple(map(without_origins, parts))
            same = all(before is after for before, after in zip(parts, bare, strict=True))
            return filter if same else And(bare) if isinstance(filter, And) else Or(bare)
        case Not(part):
            inner = without_origins(part)
            return filter if inner is part else Not(inner)
        case _:
            return filter


def keys_of(path: str) -> tuple[str, ...]:
    r"""The keys that `fields.path_of` joined; raises FilterError where it cannot have made the path.

    >>> keys_of("author.name"), keys_of(r"a\.b")
    (('author', 'name'), ('a.b',))
    """
    _check_text("a path", path)
    keys: list[list[str]] = [[]]
    escaped = False
    for character in path:
        if escaped and character not in ".\\":
            break
        if escaped or character not in ".\\":
            keys[-1].append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            keys.append([])
    if escaped:
        raise FilterError(f"path {path!r}: a backslash stands only before a dot or another backslash")
    return tuple(map("".join, keys))


def checked_kind(value: object) -> Kind:
    """The kind of a value; raises FilterError where it is not one that metadata can hold."""
    if type(value) not in (bool, int, float, str):
        way = f": {instead_of(value)}" if hasattr(value, "isoformat") or hasattr(value, "tolist") else ""
        raise FilterError(f"expected a text, a number or a boolean, got {_short(value)}{way}")
    if isinstance(value, str):
        _check_text("a value", value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"a number must be finite, got {value}")
    elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        raise FilterError("an integer must fit in 64 bits; in quotes it is compared as text")
    return kind_of(cast("Scalar", value))


def _check_text(what: str, text: object) -> None:
    if type(text) is not str:
        raise FilterError(f"{what} must be a string, got {_short(text)}")
    if has_lone_surrogate(text):
        shown = text if len(text) <= 100 else f"{text[:100]}…"
        raise FilterError(f"{what} has a lone surrogate, which is not valid Unicode: {shown!r}")


def _check_tuple(what: str, values: object) -> None:
    if not isinstance(values, tuple):
        raise FilterError(f"{what} must be a tuple, got {_short(values)}")


def _measure(node: And | Or | Not, parts: object, *, at_least: int) -> None:
    """Set depth and nodes; raise where the parts are not filters, too few, too deep or too many."""
    _check_tuple("parts", parts)
    filters = cast("tuple[Filter, ...]", parts)
    for part in filters:
        if not isinstance(part, _Node):
            raise FilterError(f"expected a filter, got {_short(part)}")
    if len(filters) < at_least:
        raise FilterError(f"expected at least {at_least} filters, got {len(filters)}")
    object.__setattr__(node, "depth", 1 + max(part.depth for part in filters))
    object.__setattr__(node, "nodes", 1 + sum(part.nodes for part in filters))
    check_size(node.depth, node.nodes)


def check_size(depth: int, nodes: int) -> None:
    """Raise FilterError where a tree has more levels or nodes than a filter may have."""
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter is nested too deeply; {MAX_DEPTH} levels are allowed")
    if nodes > MAX_NODES:
        raise FilterError(
            f"the filter has too many conditions; {MAX_NODES:,} are allowed, 'and', 'or' and 'not' included "
            "(a list after 'in' counts as one)"
        )


def _parts_of(type: type[And] | type[Or], node: object) -> tuple[Filter, ...]:
    return node.parts if isinstance(node, type) else (cast("Filter", node),)


def _short(value: object) -> str:
    return type(value).__name__ if value is not None else "null"
