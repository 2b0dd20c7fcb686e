"""Counting facets: how many documents have each value, by columns in memory; exact, at one commit of the index."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from indexer.attributes import few_values, field_paths
from indexer.columns import SURFACES, Column
from indexer.errors import QueryError
from indexer.fields import INT64_MAX, INT64_MIN, normalise_entity
from indexer.settings import IndexSettings
from indexer.snapshot import Snapshot
from search.facet_names import DEFAULT, Counted, name_of_field, parse_name
from search.facets import Facet, Facets, FacetValue

FEW_VALUES = 100  # of a metadata field that is counted without being asked for
FEW_FIELDS = 50  # of those, the first in the order of their names
LOOKED_AT = 1_000  # fields at most, to find them
MENTIONS = 100  # of an entity, that say which of its forms is shown
RANGES = 10  # about so many, where no width is given
MAX_RANGES = 10_000

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scope:
    """The counted documents (`None`: all), how many they are, and how many the index has."""

    docs: BitMap | None
    documents: int
    indexed: int

    def lift(self, count: int, total: int) -> float:
        """The share of the counted documents that have a value, divided by the share of all."""
        return (count / self.documents) / (total / self.indexed)


def count_facets(
    snapshot: Snapshot,
    settings: IndexSettings,
    docs: BitMap | None,
    names: Sequence[str] = (),
    *,
    top: int = 10,
    significant: bool = False,
) -> Facets:
    """The facets of some documents (`None`: of all); without names, and for "default", those of `default_names`.

    With `significant`, values that are more frequent among these documents than in the whole index, the least likely
    to be so by chance first. Raises `QueryError` for a name that the index does not have.
    """
    indexed = snapshot.count()
    scope = Scope(docs, indexed if docs is None else len(docs), indexed)
    if not names or DEFAULT in names:
        defaults = default_names(snapshot, settings)
        names = [one for name in names or (DEFAULT,) for one in (defaults if name == DEFAULT else (name,))]
    wanted = [parse_name(name, settings, snapshot.connection) for name in dict.fromkeys(names)]
    return Facets(
        scope.documents,
        indexed,
        tuple(_facet(snapshot, counted, scope, top=top, significant=significant) for counted in wanted),
    )


def default_names(snapshot: Snapshot, settings: IndexSettings) -> list[str]:
    """The class, the entities of each type, and the metadata fields of few values."""
    names = ["label"] if settings.class_labels is not None else []
    names += [f"entity:{type}" for type in settings.entity_types or ()]
    fields: list[str] = []
    for path in field_paths(snapshot.connection, LOOKED_AT):
        if len(fields) == FEW_FIELDS:
            break
        if few_values(snapshot.connection, path, FEW_VALUES):
            fields.append(name_of_field(path))
    return names + fields


def log_likelihood(count: Counts, total: Counts, documents: int, indexed: int) -> npt.NDArray[np.float64]:
    """How unlikely it is by chance that a value is as frequent as it is: G² of Dunning (1993), by value.

    Of the table of documents with the value (`count` among `documents`, `total` among `indexed`) and without. 0 where
    it is not more frequent among `documents`.
    """
    inside = np.stack([count, documents - count]).astype(np.float64)
    outside = np.stack([total - count, indexed - documents - total + count]).astype(np.float64)
    cells = _entropy(inside).sum(axis=0) + _entropy(outside).sum(axis=0)
    columns = _entropy(inside + outside).sum(axis=0)
    rows = _entropy(np.array([documents, indexed - documents], dtype=np.float64)).sum()
    everything = _entropy(np.array([indexed], dtype=np.float64)).sum()
    more = count.astype(np.float64) * indexed > total.astype(np.float64) * documents
    return np.where(more, np.maximum(2 * (cells - columns - rows + everything), 0.0), 0.0)


def _entropy(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x ln x, with 0 for 0."""
    return counts * np.log(np.maximum(counts, 1.0))


def _facet(snapshot: Snapshot, counted: Counted, scope: Scope, *, top: int, significant: bool) -> Facet:
    columns = [snapshot.column(attribute) for attribute in counted.attributes]
    if counted.order == "range":
        return _ranges(counted, columns[0], scope)
    distinct = 0
    found: list[tuple[float, int, int]] = []  # (score, which column, code)
    counts = [column.counts(scope.docs) for column in columns]
    for which, column in enumerate(columns):
        distinct += int(np.count_nonzero(counts[which]))
        scores: npt.NDArray[np.float64] = counts[which].astype(np.float64)
        if significant and counted.order == "count":
            scores = log_likelihood(counts[which], column.totals, scope.documents, scope.indexed)
        limit = top if counted.order == "count" else len(scores)
        found += [(float(scores[code]), which, code) for code in best_codes(column, scores, limit)]
    if counted.order == "value":
        found.sort(key=lambda value: columns[value[1]].key(value[2]))
    else:
        found.sort(key=lambda value: (-value[0], columns[value[1]].key(value[2]), counted.types[value[1]] or ""))
        found = found[:top]
    values = []
    for _, which, code in found:
        column, type = columns[which], counted.types[which]
        value = column.key(code)[1] if type is None else _surface(snapshot, column, type, code)
        count, total = int(counts[which][code]), int(column.totals[code])
        values.append(FacetValue(value=value, count=count, total=total, lift=scope.lift(count, total), type=type))
    return Facet(counted.name, tuple(values), distinct, _missing(columns, scope), counted.path)


def best_codes(column: Column, scores: npt.NDArray[np.float64], top: int) -> list[int]:
    """The codes of the highest scores above 0, best first, equal ones in the order of their values."""
    codes = np.flatnonzero(scores > 0)
    if len(codes) > top:
        chosen = scores[codes]
        least = np.partition(chosen, len(codes) - top)[len(codes) - top]
        ties = codes[chosen == least]
        own = len(column.base.values)  # those are in order
        codes = np.concatenate([codes[chosen > least], ties[ties < own][:top], ties[ties >= own]])
    ordered = sorted(codes.tolist(), key=lambda code: (-scores[code], column.key(code)))
    return ordered[:top]


def _missing(columns: Sequence[Column], scope: Scope) -> int:
    """How many documents have no value in any of the columns."""
    present = BitMap.union(BitMap(), *(column.present for column in columns))
    return scope.documents - (len(present) if scope.docs is None else scope.docs.intersection_cardinality(present))


def _surface(snapshot: Snapshot, column: Column, type: str, code: int) -> str:
    """The form in which an entity is named most often in its first mentions; of several, the first in code order."""
    known = column.surfaces.get(code)
    if known is not None:
        return known
    norm = str(column.key(code)[1])
    forms: dict[str, int] = {}
    rows = snapshot.connection.execute(
        'SELECT substr(text, start + 1, "end" - start), doc, start, "end" FROM entities JOIN documents USING (doc)'
        " WHERE term = (SELECT term FROM entity_terms WHERE type = ? AND norm = ?) ORDER BY doc, start LIMIT ?",
        (type, norm, MENTIONS),
    ).fetchall()
    for form, doc, start, end in rows:
        if normalise_entity(form) != norm:  # SQLite's substr ends at a NUL character
            text = snapshot.connection.execute("SELECT text FROM documents WHERE doc = ?", (doc,)).fetchone()[0]
            form = text[start:end]
        form = " ".join(form.split())
        forms[form] = forms.get(form, 0) + 1
    surface = min(forms, key=lambda form: (-forms[form], form), default=norm)
    if len(column.surfaces) < SURFACES:
        column.surfaces[code] = surface
    return surface


def _ranges(counted: Counted, column: Column, scope: Scope) -> Facet:
    """Numbers in ranges of one width, in order; those without documents are left out."""
    counts = column.counts(scope.docs)
    codes = np.flatnonzero(counts)
    missing = _missing([column], scope)
    if not len(codes):
        return Facet(counted.name, (), 0, missing, counted.path)
    numbers = [_number(column, code) for code in _first_and_last(column, codes)]
    low, high = min(numbers), max(numbers)
    whole = high - low < RANGES and all(
        isinstance(column.key(code)[1], int) for code in np.flatnonzero(column.totals).tolist()
    )
    edges = range_edges(low, high, name=counted.name, width=counted.width, whole=whole)
    own, ranges = len(column.base.values), len(edges) - 1
    groups = np.full(len(counts), ranges, dtype=np.int64)  # the last for what lies outside
    places = [bisect_left(column.base.values.ordered, edge) for edge in edges]
    for group, (first, last) in enumerate(pairwise(places)):
        groups[first:last] = group
    for code in range(own, len(counts)):
        at = bisect_right(edges, _number(column, code)) - 1
        groups[code] = at if 0 <= at < ranges else ranges
    inside, totals = (column.grouped(docs, groups, ranges + 1)[:ranges] for docs in (scope.docs, None))
    values = [
        FacetValue(
            value=edges[at],
            below=edges[at + 1],
            count=int(inside[at]),
            total=int(totals[at]),
            lift=scope.lift(int(inside[at]), int(totals[at])),
        )
        for at in np.flatnonzero(inside).tolist()
    ]
    return Facet(counted.name, tuple(values), len(values), missing, counted.path)


def range_edges(
    low: int | float, high: int | float, *, name: str = "", width: Fraction | None = None, whole: bool = False
) -> list[int | float]:
    """The ends of ranges that cover the numbers from low to high, multiples of the width, ascending.

    Without a width it is 1, 2 or 5 times a power of ten, so that there are about `RANGES`; at least 1 for `whole`
    numbers. Raises `QueryError` where there would be more than `MAX_RANGES`.

    >>> range_edges(3, 47), range_edges(0.25, 0.5)[:3]
    ([0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50], [0.24, 0.26, 0.28])
    """
    span = Fraction(high) - Fraction(low)
    if width is None:
        width = _round_up(span / RANGES) if span else Fraction(1)
        width = max(width, Fraction(1)) if whole else width
    first, last = math.floor(Fraction(low) / width), math.floor(Fraction(high) / width)
    if last - first >= MAX_RANGES:
        raise QueryError(
            f"facet '{name}' would have {last - first + 1:,} ranges from {low} to {high}, at most {MAX_RANGES:,} are "
            f"allowed: take a width of {_plain(_round_up(span / (MAX_RANGES - 1)))} or more"
        )
    edges = [_plain(at * width) for at in range(first, last + 2)]
    if edges[-1] <= high:  # where the end of a range was rounded: 0.3 is a little less than 3 / 10
        edges.append(_plain((last + 2) * width))
    if edges[-1] <= high:  # where floats lie further apart than the width
        edges[-1] = math.nextafter(high, math.inf)
    return edges


def _first_and_last(column: Column, codes: npt.NDArray[np.int64]) -> list[int]:
    """Of codes in order, those that may have the lowest and the highest value."""
    own = codes[codes < len(column.base.values)].tolist()
    return [*own[:1], *own[-1:], *codes[codes >= len(column.base.values)].tolist()]


def _number(column: Column, code: int) -> int | float:
    value = column.key(code)[1]
    if isinstance(value, str):
        raise TypeError(f"{value!r} is no number")
    return value


def _round_up(width: Fraction) -> Fraction:
    """The least of 1, 2 and 5 times a power of ten that is at least so much."""
    power = Fraction(10) ** (len(str(width.numerator)) - len(str(width.denominator)) - 1)  # a hundredth of it at least
    return next(step * power for step in (1, 2, 5, 10, 20, 50, 100) if step * power >= width)


def _plain(number: Fraction) -> int | float:
    if number.denominator == 1 and INT64_MIN <= number <= INT64_MAX:
        return int(number)
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
