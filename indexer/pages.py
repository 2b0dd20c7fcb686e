"""Reading the rows of a damaged SQLite file, page by page, where SQLite itself gives up.

The file format: https://sqlite.org/fileformat2.html. Three things make more readable than SQLite can read. The tables'
first pages are where every index of this format has them, so that the schema may be damaged. A pointer map, which an
`auto_vacuum` database has, names the parent of every page, so that a table's leaves are found also below a damaged
inner page. And each frame of the write-ahead log can be checked by itself, so that one damaged frame does not take
those behind it away. What is read here may be wrong: the caller checks it against digests.
"""

from __future__ import annotations

import errno
import operator
import os
import sqlite3
import struct
import weakref
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from indexer.metadata import PAGE_SIZE, migrate

Row = tuple[Any, ...]
"""The values of a row in the order of the table's columns; a table with a rowid has it in the place of its key."""

_LEAF_INDEX, _LEAF_TABLE, _INNER_INDEX, _INNER_TABLE = 0x0A, 0x0D, 0x02, 0x05
_LOG_HEADER, _FRAME_HEADER = 32, 24
_SECTOR = 4_096
_POINTERS = PAGE_SIZE // 5  # entries of a page of the pointer map
_LOCK_PAGE = 2**30 // PAGE_SIZE + 1
_BROKEN = (IndexError, ValueError, struct.error, OverflowError)


@dataclass(frozen=True, slots=True)
class Cell:
    """One row as it stands in a page: its rowid (`None` in an index) and its record."""

    rowid: int | None
    record: bytes

    def values(self) -> Row:
        """The decoded row. Raises `ValueError` where it cannot be one."""
        try:
            return tuple(_decode(self.record, self.rowid, exact=True))
        except _BROKEN as error:
            raise ValueError(f"damaged record: {error}") from error


class DamagedDatabase:
    """The pages of a database and of its log, whatever state they are in. Nothing is written."""

    def __init__(self, path: Path, *, whole_log: bool) -> None:
        """`whole_log`: also frames of the log that SQLite would pass over, because one before them is damaged."""
        self._main = _read(path)
        self._log = _read(path.with_name(path.name + "-wal"))
        there = -(-len(self._main) // PAGE_SIZE)
        self._frames = _frames(self._log, pages=there, whole=whole_log)
        self.page_count = max([there, *self._frames])
        self._owners: dict[int, int] | None = None

    def page(self, number: int) -> bytes:
        """A page as of the last commit that can be read, filled up with zeros where the file ends."""
        at = self._frames.get(number)
        source, start = (self._main, (number - 1) * PAGE_SIZE) if at is None else (self._log, at)
        return source[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")

    def cells(self, table: str) -> Iterator[Cell]:
        """All cells of a table or an index that can be found; damaged ones may be among them, or missing."""
        _, leaf = _roots()[table]
        for number in self.pages(table):
            yield from self._cells(number, leaf)

    def pages(self, table: str) -> list[int]:
        """The pages of a table or an index."""
        root, _ = _roots()[table]
        return [number for number, owner in self._owned().items() if owner == root]

    def rows(self, table: str) -> Iterator[Row]:
        """The rows of a table; what cannot be decoded is left out."""
        for cell in self.cells(table):
            try:
                yield cell.values()
            except ValueError:
                continue

    def _owned(self) -> dict[int, int]:
        """The first page of the table of each page that belongs to one."""
        if self._owners is None:
            owners: dict[int, int] = {}
            for root, _ in _roots().values():
                self._descend(root, root, owners)
            self._add_orphans(owners)
            self._owners = owners
        return self._owners

    def _descend(self, number: int, root: int, owners: dict[int, int]) -> None:
        waiting = [number]
        while waiting:
            number = waiting.pop()
            if number in owners or not 0 < number <= self.page_count:
                continue
            kind, parent = self._pointer(number)
            if number != root and kind in (1, 2) and parent not in owners:
                continue  # free, or another table's first page: the way here is damaged
            owners[number] = root
            waiting += self._children(number)

    def _add_orphans(self, owners: dict[int, int]) -> None:
        """Pages that the pointer map knows below a page whose own pointers are damaged."""
        parents = {number: self._pointer(number) for number in range(3, self.page_count + 1) if number not in owners}
        for number in parents:
            path, at = [], number
            while at in parents and at not in path and parents[at][0] == 5:
                path.append(at)
                at = parents[at][1]
            if at in owners:
                owners.update(dict.fromkeys(path, owners[at]))

    def _pointer(self, number: int) -> tuple[int, int]:
        """(kind, parent) of a page by the pointer map: 1 first page, 2 free, 3 and 4 overflow, 5 other."""
        map_page = (number - 2) // (_POINTERS + 1) * (_POINTERS + 1) + 2
        map_page += map_page == _LOCK_PAGE
        at = 5 * (number - map_page - 1)
        if at < 0:
            return 0, 0
        kind, parent = struct.unpack_from(">BI", self.page(map_page), at)
        return kind, parent

    def _children(self, number: int) -> list[int]:
        page, start = self.page(number), 100 if number == 1 else 0
        if page[start] not in (_INNER_INDEX, _INNER_TABLE):
            return []
        pointers = _cell_pointers(page, start)
        children = [struct.unpack_from(">I", page, at)[0] for at in pointers if at + 4 <= PAGE_SIZE]
        return [*children, *struct.unpack_from(">I", page, start + 8)]

    def _cells(self, number: int, leaf: int) -> Iterator[Cell]:
        page, start = self.page(number), 100 if number == 1 else 0
        kind = page[start]
        if kind == _INNER_TABLE:
            return
        if kind not in (_LEAF_TABLE, _LEAF_INDEX, _INNER_INDEX):
            kind = leaf  # most pages are; what is read wrongly has no digest that is right
        for at in _cell_pointers(page, start):
            try:
                yield self._cell(page, at, kind)
            except _BROKEN:
                continue

    def _cell(self, page: bytes, at: int, kind: int) -> Cell:
        if kind == _INNER_INDEX:
            at += 4
        size, at = _varint(page, at)
        rowid = None
        if kind == _LEAF_TABLE:
            rowid, at = _varint(page, at)
        most = PAGE_SIZE - 35 if kind == _LEAF_TABLE else (PAGE_SIZE - 12) * 64 // 255 - 23
        if size <= most:
            return Cell(rowid, page[at : at + size])
        if size > self.page_count * PAGE_SIZE:
            raise ValueError(f"a record of {size} bytes")
        least = (PAGE_SIZE - 12) * 32 // 255 - 23
        local = least + (size - least) % (PAGE_SIZE - 4)
        local = local if local <= most else least
        parts, left = [page[at : at + local]], size - local
        (following,) = struct.unpack_from(">I", page, at + local)
        while left > 0 and 0 < following <= self.page_count:
            overflow = self.page(following)
            parts.append(overflow[4 : 4 + left])
            left -= len(parts[-1])
            (following,) = struct.unpack_from(">I", overflow, 0)
        return Cell(rowid, b"".join(parts))


@cache
def _roots() -> dict[str, tuple[int, int]]:
    """The first page of each table and index, and the kind of its leaves: the same in all that the migrations made."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        migrate(connection)
        rows = connection.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0").fetchall()
        data = connection.serialize()
        return {name: (root, data[(root - 1) * PAGE_SIZE]) for name, root in rows}


class SectorFile:
    """The bytes of a file, with zeros for the sectors that the disk cannot read.

    They would end a process that maps the file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        ends = [*range(start - start % _SECTOR + _SECTOR, stop, _SECTOR), stop]
        return b"".join(self._sector(first, last) for first, last in pairwise([start, *ends]))

    def _sector(self, start: int, stop: int) -> bytes:
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return bytes(stop - start)


def _read(path: Path) -> SectorFile | bytes:
    return SectorFile(path) if path.is_file() else b""


def _frames(log: SectorFile | bytes, *, pages: int, whole: bool) -> dict[int, int]:
    """The offset in the log of the last version of each page, as of the last commit."""
    step = _FRAME_HEADER + PAGE_SIZE
    count = max(0, len(log) - _LOG_HEADER) // step
    starts = [_LOG_HEADER + n * step for n in range(count)]
    heads = [struct.unpack(">IIIIII", log[at : at + _FRAME_HEADER]) for at in starts]
    if not heads:
        return {}
    magic, _, _, _, *salts = struct.unpack(">IIIIII", log[:24])
    before = struct.unpack(">II", log[24:_LOG_HEADER])
    if _checksum(log[:24], (0, 0), magic) != before:
        if not whole:
            return {}
        salts, magic = list(heads[0][2:4]), 0x377F0682  # the log's own header is what is damaged
    limit = pages + count  # the database cannot be larger
    last: dict[int, int] = {}
    uncommitted: dict[int, int] = {}
    for n, (number, size, salt, other, *checksum) in enumerate(heads):
        at = _LOG_HEADER + n * step
        if [salt, other] != salts:
            if whole:
                continue
            break
        sound = whole or tuple(checksum) == (
            before := _checksum(log[at : at + 8] + log[at + 24 : at + step], before, magic)
        )
        if not sound:
            break
        uncommitted[number] = at + _FRAME_HEADER
        if size:
            last |= uncommitted
            uncommitted = {}
    return {number: at for number, at in last.items() if 0 < number <= limit}


def _checksum(data: bytes, before: tuple[int, ...], magic: int) -> tuple[int, int]:
    """SQLite's checksum of a log. Its recurrence s ← M s + B x, modulo 2³², is summed up with the powers of M."""
    words = np.frombuffer(data, dtype=">u4" if magic & 1 else "<u4").astype(np.uint32)
    first, second = words[::2], words[1::2]
    weights = _weights(len(first))
    a, b, c = weights[:-1, 0][::-1], weights[:-1, 1][::-1], weights[:-1, 2][::-1]
    top, low = first, first + second
    s0, s1 = np.uint32(before[0]), np.uint32(before[1])
    start = weights[-1]
    with np.errstate(over="ignore"):
        one = np.uint32(start[0] * s0 + start[1] * s1) + (a * top + b * low).sum(dtype=np.uint32)
        two = np.uint32(start[1] * s0 + start[2] * s1) + (b * top + c * low).sum(dtype=np.uint32)
    return int(one), int(two)


@cache
def _weights(steps: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """M⁰ … Mⁿ for M = (1 1; 1 2), each as its entries 00, 01 and 11; modulo 2³²."""
    powers = [(1, 0, 1)]
    for _ in range(steps):
        a, b, c = powers[-1]
        powers.append(((a + b) % 2**32, (b + c) % 2**32, (b + 2 * c) % 2**32))
    return np.array(powers, dtype=np.uint32)


def _cell_pointers(page: bytes, start: int) -> list[int]:
    inner = page[start] in (_INNER_INDEX, _INNER_TABLE)
    (count,) = struct.unpack_from(">H", page, start + 3)
    first = start + (12 if inner else 8)
    count = min(count, (PAGE_SIZE - first) // 2)
    return [at for at in struct.unpack_from(f">{count}H", page, first) if at >= first]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(9):
        byte = data[at + n]
        if n == 8:
            value = value << 8 | byte
            return (value - 2**64 if value >= 2**63 else value), at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    raise ValueError("unreachable")


_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def rows_that_begin_with(page: bytes, key: str) -> Iterator[Row]:
    """Rows (number, key, …) that stand somewhere in a page, whatever its header and its pointers say.

    Also those of which one bit is wrong in what says how long each value is. The number is `None`.
    """
    wanted = key.encode()
    length = 2 * len(wanted) + 13
    kind = bytes([length]) if length < 128 else bytes([length >> 7 | 0x80, length & 0x7F])
    at = page.find(wanted)
    while at >= 0:
        for start in range(max(0, at - 40), at - 2):
            header = bytes([at - start, 0]) + kind
            if sum(map(operator.ne, header, page[start : start + len(header)])) <= 1:
                yield from _rows_at(page, start, at)
        at = page.find(wanted, at + 1)


def _rows_at(page: bytes, start: int, end: int) -> Iterator[Row]:
    """The row whose record begins at `start`, as it is and with each bit up to `end` turned."""
    data = bytearray(page[start:])
    for bit in (None, *range(8 * (end - start))):
        if bit is not None:
            data[bit // 8] ^= 1 << bit % 8
        with suppress(*_BROKEN):
            yield tuple(_decode(bytes(data), None, exact=False))
        if bit is not None:
            data[bit // 8] ^= 1 << bit % 8


def _decode(record: bytes, rowid: int | None, *, exact: bool) -> Iterator[Any]:
    end, at = _varint(record, 0)
    types, body = [], end
    while at < end:
        kind, at = _varint(record, at)
        types.append(kind)
    for n, kind in enumerate(types):
        if kind == 0:
            yield rowid if n == 0 else None  # SQLite stores NULL for the column that is the rowid
        elif kind in _INTEGERS:
            size = _INTEGERS[kind]
            yield int.from_bytes(record[body : body + size], "big", signed=True)
            body += size
        elif kind == 7:
            yield struct.unpack_from(">d", record, body)[0]
            body += 8
        elif kind in (8, 9):
            yield kind - 8
        elif kind >= 12:
            size = (kind - 12) // 2
            value = record[body : body + size]
            yield value if kind % 2 == 0 else value.decode("utf-8", "replace")
            body += size
        else:
            raise ValueError(f"serial type {kind}")
    if body > len(record) or (exact and body != len(record)):
        raise ValueError(f"values of {body} bytes in a record of {len(record)}")
