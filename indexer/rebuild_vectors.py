"""The vectors of a damaged index on their way into new segments: those that are proven, and those made again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer import merging, store
from indexer.changes import read_commit
from indexer.codes import CodeSpace, load_code_space, new_code_space, save_code_space
from indexer.durable import vector_crc
from indexer.manifest import add_segment
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import transaction
from indexer.pages import DamagedDatabase
from indexer.postings import LOG_TRIMMED
from indexer.salvage_vectors import VectorSource, sha256_if_readable
from indexer.segments import Block, SegmentRecord, write_segment
from indexer.settings import write_setting
from indexer.sources import file_sha256

_BLOCK = 8_192  # vectors in memory at a time


class VectorPool:
    """Proven vectors by vid. Where several sources have one, that of a whole segment counts."""

    def __init__(self, sources: Iterable[VectorSource], *, removed: Set[int]) -> None:
        """`removed`: vids that are known to be dead."""
        self.sources = sorted(sources, key=lambda source: source.record is None)
        self._places: dict[int, tuple[int, int]] = {}
        self._vids_of: dict[int, list[int]] = {}
        for number, source in enumerate(self.sources):
            for at in np.flatnonzero(source.sound).tolist():
                vid = int(source.vids[at])
                if vid not in self._places:
                    self._places[vid] = (number, at)
                    if vid not in removed:
                        self._vids_of.setdefault(int(source.docs[at]), []).append(vid)

    def __contains__(self, vid: int) -> bool:
        return vid in self._places

    def has(self, vid: int, doc: int) -> bool:
        """Whether a vector is there and belongs to this document."""
        return vid in self._places and self.owner(vid) == doc

    def row(self, vid: int) -> npt.NDArray[np.float16]:
        """A vector, fp16 (dimension,)."""
        number, at = self._places[vid]
        row: npt.NDArray[np.float16] = self.sources[number].table[at]
        return row

    def owner(self, vid: int) -> int:
        """The document of a vector."""
        number, at = self._places[vid]
        return int(self.sources[number].docs[at])

    def vids_of(self, doc: int) -> list[int]:
        """The vectors of a document that are not known to be dead."""
        return self._vids_of.get(doc, [])

    @property
    def highest_vid(self) -> int:
        """0 where there is no vector."""
        return max(self._places, default=0)

    @property
    def highest_doc(self) -> int:
        """The highest document that a whole segment names, 0 where there is none."""
        return max((int(source.docs.max(initial=0)) for source in self.whole), default=0)

    @property
    def whole(self) -> list[VectorSource]:
        """Segments all of whose files are as they were written."""
        return [source for source in self.sources if source.record is not None]

    def add(self, doc: int, vids: Sequence[int], table: npt.NDArray[np.float16]) -> None:
        """Take in vectors that were made again, fp16 (n, dimension)."""
        docs = np.full(len(vids), doc, dtype=np.int64)
        self.sources.append(VectorSource(np.array(vids, dtype=np.int64), docs, table, np.ones(len(vids), dtype=bool)))
        for at, vid in enumerate(vids):
            self._places[vid] = (len(self.sources) - 1, at)

    def blocks(self, vids: Sequence[int]) -> Iterator[Block]:
        """Vectors as a segment is written of them, some at a time."""
        for start in range(0, len(vids), _BLOCK):
            some = vids[start : start + _BLOCK]
            table = np.stack([self.row(vid) for vid in some])
            yield Block(np.array(some), np.array([self.owner(vid) for vid in some]), table)


@dataclass
class SegmentRebuilder:
    """Names the vectors that are `live`, by vid with the document of each, in the new database of an index.

    - `database`: the damaged one; `space_sha256`: what it says of the code space; `codes`: of `CODE_CHOICES`.
    - `keep`: called with a file before it is replaced.
    """

    connection: sqlite3.Connection
    database: DamagedDatabase
    folder: Path
    pool: VectorPool
    live: dict[int, int]
    dimension: int
    codes: str
    space_sha256: str | None
    keep: Callable[[Path], None]

    def write(self, *, highest_doc: int) -> set[str]:
        """Whole segments stay; what is live elsewhere goes into new ones between them, the last rows are pending.

        `highest_doc`: a document number up to which none may be given again. Returns the names of the files that the
        new database names.
        """
        space = self._code_space()
        whole, rest = self._divide(coded=space is not None)
        firsts = sorted(int(source.vids[0]) for source in whole)
        groups: dict[int, list[int]] = {}
        for vid in rest:
            groups.setdefault(int(np.searchsorted(firsts, vid)), []).append(vid)
        number = read_commit(self.connection).number + 1
        records = [source.record for source in whole if source.record is not None]
        pending: list[int] = []
        for group, vids in sorted(groups.items()):
            if group == len(firsts) and len(vids) < store.SEAL_ROWS:
                pending = vids
                continue
            codes = merging.wants_codes(self.codes, len(vids), len(self.live))
            if codes and space is None:
                space = self._new_space(vids)
            records.append(self._write_segment(f"{number:010d}r{group}", vids, space if codes else None))
        with transaction(self.connection):
            for record in records:
                add_segment(self.connection, record)
            self._write_pending(pending)
            self._write_log(whole, highest_doc)
            if space is not None and any(record.rerank for record in records):
                write_setting(self.connection, CODE_SPACE_SHA256, file_sha256(self.folder / CODE_SPACE))
        named = {file.name for record in records for file in record.files}
        return named if space is None else named | {CODE_SPACE}

    def _divide(self, *, coded: bool) -> tuple[list[VectorSource], list[int]]:
        """The segments that stay, with codes only if they may be `coded`, and the live vids that are in none of them.

        A segment's numbers may not lie among another's: where some of the rest do, the segment is written anew.
        """
        whole = [source for source in self.pool.whole if coded or (source.record and not source.record.rerank)]
        rest = self._outside(whole)
        vids = np.array(rest, dtype=np.int64)
        apart = [s for s in whole if not np.any((vids >= s.vids[0]) & (vids <= s.vids[-1]))]
        return apart, rest if len(apart) == len(whole) else self._outside(apart)

    def _outside(self, whole: Sequence[VectorSource]) -> list[int]:
        held = {vid for source in whole for vid in source.vids.tolist()}
        return sorted(vid for vid in self.live if vid not in held)

    def _write_segment(self, name: str, vids: Sequence[int], space: CodeSpace | None) -> SegmentRecord:
        return write_segment(self.folder, name, self.pool.blocks(vids), dimension=self.dimension, space=space)

    def _write_pending(self, vids: Sequence[int]) -> None:
        rows = [(vid, self.live[vid], self.pool.row(vid).tobytes()) for vid in vids]
        self.connection.executemany(
            "INSERT INTO pending (vid, doc, vector, crc32) VALUES (?, ?, ?, ?)",
            [(*row, vector_crc(*row)) for row in rows],
        )

    def _write_log(self, whole: Sequence[VectorSource], highest_doc: int) -> None:
        """The log begins anew: which vectors of the segments are dead. Numbers go on behind all that were given."""
        execute = self.connection.execute
        given = {row[0]: row[1] for row in self.database.rows("sqlite_sequence") if len(row) == 2}
        seqs = [row[0] for row in self.database.rows("changes") if row and isinstance(row[0], int)]
        last = max([n for n in (given.get("changes"),) if isinstance(n, int)] + seqs + [0])
        last = last if last < 2**48 else max([*seqs, 0])
        execute("DELETE FROM changes")
        dead = [
            (vid, doc)
            for source in whole
            for vid, doc in zip(source.vids.tolist(), source.docs.tolist(), strict=True)
            if vid not in self.live
        ]
        rows = [(last + n, "remove", doc, vid) for n, (vid, doc) in enumerate(dead, start=1)]
        self.connection.executemany("INSERT INTO changes (seq, op, doc, vid) VALUES (?, ?, ?, ?)", rows)
        write_setting(self.connection, LOG_TRIMMED, last + len(dead))
        for table, highest in (
            ("documents", max(highest_doc, self.pool.highest_doc, plausible(given.get("documents")))),
            ("passages", max([*self.live, self.pool.highest_vid, plausible(given.get("passages"))])),
            ("changes", last + len(dead)),
        ):
            execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, highest))

    def _code_space(self) -> CodeSpace | None:
        """The code space as it was, `None` where no segment has codes, or it is lost."""
        file = self.folder / CODE_SPACE
        if self.space_sha256 is not None and file.is_file() and sha256_if_readable(file) == self.space_sha256:
            return load_code_space(file, dimension=self.dimension)
        return None

    def _new_space(self, vids: Sequence[int]) -> CodeSpace:
        sample = vids[:: max(1, len(vids) // 2_048)]
        space = new_code_space(np.stack([self.pool.row(vid) for vid in sample]))
        self.keep(self.folder / CODE_SPACE)
        save_code_space(space, self.folder / CODE_SPACE)
        return space


def plausible(number: object) -> int:
    """A number as documents and vectors have them, or 0 in the place of one that is damaged."""
    return number if isinstance(number, int) and 0 <= number < 2**32 - 1 else 0
