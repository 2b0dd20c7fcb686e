"""A byte stream as numbered lines, and bytes as UTF-8 text. A line ends at a line feed and nowhere else."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from indexer.errors import InputError
from indexer.readers.files import READ_ERRORS, ByteMeter, SourceFile, open_bytes, unreadable


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its end. `number` counts from 1, `offset` is its first byte's, after decompression."""

    number: int
    offset: int
    data: bytes


def read_lines(file: SourceFile, meter: ByteMeter) -> Iterator[Line]:
    """The lines of a file, without a byte order mark at its start.

    Raises `InputError` where the file cannot be opened, read or decompressed any further.
    """
    number, offset = 0, 0
    with open_bytes(file, meter) as stream:
        while True:
            try:
                data = stream.readline()
            except READ_ERRORS as error:
                raise unreadable(error, file.path, line=number or None) from error
            if not data:
                return
            number += 1
            if number == 1 and data.startswith(codecs.BOM_UTF8):
                offset, data = len(codecs.BOM_UTF8), data.removeprefix(codecs.BOM_UTF8)
            yield Line(number, offset, data)
            offset += len(data)


def decode(line: Line, source: str) -> str:
    """The text of one or more lines. Raises `InputError` that names the first byte which is not UTF-8."""
    try:
        return line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = line.offset == 0 and line.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        guess = "UTF-16" if utf16 else "LATIN1"
        raise InputError(
            f"byte 0x{line.data[error.start]:02X} at offset {line.offset + error.start} is not UTF-8: convert"
            f" the file first, for example with `iconv -f {guess} -t UTF-8`",
            source=source,
            line=line.number + line.data.count(b"\n", 0, error.start),
        ) from error
