"""From the fields of a record, whatever format they came from, to a `Document`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from indexer.errors import InputError
from indexer.fields import (
    INT64_MAX,
    INT64_MIN,
    MAX_DEPTH,
    has_lone_surrogate,
    id_problem,
    is_deeper,
    metadata_problems,
    quote,
    shorten,
    too_deep,
)
from indexer.readers.options import ReadOptions
from indexer.records import Document

_SHOWN_FIELDS = 10
_PROBLEM_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class Record:
    """One record as a format's reader yields it.

    - `fields`: the record's own, which the content hash is taken over.
    - `line`: where it starts, from 1; the row's number where there are no lines; `None` for a whole file.
    - `origin`: further fields that say where it was found ("path", "line"), not part of the hash.
    """

    fields: Mapping[str, Any]
    line: int | None
    origin: Mapping[str, Any] = field(default_factory=dict)


def document_of(record: Record, options: ReadOptions, source: str) -> Document:
    """The record as a document. Raises `InputError` that names source, line and field."""
    try:
        return _document_of(record, options)
    except InputError as error:
        raise InputError(error.problem, source=source, line=record.line, field=error.field) from error


def check_columns(columns: Collection[str], options: ReadOptions, *, source: str, line: int | None) -> None:
    """Raise `InputError` if a table lacks the id or text columns, so that no row of it can be a document."""
    if options.id_field is not None and options.id_field not in columns:
        raise InputError(_missing_id(columns), source=source, line=line, field=options.id_field)
    needs_text = options.text_required or options.text_fields  # fields that were named are meant to be there
    if needs_text and not any(name in columns for name in options.text_names):
        error = _missing_text(options.text_names, columns)
        raise InputError(error.problem, source=source, line=line, field=error.field)


def missing_everywhere(options: ReadOptions, there: Iterable[str], *, source: str) -> InputError:
    """What is wrong with a file of records of which none has a text field that was named. `there`: of the first."""
    names = f"field{'s' if len(options.text_names) > 1 else ''} {_names(options.text_names)}"
    return InputError(
        f"no record has the text {names}, so all texts are empty; {_fields_here(there)}: name the text's with "
        "--text-field",
        source=source,
    )


def _document_of(record: Record, options: ReadOptions) -> Document:
    fields = {**record.fields, **record.origin}
    for name, value in fields.items():
        levels = MAX_DEPTH + (name == options.metadata_field)
        if isinstance(value, dict | list) and is_deeper(value, levels):
            raise InputError(too_deep(), field=name)
    text = _text_of(fields, options)
    id = _id_of(fields, options)
    taken = {options.id_name, *options.text_names}
    metadata = {name: value for name, value in fields.items() if name not in taken}
    for path, problem in metadata_problems(metadata, levels=MAX_DEPTH + 1):  # how deep is checked above
        raise InputError(shorten(problem, _PROBLEM_CHARACTERS), field=path or None)
    return Document(id if id is not None else _content_hash(record.fields), text, metadata)


def _text_of(fields: Mapping[str, Any], options: ReadOptions) -> str:
    names = options.text_names
    present = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, value in present.items():
        if not isinstance(value, str):
            raise InputError(f"the text must be a string, not {type_name(value)}: {quote(value)}", field=name)
        if has_lone_surrogate(value):
            raise InputError("the text has a lone surrogate, which is not valid Unicode", field=name)
    if not present:
        if not options.text_required:
            return ""
        if (null := next((name for name in names if name in fields), None)) is not None:
            raise InputError("the text is null", field=null)
        raise _missing_text(names, fields)
    parts = [text for text in present.values() if text and not text.isspace()]
    if not parts and options.text_required:
        raise InputError("text is empty", field=next(iter(present)))
    return "\n".join(parts)


def _missing_text(names: tuple[str, ...], there: Iterable[str]) -> InputError:
    if len(names) == 1:
        problem = f"the text is missing; {_fields_here(there)}: name the text's with --text-field"
        return InputError(problem, field=names[0])
    return InputError(f"none of the text fields {_names(names)} is there; {_fields_here(there)}")


def _id_of(fields: Mapping[str, Any], options: ReadOptions) -> str | None:
    """The id that the record has, `None` where it has none and needs none."""
    name = options.id_name
    value = fields.get(name)
    if value is None:
        if options.id_field is None:
            return None
        raise InputError(_missing_id(fields), field=name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"an id must be a string or an integer, not {type_name(value)}: {quote(value)}", field=name)
    if isinstance(value, int):
        if not INT64_MIN <= value <= INT64_MAX:
            raise InputError(f"integer {quote(value)} does not fit in 64 bits; give it as a string", field=name)
        return str(value)
    if (problem := id_problem(value)) is not None:
        raise InputError(problem, field=name)
    return value


def _missing_id(there: Iterable[str]) -> str:
    return f"the id is missing or null; {_fields_here(there)}: name the id's with --id-field"


def _content_hash(fields: Mapping[str, Any]) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of the fields as canonical JSON."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:32]


def type_name(value: object) -> str:
    """A JSON value's type with its article, for messages.

    >>> type_name(True), type_name(1.5), type_name(None)
    ('a boolean', 'a number', 'null')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _fields_here(there: Iterable[str]) -> str:
    names = list(there)
    if not names:
        return "the record has no field"
    more = len(names) - _SHOWN_FIELDS
    return f"fields here are {_names(names[:_SHOWN_FIELDS])}{f' and {more} more' if more > 0 else ''}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))
