"""What filters mean: `matches` is the reference that every other evaluation agrees with.

A filter is true or false for a document, never unknown. A comparison is true iff the document has at least
one scalar of the same kind (boolean, number, string) under the path for which it holds; so a missing field,
null or a value of another kind makes it false, `!=` included, and `Not` is the exact complement.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

from indexer.fields import Kind, Scalar, flatten, normalise_entity
from indexer.filters.ast import (
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
    Op,
    Or,
)
from indexer.records import Metadata

_OPERATORS: dict[Op, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """What a filter can ask about a document. `entities` are (type, surface text) pairs."""

    id: str
    metadata: Metadata
    label: str | None = None
    entities: tuple[tuple[str, str], ...] = ()


def matches(filter: Filter, facts: DocumentFacts) -> bool:
    """Whether the filter is true for the document."""
    return _holds(filter, facts, flatten(facts.metadata))


def _holds(filter: Filter, facts: DocumentFacts, rows: set[tuple[str, Kind, Scalar]]) -> bool:
    match filter:
        case Compare(path, op, value):
            return any(_OPERATORS[op](have, value) for have in _values(rows, path, filter.kind))
        case In(path, values):
            wanted = set(zip(filter.kinds, values, strict=True))
            return any(name == path and (kind, have) in wanted for name, kind, have in rows)
        case Between(path, low, high):
            return any(
                (low is None or have >= low) and (high is None or have <= high)
                for have in _values(rows, path, filter.kind)
            )
        case Exists(path):
            return any(name == path or name.startswith(path + ".") for name, _, _ in rows)
        case HasLabel(name):
            return facts.label is not None if name is None else facts.label == name
        case HasEntity():
            return any(_is_entity(filter, type, text) for type, text in facts.entities)
        case HasId(ids):
            return facts.id in ids
        case And(parts):
            return all(_holds(part, facts, rows) for part in parts)
        case Or(parts):
            return any(_holds(part, facts, rows) for part in parts)
        case Not(part):
            return not _holds(part, facts, rows)
        case Everything():
            return True
        case _:
            assert_never(filter)


def _values(rows: set[tuple[str, Kind, Scalar]], path: str, kind: Kind) -> list[Any]:
    return [value for name, have, value in rows if name == path and have is kind]


def _is_entity(filter: HasEntity, type: str, text: str) -> bool:
    if filter.type is not None and filter.type != type:
        return False
    if filter.text is None:
        return True
    have, wanted = normalise_entity(text), normalise_entity(filter.text)
    return have.startswith(wanted) if filter.match == "prefix" else have == wanted
