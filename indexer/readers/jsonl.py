"""JSON Lines: one object per line, blank lines apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from indexer.errors import InputError
from indexer.fields import quote, too_deep
from indexer.readers.documents import Record, type_name
from indexer.readers.files import ByteMeter, SourceFile
from indexer.readers.lines import Line, decode, read_lines


def read_jsonl(file: SourceFile, meter: ByteMeter) -> Iterator[Record | InputError]:
    """Records, and an error in the place of each line that is none.

    Raises `InputError` where the file is one JSON value over several lines. NaN, infinities, integers beyond
    64 bits and lone surrogates pass here and are refused in `document_of`, which knows the field's name.
    """
    first = True
    for line in read_lines(file, meter):
        if not line.data.strip():
            continue
        if first and line.data.strip() in (b"[", b"{", b"[{"):
            hint = "jq -c ." if line.data.strip() == b"{" else "jq -c '.[]'"
            raise InputError(
                f"is JSON over several lines, JSON Lines have one object per line: convert it with `{hint}`",
                source=file.path,
                line=line.number,
            )
        first = False
        try:
            yield Record(_parse(line, file.path), line.number)
        except InputError as error:
            yield error


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as a hook for `json`, which of two fields with one name drops the first.

    Raises `InputError`.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise InputError(f"two fields of one object are named {quote(twice)}: rename one, or leave it out")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)


def _parse(line: Line, source: str) -> dict[str, Any]:
    text = decode(line, source).rstrip(" \t\r\n")  # else the column of what is missing counts the line end
    try:
        if text.startswith("\ufeff"):
            raise InputError("begins with a byte order mark, as where files were joined: remove it")
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg.removesuffix(' at')} at column {error.pos + 1}"
    except InputError as error:
        problem = error.problem
    except RecursionError:
        problem = too_deep()
    except ValueError:  # from int(), whose message talks of an interpreter setting
        problem = "an integer of thousands of digits does not fit in 64 bits; give it as a string"
    else:
        if isinstance(value, dict):
            return value
        problem = f"a line must be a JSON object, not {type_name(value)}"
        if isinstance(value, list):
            problem += ": convert a JSON array with `jq -c '.[]'`"
        else:
            problem += f": {quote(value)}"
    raise InputError(problem, source=source, line=line.number)
