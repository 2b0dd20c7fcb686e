"""What each document has of one kind, in memory, to be counted: its class, its entities of a type, a field's values.

A column is read by SQL once, and then follows the commits by the documents that changed, which the table `changes`
names. Those are kept apart from the large arrays, which thus are shared by all commits, until there are enough of them
to make new arrays.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from indexer.attributes import Attribute, Changed, Key
from indexer.fields import Kind, Scalar
from indexer.postings import LogPosition, changed_docs

Integers = npt.NDArray[np.int64]
Pairs = tuple[Integers, Integers]
"""Documents, each as often as it has values, and the codes of those."""

FOLD = 32_768  # documents that changed; of more, new arrays are made
MAX_FOLLOWED = 32_768  # documents; where more changed, or an eighth of all, a column is read by SQL again
FREQUENT = 1_024  # documents that a value has; from so many on, counting it is an intersection of bitmaps
SPARSE = 8  # a column that fewer than one document in so many has is looked up by search, not by document number
STATES = 4  # commits for which a column is kept, so that an older snapshot does not read it by SQL again
SURFACES = 10_000
# What counting costs, in nanoseconds (scripts/bench_facets.py): a value of a document, where each has one and where it
# may have several; a document of a value that is not frequent, and a frequent value.
BY_DOCUMENT, BY_DOCUMENTS, BY_RARE, BY_FREQUENT = 6, 22, 8, 12_000
_BLOCK = 8_192  # documents; what they have fits into the processor's cache
_GATHERED = 65_536  # pairs, the same
_PARSED = 2**23  # characters of document numbers that are parsed at once


class Values:
    """Distinct values in order: by kind, then by value. Their places are their codes."""

    __slots__ = ("_bounds", "ordered")

    def __init__(self, keys: Sequence[Key]) -> None:
        """`keys` in order, none twice."""
        self.ordered: list[Scalar] = [value for _, value in keys]
        counts = [0] * len(Kind)
        for kind, _ in keys:
            counts[kind] += 1
        self._bounds = [0, *np.cumsum(counts).tolist()]

    def __len__(self) -> int:
        return len(self.ordered)

    def key(self, code: int) -> Key:
        return Kind(bisect_right(self._bounds, code) - 1), self.ordered[code]

    def code(self, key: Key) -> int | None:
        kind, value = key
        low, high = self._bounds[kind], self._bounds[kind + 1]
        at = bisect_left(self.ordered, value, low, high)  # of one kind
        return at if at < high and self.ordered[at] == value else None

    def nbytes(self) -> int:
        return sum(map(sys.getsizeof, self.ordered)) + 8 * len(self.ordered)


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """The documents of each value at one commit: what counts a large share of all documents fastest.

    `frequent`: codes of values that many documents have, each with these. Of the others, `docs`, uint32 (pairs,), has
    the documents, code by code, and `ends`, int64 (values,), where those of each code end; frequent ones have none.
    """

    frequent: tuple[tuple[int, BitMap], ...]
    docs: npt.NDArray[np.uint32]
    ends: Integers

    def counts(self, docs: BitMap) -> Integers:
        """How many of some documents have each value: int64, by code."""
        found = np.zeros(len(self.ends), dtype=np.int64)
        if docs and len(self.docs):
            inside = np.zeros(max(int(docs.max()), int(self.docs.max())) + 1, dtype=np.uint8)
            inside[_array(docs)] = 1
            running = np.zeros(len(self.docs) + 1, dtype=np.uint32)
            for start in range(0, len(self.docs), _GATHERED):  # so that little is read twice from memory
                part = self.docs[start : start + _GATHERED]
                running[start + 1 : start + 1 + len(part)] = inside.take(part, mode="clip")
            np.cumsum(running, out=running)
            reached = running[self.ends].astype(np.int64)
            found[0] = reached[0]
            found[1:] = reached[1:] - reached[:-1]
        for code, having in self.frequent:
            found[code] = docs.intersection_cardinality(having)
        return found


@dataclass(slots=True, eq=False)
class Base:
    """The values of documents at one commit, as arrays.

    A document's row is its number, or with `docs`, uint32 (rows,), ascending, its place there. `offsets`, int64
    (rows + 1,), say which of `codes` a row has; without them it has one, of the same place. `present`: the documents
    that have a value; of `pairs` of a document and a value, `rare` are of values that are not frequent, the others of
    `frequent` ones. Nothing in it changes, but for what is made when it is first needed.
    """

    values: Values
    docs: npt.NDArray[np.uint32] | None
    offsets: Integers | None
    codes: npt.NDArray[np.unsignedinteger]
    present: BitMap
    pairs: int
    rare: int
    frequent: int
    nbytes: int
    _inverted: Inverted | None = None

    def inverted(self) -> Inverted:
        """Made when it is first asked for; two threads may both make it, and it is the same."""
        if self._inverted is None:
            docs = _array(self.present)
            codes, lengths = self.codes_of(docs)
            owners = docs.astype(np.int64) if lengths is None else np.repeat(docs.astype(np.int64), lengths)
            size = int(docs[-1]) + 1 if len(docs) else 1
            pairs = codes * np.int64(size) + owners
            pairs.sort()
            sorted_docs = (pairs % size).astype(np.uint32)
            counts = np.bincount(pairs // size, minlength=len(self.values))
            ends = np.cumsum(counts)
            frequent = [(code, BitMap(sorted_docs[ends[code] - counts[code] : ends[code]])) for code in _many(counts)]
            rare = np.repeat(counts < FREQUENT, counts)
            ends = np.cumsum(np.where(counts < FREQUENT, counts, 0))
            self._inverted = Inverted(tuple(frequent), sorted_docs[rare], ends)
        return self._inverted

    def counts(self, docs: BitMap) -> Integers:
        """How many of some documents, each of which has a value, have each value: int64, by code."""
        pairs = self.pairs * len(docs) / max(1, len(self.present))
        by_document = pairs * (BY_DOCUMENT if self.offsets is None else BY_DOCUMENTS)
        if by_document > BY_RARE * self.rare + BY_FREQUENT * self.frequent:
            return self.inverted().counts(docs)
        numbers = _array(docs)
        parts = [self.codes_of(numbers[start : start + _BLOCK])[0] for start in range(0, len(numbers), _BLOCK)]
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return np.bincount(flat, minlength=len(self.values))

    def codes_of(self, docs: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.unsignedinteger], Integers | None]:
        """All codes of documents, each of which has some; how many each has, `None` for one."""
        rows = docs if self.docs is None else np.searchsorted(self.docs, docs)
        if self.offsets is None:
            return self.codes[rows], None
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        places = np.repeat(starts - (ends - lengths), lengths)
        places += np.arange(len(places))
        return self.codes[places], lengths


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of documents at one commit. Nothing in it changes, so that threads can share it.

    - `last`: the last change that it knows.
    - `stale`: documents that changed since `base`; `fresh`: those of them that have a value, ascending, with each code.
    - `present`: the documents that have a value, `totals`, int64: how many have each, by code.
    - `extra`: values that `base` lacks; their codes follow those of its own.
    - `surfaces`: forms of values that were looked up in texts; forgotten when a document with that value changes.
    """

    base: Base
    last: int
    stale: BitMap
    fresh: Pairs
    present: BitMap
    totals: Integers
    extra: tuple[Key, ...] = ()
    surfaces: dict[int, str] = field(default_factory=dict)

    def key(self, code: int) -> Key:
        """The value of a code, with its kind."""
        own = len(self.base.values)
        return self.base.values.key(code) if code < own else self.extra[code - own]

    def counts(self, docs: BitMap | None) -> Integers:
        """How many of some documents (`None`: of all) have each value: int64, by code."""
        if docs is None:
            return self.totals
        inside = docs & self.present
        if 2 * len(inside) <= len(self.present):
            return self._counted(inside)
        return self.totals - self._counted(self.present - inside)

    def grouped(self, docs: BitMap | None, groups: Integers, size: int) -> Integers:
        """How many of some documents have a value of each group: int64 (size,). `groups`: that of each code."""
        if self.base.offsets is None and (np.diff(self.fresh[0]) > 0).all():
            counted = np.bincount(groups, weights=self.counts(docs), minlength=size)
            return counted.astype(np.int64)
        counts = np.zeros(size, dtype=np.int64)
        for owners, codes in self._pairs(self.present if docs is None else docs & self.present):
            pairs = np.unique(owners * size + groups[codes])
            counts += np.bincount(pairs % size, minlength=size)
        return counts

    def following(self, changed: BitMap, now: Mapping[int, set[Key]], last: int) -> Column:
        """This column after the changes up to number `last`: `now` has the keys of the documents that changed."""
        extra = {key: len(self.base.values) + at for at, key in enumerate(self.extra)}
        owners: list[int] = []
        added: list[int] = []
        for doc in sorted(now):
            for key in sorted(now[doc]):
                code = self.base.values.code(key)
                added.append(extra.setdefault(key, len(self.base.values) + len(extra)) if code is None else code)
                owners.append(doc)
        new = np.array(added, dtype=np.int64)
        kept = ~np.isin(self.fresh[0], _array(changed))
        docs = np.concatenate([self.fresh[0][kept], np.array(owners, dtype=np.int64)])
        order = np.argsort(docs, kind="stable")
        fresh = docs[order], np.concatenate([self.fresh[1][kept], new])[order]
        size = len(self.base.values) + len(extra)
        gone = self._counted(changed & self.present)
        came = np.bincount(new, minlength=size)
        totals = np.zeros(size, dtype=np.int64)
        totals[: len(self.totals)] = self.totals - gone
        totals += came
        touched = set(np.flatnonzero(gone).tolist()) | set(added)
        column = Column(
            base=self.base,
            last=last,
            stale=self.stale | changed,
            fresh=fresh,
            present=(self.present - changed) | BitMap(now),
            totals=totals,
            extra=tuple(extra),
            surfaces={code: text for code, text in list(self.surfaces.items()) if code not in touched},
        )
        return column._folded() if len(column.stale) > FOLD else column

    def nbytes(self) -> int:
        """About what it takes beside its base."""
        own = self.totals.nbytes + sum(array.nbytes for array in self.fresh)
        return 4_096 + own + 150 * len(self.extra) + len(self.present) // 4

    def _counted(self, docs: BitMap) -> Integers:
        """How many of some documents, which all have a value, have each."""
        counts = np.bincount(self._fresh_pairs(docs)[1], minlength=len(self.totals))
        counts[: len(self.base.values)] += self.base.counts(docs - self.stale)
        return counts

    def _pairs(self, docs: BitMap) -> Iterator[tuple[Integers, npt.NDArray[np.integer]]]:
        """Documents, which all have a value, with each of their codes, in blocks."""
        numbers = _array(docs - self.stale)
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK]
            codes, lengths = self.base.codes_of(block)
            yield block.astype(np.int64) if lengths is None else np.repeat(block.astype(np.int64), lengths), codes
        yield self._fresh_pairs(docs)

    def _fresh_pairs(self, docs: BitMap) -> Pairs:
        """The same of those that changed."""
        wanted = np.isin(self.fresh[0], _array(docs & self.stale))
        return self.fresh[0][wanted], self.fresh[1][wanted]

    def _folded(self) -> Column:
        """The same with arrays of its own, in which no document is apart and every value is used."""
        used = np.flatnonzero(self.totals)
        keys = [self.key(code) for code in used.tolist()]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        code_of = np.zeros(len(self.totals), dtype=np.int64)
        code_of[used[order]] = np.arange(len(used))
        pairs = list(self._pairs(self.present))
        docs = np.concatenate([owners for owners, _ in pairs])
        codes = np.concatenate([code_of[codes] for _, codes in pairs])
        column = make_column([keys[at] for at in order], docs, codes, last=self.last)
        column.surfaces.update({int(code_of[code]): text for code, text in list(self.surfaces.items())})
        return column


def read_column(connection: sqlite3.Connection, attribute: Attribute, *, last: int) -> Column:
    """A column as of a connection's read transaction, by SQL."""
    keys: list[Key] = []
    sizes: list[int] = []
    parsed: list[Integers] = []
    texts: list[str] = []
    waiting = 0
    for key, docs in attribute.rows(connection):
        keys.append(key)
        sizes.append(docs.count(",") + 1)
        texts.append(docs)
        waiting += len(docs) + 1
        if waiting > _PARSED:
            parsed.append(np.fromstring(",".join(texts), dtype=np.int64, sep=","))
            texts, waiting = [], 0
    if texts:
        parsed.append(np.fromstring(",".join(texts), dtype=np.int64, sep=","))
    codes = np.arange(len(keys))
    if not all(before < after for before, after in pairwise(keys)):  # several values may have one key
        ordered = sorted(set(keys))
        place = {key: at for at, key in enumerate(ordered)}
        codes, keys = np.array([place[key] for key in keys], dtype=np.int64), ordered
    docs_of = np.concatenate(parsed) if parsed else np.zeros(0, dtype=np.int64)
    return make_column(keys, docs_of, np.repeat(codes, sizes), last=last)


def make_column(keys: Sequence[Key], docs: Integers, codes: Integers, *, last: int) -> Column:
    """A column of pairs (document, code), int64, in any order, repeated or not. `keys`: the values, in order."""
    values = Values(keys)
    size = max(len(values), 1)
    pairs = docs * size + codes
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    docs, codes = np.divmod(pairs, size)
    totals = np.bincount(codes, minlength=len(values))
    firsts = np.flatnonzero(np.diff(docs, prepend=-1))
    owners = docs[firsts]
    small = codes.astype(np.min_scalar_type(size))
    single = len(owners) == len(docs)
    rows: npt.NDArray[np.uint32] | None = None
    offsets: Integers | None = None
    if len(owners) * SPARSE < (int(owners[-1]) if len(owners) else 1):
        rows = owners.astype(np.uint32)
        offsets = None if single else np.append(firsts, len(docs))
    elif single:
        table = np.zeros(int(owners[-1]) + 1 if len(owners) else 0, dtype=small.dtype)
        table[owners] = small
        small = table
    else:
        offsets = np.concatenate([[0], np.cumsum(np.bincount(docs))])
    nbytes = values.nbytes() + small.nbytes + sum(array.nbytes for array in (rows, offsets) if array is not None)
    nbytes += 4 * len(docs) + 8 * len(values)  # of the documents by value
    present = BitMap(owners.astype(np.uint32))
    rare, frequent = int(totals[totals < FREQUENT].sum()), int((totals >= FREQUENT).sum())
    base = Base(values, rows, offsets, small, present, len(docs), rare, frequent, nbytes)
    return Column(base, last, BitMap(), _no_pairs(), present, totals)


class Columns:
    """Remembers columns, in at most so many bytes; those that were not used for longest go first. Shared by threads."""

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._changed: tuple[tuple[int, int], Changed | None] = ((0, 0), None)  # after one change, up to another
        self._known: dict[Attribute, tuple[Column, ...]] = {}  # at most STATES each, in the order of their changes
        self._making: dict[Attribute, threading.Lock] = {}
        self._mutex = threading.Lock()

    def get(self, connection: sqlite3.Connection, attribute: Attribute, position: LogPosition) -> Column:
        """The column at the commit of a connection's read transaction, which `position` is that of."""
        with self._mutex:
            making = self._making.setdefault(attribute, threading.Lock())
        with making:  # who wants the same column waits for it, instead of reading it as well
            with self._mutex:
                states = self._known.pop(attribute, ())
                if states:
                    self._known[attribute] = states  # the last to go
            before = next((column for column in reversed(states) if column.last <= position.last), None)
            if before is not None and before.last == position.last:
                return before
            changed = None
            if before is not None and position.trimmed <= before.last:
                changed = self._changed_between(connection, before.last, position.last)
            if before is not None and changed is not None:
                now = attribute.changed(changed, connection)
                column = before.following(changed.docs, now, position.last)
            else:
                column = read_column(connection, attribute, last=position.last)
            self._put(attribute, column)
            return column

    def nbytes(self) -> int:
        """About what all that is remembered takes."""
        with self._mutex:
            return sum(map(_bytes_of, self._known.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._mutex:
            self._known.clear()

    def _changed_between(self, connection: sqlite3.Connection, after: int, last: int) -> Changed | None:
        """What changed, `None` for too much. The latest is remembered: all columns follow the same commits."""
        with self._mutex:
            known, changed = self._changed
        if known == (after, last):
            return changed
        docs = changed_docs(connection, after, most=MAX_FOLLOWED)
        changed = None if docs is None else Changed(docs)
        with self._mutex:
            self._changed = ((after, last), changed)
        return changed

    def _put(self, attribute: Attribute, column: Column) -> None:
        with self._mutex:
            states = sorted((*self._known.pop(attribute, ()), column), key=lambda state: state.last)[-STATES:]
            self._known[attribute] = tuple(states)
            used = sum(map(_bytes_of, self._known.values()))
            while used > self._max_bytes and self._known:
                used -= _bytes_of(self._known.pop(next(iter(self._known))))


def _bytes_of(states: Sequence[Column]) -> int:
    bases = {id(column.base): column.base.nbytes for column in states}
    return sum(bases.values()) + sum(column.nbytes() for column in states)


def _no_pairs() -> Pairs:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def _many(counts: Integers) -> list[int]:
    found: list[int] = np.flatnonzero(counts >= FREQUENT).tolist()
    return found


def _array(docs: BitMap) -> npt.NDArray[np.uint32]:
    return np.frombuffer(docs.to_array(), dtype=np.uint32) if docs else np.zeros(0, dtype=np.uint32)
