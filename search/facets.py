"""What the documents of a filter or a query have in common: counted values; no numpy, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from indexer.fields import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class FacetValue:
    """One value and the number of documents that have it.

    - `count`: among the counted documents, `total`: in the whole index.
    - `lift`: its share of the counted documents divided by its share of the whole index.
    - `type`: that of an entity, whose `value` is its text.
    - `below`: the end of a range of numbers, exclusive, that begins at `value`; either can be infinite.
    """

    value: Scalar
    count: int
    total: int
    lift: float
    type: str | None = None
    below: int | float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `type` and `below` stand in it where the facet has them."""
        return {
            **({} if self.type is None else {"type": self.type}),
            "value": _finite(self.value),
            **({} if self.below is None else {"below": _finite(self.below)}),
            "count": self.count,
            "total": self.total,
            "lift": self.lift,
        }


@dataclass(frozen=True, slots=True)
class Facet:
    """The counts of one facet: its first values in order, how many it has at all, and the documents without any.

    `path`: of a metadata field, as the JSON form of filters has it.
    """

    name: str
    values: tuple[FacetValue, ...]
    distinct: int
    missing: int
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "name": self.name,
            **({} if self.path is None else {"path": self.path}),
            "distinct": self.distinct,
            "missing": self.missing,
            "values": [value.to_json() for value in self.values],
        }


@dataclass(frozen=True, slots=True)
class Facets:
    """Facets of `documents` documents out of the `indexed` that the index has, all of one commit."""

    documents: int
    indexed: int
    facets: tuple[Facet, ...]

    def __getitem__(self, name: str) -> Facet:
        """The facet of a name, as it was asked for. Raises `KeyError`."""
        for facet in self.facets:
            if facet.name == name:
                return facet
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, as `search facets --json` prints it."""
        return {
            "documents": self.documents,
            "indexed": self.indexed,
            "facets": [facet.to_json() for facet in self.facets],
        }


def _finite(value: Scalar) -> Scalar | None:
    """JSON has no infinite numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
