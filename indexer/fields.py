"""Ids, metadata and entity names: what an index can keep of them, and how filters see them. Pure functions."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache

from indexer.errors import TagdexError
from indexer.records import Metadata

Scalar = str | int | float | bool

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

MAX_ID_LENGTH = 1_000
MAX_DEPTH = 100
"""Of arrays and objects in one another, in a field of metadata. The limits of json and orjson lie above it."""

_SHOWN_CHARACTERS = 60


class Kind(IntEnum):
    """Type of a metadata value. Values of different kinds are never equal, and never ordered: true is not 1."""

    BOOLEAN = 0
    NUMBER = 1
    STRING = 2


def kind_of(value: Scalar) -> Kind:
    """The kind of a scalar; `bool` before `int`, of which it is a subclass in Python."""
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int | float):
        return Kind.NUMBER
    return Kind.STRING


_KINDS = {bool: Kind.BOOLEAN, int: Kind.NUMBER, float: Kind.NUMBER, str: Kind.STRING}


@lru_cache(maxsize=4_096)
def path_of(keys: tuple[str, ...]) -> str:
    r"""Join nested keys with dots; a dot or backslash inside a key is escaped with a backslash.

    >>> path_of(("author", "name")), path_of(("a.b",))
    ('author.name', 'a\\.b')
    """
    return ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in keys)


def flatten(metadata: Metadata) -> set[tuple[str, Kind, Scalar]]:
    """All scalar values of a metadata object as (path, kind, value).

    Array elements stand under the path of their array, so that a comparison matches an array if it matches
    any element; null has no row, so that a null field counts as missing.

    >>> sorted(flatten({"year": 2020, "author": {"name": "Ada"}, "tags": ["x", "y"], "note": None}))
    [('author.name', <Kind.STRING: 2>, 'Ada'), ('tags', <Kind.STRING: 2>, 'x'), ('tags', <Kind.STRING: 2>, 'y'), ('year', <Kind.NUMBER: 1>, 2020)]
    """  # noqa: E501
    rows: set[tuple[str, Kind, Scalar]] = set()
    stack: list[tuple[tuple[str, ...], object]] = [((), metadata)]
    while stack:
        keys, value = stack.pop()
        if (kind := _KINDS.get(type(value))) is not None:
            rows.add((path_of(keys), kind, value))  # type: ignore[arg-type]  # a scalar, by its type
        elif isinstance(value, dict):
            stack.extend([((*keys, key), inner) for key, inner in value.items()])
        elif isinstance(value, list | tuple):
            stack.extend([(keys, inner) for inner in value])
        elif isinstance(value, str | int | float):
            rows.add((path_of(keys), kind_of(value), value))
    return rows


def several(texts: Iterable[str], what: str, *, error: type[TagdexError]) -> list[str]:
    """Ids, names or texts that a caller gives, as a list.

    Raises `error` for one in place of several, which would be taken for its characters, and for what is no text.

    >>> several(("a", "b"), "ids", error=TagdexError)
    ['a', 'b']
    """
    if isinstance(texts, str | bytes):
        raise error(f"{what} must be several strings, got one: {named(texts)}; put it in a list")
    if not isinstance(texts, Iterable):
        raise error(f"{what} must be several strings, got {named(texts)}")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise error(f"{what} must be strings, got {named(text)}")
    return found


def id_problem(id: str) -> str | None:
    """Why a document cannot have this id, `None` where it can.

    >>> id_problem("a b"), id_problem("a\\nb")
    (None, 'an id cannot have control characters: "a\\\\nb"')
    """
    if not id:
        return 'an id must have at least one character: ""'
    if has_lone_surrogate(id):
        return f"an id must be valid Unicode, without lone surrogates: {id!a}"
    if len(id) > MAX_ID_LENGTH:
        return f"an id can have {MAX_ID_LENGTH:,} characters, not {len(id):,}: {quote(id)}"
    if any(unicodedata.category(character) == "Cc" for character in id):
        return f"an id cannot have control characters: {quote(id)}"
    return None


def metadata_problems(metadata: Metadata, *, levels: int = MAX_DEPTH) -> Iterator[tuple[str, str]]:
    """(path, problem) for every value that an index cannot keep exactly.

    Those are: NaN and infinities, integers beyond 64 bits, lone surrogates, keys that are not strings, types that
    JSON does not have, and arrays and objects that stand deeper than `levels` in a field.
    """
    stack: list[tuple[tuple[str, ...], int, object]] = [((), 0, metadata)]
    while stack:
        keys, level, value = stack.pop()
        if level > levels and isinstance(value, dict | list | tuple):
            yield path_of(keys[:1]), too_deep(levels)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    yield path_of(keys), f"key {key!r} is not a string"
                elif type(key) is not str:  # which JSON writers do not take
                    yield path_of(keys), f"key {key!r} is not a string of Python's own: give it as str(key)"
                elif has_lone_surrogate(key):
                    yield path_of(keys), f"key {key!r} has a lone surrogate"
                else:
                    stack.append(((*keys, key), level + 1, inner))
        elif isinstance(value, list | tuple):
            stack.extend((keys, level + 1, inner) for inner in value)
        elif isinstance(value, str):
            if has_lone_surrogate(value):
                yield path_of(keys), "has a lone surrogate, which is not valid Unicode"
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            if not INT64_MIN <= value <= INT64_MAX:
                yield path_of(keys), f"integer {value} does not fit in 64 bits; give it as a string"
        elif type(value) is float:  # numpy's is a subclass, which JSON writers do not take
            if not math.isfinite(value):
                yield path_of(keys), f"{value} is not a number that JSON has; leave the field out or use null"
        else:
            yield path_of(keys), _not_json(value)


def _not_json(value: object) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"a value of type {name} is not JSON: {instead_of(value)}"


def instead_of(value: object) -> str:
    """What to give in place of a value that JSON does not have.

    >>> instead_of({1})
    'give it as a string, a number, a list or a dict'
    """
    if isinstance(value, Mapping):
        return "give it as dict(value)"
    if hasattr(value, "isoformat"):
        return "give it as a string, value.isoformat()"
    if hasattr(value, "tolist"):
        return "give it as Python's own, value.tolist()"
    return "give it as a string, a number, a list or a dict"


def is_deeper(value: object, limit: int) -> bool:
    """Whether arrays and objects stand in one another at more than `limit` levels."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def too_deep(levels: int = MAX_DEPTH) -> str:
    """What is wrong with a field that is nested deeper."""
    return f"is nested deeper than {levels} levels: flatten it"


def quote(value: object) -> str:
    """A value as JSON, cut to what a message can hold, without line ends or control characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if has_lone_surrogate(text):
        text = json.dumps(value, default=str)
    return shorten(text, _SHOWN_CHARACTERS)


def named(value: object) -> str:
    """A value of any type as Python writes it, with that type, cut to what a message can hold."""
    return f"{shorten(' '.join(repr(value).split()), _SHOWN_CHARACTERS)} of type {type(value).__name__}"


def shorten(text: str, limit: int) -> str:
    """A text cut in its middle to about `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit // 2) :]}"


def has_lone_surrogate(text: str) -> bool:
    """True where the text cannot be encoded as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def normalise_entity(text: str) -> str:
    """The form under which entity texts are compared, so that spellings of one name are one.

    NFKC, casefolded, white space collapsed; without a possessive ending, the dots of initials, and the dot at the end
    of a word. Of a text that is nothing else, these stay.

    >>> [normalise_entity(text) for text in ("  ACME\\u00a0 Corp. ", "I.B.M.", "Ada’s", "the Joneses'", "St. Ives")]
    ['acme corp', 'ibm', 'ada', 'the joneses', 'st ives']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = " ".join(folded.split())
    return entity_form(folded)


def entity_form(folded: str) -> str:
    """What `normalise_entity` does to a text that is folded already. Doing it again changes nothing."""
    form = folded
    while (shorter := _shortened(form)) != form and shorter:
        form = shorter
    return form


_SIGN = re.compile(r"^[@#](?=\w)")
_POSSESSIVE = re.compile(r"(?<=\w)(?:['’ʼ]s|(?<=s)['’ʼ])$")
_INITIALS = re.compile(r"(?<![\w.])[^\W\d_](?:\.[^\W\d_])+(?![\w])")
_FINAL_DOT = re.compile(r"(?<=\w)\.+(?=\s|$|['’ʼ])")


def _shortened(form: str) -> str:
    form = _without_possessives(_SIGN.sub("", form))
    form = _INITIALS.sub(lambda match: match.group().replace(".", ""), form)
    return _FINAL_DOT.sub("", form)


def _without_possessives(form: str) -> str:
    """Without all of them at the end, in one pass: a text may be nothing but thousands of them."""
    end = len(form)
    while match := _POSSESSIVE.search(form, max(0, end - 2), end):
        end = match.start()
    return form[:end]


def prefix_upper_bound(prefix: str) -> str | None:
    """The smallest string greater than every string that starts with `prefix`, in code point order.

    `None` where there is none (an empty prefix, or one made of U+10FFFF only).

    >>> prefix_upper_bound("acme")
    'acmf'
    """
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1])
        if code < 0x10FFFF:
            following = 0xE000 if code + 1 == 0xD800 else code + 1
            return prefix[: end - 1] + chr(following)
    return None
