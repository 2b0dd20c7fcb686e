"""Which documents each condition of a filter allows: bitmaps in memory, kept in step with the index's commits.

A bitmap is read by SQL once. At a later commit it is brought forward by the documents that changed since, which the
table `changes` names: those are taken out, and put in again where the condition holds for them now. So an index that is
written to all the time does not make its readers evaluate their filters again and again.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from pyroaring import BitMap

from indexer.fields import Kind, Scalar, flatten, normalise_entity, prefix_upper_bound
from indexer.filters import (
    And,
    Between,
    Compare,
    Everything,
    Exists,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    Not,
    Or,
    allowed,
)
from indexer.filters.ast import Op, without_origins
from indexer.filters.sql import leaves
from indexer.settings import read_setting
from indexer.stored import StoredDocument, read_documents

LOG_TRIMMED = "log_trimmed"
"""Setting: the number of the last change that the log may lack."""

# Where so many documents, or an eighth of all, have changed, a bitmap is read by SQL again.
MAX_CHANGED, LEAST_CHANGED = 2_000, 64
LOG_KEPT = 65_536  # changes that stay in the log for readers to follow


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where the log of changes stood at a commit: its last change, and the last one that it may lack."""

    last: int
    trimmed: int


def read_log_position(connection: sqlite3.Connection) -> LogPosition:
    """The position as of a connection's read transaction."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return LogPosition(row[0] if row else 0, read_setting(connection, LOG_TRIMMED) or 0)


def changed_docs(connection: sqlite3.Connection, after: int, *, most: int) -> BitMap | None:
    """The documents that changed after a change, as of a read transaction; `None` for too many.

    Too many are more than `most`, or more than an eighth of all.
    """
    (documents,) = connection.execute("SELECT documents FROM commits").fetchone()
    most = min(most, max(LEAST_CHANGED, documents // 8))
    rows = connection.execute("SELECT DISTINCT doc FROM changes WHERE seq > ? LIMIT ?", (after, most + 1)).fetchall()
    return BitMap(doc for (doc,) in rows) if len(rows) <= most else None


@dataclass(frozen=True)
class Delta:
    """Documents that changed between two commits: the numbers of all, and those that are still there.

    What these have is put in order once, so that thousands of conditions do not look at each of them as often.
    """

    docs: BitMap
    documents: Collection[StoredDocument]

    def matching(self, leaf: Filter) -> BitMap:
        """Those for which a condition, not And, Or or Not, holds now."""
        match leaf:
            case Compare(path, op, value):
                return BitMap(self._values_at(path, leaf.kind).compared(op, value))
            case In(path, values):
                kinds = zip(leaf.kinds, values, strict=True)
                return BitMap(chain.from_iterable(self._values_at(path, kind).equal(value) for kind, value in kinds))
            case Between(path, low, high):
                return BitMap(self._values_at(path, leaf.kind).between(low, high))
            case Exists(path):
                return BitMap(chain(self._paths.equal(path), self._paths.beginning(f"{path}.")))
            case HasLabel(name):
                return BitMap(self._labels.docs if name is None else self._labels.equal(name))
            case HasEntity(of, text, how):
                norms = self._entities.get(of, _NO_VALUES)
                if text is None:
                    return BitMap(norms.docs)
                norm = normalise_entity(text)
                return BitMap(norms.beginning(norm) if how == "prefix" else norms.equal(norm))
            case HasId(ids):
                return BitMap(chain.from_iterable(map(self._ids.equal, ids)))
            case Everything():
                return BitMap(document.doc for document in self.documents)
            case _:
                raise TypeError(f"{type(leaf).__name__} is made of conditions")

    def _values_at(self, path: str, kind: Kind) -> _Values:
        return self._fields.get((path, kind), _NO_VALUES)

    @cached_property
    def _fields(self) -> dict[tuple[str, Kind], _Values]:
        """The values of metadata, by their path and kind."""
        found: dict[tuple[str, Kind], list[tuple[Scalar, int]]] = {}
        for document in self.documents:
            for path, kind, value in flatten(document.metadata):
                found.setdefault((path, kind), []).append((value, document.doc))
        return {at: _Values(pairs) for at, pairs in found.items()}

    @cached_property
    def _paths(self) -> _Values:
        """The paths of metadata that have a value."""
        return _Values((path, doc) for (path, _), values in self._fields.items() for doc in values.docs)

    @cached_property
    def _entities(self) -> dict[str | None, _Values]:
        """The normalised texts of entities, by their type, and of all of them by `None`."""
        found: dict[str | None, list[tuple[Scalar, int]]] = {}
        for document in self.documents:
            for span in document.spans:
                pair = normalise_entity(document.text[span.start : span.end]), document.doc
                found.setdefault(span.type, []).append(pair)
                found.setdefault(None, []).append(pair)
        return {of: _Values(pairs) for of, pairs in found.items()}

    @cached_property
    def _labels(self) -> _Values:
        return _Values((document.label.name, document.doc) for document in self.documents if document.label is not None)

    @cached_property
    def _ids(self) -> _Values:
        return _Values((document.id, document.doc) for document in self.documents)


class _Values:
    """Values of one kind in order, each with a document that has it; `docs` are these, in the same order."""

    def __init__(self, pairs: Iterable[tuple[Scalar, int]]) -> None:
        ordered = sorted(pairs)
        self._values: list[Any] = [value for value, _ in ordered]
        self.docs = [doc for _, doc in ordered]

    def compared(self, op: Op, value: Scalar) -> list[int]:
        """The documents of values that compare so with this one."""
        if op in ("=", "!="):
            return self.equal(value) if op == "=" else self.compared("<", value) + self.compared(">", value)
        place = (bisect_left if op in ("<", ">=") else bisect_right)(self._values, value)
        return self.docs[:place] if op in ("<", "<=") else self.docs[place:]

    def equal(self, value: Scalar) -> list[int]:
        return self.between(value, value)

    def between(self, low: Scalar | None, high: Scalar | None) -> list[int]:
        """The documents of values that lie between, ends included; `None` leaves a side open."""
        start = 0 if low is None else bisect_left(self._values, low)
        end = len(self._values) if high is None else bisect_right(self._values, high)
        return self.docs[start:end]

    def beginning(self, prefix: str) -> list[int]:
        """The documents of texts that begin so."""
        above = prefix_upper_bound(prefix)
        end = len(self._values) if above is None else bisect_left(self._values, above)
        return self.docs[bisect_left(self._values, prefix) : end]


_NO_VALUES = _Values(())


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What a filter allows, the last change that this knows, and what it takes with its filter."""

    documents: BitMap
    last: int
    nbytes: int


class Postings:
    """Remembers bitmaps, in at most so many bytes; those that were not used for longest go first. Shared by threads."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._room = max_bytes
        self._known: OrderedDict[Filter, _Remembered] = OrderedDict()
        self._deltas: dict[tuple[int, int], Delta | None] = {}
        self._mutex = threading.Lock()

    def allowed(self, connection: sqlite3.Connection, filter: Filter, position: LogPosition) -> BitMap:
        """The documents that the filter allows, not to be changed; `position` is that of the read transaction."""
        found = self.get(filter, connection, position)
        if found is not None:
            return found
        return allowed(connection, without_origins(filter), known=_At(self, connection, position))

    def get(self, filter: Filter, connection: sqlite3.Connection, position: LogPosition) -> BitMap | None:
        """The bitmap of a filter, brought forward if need be; `None` where it must be read by SQL."""
        with self._mutex:
            entry = self._known.get(filter)
            if entry is None:
                return None
            self._known.move_to_end(filter)  # the last to go
        documents, last = entry.documents, entry.last
        if last == position.last:
            return documents
        # What And, Or and Not give follows from their parts.
        if isinstance(filter, And | Or | Not) or not position.trimmed <= last < position.last:
            return None
        delta = self.delta(connection, last, position.last)
        if delta is None:
            return None
        found = delta.matching(filter)
        if found or not documents.isdisjoint(delta.docs):
            documents = (documents - delta.docs) | found
        self.put(without_origins(filter), documents, position)
        return documents

    def put(self, filter: Filter, documents: BitMap, position: LogPosition) -> None:
        """Remember; two threads may do so at once, with the same result. A newer one stays."""
        entry = _Remembered(documents, position.last, _bytes_of(filter, documents))
        with self._mutex:
            before = self._known.get(filter)
            if before is not None:
                if before.last >= position.last:
                    return
                self._room += before.nbytes
                del self._known[filter]
            self._known[filter] = entry
            self._room -= entry.nbytes
            while self._room < 0:
                self._room += self._known.popitem(last=False)[1].nbytes

    def delta(self, connection: sqlite3.Connection, after: int, last: int) -> Delta | None:
        """What changed after one change up to another; `None` for too much. The latest few are remembered."""
        with self._mutex:
            if (after, last) in self._deltas:
                return self._deltas[after, last]
        docs = changed_docs(connection, after, most=MAX_CHANGED)
        delta = None if docs is None else Delta(docs, read_documents(connection, list(docs)).values())
        with self._mutex:
            while len(self._deltas) >= 4:
                del self._deltas[next(iter(self._deltas))]
            self._deltas[after, last] = delta
        return delta


@dataclass(frozen=True, slots=True)
class _At:
    """Postings at one commit, as `filters.allowed` asks for them."""

    postings: Postings
    connection: sqlite3.Connection
    position: LogPosition

    def get(self, filter: Filter) -> BitMap | None:
        return self.postings.get(filter, self.connection, self.position)

    def put(self, filter: Filter, documents: BitMap) -> None:
        self.postings.put(filter, documents, self.position)


def _bytes_of(filter: Filter, documents: BitMap) -> int:
    """About what a filter and its bitmap take: of the bitmap two bytes a document, or a bit for each number."""
    values = sum(sys.getsizeof(value) + 24 for leaf in leaves(filter) for value in _held(leaf))
    return 640 + values + (min(2 * len(documents), documents.max() // 8 + 1) if documents else 0)


def _held(leaf: Filter) -> Sequence[Scalar | None]:
    """The texts and values of a condition, which may be long, or very many."""
    match leaf:
        case Compare(path, _, value):
            return path, value
        case In(path, values):
            return path, *values
        case Between(path, low, high):
            return path, low, high
        case Exists(path):
            return (path,)
        case HasLabel(name):
            return (name,)
        case HasEntity(of, text):
            return of, text
        case HasId(ids):
            return ids
        case _:
            return ()
