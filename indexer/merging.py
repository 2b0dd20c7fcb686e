"""Keeping segments few and full: merges run in a thread beside the writer, which commits what they have written.

Which segments are merged, and when a merge is committed, depends on the index's content only, never on the clock.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from indexer.changes import Change, read_commit, write_commit
from indexer.codes import CodeSpace, load_code_space, new_code_space, save_code_space
from indexer.compaction import SegmentSize, full_merges, next_merge
from indexer.durable import sync
from indexer.errors import CorruptIndexError, TagdexError
from indexer.manifest import add_segment, delete_files, drop_segments, naming, read_segments
from indexer.metadata import transaction
from indexer.postings import LOG_KEPT, LOG_TRIMMED, read_log_position
from indexer.segments import (
    Block,
    SegmentRecord,
    check_files,
    live_blocks,
    new_name,
    open_segment,
    write_segment,
)
from indexer.settings import read_setting, write_setting
from indexer.sources import file_sha256
from indexer.vectors import Segment

CODE_SPACE = "codes.space.npy"
CODE_SPACE_SHA256, CODES = "code_space_sha256", "codes"

CODE_CHOICES = ("auto", "always", "never")
"""Which segments get codes: those of `CODES_FROM` rows or more, all of an index of `ALL_CODED_FROM`, all, or none."""

CODES_FROM = 32_768  # rows of a segment; below, scanning the vectors themselves is fast enough
# Rows of an index. In a large one a few segments without codes, of 1 % of its rows, were a fifth of a search.
ALL_CODED_FROM = 131_072

_MOST_UNDER_WAY = 8  # merges, each of which holds what it reads open


@dataclass(frozen=True, slots=True)
class _Merge:
    """A merge under way: what it reads, the name of what it writes, and the last change that it knows of.

    It is `ripe`, to be waited for and committed, when vectors up to that vid are sealed.
    """

    name: str
    records: tuple[SegmentRecord, ...]
    rows: int
    removed: int
    last_change: int
    ripe: int
    written: Future[SegmentRecord | None]

    @property
    def range(self) -> tuple[int, int]:
        """First and last vid."""
        return self.records[0].first_vid, self.records[-1].last_vid


def wants_codes(choice: str, rows: int, of_index: int) -> bool:
    """Whether a segment of so many rows gets codes, by one of `CODE_CHOICES` and the rows of the whole index."""
    return choice == "always" or (choice == "auto" and (rows >= CODES_FROM or of_index >= ALL_CODED_FROM))


class Merger:
    """The merges of one index folder, for its writer. One runs at a time; they are committed in their order.

    Each counts on those before it. When one fails, or waiting for it is interrupted, those behind it are given up.
    """

    def __init__(
        self, connection: sqlite3.Connection, folder: Path, dimension: int, *, check_place: Callable[[], None]
    ) -> None:
        """`connection` is the writer's, `folder` that of the segments.

        `check_place` raises where the folder has become another index's, whose files may have the same names.
        """
        self._check_place = check_place
        self._connection = connection
        self._folder = folder
        self._dimension = dimension
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="merge")
        self._under_way: deque[_Merge] = deque()
        self._given_up = threading.Event()  # of the merges that are under way; later ones get another
        self._names = ("", 0)  # the stem that names began with last, and how many of them there were
        self._closed = False

    @property
    def codes(self) -> str:
        """One of `CODE_CHOICES`."""
        choice: str = read_setting(self._connection, CODES) or "auto"
        return choice

    def choose_codes(self, choice: str) -> None:
        """From now on segments get codes by this choice. Raises `TagdexError` for one that there is not."""
        if choice not in CODE_CHOICES:
            raise TagdexError(f"unknown choice of codes '{choice}'; there are {', '.join(CODE_CHOICES)}")
        if choice != self.codes:
            with transaction(self._connection):
                write_setting(self._connection, CODES, choice)

    def keep_few(self) -> int:
        """After each new segment: commit what is ripe, start what is due; returns how many merges were committed.

        A merge has time until as many vectors as it writes have been added, which is more than it needs. A writer
        that waited for each as soon as another was due lost a tenth of its time.
        """
        sealed, committed = self._last_sealed(), 0
        while self._under_way and self._under_way[0].ripe <= sealed:
            self._finish_first()
            committed += 1
        self._start_due()
        return committed

    def catch_up(self) -> int:
        """Commit all merges that are under way or due; returns how many."""
        committed = 0
        self._start_due()
        while self._under_way:
            committed += self._finish()
            self._start_due()
        return committed

    def merge_all(self) -> int:
        """Leave no dead row, as few segments as there can be, and codes where they are wanted; returns the merges."""
        committed = self._finish()
        for names in full_merges(self._sizes()):
            self._start(names)
            self._finish_first()
            committed += 1
        return committed + self.code_rest(full=True)

    def code_rest(self, *, full: bool = False) -> int:
        """Write segments anew that lack the codes that are wanted; with `full` also those whose codes are not wanted.

        Returns how many. It is left for when adding ends, as most small segments soon become part of a larger one.
        """
        committed = 0
        for record in read_segments(self._connection):
            wanted, coded = self._wants_codes(record.rows), record.rerank > 0
            if (wanted and not coded) or (full and coded and not wanted):
                self._start([record.name])
                self._finish_first()
                committed += 1
        return committed

    def _finish(self) -> int:
        """Wait for the merges under way and commit them; returns how many there were."""
        count = len(self._under_way)
        while self._under_way:
            self._finish_first()
        return count

    def _finish_first(self) -> None:
        """Wait for the first merge under way and commit it."""
        try:
            merged = self._under_way[0].written.result()
            self._check_place()  # waiting may have taken minutes
            merge = self._under_way.popleft()
            with naming(self._connection, self._folder, merged):
                drop_segments(self._connection, merge.records)
                if merged is not None:
                    add_segment(self._connection, merged)
                self.trim_log(*merge.range, known=merge.last_change)
                write_commit(self._connection, read_commit(self._connection).following(Change()))
        except BaseException:
            self._give_up()
            raise
        for record in merge.records:  # readers that were about to open them read the manifest again
            delete_files(self._folder, record)

    def _give_up(self) -> None:
        """Forget the merges under way; what they read stays, and what they write goes."""
        self._given_up.set()
        self._given_up = threading.Event()
        while self._under_way:
            written = self._under_way.pop().written
            written.cancel()
            written.add_done_callback(self._delete_written)

    def _delete_written(self, written: Future[SegmentRecord | None]) -> None:
        if not written.cancelled() and written.exception() is None and (record := written.result()) is not None:
            with suppress(OSError, TagdexError):  # the next writer deletes it
                self._check_place()
                delete_files(self._folder, record)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def close(self) -> None:
        """Give up the merges under way."""
        self._closed = True
        self._give_up()
        self._thread.shutdown(cancel_futures=True)

    def trim_log(self, first: int, last: int, *, known: int) -> None:
        """Forget changes that nobody needs once a new segment has the vids first to last, in the caller's transaction.

        `known`: the last change that the segment takes account of; what was removed up to there is not in it. With a
        new segment a reader reads the pending vectors anew; of the log it needs what is dead in segments, and which
        documents changed lately.
        """
        trimmed = max(0, read_log_position(self._connection).last - LOG_KEPT)
        gone = (
            "op = 'remove' AND (vid BETWEEN :first AND :last AND seq <= :known"
            " OR NOT EXISTS (SELECT 1 FROM segments WHERE changes.vid BETWEEN first_vid AND last_vid))"
        )
        values = {"first": first, "last": last, "known": known, "trimmed": trimmed}
        self._connection.execute(
            f"UPDATE changes SET op = 'update', vid = NULL WHERE seq > :trimmed AND {gone}", values
        )
        self._connection.execute(
            "DELETE FROM changes WHERE seq <= :trimmed AND (op = 'update'"
            f" OR (op = 'add' AND vid NOT IN (SELECT vid FROM pending)) OR ({gone}))",
            values,
        )
        write_setting(self._connection, LOG_TRIMMED, trimmed)

    def _start_due(self) -> None:
        """Start the merges that are due, but for one that is to read what another still writes."""
        while len(self._under_way) < _MOST_UNDER_WAY and (names := next_merge(self._sizes())):
            if any(merge.name in names for merge in self._under_way):
                return
            self._start(names)

    def _last_sealed(self) -> int:
        """The last vid in a segment, 0 where there is none."""
        last: int = self._connection.execute("SELECT coalesce(max(last_vid), 0) FROM segments").fetchone()[0]
        return last

    def _start(self, names: Sequence[str]) -> None:
        """Begin to write the live vectors of neighbouring segments as one."""
        records = tuple(record for record in read_segments(self._connection) if record.name in names)
        rows = self._connection.execute(
            "SELECT vid FROM changes WHERE op = 'remove' AND vid BETWEEN ? AND ? ORDER BY vid",
            (records[0].first_vid, records[-1].last_vid),
        ).fetchall()
        removed = np.array([vid for (vid,) in rows], dtype=np.int64)
        try:
            segments = [
                open_segment(self._folder, record, dimension=self._dimension).without(removed) for record in records
            ]
        except FileNotFoundError as error:
            raise CorruptIndexError(
                f"{error} is named by the index but is not there; run 'indexer verify {self._folder.parent}'"
            ) from error
        live = sum(segment.live_rows for segment in segments)
        space = self._code_space(segments) if live and self._wants_codes(live) else None
        self._under_way.append(
            _Merge(
                name := self._new_name(),
                records,
                live,
                len(removed),
                read_log_position(self._connection).last,
                self._last_sealed() + live,
                self._thread.submit(self._write, name, records, segments, space, self._given_up),
            )
        )

    def _new_name(self) -> str:
        """Named by the next commit, as sealed segments are, and by its place among the merges that began before it.

        No name comes twice, as a merge that was given up may still be writing.
        """
        stem = f"{read_commit(self._connection).number + 1:010d}m"
        count = self._names[1] if self._names[0] == stem else 0
        self._names = (stem, count + 1)
        return new_name(self._folder, f"{stem}{count or ''}")

    def _write(
        self,
        name: str,
        records: Sequence[SegmentRecord],
        segments: list[Segment],
        space: CodeSpace | None,
        given_up: threading.Event,
    ) -> SegmentRecord | None:
        """In the thread: write the merged segment; `None` where nothing is live. Takes the segments out of their list.

        What is merged is checked first, lest damage be copied under a new checksum.
        """
        for record in records:
            if given_up.is_set():
                raise InterruptedError("the merge was given up")
            check_files(self._folder, record)
        if not any(segment.live_rows for segment in segments):
            return None
        blocks = _blocks(segments, given_up)
        return write_segment(self._folder, name, blocks, dimension=self._dimension, space=space)

    def _wants_codes(self, rows: int) -> bool:
        of_index = self._connection.execute("SELECT coalesce(sum(rows), 0) FROM segments").fetchone()[0]
        return wants_codes(self.codes, rows, of_index)

    def _sizes(self) -> list[SegmentSize]:
        """The segments as they will be when the merges under way are committed."""
        sizes = {
            name: (first, SegmentSize(name, rows, dead))
            for name, first, rows, dead in self._connection.execute(
                "SELECT name, first_vid, rows, (SELECT count(*) FROM changes WHERE op = 'remove' AND"
                " vid BETWEEN first_vid AND last_vid) FROM segments"
            ).fetchall()
        }
        for merge in self._under_way:
            dead = sum(sizes.pop(record.name)[1].dead for record in merge.records) - merge.removed
            if merge.rows:
                sizes[merge.name] = merge.range[0], SegmentSize(merge.name, merge.rows, dead)
        return [size for _, size in sorted(sizes.values(), key=itemgetter(0))]

    def _code_space(self, segments: Sequence[Segment]) -> CodeSpace:
        """The index's rotation and centre; drawn from these segments the first time."""
        path = self._folder / CODE_SPACE
        known = read_setting(self._connection, CODE_SPACE_SHA256)
        if known is not None:
            if not path.is_file() or file_sha256(path) != known:
                raise CorruptIndexError(f"{path} is not what was written; run 'indexer verify {self._folder.parent}'")
            return load_code_space(path, dimension=self._dimension)
        if not path.is_file():  # else a commit that failed named it, and may yet turn out to be done: it stays
            sample = np.concatenate([segment.table[:: max(1, len(segment) // 2_048)] for segment in segments])
            save_code_space(new_code_space(sample), path)
        sync(self._folder)
        with transaction(self._connection):
            write_setting(self._connection, CODE_SPACE_SHA256, file_sha256(path))
        return load_code_space(path, dimension=self._dimension)


def _blocks(segments: list[Segment], given_up: threading.Event) -> Iterator[Block]:
    """The live vectors of segments, each of which is let go of, with what is mapped of it, once it is copied."""
    while segments:
        for block in live_blocks([segments.pop(0)]):
            if given_up.is_set():
                raise InterruptedError("the merge was given up")
            yield block
