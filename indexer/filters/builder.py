"""Filters written as Python expressions: `(Field("year") >= 2020) & Field("lang").isin(["de", "fr"])`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from indexer.errors import FilterError
from indexer.fields import Scalar, named
from indexer.filters.ast import Between, Compare, Exists, Filter, HasEntity, HasId, HasLabel, In, any_of, keys_of


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    r"""A field of the metadata, whose comparisons are filters.

    `path`: keys joined by dots; a dot or a backslash that belongs to a key has a backslash in front, as in the JSON
    form: `Field("author.name")`, `Field(r"file\.name")`. Raises `FilterError` for a path or a value that no document
    can have.

    >>> (Field("year") >= 2020) & ~Field("lang").isin(["de", "fr"])
    And(parts=(Compare(path='year', op='>=', value=2020), Not(part=In(path='lang', values=('de', 'fr')))))
    """

    path: str

    __hash__ = None  # type: ignore[assignment]  # == makes a filter

    def __post_init__(self) -> None:
        keys_of(self.path)

    def __eq__(self, value: Scalar) -> Compare:  # type: ignore[override]
        return Compare(self.path, "=", value)

    def __ne__(self, value: Scalar) -> Compare:  # type: ignore[override]
        return Compare(self.path, "!=", value)

    def __lt__(self, value: Scalar) -> Compare:
        return Compare(self.path, "<", value)

    def __le__(self, value: Scalar) -> Compare:
        return Compare(self.path, "<=", value)

    def __gt__(self, value: Scalar) -> Compare:
        return Compare(self.path, ">", value)

    def __ge__(self, value: Scalar) -> Compare:
        return Compare(self.path, ">=", value)

    def isin(self, values: Iterable[Scalar]) -> In:
        """Some value of the field is one of these."""
        if isinstance(values, str):
            raise FilterError(f"isin takes several values, got one: {named(values)}; put it in a list, or write ==")
        return In(self.path, tuple(values))

    def between(self, low: str | int | float | None, high: str | int | float | None) -> Between:
        """Some value of the field lies between, ends included; `None` leaves a side open."""
        return Between(self.path, low, high)

    def exists(self) -> Exists:
        """The field, or one inside it, has a value other than null."""
        return Exists(self.path)


def label(*names: str) -> Filter:
    """The document's class is one of these; without a name, it has a class."""
    return any_of([HasLabel(name) for name in names]) if names else HasLabel(None)


def entity(type: str | None = None, text: str | None = None, *, prefix: bool = False) -> HasEntity:
    """The document has an entity of this type (`None`: any) and text (`None`: any), or whose text begins so."""
    return HasEntity(type, text, "any" if text is None and not prefix else "prefix" if prefix else "exact")


def ids(*wanted: str) -> HasId:
    """The document's id is one of these."""
    return HasId(wanted)
