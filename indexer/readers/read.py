"""Sources in, documents out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from indexer.errors import InputError
from indexer.readers.delimited import read_delimited
from indexer.readers.documents import Record, document_of, missing_everywhere
from indexer.readers.files import STDIN, ByteMeter, SourceFile, find_files
from indexer.readers.jsonl import read_jsonl
from indexer.readers.options import DEFAULT_OPTIONS, ReadOptions
from indexer.readers.parquet import read_parquet
from indexer.readers.sqlite import read_sqlite
from indexer.readers.text import read_text
from indexer.records import Document


def read_documents(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    on_error: Callable[[InputError], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """The documents of one or several files, folders and standard input ("-"), in order, one in memory at a time.

    Without `on_error`, the first record or file that cannot be read raises its `InputError`. With it, it is
    called with each such error, and reading goes on with the next record, or with the next file where the
    rest of one is lost. `on_progress` is called with the number of bytes on disk that were consumed since its
    last call; over a whole run they add up to `total_bytes`.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    for file in find_files(sources, options):
        for item in [file] if isinstance(file, InputError) else _read_file(file, options, on_progress):
            if isinstance(item, Document):
                yield item
            elif on_error is None:
                raise item
            else:
                on_error(item)


def total_bytes(sources: Sequence[str | os.PathLike[str]], options: ReadOptions = DEFAULT_OPTIONS) -> int | None:
    """Size on disk of all that `read_documents` would read, `None` where standard input takes part.

    Sources that cannot be read count nothing; `read_documents` reports them.
    """
    if any(os.fspath(source) == STDIN for source in sources):
        return None
    return sum(file.size or 0 for file in find_files(sources, options) if isinstance(file, SourceFile))


def _read_file(
    file: SourceFile, options: ReadOptions, on_progress: Callable[[int], None] | None
) -> Iterator[Document | InputError]:
    meter = ByteMeter(file.size)
    empty, named, first = True, False, None
    try:
        for record in _read_records(file, options, meter):
            empty = False
            if isinstance(record, Record):
                named = named or any(name in record.fields for name in options.text_names)
                first = first or record
            _report(meter, on_progress)
            yield record if isinstance(record, InputError) else _document_or_error(record, options, file.path)
        if empty:
            yield InputError("is empty: there is no record in it", source=file.path)
        if first is not None and not named and options.text_fields and not options.text_required:
            yield missing_everywhere(options, first.fields, source=file.path)
    except InputError as error:
        yield error
    meter.finish()
    _report(meter, on_progress)


def _report(meter: ByteMeter, on_progress: Callable[[int], None] | None) -> None:
    count = meter.take()
    if count and on_progress is not None:
        on_progress(count)


def _read_records(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    match file.format:
        case "jsonl":
            return read_jsonl(file, meter)
        case "csv" | "tsv":
            return read_delimited(file, options, meter)
        case "parquet":
            return read_parquet(file, options, meter)
        case "sqlite":
            return read_sqlite(file, options, meter)
        case _:
            return read_text(file, options, meter)


def _document_or_error(record: Record, options: ReadOptions, source: str) -> Document | InputError:
    try:
        return document_of(record, options, source)
    except InputError as error:
        return error
