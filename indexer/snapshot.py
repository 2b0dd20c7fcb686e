"""One commit of an index, held still: what queries read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pyroaring import BitMap

from indexer import keywords, vectors
from indexer.attributes import Attribute
from indexer.codes import CodeSpace
from indexer.columns import Column, Columns
from indexer.durable import vector_crc
from indexer.errors import ClosedError, CorruptIndexError
from indexer.fields import has_lone_surrogate
from indexer.filters import Filter
from indexer.metadata import select_in
from indexer.planner import Candidates, SearchPlan, search_segments_many
from indexer.postings import LogPosition, Postings
from indexer.records import FloatArray
from indexer.settings import INDEX_ID, read_setting
from indexer.stored import StoredDocument, read_documents
from indexer.vectors import Segment

if TYPE_CHECKING:
    from indexer.reader import IndexReader


@dataclass(frozen=True, slots=True)
class View:
    """The vectors of one commit. Nothing in it changes, so that searches of several threads can share it.

    `tail` holds vectors that are in no segment yet, in the order of their vids. `log`: where the log of changes stood.
    """

    commit: int
    segments: tuple[Segment, ...]
    tail: tuple[Segment, ...]
    seen_change: int
    space: CodeSpace | None
    log: LogPosition

    @property
    def all(self) -> tuple[Segment, ...]:
        """Segments and tail."""
        return (*self.segments, *self.tail)


class Snapshot:
    """One commit of an index, valid inside `IndexReader.snapshot()`."""

    def __init__(
        self, reader: IndexReader, connection: sqlite3.Connection, view: View, *, postings: Postings, columns: Columns
    ) -> None:
        self._reader = reader
        self._connection: sqlite3.Connection | None = connection
        self.view = view
        self._postings, self._columns = postings, columns

    @property
    def connection(self) -> sqlite3.Connection:
        """In the read transaction of this commit. Raises `ClosedError` where the snapshot has ended."""
        if self._connection is None:
            raise ClosedError("this snapshot has ended: ask inside its with block")
        return self._connection

    def end(self) -> None:
        """Let the connection go, which is another snapshot's from now on."""
        self._connection = None

    def is_of(self, reader: IndexReader) -> bool:
        """Whether a reader has made it."""
        return self._reader is reader

    def count(self) -> int:
        """Number of documents."""
        return int(self.connection.execute("SELECT documents FROM commits").fetchone()[0])

    @property
    def index_id(self) -> str | None:
        """What tells the index from others; `None` for one that an earlier version made."""
        name: str | None = read_setting(self.connection, INDEX_ID)
        return name

    def last_vid(self) -> int:
        """The highest number that a vector was given up to this commit."""
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'passages'").fetchone()
        return int(row[0]) if row else 0

    def written_after(self, vid: int) -> BitMap:
        """The documents that are new, or have a new text, since this was the highest number of a vector."""
        rows = self.connection.execute("SELECT DISTINCT doc FROM passages WHERE vid > ?", (vid,))
        return BitMap(doc for (doc,) in rows)

    def allowed(self, filter: Filter) -> BitMap:
        """The numbers of the documents for which the filter is true; not to be changed."""
        return self._postings.allowed(self.connection, filter, self.view.log)

    def column(self, attribute: Attribute) -> Column:
        """What each document has of an attribute, to be counted; read by SQL once, then it follows the commits."""
        return self._columns.get(self.connection, attribute, self.view.log)

    def search_vectors(
        self, query: FloatArray, n: int, *, allowed: BitMap | None = None, path: str = "auto", parallel: bool = True
    ) -> tuple[Candidates, SearchPlan]:
        """The n best passages, best first, of the allowed documents (`None`: of all), and how they were found.

        `query` fp32 (dimension,), of any length but zero. With `parallel`, segments are searched by several threads.
        """
        return self.search_vectors_many(query[None], n, allowed=allowed, path=path, parallel=parallel)[0]

    def search_vectors_many(
        self, queries: FloatArray, n: int, *, allowed: BitMap | None = None, path: str = "auto", parallel: bool = True
    ) -> list[tuple[Candidates, SearchPlan]]:
        """As `search_vectors`, for several queries, fp32 (queries, dimension), with one pass over the codes."""
        mask = None
        if allowed is not None:
            highest = max((segment.highest_doc for segment in self.view.all), default=0)
            mask = np.zeros(highest + 1, dtype=bool)
            docs = np.frombuffer(allowed.to_array(), dtype=np.uint32)
            mask[docs[docs <= highest]] = True
        return search_segments_many(
            self.view.all,
            vectors.normalise(queries),
            n,
            space=self.view.space,
            allowed_docs=mask,
            path=path,
            helpers=self._reader.helpers if parallel else None,
        )

    def match_words(self, expression: str, n: int, allowed: BitMap | None) -> list[tuple[int, float]]:
        """The n allowed documents (`None`: all) that match best, (doc, BM25), best first, with those that tie.

        `expression` in FTS5's syntax.
        """
        return keywords.match(self.connection, expression, n, allowed)

    def passages_with_words(self, expression: str, docs: Sequence[int]) -> dict[int, int]:
        """For each of these documents the vid of the passage with the most matching words, the first of several."""
        words = keywords.matched_words(self.connection, expression, docs)
        best: dict[int, tuple[int, int]] = {}
        for doc, vid, start, end in self._passages(docs):
            count = keywords.count_within(words.get(doc, ()), start, end)
            if doc not in best or count > best[doc][0]:
                best[doc] = count, vid
        return {doc: vid for doc, (_, vid) in best.items()}

    def matched_words(self, expression: str, docs: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """For each of these documents that match: the offsets of the words that do, in their order."""
        return keywords.matched_words(self.connection, expression, docs)

    def passages_of(self, docs: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
        """(vid, start, end) of all passages of each of these documents, in the order of the text."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for doc, vid, start, end in self._passages(docs):
            found.setdefault(doc, []).append((vid, start, end))
        return found

    def scores_of(self, query: FloatArray, vids: Sequence[int]) -> dict[int, float]:
        """The cosines of these vectors, by vid. `query` fp32 (dimension,), of any length but zero."""
        unit = vectors.normalise(query[None])[0]
        return dict(vectors.scores_of(self.view.all, np.array(sorted(vids), dtype=np.int64), unit))

    def best_passages(self, query: FloatArray, docs: Sequence[int]) -> dict[int, tuple[int, float]]:
        """For each of these documents the vid and cosine of its best passage. `query` fp32 (dimension,)."""
        unit = vectors.normalise(query[None])[0]
        owners = {vid: doc for doc, vid, _, _ in self._passages(docs)}
        best: dict[int, tuple[int, float]] = {}
        for vid, score in vectors.scores_of(self.view.all, np.array(sorted(owners), dtype=np.int64), unit):
            doc = owners[vid]
            if doc not in best or score > best[doc][1]:
                best[doc] = vid, score
        if missing := set(docs) - best.keys():
            raise CorruptIndexError(f"document number {min(missing)} has no vector; run 'indexer verify'")
        return best

    def _passages(self, docs: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """(doc, vid, start, end) of all passages of documents, in the order of their vids."""
        return self.connection.execute(
            'SELECT doc, vid, start, "end" FROM passages WHERE doc IN (SELECT value FROM json_each(?)) ORDER BY vid',
            (str([int(doc) for doc in docs]),),
        ).fetchall()

    def documents(self, docs: Sequence[int]) -> dict[int, StoredDocument]:
        """Whole documents by number, checked against their digests."""
        return read_documents(self.connection, docs)

    def ids(self, docs: Sequence[int]) -> dict[int, str]:
        """The ids of documents by number. Raises `CorruptIndexError` for a number that does not exist."""
        rows = self.connection.execute(
            "SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
            (str([int(doc) for doc in docs]),),
        )
        ids: dict[int, str] = dict(rows.fetchall())
        if missing := set(docs) - ids.keys():
            raise CorruptIndexError(
                f"document number {min(missing)} has a vector, but is not there: the index is damaged; "
                "run 'indexer verify'"
            )
        return ids

    def number_of(self, id_: str) -> int | None:
        """The number of the document with this id."""
        row = self.connection.execute("SELECT doc FROM documents WHERE id = ?", (id_,)).fetchone()
        return None if row is None else int(row[0])

    def numbers_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers of the documents with these ids, by id; ids that are not there are left out."""
        wanted = [id_ for id_ in dict.fromkeys(ids) if not has_lone_surrogate(id_)]
        numbers: dict[str, int] = dict(select_in(self.connection, "SELECT id, doc FROM documents WHERE id IN", wanted))
        return numbers

    def document_vector(self, doc: int) -> FloatArray:
        """The embedding of a whole document, fp32 (dimension,), of length 1 up to fp16."""
        vector: FloatArray = self.document_vectors([doc])[0]
        return vector

    def document_vectors(self, docs: Sequence[int]) -> FloatArray:
        """The embeddings of whole documents, in their order, fp32 (documents, dimension), of length 1 up to fp16."""
        table = np.zeros((len(docs), self._reader.settings.dimension), dtype=np.float32)
        numbers = str([int(doc) for doc in docs])
        read = self.connection.execute
        pooled = {}
        for doc, vector, crc in read(
            "SELECT doc, vector, crc32 FROM pooled WHERE doc IN (SELECT value FROM json_each(?))", (numbers,)
        ):
            if vector_crc(0, doc, vector) != crc:
                raise CorruptIndexError(
                    f"the vector of document number {doc} does not match its checksum; run 'indexer verify'"
                )
            pooled[doc] = vector
        single = {doc: vid for doc, vid, _, _ in self._passages([doc for doc in docs if doc not in pooled])}
        found = self.vectors_of(sorted(single.values()))
        for row, doc in enumerate(docs):
            if doc in pooled:
                table[row] = np.frombuffer(pooled[doc], dtype="<f2")
            elif doc in single and single[doc] in found:
                table[row] = found[single[doc]]
            else:
                raise CorruptIndexError(f"document number {doc} has no vector; run 'indexer verify'")
        return table

    def texts_of(self, docs: Sequence[int]) -> dict[int, str]:
        """The texts of documents by number, as they are stored."""
        rows = self.connection.execute(
            "SELECT doc, text FROM documents WHERE doc IN (SELECT value FROM json_each(?))",
            (str([int(doc) for doc in docs]),),
        )
        texts: dict[int, str] = dict(rows.fetchall())
        return texts

    def vectors_of(self, vids: Sequence[int]) -> dict[int, FloatArray]:
        """The stored vectors with these numbers, ascending; those that are in no segment are left out."""
        wanted = np.array(vids, dtype=np.int64)
        found: dict[int, FloatArray] = {}
        for segment in self.view.all if len(wanted) else ():
            at = np.searchsorted(segment.vids, wanted)
            here = np.flatnonzero(at < len(segment))
            here = here[segment.vids[at[here]] == wanted[here]]
            found.update(zip(wanted[here].tolist(), segment.table[at[here]].astype(np.float32), strict=True))
        return found
