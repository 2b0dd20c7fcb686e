"""What of a document can be counted: its class, its entities of a type, the values of a metadata field or their dates.

An attribute gives a document any number of keys, each once. It reads them of all documents by SQL, in the order of the
values, and of those that changed by document; both agree.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Literal, Protocol

from pyroaring import BitMap

from indexer.fields import INT64_MAX, INT64_MIN, Kind, Scalar, flatten
from indexer.filters import Between, Compare, Exists, Filter, In, format_filter
from indexer.filters.sql import leaves

Key = tuple[Kind, Scalar]
"""A value with its kind, so that true is not 1. Keys have an order: by kind, then by value."""

Part = Literal["value", "number", "year", "month", "day"]


class Attribute(Protocol):
    """Hashable: columns of it are remembered under it."""

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[Key, str]]:
        """Keys, in any order and repeated or not, with the numbers of documents that have them, as "1,5,9"."""

    def changed(self, changed: Changed, connection: sqlite3.Connection) -> dict[int, set[Key]]:
        """The keys of documents that changed, by number; those that have none are left out."""


class Changed:
    """Documents that changed up to a commit, and what they have at that commit, read when it is first asked for.

    Every connection that it is given must be in a read transaction of that commit.
    """

    def __init__(self, docs: BitMap) -> None:
        self.docs = docs
        self._classes: list[tuple[int, str]] | None = None
        self._entities: dict[str, list[tuple[int, str]]] | None = None
        self._fields: dict[str, list[tuple[int, Kind, Scalar]]] | None = None

    def classes(self, connection: sqlite3.Connection) -> list[tuple[int, str]]:
        """Documents that have a class, with its name."""
        if self._classes is None:
            self._classes = self._rows(connection, "doc, name FROM documents JOIN labels USING (label)")
        return self._classes

    def entities(self, connection: sqlite3.Connection, type: str) -> list[tuple[int, str]]:
        """Documents that have entities of a type, with the normalised text of each, repeated or not."""
        if self._entities is None:
            found: dict[str, list[tuple[int, str]]] = {}
            for doc, of, norm in self._rows(connection, "doc, type, norm FROM entities JOIN entity_terms USING (term)"):
                found.setdefault(of, []).append((doc, norm))
            self._entities = found
        return self._entities.get(type, [])

    def fields(self, connection: sqlite3.Connection, path: str) -> list[tuple[int, Kind, Scalar]]:
        """The values at a path of metadata as filters see them, each with its document."""
        if self._fields is None:
            found: dict[str, list[tuple[int, Kind, Scalar]]] = {}
            for doc, metadata in self._rows(connection, "doc, metadata FROM documents"):
                for at, kind, value in flatten(json.loads(metadata)):
                    found.setdefault(at, []).append((doc, kind, value))
            self._fields = found
        return self._fields.get(path, [])

    def _rows(self, connection: sqlite3.Connection, what: str) -> list[Any]:
        chosen = json.dumps(list(self.docs))
        return connection.execute(f"SELECT {what} WHERE doc IN (SELECT value FROM json_each(?))", (chosen,)).fetchall()


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The class of a document."""

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[Key, str]]:
        names = dict(connection.execute("SELECT label, name FROM labels"))
        counted = connection.execute(
            "SELECT label, group_concat(doc) FROM documents WHERE label IS NOT NULL GROUP BY label"
        )
        for label, docs in counted:
            yield (Kind.STRING, names[label]), docs

    def changed(self, changed: Changed, connection: sqlite3.Connection) -> dict[int, set[Key]]:
        return {doc: {(Kind.STRING, name)} for doc, name in changed.classes(connection)}


@dataclass(frozen=True, slots=True)
class EntityTexts:
    """The normalised texts of a document's entities of one type."""

    type: str

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[Key, str]]:
        counted = connection.execute(
            "SELECT norm, (SELECT group_concat(doc) FROM entities WHERE entities.term = entity_terms.term)"
            " FROM entity_terms WHERE type = ? ORDER BY norm",
            (self.type,),
        )
        for norm, docs in counted:
            if docs is not None:
                yield (Kind.STRING, norm), docs

    def changed(self, changed: Changed, connection: sqlite3.Connection) -> dict[int, set[Key]]:
        found: dict[int, set[Key]] = {}
        for doc, norm in changed.entities(connection, self.type):
            found.setdefault(doc, set()).add((Kind.STRING, norm))
        return found


@dataclass(frozen=True, slots=True)
class FieldValues:
    """The values of a metadata field, elements of an array each; with a `part`, the numbers or dates among them."""

    path: str
    part: Part = "value"

    def rows(self, connection: sqlite3.Connection) -> Iterator[tuple[Key, str]]:
        counted = connection.execute(
            "SELECT kind, value, group_concat(doc) FROM fields WHERE path = (SELECT path FROM paths WHERE name = ?)"
            " GROUP BY kind, value",
            (self.path,),
        )
        for kind, value, docs in counted:
            if (key := part_of(Kind(kind), value, self.part)) is not None:
                yield key, docs

    def changed(self, changed: Changed, connection: sqlite3.Connection) -> dict[int, set[Key]]:
        found: dict[int, set[Key]] = {}
        for doc, kind, value in changed.fields(connection, self.path):
            if (key := part_of(kind, value, self.part)) is not None:
                found.setdefault(doc, set()).add(key)
        return found


def part_of(kind: Kind, value: Scalar, part: Part) -> Key | None:
    """The key under which a value is counted, `None` where it is none of that part.

    >>> part_of(Kind.NUMBER, 2.0, "value"), part_of(Kind.STRING, "2024-01-31T10:00Z", "month")
    ((<Kind.NUMBER: 1>, 2), (<Kind.STRING: 2>, '2024-01'))
    """
    if part in ("value", "number"):
        if kind is Kind.NUMBER:
            return kind, _canonical(value)
        if part == "number":
            return None
        return kind, bool(value) if kind is Kind.BOOLEAN else value
    if kind is Kind.NUMBER and part == "year":
        year = _canonical(value)
        return (Kind.STRING, f"{year:04d}") if isinstance(year, int) and 1 <= year <= 9999 else None
    written = _date(value) if isinstance(value, str) else None
    length = {"year": 4, "month": 7, "day": 10}[part]
    return None if written is None or len(written) < length else (Kind.STRING, written[:length])


def few_values(connection: sqlite3.Connection, path: str, most: int) -> bool:
    """True where a field has at most so many values; found by about that many seeks."""
    found = 0
    for kind in Kind:
        value = first_value(connection, path, kind)
        while value is not None:
            found += 1
            if found > most:
                return False
            # Not (kind, value) > (?, ?): SQLite would walk through all documents that have the value.
            row = connection.execute(f"{_VALUE} AND value > ? ORDER BY value LIMIT 1", (path, kind, value)).fetchone()
            value = None if row is None else row[0]
    return True


def first_value(connection: sqlite3.Connection, path: str, kind: Kind) -> Scalar | None:
    """The least value of a kind in a field, `None` where it has none; one seek."""
    row = connection.execute(f"{_VALUE} ORDER BY value LIMIT 1", (path, kind)).fetchone()
    return None if row is None else row[0]


_VALUE = "SELECT value FROM fields WHERE path = (SELECT path FROM paths WHERE name = ?) AND kind = ?"


def has_field(connection: sqlite3.Connection, path: str) -> bool:
    """True where some document has a value at this path."""
    found = connection.execute(
        "SELECT 1 FROM fields WHERE path = (SELECT path FROM paths WHERE name = ?) LIMIT 1", (path,)
    ).fetchone()
    return found is not None


def missing_fields(connection: sqlite3.Connection, filter: Filter) -> list[str]:
    """Metadata fields that a filter names and no document has, as they are written in filters."""
    paths = dict.fromkeys(leaf.path for leaf in leaves(filter) if isinstance(leaf, Compare | In | Between | Exists))
    return [format_filter(Exists(path)).removeprefix("exists ") for path in paths if not has_field(connection, path)]


def field_paths(connection: sqlite3.Connection, most: int) -> list[str]:
    """The paths of metadata fields that have a value, the first so many in order."""
    rows = connection.execute(
        "SELECT name FROM paths WHERE EXISTS (SELECT 1 FROM fields WHERE fields.path = paths.path) ORDER BY name"
        " LIMIT ?",
        (most,),
    )
    return [name for (name,) in rows]


def _canonical(value: Scalar) -> int | float:
    """A number as the integer that it equals, if there is one of 64 bits: 1 and 1.0 are one value."""
    if isinstance(value, float) and value.is_integer() and INT64_MIN <= value <= INT64_MAX:
        return int(value)
    return value  # type: ignore[return-value]  # of Kind.NUMBER


_ISO_DATE = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})(?:[T ][0-9]{2}.*)?)?)?", re.DOTALL)


def _date(text: str) -> str | None:
    """The date that an ISO 8601 text begins with, as written: "2024", "2024-01" or "2024-01-31"; without its time."""
    match = _ISO_DATE.fullmatch(text)
    if match is None:
        return None
    written = text[:10]
    return written if _exists(written) else None


@lru_cache(maxsize=65_536)
def _exists(written: str) -> bool:
    year, month, day = (*map(int, written.split("-")), 1, 1)[:3]
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
