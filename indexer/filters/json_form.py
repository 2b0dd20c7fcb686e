"""Filters as JSON objects, for programs; docs/FILTERS.md describes the form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, assert_never

from indexer.errors import FilterError
from indexer.fields import named
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
    Or,
    Origin,
    all_of,
    any_of,
    check_size,
    checked_kind,
)
from indexer.filters.parser import parse

AnyFilter = Filter | str | dict[str, Any]
"""A filter as a tree (`indexer.filters`), as text, or as a JSON object."""

T = TypeVar("T")


def as_filter(filter: AnyFilter | None) -> Filter | None:
    """The tree of a filter in any of its forms. Raises `FilterError`, also for what is no filter.

    >>> as_filter("year >= 2020") == as_filter({"path": "year", "op": ">=", "value": 2020})
    True
    """
    if filter is None or isinstance(filter, Filter):
        return filter
    if isinstance(filter, str):
        return parse(filter)
    if isinstance(filter, dict):
        return from_json(filter)
    raise FilterError(f"a filter is a text, a JSON object or a tree from indexer.filters, got {named(filter)}")


def to_json(filter: Filter) -> dict[str, Any]:
    """The JSON object from which `from_json` makes an equal filter.

    >>> to_json(Compare("year", ">=", 2020) & ~HasLabel("Company"))
    {'and': [{'path': 'year', 'op': '>=', 'value': 2020}, {'not': {'label': 'Company'}}]}
    """
    match filter:
        case Compare(path, op, value):
            return {"path": path, "op": op, "value": value}
        case In(path, values):
            return {"path": path, "op": "in", "values": list(values)}
        case Between(path, low, high):
            return {"path": path, "op": "between", "low": low, "high": high}
        case Exists(path):
            return {"path": path, "op": "exists"}
        case HasLabel(name):
            return {"label": name}
        case HasEntity(type, text, match_):
            return {"entity": {"type": type, "text": text, "match": match_}}
        case HasId(ids):
            return {"id": list(ids)}
        case And(parts):
            return {"and": [to_json(part) for part in parts]}
        case Or(parts):
            return {"or": [to_json(part) for part in parts]}
        case Not(part):
            return {"not": to_json(part)}
        case Everything():
            return {"everything": True}
        case _:
            assert_never(filter)


def from_json(obj: object) -> Filter:
    """The filter that a JSON object describes; "and" and "or" of a single filter are that filter.

    Where a filter may stand, a string may, too: a filter in the filter language. Raises FilterError with the place of
    the fault, such as `and[1].op`.

    >>> from_json({"and": [{"label": "Company"}, "year >= 2020"]})
    And(parts=(HasLabel(name='Company'), Compare(path='year', op='>=', value=2020)))
    """
    return _Reader().read(obj, "", 1)


class _Reader:
    """Counts nodes while it reads, so that an object of any size is refused early."""

    def __init__(self) -> None:
        self.nodes = 0

    def read(self, obj: object, place: str, depth: int) -> Filter:
        self.nodes += 1
        try:
            check_size(depth, self.nodes)
        except FilterError as error:
            _fail(place, error.problem)
        if isinstance(obj, str):
            return self.read_text(obj, place, depth)
        if not isinstance(obj, dict):
            _fail(place, f"expected an object or a text, got {_type_name(obj)}")
        form = next((key for key in _FORMS if key in obj), None)
        if form is None:
            _fail(place, f"expected one of the keys {', '.join(_FORMS)}; got {_names(obj)}")
        if form == "path":
            return _read_field(obj, place)
        _check_keys(obj, place, (form,))
        inner, at = obj[form], _join(place, form)
        match form:
            case "and" | "or":
                parts = [self.read(part, f"{at}[{number}]", depth + 1) for number, part in enumerate(_list(inner, at))]
                if not parts:
                    _fail(at, "expected at least one filter, got an empty array")
                return _build(place, all_of if form == "and" else any_of, parts)
            case "not":
                return _build(place, Not, self.read(inner, at, depth + 1))
            case "label":
                return _build(at, HasLabel, inner, Origin(at))
            case "id":
                ids = _list(inner, at)
                for number, id in enumerate(ids):
                    _build(f"{at}[{number}]", HasId, (id,))
                return HasId(tuple(ids))
            case "entity":
                return _read_entity(inner, at)
            case _:
                if inner is not True:
                    _fail(at, f"expected true, got {_type_name(inner)}")
                return Everything()

    def read_text(self, text: str, place: str, depth: int) -> Filter:
        """A filter in the filter language. Its place in the object is told before what is wrong in it."""
        try:
            found = parse(text)
            self.nodes += found.nodes - 1
            check_size(depth + found.depth - 1, self.nodes)
        except FilterError as error:
            raise FilterError(
                f"{place or 'filter'}: {error.problem}", text=error.text, position=error.position
            ) from None
        return found


_FORMS = ("path", "label", "entity", "id", "and", "or", "not", "everything")


def _read_field(obj: dict[Any, Any], place: str) -> Filter:
    path = obj["path"]
    _build(_join(place, "path"), Exists, path)
    if "op" not in obj:
        _fail(place, "the key 'op' is missing")
    match obj["op"]:
        case "in":
            _check_keys(obj, place, ("path", "op", "values"))
            at = _join(place, "values")
            values = _list(obj["values"], at)
            for number, value in enumerate(values):
                _build(f"{at}[{number}]", checked_kind, value)
            return In(path, tuple(values))
        case "between":
            _check_keys(obj, place, ("path", "op"), optional=("low", "high"))
            for side in ("low", "high"):
                if obj.get(side) is not None:
                    _build(_join(place, side), checked_kind, obj[side])
            return _build(place, Between, path, obj.get("low"), obj.get("high"))
        case "exists":
            _check_keys(obj, place, ("path", "op"))
            return Exists(path)
        case "=" | "!=" | "<" | "<=" | ">" | ">=" as op:
            _check_keys(obj, place, ("path", "op", "value"))
            return _build(_join(place, "value"), Compare, path, op, obj["value"])
        case other:
            got = repr(other) if isinstance(other, str) else _type_name(other)
            return _fail(_join(place, "op"), f"expected one of = != < <= > >= in between exists, got {got}")


def _read_entity(obj: object, place: str) -> Filter:
    if not isinstance(obj, dict):
        _fail(place, f"expected an object, got {_type_name(obj)}")
    _check_keys(obj, place, ("match",), optional=("type", "text"))
    return _build(place, HasEntity, obj.get("type"), obj.get("text"), obj["match"], Origin(_join(place, "type")))


def _build(place: str, make: Callable[..., T], *arguments: object) -> T:
    try:
        return make(*arguments)
    except FilterError as error:
        _fail(place, error.problem)


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        _fail(place, f"expected an array, got {_type_name(value)}")
    return value


def _check_keys(obj: dict[Any, Any], place: str, required: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> None:
    for key in required:
        if key not in obj:
            _fail(place, f"the key {key!r} is missing")
    unknown = [key for key in obj if key not in required and key not in optional]
    if unknown:
        _fail(place, f"unexpected key {_names(unknown)}; expected {', '.join(required + optional)}")


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _names(keys: Any) -> str:
    return ", ".join(repr(key) for key in list(keys)[:5]) or "none"


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _fail(place: str, problem: str) -> NoReturn:
    raise FilterError(f"{place or 'filter'}: {problem}") from None
