"""Names of facets, as they are asked for: `label`, `entity`, `entity:ORG`, `year`, `date:month`, `price:histogram`."""

from __future__ import annotations

import math
import re
import sqlite3
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from indexer.attributes import (
    Attribute,
    ClassNames,
    EntityTexts,
    FieldValues,
    Part,
    field_paths,
    first_value,
    has_field,
    part_of,
)
from indexer.errors import FilterError, QueryError
from indexer.fields import Kind
from indexer.filters import Exists, format_filter, parse
from indexer.settings import IndexSettings

DEFAULT = "default"
"""Stands for the facets that are counted where none is named."""
DATES: tuple[Part, ...] = ("year", "month", "day")

_FIELD = re.compile(r"(.*?)(?::(year|month|day|histogram(?::([^:`]*))?))?", re.DOTALL)
_LISTED = 30


@dataclass(frozen=True, slots=True)
class Counted:
    """What a name means: the attributes that are counted together.

    `types`: the entity type of each attribute. `order`: "count", most frequent first; "value", as dates; "range",
    numbers put together in ranges, `width` wide where it is given. `path`: of a metadata field.
    """

    name: str
    attributes: tuple[Attribute, ...]
    types: tuple[str | None, ...] = (None,)
    order: str = "count"
    width: Fraction | None = None
    path: str | None = None


def parse_name(name: str, settings: IndexSettings, connection: sqlite3.Connection) -> Counted:
    """What a name means in an index, as of a read transaction. Raises `QueryError` that lists what there is."""
    if name == "label":
        _need(settings.class_labels, what="classes")
        return Counted(name, (ClassNames(),))
    if name == "entity" or name.startswith("entity:"):
        types = _need(settings.entity_types, what="entities")
        if name == "entity":
            return Counted(name, tuple(map(EntityTexts, types)), types)
        if (type := name.removeprefix("entity:")) not in types:
            raise QueryError(f"unknown facet '{name}'; the entity types of this index are {', '.join(types) or 'none'}")
        return Counted(name, (EntityTexts(type),), (type,))
    match = cast("re.Match[str]", _FIELD.fullmatch(name))  # it matches everything
    written, unit, width = match.groups()
    path = _path(written)
    if path is None or not has_field(connection, path):
        raise QueryError(f"unknown facet '{name}'; this index has {_listed(settings, connection)}")
    if unit is None:
        return Counted(name, (FieldValues(path),), path=path)
    if unit in DATES:
        return Counted(name, (FieldValues(path, cast("Part", unit)),), order="value", path=path)
    return Counted(name, (FieldValues(path, "number"),), order="range", width=_width(name, width), path=path)


def name_of_field(path: str) -> str:
    """The name of the facet of a metadata field, written as in filters.

    >>> name_of_field("author.name"), name_of_field("label"), name_of_field("dc:date")
    ('author.name', '`label`', '`dc:date`')
    """
    written = format_filter(Exists(path)).removeprefix("exists ")
    return f"`{written}`" if written == DEFAULT else written


def facet_names(settings: IndexSettings, connection: sqlite3.Connection, *, most: int = 100) -> list[str]:
    """Names that can be counted in an index, as of a read transaction: of metadata the first `most` fields by name.

    A field that has numbers is there as a histogram, too, and one whose first text is a date by year, month and day as
    far as this is written.
    """
    names = _special(settings)
    for path in field_paths(connection, most):
        name = name_of_field(path)
        names.append(name)
        text = first_value(connection, path, Kind.STRING)
        names += [f"{name}:{unit}" for unit in DATES if text is not None and part_of(Kind.STRING, text, unit)]
        if first_value(connection, path, Kind.NUMBER) is not None:
            names.append(f"{name}:histogram")
    return names


def _path(written: str) -> str | None:
    try:
        filter = parse(f"exists {written}")
    except FilterError:
        return None
    return filter.path if isinstance(filter, Exists) else None


def _width(name: str, written: str | None) -> Fraction | None:
    if written is None:
        return None
    try:
        # A fraction is exact, and of 1e1000000 it is a number of a million digits.
        width = Fraction(written) if 0 < float(written) < math.inf else Fraction(0)
    except ValueError:
        width = Fraction(0)
    if width <= 0:
        raise QueryError(f"facet '{name[:80]}': a range's width is a number above 0, got '{written[:80]}'")
    return width


def _need(known: tuple[str, ...] | None, *, what: str) -> tuple[str, ...]:
    if known is None:
        raise QueryError(f"this index was built without tags, so it has no {what} to count; `indexer retag` adds them")
    return known


def _listed(settings: IndexSettings, connection: sqlite3.Connection) -> str:
    names = [*_special(settings), *(name_of_field(path) for path in field_paths(connection, _LISTED))]
    return ", ".join([*names[:_LISTED], "…"] if len(names) > _LISTED else names) or "none"


def _special(settings: IndexSettings) -> list[str]:
    """The facets that are no metadata."""
    names = ["label"] if settings.class_labels is not None else []
    if settings.entity_types is not None:
        names += ["entity", *(f"entity:{type}" for type in settings.entity_types)]
    return names
