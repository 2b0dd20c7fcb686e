"""CSV and TSV with a header: quoting as in RFC 4180, in TSV too."""

from __future__ import annotations

import csv
import math
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from indexer.errors import InputError
from indexer.fields import INT64_MAX, INT64_MIN
from indexer.readers.documents import Record, check_columns
from indexer.readers.files import ByteMeter, SourceFile
from indexer.readers.lines import decode, read_lines
from indexer.readers.options import ReadOptions

MAX_QUOTED_LINES = 250_000
MAX_QUOTED_BYTES = 64 * 2**20
"""Of a row, as a quote may be open over several lines. A quote that is never closed would take in all of a file."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

# The csv module has one field size limit for the whole process: 131,072 characters. What is there of a row is
# parsed under this one, the largest that a C long holds everywhere, and the limit is then put back; the lock keeps two
# readers in two threads from putting back each other's.
_FIELD_SIZE_LIMIT = 2**31 - 1
_FIELD_SIZE_LOCK = threading.Lock()

_CSV_ERRORS = {
    "expected after": "text follows a closing quote: write a quote inside a quoted field twice",
    "new-line character": "a carriage return stands outside of quotes: convert the line ends, for example"
    " with `tr '\\r' '\\n'`",
}

_TO_COMMAS = (
    'convert it, for example with `python3 -c "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin,'
    " delimiter='%s'))\"`"
)
_SEPARATORS = {
    "\t": "its cells look separated by tabs: pass --format tsv",
    ";": f"its cells look separated by semicolons, which are not read: {_TO_COMMAS % ';'}",
    "|": f"its cells look separated by bars, which are not read: {_TO_COMMAS % '|'}",
    ",": "its cells look separated by commas: pass --format csv",
}
_NO_HEADER = ", or put a header above this line where it is none"


def read_delimited(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    """Records, and an error in the place of each row that is none.

    A row may span `MAX_QUOTED_LINES` and `MAX_QUOTED_BYTES`. Where its quoting is broken, or where it has another
    number of cells than the header, the line behind the one where it began is taken as the next row. Cells of the id
    and text columns are strings as they stand. Other cells become numbers where they are JSON numbers that Python and
    SQLite hold; an empty cell is absent. Raises `InputError` for a header that cannot be used.
    """
    delimiter = "\t" if file.format == "tsv" else ","
    rows = _read_rows(file, meter, delimiter=delimiter)
    header: list[str] | None = None
    for row in rows:
        if header is None:
            if isinstance(row, InputError):
                raise row
            number, header = row
            _check_header(header, options, file.path, number, delimiter)
        elif isinstance(row, InputError):
            yield row
        else:
            number, cells = row
            yield Record(_fields(header, cells, texts=options.text_names, id=options.id_name), number)
    if header is None:
        raise InputError("is empty: there is no header", source=file.path)


def _check_header(header: list[str], options: ReadOptions, source: str, line: int, delimiter: str) -> None:
    """Raise `InputError` for one that cannot be used, as that of a file with another separator, or with none."""
    for column, name in enumerate(header, start=1):
        if not name.strip():
            problem = f"column {column} has no name: the header must name all{_NO_HEADER}"
            raise InputError(problem, source=source, line=line)
        if name in header[: column - 1]:
            raise InputError(f"two columns are named '{name}': rename one{_NO_HEADER}", source=source, line=line)
    try:
        check_columns(header, options, source=source, line=line)
    except InputError as error:
        wanted = {options.id_name, *options.text_names}
        if wanted & set(header):
            raise
        for separator, way_out in _SEPARATORS.items():
            cells = {cell for name in header for cell in name.split(separator)}
            if separator != delimiter and (wanted & cells or len(cells) > len(header) == 1):
                raise InputError(way_out, source=source, line=line) from error
        raise InputError(f"{error.problem}{_NO_HEADER}", source=source, line=line, field=error.field) from error


def count_of_cells(count: int) -> str:
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
    """(number of the line where it starts, cells) for every row that is not a blank line, as many as in the first."""
    lines = _TextLines(file, meter, delimiter)
    width = None
    while (first := lines.next()) is not None:
        cells: list[str] = []
        count, problem = 0, None
        try:
            cells, is_open = _first_row([first.text], delimiter)
        except csv.Error as error:
            problem = _problem(error)
            if width is None:  # a header whose names are quoted
                quoted = (
                    way for other, way in _SEPARATORS.items() if other != delimiter and f'"{other}"' in first.text
                )
                problem = next(quoted, problem)
        else:
            count = len(cells)
            if is_open:
                problem = lines.read_quote(first)
                count += lines.cells_ahead()
            if problem is None and count == 0:
                continue
            if problem is None and width not in (None, count):
                problem = f"this row has {count_of_cells(count)}, the header has {count_of_cells(width or 0)}"
        if problem is not None:
            yield first.fault or InputError(problem, source=file.path, line=first.number)
            continue
        row = [first, *(lines.take_ahead() if is_open else ())]
        fault = next((line.fault for line in row if line.fault is not None), None)
        if fault is None and is_open:
            cells, _ = _first_row([line.text for line in row], delimiter)
        yield fault or (first.number, cells)
        width = count


@contextmanager
def fields_of_any_size() -> Iterator[None]:
    """Let the csv module parse fields of any length."""
    with _FIELD_SIZE_LOCK:
        before = csv.field_size_limit(_FIELD_SIZE_LIMIT)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _first_row(lines: Sequence[str], delimiter: str) -> tuple[list[str], bool]:
    """The cells of the first row in some lines, and whether a quote is open at their end. Raises `csv.Error`."""
    if (
        len(lines) == 1
        and '"' not in lines[0]
        and "\r" not in (plain := lines[0].removesuffix("\n").removesuffix("\r"))
    ):
        return plain.split(delimiter) if plain else [], False  # as the module has it, in a quarter of the time
    rows = csv.reader([*lines, '"'], delimiter=delimiter, strict=True)  # closes an open quote, else is another row
    with fields_of_any_size():
        cells = next(rows)
    return cells, rows.line_num > len(lines)


def _problem(error: csv.Error) -> str:
    return next((text for key, text in _CSV_ERRORS.items() if key in str(error)), str(error))


@dataclass(frozen=True, slots=True)
class _TextLine:
    """A line as text, from byte `start` to `end` of its file.

    One that is not UTF-8 has stand-ins for its bad bytes, so that the row around it ends where it should, and a fault.
    """

    number: int
    start: int
    end: int
    text: str
    fault: InputError | None


@dataclass(frozen=True, slots=True)
class _Quoted:
    """A line at whose start a quote is open: how many cells end in it, and in the lines before it.

    The quote is still open at its end, or the row ends there, or there is a `problem`.
    """

    line: _TextLine
    cells: int
    cells_before: int
    is_open: bool
    problem: str | None


class _TextLines:
    """The lines of a file as text, and those ahead, which are read because a quote is open at the start of them.

    What such a line means does not depend on where the quote was opened. So where a row is given up, the lines behind
    its first are read once more, as rows of their own, but what is known of them inside of a quote is kept for those:
    each line is parsed once as the first of a row, once inside of a quote, and once with the row that it belongs to.
    """

    def __init__(self, file: SourceFile, meter: ByteMeter, delimiter: str) -> None:
        self._source = file.path
        self._lines = read_lines(file, meter)
        self._delimiter = delimiter
        self._ahead: deque[_Quoted] = deque()

    def next(self) -> _TextLine | None:
        """The next line that is in no row yet, `None` at the end of the file."""
        return self._ahead.popleft().line if self._ahead else self._read()

    def read_quote(self, first: _TextLine) -> str | None:
        """Read ahead to the end of the row of `first`, which leaves a quote open; what is wrong where it has none."""
        while not self._ahead or self._ahead[-1].is_open:
            last = self._ahead[-1].line if self._ahead else first
            lines, size = last.number - first.number, last.end - first.start
            if lines >= MAX_QUOTED_LINES or size >= MAX_QUOTED_BYTES:
                return (
                    f"a quote that opens in this row is still open {lines:,} lines and {size:,} bytes on, at most"
                    f" {MAX_QUOTED_LINES:,} lines and {MAX_QUOTED_BYTES:,} bytes are read: write a quote inside a"
                    " quoted field twice, and longer texts as JSON Lines"
                )
            line = self._read()
            if line is None:
                return (
                    "a quote that opens in this row is still open at the end of the file: write a quote inside a"
                    " quoted field twice"
                )
            self._ahead.append(self._inside_quote(line))
        return self._ahead[-1].problem

    def cells_ahead(self) -> int:
        """How many cells end in the lines ahead."""
        if not self._ahead:
            return 0
        return self._ahead[-1].cells_before + self._ahead[-1].cells - self._ahead[0].cells_before

    def take_ahead(self) -> list[_TextLine]:
        """The lines ahead, which are now in a row."""
        taken = [quoted.line for quoted in self._ahead]
        self._ahead.clear()
        return taken

    def _read(self) -> _TextLine | None:
        line = next(self._lines, None)
        if line is None:
            return None
        fault = None
        try:
            text = decode(line, self._source)
        except InputError as error:
            text, fault = line.data.decode("utf-8", "surrogateescape"), error
        return _TextLine(line.number, line.offset, line.offset + len(line.data), text, fault)

    def _inside_quote(self, line: _TextLine) -> _Quoted:
        before = self._ahead[-1].cells_before + self._ahead[-1].cells if self._ahead else 0
        if '"' not in line.text:
            return _Quoted(line, 0, before, is_open=True, problem=None)
        try:
            cells, is_open = _first_row(['"' + line.text], self._delimiter)
        except csv.Error as error:
            return _Quoted(line, 0, before, is_open=False, problem=_problem(error))
        return _Quoted(line, len(cells) - 1, before, is_open=is_open, problem=None)
