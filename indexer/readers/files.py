"""Which files a list of sources stands for, their formats, and their bytes, decompressed and counted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from indexer.errors import InputError
from indexer.metadata import is_index
from indexer.readers.options import FORMATS, ReadOptions

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = "-"

_FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
_COMPRESSIONS = (".gz", ".bz2", ".xz")
_STREAMED = ("jsonl", "csv", "tsv", "text")
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What a plain or compressed byte stream raises where it cannot be read on."""

_BUFFER_BYTES = 1 << 18
_DECOMPRESSED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file to read, or standard input.

    `path` is as the user gave it, joined with the way down from a folder. `compression` is the suffix that
    says so, or `None`. `size` is in bytes on disk, `None` for standard input.
    """

    path: str
    format: str
    compression: str | None
    size: int | None


class ByteMeter:
    """Counts the bytes of one file that are consumed: in all exactly its `size`, once it is finished."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._position = 0
        self._taken = 0

    def advance(self, count: int) -> None:
        """`count` more bytes were read."""
        self.advance_to(self._position + count)

    def advance_to(self, position: int) -> None:
        """The first `position` bytes were read; bytes that a growing file has beyond `size` don't count."""
        self._position = position if self._size is None else min(position, self._size)

    def finish(self) -> None:
        """Nothing more of the file will be read, so that the rest of it counts as consumed."""
        if self._size is not None:
            self._position = self._size

    def take(self) -> int:
        """Bytes consumed since the last call."""
        count, self._taken = self._position - self._taken, self._position
        return count


def detect_format(path: str | os.PathLike[str]) -> str | None:
    """The format that a file's suffix stands for, `None` where it stands for none.

    A compression's suffix may follow that of a format that is read as a stream. Letter case is ignored.

    >>> detect_format("a.ndjson"), detect_format("a.CSV.gz"), detect_format("a.parquet.gz")
    ('jsonl', 'csv', None)
    """
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if not suffixes:
        return None
    if suffixes[-1] in _COMPRESSIONS:
        format = _FORMAT_OF_SUFFIX.get(suffixes[-2]) if len(suffixes) > 1 else None
        return format if format in _STREAMED else None
    return _FORMAT_OF_SUFFIX.get(suffixes[-1])


def find_files(sources: Sequence[str | os.PathLike[str]], options: ReadOptions) -> Iterator[SourceFile | InputError]:
    """The files that the sources stand for, in the order they are read, and what is wrong with the others.

    A folder gives its own files sorted by name, then those of its subfolders. Hidden ones, links to folders and
    indexes are left out, and so are files of unknown suffix unless `options.format` says how to read them.
    """
    for source in sources:
        path = os.fspath(source)
        try:
            if path == STDIN:
                yield _standard_input(options)
            elif stat.S_ISDIR(_stat(path).st_mode):
                if is_index(path):
                    raise InputError(
                        "is an index, not a folder of documents: add what `indexer export` writes of it", source=path
                    )
                yield from _find_in_folder(path, options)
            else:
                yield _source_file(path, options)
        except InputError as error:
            yield error


def _standard_input(options: ReadOptions) -> SourceFile:
    format = options.format or "text"
    if format not in _STREAMED:
        raise InputError(f"{format} cannot be read from standard input: save it to a file and name that", source=STDIN)
    return SourceFile(STDIN, format, None, None)


def _find_in_folder(folder: str, options: ReadOptions) -> Iterator[SourceFile | InputError]:
    found = False
    refused: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not is_index(os.path.join(parent, name))
        )
        for name in sorted(names):
            path = os.path.join(parent, name)
            if name.startswith(".") or (options.format is None and detect_format(path) is None):
                continue
            found = True
            try:
                yield _source_file(path, options)
            except InputError as error:
                yield error
    for refusal in refused:
        yield unreadable(refusal, str(refusal.filename))
    if not found and not refused:
        known = " ".join(_FORMAT_OF_SUFFIX)
        yield InputError(
            f"no file in this folder can be read: known suffixes are {known}, or pass --format", source=folder
        )


def _source_file(path: str, options: ReadOptions) -> SourceFile:
    status = _stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            "is not a regular file: send its content to standard input and give - as the file", source=path
        )
    format = options.format or detect_format(path)
    if format is None:
        raise InputError(
            f"cannot tell the format from the name: pass --format with one of {', '.join(FORMATS)}",
            source=path,
        )
    suffix = PurePath(path).suffix.lower()
    compression = suffix if suffix in _COMPRESSIONS else None
    if compression is not None and format not in _STREAMED:
        raise InputError(f"{format} cannot be read from a compressed file: decompress it first", source=path)
    if status.st_size == 0:
        raise InputError("is empty: the file has 0 bytes", source=path)
    return SourceFile(path, format, compression, status.st_size)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise unreadable(error, path) from error


@contextmanager
def open_bytes(file: SourceFile, meter: ByteMeter) -> Iterator[BinaryIO]:
    """The file's bytes after decompression; `meter` counts those before.

    Raises `InputError` where the file cannot be opened; reading raises `READ_ERRORS`.
    """
    with ExitStack() as stack:
        if file.path == STDIN:
            if sys.stdin is None:
                raise InputError("standard input is closed", source=STDIN)
            read_into = cast(io.BufferedReader, sys.stdin.buffer).readinto1
        else:
            try:
                read_into = stack.enter_context(open(file.path, "rb", buffering=0)).readinto
            except OSError as error:
                raise unreadable(error, file.path) from error
        counted = stack.enter_context(io.BufferedReader(_CountedReader(read_into, meter), _BUFFER_BYTES))
        match file.compression:
            case ".gz":
                yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=counted)))
            case ".bz2":
                yield stack.enter_context(_decompressed(counted, bz2.BZ2Decompressor))
            case ".xz":
                yield stack.enter_context(_decompressed(counted, lzma.LZMADecompressor))
            case _:
                yield cast(BinaryIO, counted)


def unreadable(error: BaseException, path: str, *, line: int | None = None) -> InputError:
    """What to tell the user about one of `READ_ERRORS`; `line` is the last one that could be read."""
    if isinstance(error, FileNotFoundError):
        return InputError("there is no such file or folder", source=path)
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"cannot be read: {error.strerror}", source=path, line=line)
    if isinstance(error, ValueError):
        return InputError(f"is not a file name: {error}", source=path)
    return InputError(f"the compressed data is damaged or cut off: {error}", source=path, line=line)


class _CountedReader(io.RawIOBase):
    """A raw stream that tells `meter` about every byte that passes. Closing it leaves its source open."""

    def __init__(self, read_into: Callable[[WriteableBuffer], int | None], meter: ByteMeter) -> None:
        self._read_into = read_into
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._read_into(buffer)
        if count:
            self._meter.advance(count)
        return count


def _decompressed(source: io.BufferedReader[_CountedReader], new: Callable[[], _Decompressor]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_DecompressedReader(source, new), _DECOMPRESSED_BYTES))


class _Decompressor(Protocol):
    """What `bz2` and `lzma` have in common: decompresses one stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int = ...) -> bytes: ...


class _DecompressedReader(io.RawIOBase):
    """The streams of a compressed file, one behind the other; zeros may pad them.

    `bz2.BZ2File` and `lzma.LZMAFile` pass over what follows a stream and is none, so that a file of several streams,
    as parallel compressors write it, would end without a word where one of them is damaged.
    """

    def __init__(self, source: io.BufferedReader[_CountedReader], new: Callable[[], _Decompressor]) -> None:
        self._source = source
        self._new = new
        self._stream: _Decompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while True:
            stream, data = self._stream, b""
            if stream is None or stream.eof:
                data = (b"" if stream is None else stream.unused_data).lstrip(b"\0")
                while not data:
                    chunk = self._source.read1(_DECOMPRESSED_BYTES)
                    if not chunk:
                        return 0
                    data = chunk.lstrip(b"\0")
                stream = self._stream = self._new()
            elif stream.needs_input and not (data := self._source.read1(_DECOMPRESSED_BYTES)):
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if data := stream.decompress(data, len(view)):
                view[: len(data)] = data
                return len(data)
