"""Which documents each condition of a filter allows: bitmaps in memory, kept in step with the index's commits.

A bitmap is read by SQL once. At a later commit it is brought forward by the documents that changed since, which the
table `changes` names: those are taken out, and put in again where the condition holds for them now. So an index that is
written to all the time does not make its readers evaluate their filters again and again.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from pyroaring import BitMap

from indexer.fields import Scalar, normalise_entity
from indexer.filters import DocumentFacts, Filter, HasEntity, HasLabel, allowed, matches
from indexer.filters.ast import And, HasId, In, Not, Or
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
    """Documents that changed between two commits: the numbers of all, and those that are still there."""

    docs: BitMap
    documents: Collection[StoredDocument]

    def matching(self, leaf: Filter) -> BitMap:
        """Those for which a condition, not And, Or or Not, holds now."""
        match leaf:
            case HasEntity(str(type), str(text), "exact"):
                return self.by_entity.get((type, normalise_entity(text)), _NONE)
            case HasLabel(str(name)):
                return self.by_label.get(name, _NONE)
            case _:
                return BitMap(doc for doc, facts in self._facts if matches(leaf, facts))

    @cached_property
    def by_entity(self) -> dict[tuple[str, str], BitMap]:
        """Those that have an entity, by its type and normalised text."""
        found: dict[tuple[str, str], BitMap] = {}
        for document in self.documents:
            for span in document.spans:
                norm = normalise_entity(document.text[span.start : span.end])
                found.setdefault((span.type, norm), BitMap()).add(document.doc)
        return found

    @cached_property
    def by_label(self) -> dict[str, BitMap]:
        """Those that have a class, by its name."""
        found: dict[str, BitMap] = {}
        for document in self.documents:
            if document.label is not None:
                found.setdefault(document.label.name, BitMap()).add(document.doc)
        return found

    @cached_property
    def _facts(self) -> list[tuple[int, DocumentFacts]]:
        return [
            (
                document.doc,
                DocumentFacts(
                    document.id,
                    document.metadata,
                    document.label.name if document.label else None,
                    tuple((span.type, document.text[span.start : span.end]) for span in document.spans),
                ),
            )
            for document in self.documents
        ]


_NONE = BitMap()


class Postings:
    """Remembers bitmaps, in at most so many bytes; those that were not used for longest go first. Shared by threads."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._room = max_bytes
        self._known: dict[Filter, tuple[BitMap, int]] = {}  # with the change that each is right for
        self._deltas: dict[tuple[int, int], Delta | None] = {}
        self._mutex = threading.Lock()

    def allowed(self, connection: sqlite3.Connection, filter: Filter, position: LogPosition) -> BitMap:
        """The documents that the filter allows, not to be changed; `position` is that of the read transaction."""
        return allowed(connection, filter, known=_At(self, connection, position))

    def get(self, filter: Filter, connection: sqlite3.Connection, position: LogPosition) -> BitMap | None:
        """The bitmap of a filter, brought forward if need be; `None` where it must be read by SQL."""
        with self._mutex:
            entry = self._known.pop(filter, None)
            if entry is None:
                return None
            self._known[filter] = entry  # the last to go
        documents, last = entry
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
        self.put(filter, documents, position)
        return documents

    def put(self, filter: Filter, documents: BitMap, position: LogPosition) -> None:
        """Remember; two threads may do so at once, with the same result. A newer one stays."""
        with self._mutex:
            before = self._known.get(filter)
            if before is not None:
                if before[1] >= position.last:
                    return
                self._room += _bytes_of(filter, before[0])
                del self._known[filter]
            self._known[filter] = documents, position.last
            self._room -= _bytes_of(filter, documents)
            while self._room < 0:
                oldest = next(iter(self._known))
                self._room += _bytes_of(oldest, self._known.pop(oldest)[0])

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
    values = sum(sys.getsizeof(value) + 24 for leaf in leaves(filter) for value in _listed(leaf))
    return 768 + values + (min(2 * len(documents), documents.max() // 8 + 1) if documents else 0)


def _listed(leaf: Filter) -> Sequence[Scalar]:
    """The values that a condition lists, of which there may be very many."""
    return leaf.values if isinstance(leaf, In) else leaf.ids if isinstance(leaf, HasId) else ()
