"""Lines of files of labelled data: decoded, decompressed, numbered. Whatever is wrong with one names file and line."""

from __future__ import annotations

import codecs
import io
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indexer.errors import InputError


class DataError(InputError):
    """A file that is not in the form that its reader expects."""


def numbered_objects(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, and the number of the line of each. Raises `DataError`."""
    for number, line in text_lines(path, encoding=encoding):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", source=str(path), line=number) from error
        if not isinstance(row, dict):
            raise DataError("expected a JSON object", source=str(path), line=number)
        yield number, row


def text_lines(path: Path, *, encoding: str = "utf-8", newline: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file with their ends, and their numbers; decompressed if its name ends in .xz.

    A byte order mark before UTF-8 is left out. Raises `DataError` for what cannot be decoded or decompressed.
    """
    number = 0
    try:
        with open_text(path, encoding=encoding, newline=newline) as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(
            f"not {encoding}: {reason}; set encoding", source=str(path), line=_undecodable_line(path, encoding)
        ) from error
    except (EOFError, lzma.LZMAError) as error:
        raise DataError(
            f"the .xz file is damaged or cut short ({error}): fetch or make it again", source=str(path), line=number + 1
        ) from error


def open_text(path: Path, *, encoding: str = "utf-8", newline: str | None = None) -> io.TextIOBase:
    """A file to read text from, decompressed if its name ends in .xz. Raises `DataError` for an unknown encoding."""
    try:
        if codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"  # the same but for a byte order mark, as some programs write it
        if path.suffix == ".xz":
            return lzma.open(path, "rt", encoding=encoding, newline=newline)
        return path.open(encoding=encoding, newline=newline)
    except LookupError as error:
        raise DataError(f"unknown encoding '{encoding}'", source=str(path)) from error


def _undecodable_line(path: Path, encoding: str) -> int:
    """The first line that cannot be decoded: text is decoded in blocks, so the error comes some lines before it."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        content = file.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return 1 + len(re.findall("\r\n|\r|\n", content[: error.start].decode(encoding)))
    return 1


def half_character(text: str) -> str:
    """What is wrong with a text that holds half of a surrogate pair, as JSON can write it; else empty."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        return f"character {error.start + 1} is {half}, half of a surrogate pair: write both halves, or the character"
    return ""
