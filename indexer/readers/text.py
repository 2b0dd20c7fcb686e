"""Plain text: a file is one document, or each of its lines is."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from indexer.errors import InputError
from indexer.readers.documents import Record
from indexer.readers.files import READ_ERRORS, STDIN, ByteMeter, SourceFile, open_bytes, unreadable
from indexer.readers.lines import Line, decode, read_lines
from indexer.readers.options import ReadOptions


def read_text(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    """One record for the file without its last line end, or one for each line that is not blank.

    Standard input is always read by line, so that it need not end before its first document comes.
    """
    if options.lines or file.path == STDIN:
        yield from _read_by_line(file, meter)
    else:
        yield from _read_whole(file, meter)


def _read_by_line(file: SourceFile, meter: ByteMeter) -> Iterator[Record | InputError]:
    for line in read_lines(file, meter):
        try:
            text = decode(line, file.path)
        except InputError as error:
            yield error
            continue
        if not text.isspace():
            origin = {} if file.path == STDIN else {"path": file.path, "line": line.number}
            yield Record({"text": _without_line_end(text)}, line.number, origin)


def _read_whole(file: SourceFile, meter: ByteMeter) -> Iterator[Record]:
    with open_bytes(file, meter) as stream:
        try:
            data = stream.read()
        except READ_ERRORS as error:
            raise unreadable(error, file.path) from error
    mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    if len(data) > mark:
        text = decode(Line(1, mark, data[mark:]), file.path)
        yield Record({"text": _without_line_end(text)}, None, {"path": file.path})


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
