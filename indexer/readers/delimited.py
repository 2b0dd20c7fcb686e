"""CSV and TSV with a header: quoting as in RFC 4180, in TSV too."""

from __future__ import annotations

import csv
import math
import re
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from indexer.errors import InputError
from indexer.fields import INT64_MAX, INT64_MIN
from indexer.readers.documents import Record, check_columns
from indexer.readers.files import ByteMeter, SourceFile
from indexer.readers.lines import Line, decode, read_lines
from indexer.readers.options import ReadOptions

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

# The csv module has one field size limit for the whole process: 131,072 characters. Each row is parsed under
# this one, the largest that a C long holds everywhere, and the limit is then put back; the lock keeps two
# readers in two threads from putting back each other's.
_FIELD_SIZE_LIMIT = 2**31 - 1
_FIELD_SIZE_LOCK = threading.Lock()

_CSV_ERRORS = {
    "unexpected end of data": "a quote that opens in this row is still open at the end of the file: write a"
    " quote inside a quoted field twice",
    "expected after": "text follows a closing quote: write a quote inside a quoted field twice",
    "new-line character": "a carriage return stands outside of quotes: convert the line ends, for example"
    " with `tr '\\r' '\\n'`",
}


def read_delimited(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    """Records, and an error in the place of each row that is none.

    Where quoting is broken, the line behind the one where the row began is taken as the next row. Cells of the id and
    text columns are strings as they stand. Other cells become numbers where they are JSON numbers that Python and
    SQLite hold; an empty cell is absent. Raises `InputError` for a header that cannot be used.
    """
    rows = _read_rows(file, meter, delimiter="\t" if file.format == "tsv" else ",")
    header: list[str] | None = None
    for row in rows:
        if header is None:
            if isinstance(row, InputError):
                raise row
            number, header = row
            _check_header(header, file.path, number)
            check_columns(header, options, source=file.path, line=number)
        elif isinstance(row, InputError):
            yield row
        else:
            number, cells = row
            if len(cells) != len(header):
                yield InputError(
                    f"this row has {_cells(len(cells))}, the header has {_cells(len(header))}",
                    source=file.path,
                    line=number,
                )
            else:
                yield Record(_fields(header, cells, texts=options.text_names, id=options.id_name), number)
    if header is None:
        raise InputError("is empty: there is no header", source=file.path)


def _check_header(header: list[str], source: str, line: int) -> None:
    for column, name in enumerate(header, start=1):
        if not name.strip():
            raise InputError(f"column {column} has no name: the header must name all", source=source, line=line)
        if name in header[: column - 1]:
            raise InputError(f"two columns are named '{name}': rename one", source=source, line=line)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _fields(header: list[str], cells: list[str], *, texts: tuple[str, ...], id: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if name in texts:
            fields[name] = cell
        elif cell:
            fields[name] = cell if name == id else _typed(cell)
    return fields


def _typed(cell: str) -> str | int | float:
    match = _NUMBER.fullmatch(cell)
    if match is None:
        return cell
    if match[2] is None and match[3] is None:
        if len(cell) > len(str(INT64_MIN)):
            return cell
        integer = int(cell)
        return integer if INT64_MIN <= integer <= INT64_MAX else cell
    number = float(cell)
    return number if math.isfinite(number) else cell


def _read_rows(file: SourceFile, meter: ByteMeter, *, delimiter: str) -> Iterator[tuple[int, list[str]] | InputError]:
    """(number of the line where it starts, cells) for every row that is not a blank line."""
    lines = _TextLines(file, meter)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.begin_row()
        try:
            cells = _next_row(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = next((text for key, text in _CSV_ERRORS.items() if key in str(error)), str(error))
            yield lines.give_back() or InputError(reason, source=file.path, line=start)
            continue
        fault = lines.take_fault()
        if fault is not None:
            yield fault
        elif cells:
            yield start, cells


def _next_row(rows: Iterator[list[str]]) -> list[str]:
    with _FIELD_SIZE_LOCK:
        before = csv.field_size_limit(_FIELD_SIZE_LIMIT)
        try:
            return next(rows)
        finally:
            csv.field_size_limit(before)


class _TextLines(Iterator[str]):
    """The lines of a file as text, counted.

    A line that is not UTF-8 still goes to the csv module, with stand-ins for its bad bytes, so that the row
    around it ends where it should; `take_fault` then says what was wrong with that row.

    A quote that is never closed takes in the rows behind it up to the next quote, or to the end of the file. They are
    read again by `give_back`; no line more than twice, since none of them can open a quote that goes further.
    """

    def __init__(self, file: SourceFile, meter: ByteMeter) -> None:
        self._source = file.path
        self._lines = read_lines(file, meter)
        self._again: deque[Line] = deque()
        self._row: list[Line] = []
        self._number = 0
        self._fault: InputError | None = None

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self._number = line.number
        try:
            return decode(line, self._source)
        except InputError as error:
            self._fault = self._fault or error
            return line.data.decode("utf-8", "surrogateescape")

    def begin_row(self) -> int:
        """A new row begins; the number of its first line."""
        self._row.clear()
        return self._number + 1

    def give_back(self) -> InputError | None:
        """Make the second line of the row the next one to read; the fault of the first."""
        first, *others = self._row
        self._again.extendleft(reversed(others))
        self._number = first.number
        fault = self.take_fault()
        return fault if fault is not None and fault.line == first.number else None

    def take_fault(self) -> InputError | None:
        """The first fault since the last call."""
        fault, self._fault = self._fault, None
        return fault
