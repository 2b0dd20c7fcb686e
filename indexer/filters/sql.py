"""Filters against meta.sqlite: each leaf is one fixed statement with bound values, the rest is bitmaps.

`allowed` agrees with `ast.matches` for every document. Strings compare by code point because the database is
UTF-8 and SQLite compares its bytes; integers and floats compare exactly in SQLite as in Python.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, starmap
from typing import Protocol

from pyroaring import BitMap

from indexer.errors import FilterError
from indexer.fields import Kind, Scalar, normalise_entity, prefix_upper_bound
from indexer.filters.ast import (
    OPERATORS,
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
)

Statement = tuple[str, Sequence[Scalar]]
"""SQL made of the fixed fragments below, and the values to bind."""

_CHUNK = 500  # values in one IN (…); old builds of SQLite allow 999 variables

_ALL_DOCUMENTS = "SELECT doc FROM documents"

_VALUE = "SELECT doc FROM fields WHERE path = (SELECT path FROM paths WHERE name = ?) AND kind = ? AND "
_COMPARE = {op: f"{_VALUE}value {op} ?" for op in OPERATORS}
_BETWEEN = f"{_VALUE}value BETWEEN ? AND ?"
_EXISTS = """
    SELECT doc FROM fields WHERE path IN (
        SELECT path FROM paths WHERE name = ?
        UNION ALL SELECT path FROM paths WHERE name >= ? AND name < ?
    )
"""
_LABEL = "SELECT doc FROM documents WHERE label = (SELECT label FROM labels WHERE name = ?)"
_ANY_LABEL = "SELECT doc FROM documents WHERE label IS NOT NULL"

# All types, by one seek each instead of a scan of all terms.
_TYPES = """
    WITH RECURSIVE types (type) AS (
        SELECT min(type) FROM entity_terms
        UNION ALL
        SELECT (SELECT min(type) FROM entity_terms WHERE entity_terms.type > types.type)
        FROM types WHERE types.type IS NOT NULL
    )
"""
_TERMS = "SELECT doc FROM entities WHERE term IN (SELECT term FROM entity_terms WHERE "
_ONE_TYPE = f"{_TERMS}type = ?"
_ANY_TYPE = f"{_TYPES}{_TERMS}type IN (SELECT type FROM types)"
_EXACT = " AND norm = ?)"
_PREFIX = " AND norm >= ? AND norm < ?)"
_ANY_ENTITY = "SELECT DISTINCT doc FROM entities"  # in the order of the primary key


class Known(Protocol):
    """Remembers what filters allow, for as long as the database stays as it is."""

    def get(self, filter: Filter) -> BitMap | None: ...
    def put(self, filter: Filter, documents: BitMap) -> None: ...


def allowed(connection: sqlite3.Connection, filter: Filter, *, known: Known | None = None) -> BitMap:
    """The numbers (`documents.doc`) of all documents for which the filter is true.

    With `known`, what was evaluated before is taken from there; then the result must not be changed.
    """
    return _Evaluation(connection, known).bitmap(filter)


def check_names(filter: Filter, *, labels: Collection[str] | None, entity_types: Collection[str] | None) -> None:
    """Raise FilterError for a class or an entity type that the index cannot have.

    `labels` and `entity_types` are those that the index knows, `None` where it was built without them. The error points
    at the name where the filter was written as text or JSON.
    """
    for leaf in leaves(filter):
        if isinstance(leaf, HasLabel):
            _check_name(leaf, leaf.name, labels, by="class", one="class", many="classes")
        elif isinstance(leaf, HasEntity):
            _check_name(leaf, leaf.type, entity_types, by="entity", one="entity type", many="entity types")


def leaves(filter: Filter) -> Iterator[Filter]:
    """All conditions of a filter, in order: its nodes without And, Or and Not."""
    stack = [filter]
    while stack:
        node = stack.pop()
        if isinstance(node, And | Or):
            stack.extend(reversed(node.parts))
        elif isinstance(node, Not):
            stack.append(node.part)
        else:
            yield node


def statements(leaf: Filter) -> Iterator[Statement]:
    """The statements whose rows together are the documents of a condition (not And, Or, Not)."""
    match leaf:
        case Compare(path, op, value):
            yield _COMPARE[op], (path, int(leaf.kind), value)
        case In(path, values):
            for kind in Kind:
                same_kind = (value for value, have in zip(values, leaf.kinds, strict=True) if have is kind)
                for chunk in _chunks(same_kind):
                    yield f"{_VALUE}value IN ({_placeholders(chunk)})", (path, int(kind), *chunk)
        case Between(path, low, None):
            yield _COMPARE[">="], (path, int(leaf.kind), _end(low))
        case Between(path, None, high):
            yield _COMPARE["<="], (path, int(leaf.kind), _end(high))
        case Between(path, low, high):
            yield _BETWEEN, (path, int(leaf.kind), _end(low), _end(high))
        case Exists(path):
            yield _EXISTS, (path, path + ".", path + "/")  # "/" follows "."
        case HasLabel(None):
            yield _ANY_LABEL, ()
        case HasLabel(str(name)):
            yield _LABEL, (name,)
        case HasEntity():
            yield _entity_statement(leaf)
        case HasId(ids):
            for chunk in _chunks(ids):
                yield f"SELECT doc FROM documents WHERE id IN ({_placeholders(chunk)})", chunk
        case Everything():
            yield _ALL_DOCUMENTS, ()
        case _:
            raise TypeError(f"{type(leaf).__name__} has no statement of its own")


class _Evaluation:
    """One walk over a filter; reads the list of all documents at most once."""

    def __init__(self, connection: sqlite3.Connection, known: Known | None) -> None:
        self.connection = connection
        self.known = known

    def bitmap(self, filter: Filter) -> BitMap:
        return self.all_documents if isinstance(filter, Everything) else self._remembered(filter)

    def _remembered(self, filter: Filter) -> BitMap:
        if self.known is None:
            return self._evaluated(filter)
        result = self.known.get(filter)
        if result is None:
            result = self._evaluated(filter)
            self.known.put(filter, result)
        return result

    def _evaluated(self, filter: Filter) -> BitMap:
        match filter:
            case And(parts):
                return self._conjunction(parts)
            case Or(parts):
                return BitMap.union(*map(self.bitmap, parts))
            case Not(part):
                return self.all_documents - self.bitmap(part)
            case _:
                return BitMap.union(BitMap(), *starmap(self._documents, statements(filter)))

    def _conjunction(self, parts: Sequence[Filter]) -> BitMap:
        """Negated parts last, so that they are taken away from few documents instead of from all."""
        result: BitMap | None = None
        for wanted in (part for part in parts if not isinstance(part, Not)):
            result = self.bitmap(wanted) if result is None else result & self.bitmap(wanted)
            if not result:
                return result
        if result is None:
            result = self.all_documents
        for unwanted in (part.part for part in parts if isinstance(part, Not)):
            if not result:
                return result
            result = result - self.bitmap(unwanted)
        return result

    @cached_property
    def all_documents(self) -> BitMap:
        return self._remembered(Everything())

    def _documents(self, sql: str, values: Sequence[Scalar]) -> BitMap:
        cursor = self.connection.cursor()
        cursor.row_factory = None
        return BitMap(chain.from_iterable(cursor.execute(sql, values)))


def _entity_statement(leaf: HasEntity) -> Statement:
    start, types = (_ANY_TYPE, ()) if leaf.type is None else (_ONE_TYPE, (leaf.type,))
    if leaf.text is None:
        return (_ANY_ENTITY, ()) if leaf.type is None else (start + ")", types)
    norm = normalise_entity(leaf.text)
    if leaf.match == "exact":
        return start + _EXACT, (*types, norm)
    above = prefix_upper_bound(norm)
    if above is None:  # only U+10FFFF, which nothing but itself and its continuations reach
        return f"{start} AND norm >= ?)", (*types, norm)
    return start + _PREFIX, (*types, norm, above)


def _chunks(values: Iterable[Scalar]) -> Iterator[tuple[Scalar, ...]]:
    rows = tuple(values)
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _placeholders(values: Sequence[Scalar]) -> str:
    return ", ".join("?" * len(values))


def _end(value: str | int | float | None) -> str | int | float:
    if value is None:  # Between makes sure of it
        raise TypeError("a range without an end")
    return value


def _check_name(
    leaf: HasLabel | HasEntity, name: str | None, known: Collection[str] | None, *, by: str, one: str, many: str
) -> None:
    if known is None:
        raise FilterError(
            f"this index was built without tags, so it cannot be filtered by {by}; `indexer retag` adds them"
        )
    if name is not None and name not in known:
        names = sorted(known)
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        origin = leaf.origin or Origin()
        raise origin.error(f"unknown {one} {name!r} (this index knows {listed or 'no ' + many})")
