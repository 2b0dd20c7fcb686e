"""TOML tables → frozen dataclasses. Every error names the file, the table, the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import math
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from indexer.errors import TagdexError

T = TypeVar("T")

_SHOWN = 80  # characters of a value in a message


class ConfigError(TagdexError):
    """A configuration that cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key may hold: `allowed` in words, and `convert`, which raises `ValueError` for anything else."""

    allowed: str
    convert: Callable[[Any], Any]


def key(kind: Kind, default: Any = MISSING) -> Any:
    """A field of a dataclass that is read by `build`."""
    return field(default=default, metadata={"kind": kind})


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # tomllib's own, and that of an integer with thousands of digits
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} cannot be read: its arrays or tables are nested too deeply") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def build(cls: type[T], table: Mapping[str, Any], *, file: str, name: str = "") -> T:
    """A dataclass whose fields were made by `key` from a table of this name. Raises `ConfigError`."""
    place = f"{file}, [{name}]" if name else file
    known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    for given in table:
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"{place}: unknown key '{given}'; {hint}allowed are {', '.join(known)}")
    values: dict[str, Any] = {}
    for entry_name, entry in known.items():
        if entry_name not in table:
            if entry.default is MISSING:
                raise ConfigError(f"{place}: the key '{entry_name}' is missing: {entry.metadata['kind'].allowed}")
            continue
        kind: Kind = entry.metadata["kind"]
        try:
            values[entry_name] = kind.convert(table[entry_name])
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            shown = _shown(table[entry_name])
            raise ConfigError(f"{place}: {entry_name} = {shown}{reason}: it must be {kind.allowed}") from error
    return cls(**values)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# Kinds


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _switch(value: Any) -> bool:
    if value is not True and value is not False:
        raise ValueError
    return value


TEXT = Kind("a text that is not empty, without NUL characters", _text)
SWITCH = Kind("true or false", _switch)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Kind:
    """A finite number from `low` to `high`; with `above`, it must be larger than `low`."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ValueError  # also for NaN, and for an integer that no float can hold
        if not low <= value <= high or (above and value == low):
            raise ValueError
        return float(value)

    start = f"above {low:g}" if above else f"of at least {low:g}"
    return Kind(f"a number {start}" + (f" and at most {high:g}" if high < math.inf else ""), convert)


def whole(low: int, high: float = math.inf) -> Kind:
    """An integer from `low` to `high`."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high:g}"
    return Kind(f"a whole number {bounds}", convert)


def choice(*names: str) -> Kind:
    """One of these texts."""

    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(f'"{name}"' for name in names), convert)


def list_of(kind: Kind, *, filled: bool = True, distinct: bool = False) -> Kind:
    """A tuple of such values."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or (filled and not value):
            raise ValueError
        converted = tuple(kind.convert(part) for part in value)
        if distinct and len(set(converted)) != len(converted):
            raise ValueError("a value stands there twice")
        return converted

    return Kind(f"a list, each {kind.allowed}", convert)


def either(*kinds: Kind) -> Kind:
    """The first kind that accepts the value."""

    def convert(value: Any) -> Any:
        for kind in kinds:
            try:
                return kind.convert(value)
            except ValueError:
                continue
        raise ValueError

    return Kind(", or ".join(kind.allowed for kind in kinds), convert)


def table_of(kind: Kind, *, keys: tuple[str, ...] = ()) -> Kind:
    """A table with such values; with `keys`, with these keys alone."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            raise ValueError
        for name in value:
            if keys and name not in keys:
                raise ValueError(f"'{name}' is none of {', '.join(keys)}")
        return {name: kind.convert(part) for name, part in value.items()}

    wanted = f"with the keys {', '.join(keys)}, " if keys else ""
    return Kind(f"a table {wanted}each {kind.allowed}", convert)
