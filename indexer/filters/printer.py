"""Filters as text again: `parse(format_filter(f)) == f` for every filter."""

from __future__ import annotations

import unicodedata
from typing import assert_never

from indexer.fields import Scalar
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
    keys_of,
)
from indexer.filters.scanner import RESERVED, SPECIAL, is_name_character

_NOT_BARE = RESERVED | {"true", "false", "null"}
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def format_filter(filter: Filter) -> str:
    """The text that `parse` reads as this filter.

    >>> format_filter(Compare("a b.year", ">=", 2020) & ~(HasLabel("Company") | HasId(("x 1",))))
    '`a b`.year >= 2020 and not (label = Company or id = "x 1")'
    """
    match filter:
        case Compare(path, op, value):
            return f"{_path(path)} {op} {_value(value)}"
        case In(path, values):
            return f"{_path(path)} in [{', '.join(map(_value, values))}]"
        case Between(path, low, high):
            return f"{_path(path)} in {_end(low)}..{_end(high)}"
        case Exists(path):
            return f"exists {_path(path)}"
        case HasLabel(name):
            return "exists label" if name is None else f"label = {_text(name)}"
        case HasEntity():
            return f"entity {_entity(filter)}"
        case HasId(ids):
            return f"id = {_text(ids[0])}" if len(ids) == 1 else f"id in [{', '.join(map(_text, ids))}]"
        case And(parts):
            return " and ".join(_nested(part) for part in parts)
        case Or(parts):
            return " or ".join(_nested(part) for part in parts)
        case Not(part):
            return f"not {_nested(part)}"
        case Everything():
            return "*"
        case _:
            assert_never(filter)


def _nested(part: Filter) -> str:
    text = format_filter(part)
    return f"({text})" if isinstance(part, And | Or) else text


def _path(path: str) -> str:
    return ".".join(_key(key) for key in keys_of(path))


def _key(key: str) -> str:
    bare = key and all(map(is_name_character, key)) and key.lower() not in RESERVED and key not in SPECIAL
    return key if bare else _quoted(key, "`")


def _value(value: Scalar) -> str:
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _end(value: str | int | float | None) -> str:
    return "" if value is None else _value(value)


def _text(text: str) -> str:
    """Bare where nothing else could be meant, in quotes otherwise."""
    bare = text and (text[0] == "_" or unicodedata.category(text[0])[0] == "L")
    if bare and all(map(is_name_character, text)) and text.lower() not in _NOT_BARE:
        return text
    return _quoted(text, '"')


def _quoted(text: str, quote: str) -> str:
    return quote + "".join(_escaped(character, quote) for character in text) + quote


def _escaped(character: str, quote: str) -> str:
    if character == quote:
        return "\\" + quote
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _entity(filter: HasEntity) -> str:
    type = "*" if filter.type is None else _text(filter.type)
    if filter.text is None:
        return f"{type}:*"
    return f"{type}:{_text(filter.text)}{'*' if filter.match == 'prefix' else ''}"
