"""Compaction: which segments are merged, what stays of vectors and log, readers that go on, kills, size."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    DemoAnalyser,
    InterruptedCommits,
    build_index,
    build_vector_index,
    check_consistent,
    clustered,
    entries,
    table_rows,
    vector_entries,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import compaction, merging, store
from indexer import segments as segment_files
from indexer.api import compact_index
from indexer.compaction import FAN_IN, SegmentSize, full_merges, next_merge, tier_of
from indexer.errors import CorruptIndexError, ReplacedIndexError
from indexer.reader import IndexReader, folder_bytes
from indexer.records import Document, FloatArray
from indexer.settings import settings_of_vectors
from indexer.snapshot import Snapshot
from indexer.store import IndexWriter
from indexer.verify import verify_index

WIDTH = 16
TIERS = (40, 160, 640)
TABLE = clustered(2_000, dimension=WIDTH, seed=5)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "TIERS", TIERS)
    monkeypatch.setattr(store, "SEAL_ROWS", TIERS[0])
    monkeypatch.setattr("indexer.merging.CODES_FROM", TIERS[1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


def rows_of(path: Path) -> list[int]:
    """Rows of each segment, in the order of their vectors."""
    return [row[3] for row in sorted(table_rows(path, "segments"), key=lambda row: row[1])]


def files_of(path: Path) -> set[str]:
    return {file.name for file in (path / "segments").iterdir()}


def answers(snapshot: Snapshot, *, n: int = 10, path: str = "scan") -> list[list[tuple[str, float]]]:
    """Ids and scores for a few queries."""
    found = [snapshot.search_vectors(query, n, path=path)[0] for query in TABLE[::199]]
    ids = snapshot.ids(sorted({doc for each in found for doc in each.docs.tolist()}))
    return [[(ids[doc], score) for doc, score in zip(f.docs.tolist(), f.scores.tolist(), strict=True)] for f in found]


def expected_answers(live: Sequence[int], *, n: int = 10, table: FloatArray = TABLE) -> list[list[tuple[str, float]]]:
    """Brute force over the vectors of documents d<number>."""
    stored = table.astype(np.float16).astype(np.float64)
    result = []
    for query in TABLE[::199].astype(np.float64):
        unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
        scores = np.clip(stored[list(live)] @ unit, -1, 1)
        result.append([(f"d{live[at]}", float(scores[at])) for at in np.argsort(-scores, kind="stable")[:n]])
    return result


def assert_answers(path: Path, live: Sequence[int], *, table: FloatArray = TABLE) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        found = answers(snapshot)
    for ours, theirs in zip(found, expected_answers(live, table=table), strict=True):
        assert [id_ for id_, _ in ours] == [id_ for id_, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-6)


# What is merged: decisions


def sizes(*rows: int | tuple[int, int]) -> list[SegmentSize]:
    pairs = [row if isinstance(row, tuple) else (row, 0) for row in rows]
    return [SegmentSize(f"{number}", *pair) for number, pair in enumerate(pairs)]


@pytest.mark.parametrize(("rows", "tier"), [(1, 0), (40, 0), (159, 0), (160, 1), (639, 1), (640, 2), (10**6, 2)])
def test_size_classes(rows: int, tier: int) -> None:
    assert tier_of(rows) == tier


@pytest.mark.parametrize(
    ("segments", "merged"),
    [
        (sizes(), ""),
        (sizes(40, 40, 40), ""),
        (sizes(40, 40, 40, 40), "0123"),
        (sizes(160, 40, 40, 40, 40, 40), "1234"),
        (sizes(160, 160, 160, 160), "0123"),
        (sizes(160, 160, 160, 160, 40, 40, 40, 40), "4567"),  # the small ones first
        (sizes(40, 40, 160, 40, 40), ""),
        (sizes(640, 640, 640, 640, 640), ""),  # the largest class stays
        (sizes((100, 29)), ""),
        (sizes((100, 30)), "0"),
        (sizes(640, (640, 192), 40), "1"),
        (sizes((40, 40)), "0"),
    ],
)
def test_the_next_merge(segments: list[SegmentSize], merged: str) -> None:
    assert "".join(next_merge(segments)) == merged


@pytest.mark.parametrize(
    ("segments", "merged"),
    [
        (sizes(), []),
        (sizes(40), []),
        (sizes((40, 1)), ["0"]),
        (sizes(40, 160), ["01"]),
        (sizes(640, 640), []),
        (sizes(640, (640, 1), 640), ["1"]),
        (sizes(640, 40, 640), []),
        (sizes(640, 40, 40, 640, 160), ["12"]),
        (sizes(300, 300, 300), ["01"]),
        (sizes((600, 300), (600, 300), 40), ["012"]),
        (sizes((600, 300), (600, 300), 41), ["01"]),
        (sizes((40, 40), (40, 40)), ["01"]),
    ],
)
def test_the_groups_of_a_full_compaction(segments: list[SegmentSize], merged: list[str]) -> None:
    assert ["".join(names) for names in full_merges(segments)] == merged


_SEALS = st.lists(st.integers(1, 700), min_size=1, max_size=120)


def merged(segments: list[SegmentSize], names: list[str]) -> list[SegmentSize]:
    """The list after a merge."""
    chosen = [segment for segment in segments if segment.name in names]
    at = segments.index(chosen[0])
    assert [segment.name for segment in segments[at : at + len(chosen)]] == names  # neighbours, in their order
    live = sum(segment.rows - segment.dead for segment in chosen)
    new = [SegmentSize(f"{chosen[0].name}+", live, 0)] if live else []
    return [*segments[:at], *new, *segments[at + len(chosen) :]]


@given(seals=_SEALS)
@settings(max_examples=200, deadline=None)
def test_whatever_is_sealed_the_segments_stay_few(seals: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "TIERS", TIERS)
        segments: list[SegmentSize] = []
        for number, rows in enumerate(seals):
            segments = [*segments, SegmentSize(f"{number}", rows, 0)]
            while names := next_merge(segments):
                segments = merged(segments, names)
            assert sum(segment.rows for segment in segments) == sum(seals[: number + 1])
            large = sum(segment.rows >= TIERS[-1] for segment in segments)
            small = (FAN_IN - 1) * (len(TIERS) - 1)
            assert len(segments) - large <= small * (large + 1)


@given(count=st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_a_vector_is_written_about_three_times(count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "TIERS", TIERS)
        segments: list[SegmentSize] = []
        written = 0
        for number in range(count):
            segments = [*segments, SegmentSize(f"{number}", TIERS[0], 0)]
            written += TIERS[0]
            while names := next_merge(segments):
                written += sum(segment.rows for segment in segments if segment.name in names)
                segments = merged(segments, names)
        assert written <= 3 * count * TIERS[0]
        assert len(segments) <= 2 * (FAN_IN - 1) + count * TIERS[0] / TIERS[-1]


@given(
    segments=st.lists(
        st.tuples(st.integers(1, 900), st.floats(0, 1)).map(lambda pair: (pair[0], int(pair[0] * pair[1]))), max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_no_dead_row_is_left_by_a_full_compaction_and_a_second_one_has_nothing_to_do(
    segments: list[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "TIERS", TIERS)
        after = sizes(*segments)
        for names in full_merges(after):
            after = merged(after, names)
        assert all(segment.dead == 0 for segment in after)
        assert full_merges(after) == []


# What a merge leaves


def test_adding_merges_by_itself(path: Path) -> None:
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        seen = []
        for first in range(0, 800, 40):
            writer.write(vector_entries(TABLE[first : first + 40], first=first))
            seen.append(rows_of(path))
    # A merge begins beside the writer when it is due, and is committed when as many vectors as it has were added, or at
    # the end. One that reads what another writes begins when that is committed.
    assert seen[:4] == [[40], [40] * 2, [40] * 3, [40] * 4]
    assert seen[6:8] == [[40] * 7, [160, *[40] * 4]]
    assert seen[14:16] == [[160, 160, *[40] * 7], [160, 160, 160, *[40] * 4]]
    assert seen[-2:] == [[160, 160, 160, *[40] * 7], [160, 160, 160, 160, *[40] * 4]]
    assert rows_of(path) == [640, 160]
    assert max(map(len, seen)) == 10
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert [segment.codes is not None for segment in snapshot.view.segments] == [True, True]
    assert verify_index(path).faults == ()
    check_consistent(path)
    assert_answers(path, range(800))


def test_a_merge_has_time_until_as_many_vectors_as_it_has_were_added(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    write = merging.Merger._write

    def slowly(self: merging.Merger, *arguments: Any) -> Any:
        assert let_go.wait(60)
        return write(self, *arguments)

    monkeypatch.setattr(merging.Merger, "_write", slowly)
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        for first in range(0, 280, 40):  # the first merge is due after 160, and ripe after 320
            writer.write(vector_entries(TABLE[first : first + 40], first=first))
        assert rows_of(path) == [40] * 7
        let_go.set()
        writer.write(vector_entries(TABLE[280:320], first=280))
        assert rows_of(path) == [160, *[40] * 4]
    assert_answers(path, range(320))


def test_indexes_that_are_opened_often_and_closed_have_few_segments_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS_ON_CLOSE", 10)
    for first in range(0, 400, 20):
        with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
            writer.write(vector_entries(TABLE[first : first + 20], first=first))
    assert len(rows_of(path)) <= 2 * (FAN_IN - 1)
    assert_answers(path, range(400))


@pytest.mark.parametrize(
    ("codes", "first", "second"), [("auto", [True, False], [True] * 4), ("never", [False] * 2, [False] * 4)]
)
def test_every_segment_that_is_left_in_a_large_index_has_codes(
    path: Path, monkeypatch: pytest.MonkeyPatch, codes: str, first: list[bool], second: list[bool]
) -> None:
    monkeypatch.setattr("indexer.merging.ALL_CODED_FROM", 240)

    def add(first: int, end: int) -> list[bool]:
        with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
            writer.compact(codes=codes)
            for at in range(first, end, 40):
                writer.write(vector_entries(TABLE[at : at + 40], first=at))
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            return [segment.codes is not None for segment in snapshot.view.segments]

    assert (add(0, 200), rows_of(path)) == (first, [160, 40])
    assert (add(200, 280), rows_of(path)) == (second, [160, 40, 40, 40])
    assert_answers(path, range(280))
    before = files_of(path)
    IndexWriter(path).close()
    assert files_of(path) == before  # nothing is written a second time
    assert verify_index(path).faults == ()


def build(path: Path, count: int = 400) -> Path:
    return build_vector_index(path, TABLE[:count], batch=40)


def test_a_full_compaction_leaves_no_dead_vector_and_one_segment(path: Path) -> None:
    build(path)
    gone = set(range(0, 400, 3))
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in gone])
        assert writer.compact(full=True) == 1
        assert rows_of(path) == [400 - len(gone)]
        assert writer.compact(full=True) == 0
    live = [n for n in range(400) if n not in gone]
    ids = np.load(next((path / "segments").glob("*.ids.npy")))
    assert ids[:2].tolist() == [[n + 1 for n in live], [n + 1 for n in live]]
    with IndexReader(path) as reader:
        info = reader.info()
    assert (info.dead, info.documents, info.pending) == (0, len(live), 0)
    assert verify_index(path).faults == ()
    check_consistent(path)
    assert_answers(path, live)


def test_vids_and_documents_of_what_lives_stay(path: Path) -> None:
    build(path)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in range(100, 300)])
        before = (table_rows(path, "passages"), [row[:2] for row in table_rows(path, "documents")])
        writer.compact(full=True)
        assert (table_rows(path, "passages"), [row[:2] for row in table_rows(path, "documents")]) == before


def test_an_index_that_lost_all_its_documents_has_no_segment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    build(path, 100)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in range(100)])
        writer.compact(full=True)
        assert (rows_of(path), table_rows(path, "changes")) == ([], [])
        writer.write(vector_entries(TABLE[:5]))
        writer.seal()
        assert rows_of(path) == [5]
    assert {row[0] for row in table_rows(path, "passages")} == set(range(101, 106))  # numbers are not used again
    assert_answers(path, range(5))
    assert verify_index(path).faults == ()


def test_files_of_what_was_merged_are_gone(path: Path) -> None:
    build(path)
    before = files_of(path)
    compact_index(path)
    named = {row[0] for row in table_rows(path, "segment_files")}
    assert files_of(path) == named | {"codes.space.npy"}
    assert not (before - {"codes.space.npy"}) & named


@pytest.mark.parametrize("suffix", [".fp16.faiss", ".ids.npy", ".codes.faiss", ".codes.npy"])
def test_a_missing_file_is_named_by_the_merge_that_needs_it(path: Path, suffix: str) -> None:
    build_vector_index(path, TABLE[:300], batch=40)
    compact_index(path, codes="always")
    with IndexWriter(path) as writer:
        writer.write(vector_entries(TABLE[300:340], first=300))
        file = min((path / "segments").glob(f"*{suffix}"))
        file.unlink()
        with pytest.raises(CorruptIndexError, match=f"{file} is named by the index but is not there; run 'indexer ver"):
            writer.compact(full=True)
    with pytest.raises(CorruptIndexError, match=f"{file} is named by the index but is not there; run 'indexer verify"):
        compact_index(path)


def test_the_log_is_trimmed_only_where_no_segment_needs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 10**9)
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        for first in (0, 40):  # two segments: vids 1–40 and 41–80
            writer.write(vector_entries(TABLE[first : first + 40], first=first))
            writer.seal()
        writer.write(vector_entries(TABLE[80:85], first=80))  # pending: vids 81–85
        writer.remove(["d3", "d50", "d82", *(f"d{n}" for n in range(4, 24))])
        log = [(op, vid) for _, op, _, vid in table_rows(path, "changes")]
        assert ("remove", 51) in log
        assert ("remove", 83) in log
        assert writer.compact() == 1  # half of the first segment is dead
        assert rows_of(path) == [19, 40]
        log = [(op, vid) for _, op, _, vid in table_rows(path, "changes")]
        assert sorted(log) == [*(("add", vid) for vid in (81, 82, 84, 85)), ("remove", 51)]
        check_consistent(path)
        writer.compact(full=True)
        assert table_rows(path, "changes") == []
    assert verify_index(path).faults == ()
    assert_answers(path, [n for n in range(85) if n not in {3, 50, 82, *range(4, 24)}])


def test_vectors_that_went_before_they_were_sealed_are_no_dead_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEAL_ROWS", 10**9)
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        writer.write(vector_entries(TABLE[:40]))
        writer.remove([f"d{n}" for n in range(10, 30)])
        writer.seal()
        assert rows_of(path) == [20]
        assert writer.compact() == 0
    assert_answers(path, [*range(10), *range(30, 40)])


def test_a_vector_that_never_was_in_a_segment_leaves_nothing_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.merging.LOG_KEPT", 0)
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        for start in range(0, 200, 20):
            writer.write(vector_entries(TABLE[start : start + 20], first=start))
            writer.remove([f"d{n}" for n in range(start + 15, start + 20)])
        writer.compact(full=True)
        assert table_rows(path, "changes") == []


def test_names_that_no_document_has_any_more_are_forgotten(path: Path) -> None:
    model = DemoAnalyser()
    build_index(path, [Document("a", "Ada in Rome"), Document("b", "Zed")], model)
    with IndexWriter(path) as writer:
        writer.remove(["a"])
        writer.compact(full=True)
    assert [row[1:] for row in table_rows(path, "entity_terms")] == [("LOC", "zed")]
    with IndexWriter(path) as writer:
        writer.write(entries([Document("a", "Ada again")], model))
    check_consistent(path)
    assert verify_index(path).faults == ()


def test_nothing_to_compact_is_no_commit(path: Path) -> None:
    build(path, 40)
    with IndexWriter(path) as writer:
        before = writer.state.number
        assert (writer.compact(), writer.compact(full=True)) == (0, 0)
        assert writer.state.number == before


# Readers meanwhile


def compact_with_removals(writer: IndexWriter) -> None:
    writer.remove([f"d{n}" for n in range(0, 200, 2)])
    writer.compact(full=True)


def test_a_reader_that_was_open_before_gives_the_same_answers(path: Path) -> None:
    build(path)
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        with reader.snapshot() as snapshot:
            before = answers(snapshot)
        writer.compact(full=True)
        with reader.snapshot() as snapshot:
            assert answers(snapshot) == before
            assert len(snapshot.view.segments) == 1
        compact_with_removals(writer)
        with reader.snapshot() as snapshot:
            assert [[id_ for id_, _ in each] for each in answers(snapshot)] == [
                [id_ for id_, _ in each] for each in expected_answers([*range(1, 200, 2), *range(200, 400)])
            ]


@pytest.mark.parametrize("opened", ["before", "inside"])
def test_a_snapshot_is_held_still_while_the_writer_compacts(path: Path, opened: str) -> None:
    build(path)
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        with reader.snapshot() as snapshot:
            before = answers(snapshot) if opened == "before" else None
            compact_with_removals(writer)
            assert snapshot.count() == 400
            assert answers(snapshot) == (before or answers(snapshot))
            assert [[id_ for id_, _ in each] for each in answers(snapshot)] == [
                [id_ for id_, _ in each] for each in expected_answers(range(400))
            ]
        with reader.snapshot() as snapshot:
            assert snapshot.count() == 300


def test_a_reader_whose_segment_is_merged_while_it_opens_it_reads_the_manifest_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer import reader as reader_module

    build(path, 120)
    tries = []

    def compacting(folder: Path, record: Any, *, dimension: int) -> Any:
        tries.append(record.name)
        if len(tries) == 1:
            writer.compact(full=True)
        return segment_files.open_segment(folder, record, dimension=dimension)

    monkeypatch.setattr(reader_module, "open_segment", compacting)
    with IndexWriter(path) as writer, IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert len(tries) > 1
        assert answers(snapshot) == answers(snapshot)
        assert snapshot.count() == 120
        assert [len(segment) for segment in snapshot.view.segments] == [120]


# Kills

_COMPACT = """
import sys
from indexer import compaction, merging, store
compaction.TIERS = (40, 160, 640)
store.SEAL_ROWS = 40
merging.CODES_FROM = 160
with store.IndexWriter(sys.argv[1]) as writer:
    print("open", flush=True)
    sys.stdin.readline()
    while True:
        writer.compact(full=True)
        print("compacted", flush=True)
        ids = [id for (id,) in writer._connection.execute("SELECT id FROM documents ORDER BY doc")]
        writer.remove(ids[::9])
"""


def test_a_writer_killed_while_it_compacts_leaves_a_sound_index(path: Path) -> None:
    build(path, 1_500)
    rng = random.Random(1)
    for _ in range(100 if os.environ.get("TAGDEX_LONG_TESTS") == "1" else 5):
        with subprocess.Popen(
            [sys.executable, "-c", _COMPACT, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}"},
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            child.stdin.write("\n")
            child.stdin.flush()
            time.sleep(rng.uniform(0.0, 0.08))
            child.send_signal(signal.SIGKILL)
        check_consistent(path)
        assert verify_index(path).faults == ()
        assert_answers(path, [int(row[1][1:]) for row in table_rows(path, "documents")])
    IndexWriter(path).close()
    assert files_of(path) == {row[0] for row in table_rows(path, "segment_files")} | (
        files_of(path) & {"codes.space.npy"}
    )


@pytest.mark.parametrize("step", ["write_segment", "add_segment", "drop_segments", "save_code_space"])
def test_a_compaction_that_fails_at_any_step_can_be_run_again(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path, 120)  # no codes yet
    monkeypatch.setattr(store, "SEAL_ROWS", 10**9)
    with IndexWriter(path) as writer:
        writer.write(vector_entries(TABLE[120:200], first=120))
        writer.seal()
        writer.remove(["d7", "d150"])
        with monkeypatch.context() as patch:

            def broken(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(merging, step, broken)
            with pytest.raises(store.StorageError, match="No space left on device; what was acknowledged is kept"):
                writer.compact(full=True)
        check_consistent(path)
        writer.compact(full=True)
    assert rows_of(path) == [198]
    assert verify_index(path).faults == ()
    assert_answers(path, [n for n in range(200) if n not in (7, 150)])


@pytest.mark.parametrize("step", ["written", "committed"])
def test_an_interrupt_while_a_merge_is_committed_loses_no_vector(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path, 120)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in range(0, 120, 2)])
        with monkeypatch.context() as patch:
            if step == "committed":
                patch.setattr(writer._merger, "_connection", InterruptedCommits(writer._connection))
            else:
                patch.setattr(merging, "naming", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                writer.compact()
        assert verify_index(path).faults == ()
        assert_answers(path, range(1, 120, 2))
        writer.compact(full=True)
    assert rows_of(path) == [60]
    assert verify_index(path).faults == ()
    assert_answers(path, range(1, 120, 2))


def test_merges_behind_one_that_fails_are_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(path, 120)  # three segments, each of which is written again when half of it is dead
    write, begun, let_go = merging.Merger._write, [], threading.Event()

    def first_fails(self: merging.Merger, name: str, *arguments: Any) -> Any:
        begun.append(name)
        if len(begun) == 1:
            raise OSError(28, "No space left on device")
        if len(begun) == 2:  # is still being written when all begin again
            let_go.wait(60)
        return write(self, name, *arguments)

    monkeypatch.setattr(merging.Merger, "_write", first_fails)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in range(0, 120, 2)])
        with pytest.raises(store.StorageError, match="No space left on device"):
            writer.compact()
        assert rows_of(path) == [40, 40, 40]
        threading.Timer(0.2, let_go.set).start()
        assert writer.compact() == 3
        assert len(begun) == len(set(begun)), "one merge would have overwritten the file of another"
    assert rows_of(path) == [20, 20, 20]
    assert verify_index(path).faults == ()
    assert_answers(path, range(1, 120, 2))
    assert files_of(path) == {name for name, *_ in table_rows(path, "segment_files")}


def test_what_is_removed_stays_so_when_its_segment_is_damaged(path: Path) -> None:
    sizes = [40, 40, 200, 40, 40]  # without the third, the other four are due to become one
    with IndexWriter(path, create=settings_of_vectors(WIDTH)) as writer:
        first = 0
        for size in sizes:
            writer.write(vector_entries(TABLE[first : first + size], first=first))
            first += size
    file = max((path / "segments").glob("*.fp16.faiss"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    writer = IndexWriter(path)
    writer.remove([f"d{n}" for n in range(80, 280)])
    for _ in range(2):
        with pytest.raises(CorruptIndexError, match="is not what was written"):
            writer.compact()
    with pytest.raises(CorruptIndexError, match="is not what was written"):
        writer.close()
    assert_answers(path, [*range(80), *range(280, 360)])


def test_a_merge_that_cannot_be_committed_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(path, 120)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in range(20)])
        before = files_of(path)
        with monkeypatch.context() as patch:
            patch.setattr(merging, "drop_segments", lambda *_: writer._connection.execute("no SQL"))
            for _ in range(2):
                with pytest.raises(store.StorageError, match="syntax error"):
                    writer.compact()
                assert files_of(path) == before
        writer.compact()
    assert verify_index(path).faults == ()


# Size


def test_after_removing_a_third_and_compacting_the_folder_is_as_small_as_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "TIERS", (1_000, 4_000, 16_000))
    monkeypatch.setattr(store, "SEAL_ROWS", 1_000)
    monkeypatch.setattr("indexer.merging.CODES_FROM", 10**9)
    table = clustered(5_000, dimension=768)
    chosen = np.random.default_rng(0).permutation(5_000)[:1_500]
    path = build_vector_index(tmp_path / "index", table)
    before = folder_bytes(path)
    with IndexWriter(path) as writer:
        writer.remove([f"d{n}" for n in chosen.tolist()])
        writer.compact(full=True)
    fresh = build_vector_index(tmp_path / "fresh", np.delete(table, chosen, axis=0))
    compact_index(fresh)
    assert folder_bytes(path) < 0.8 * before
    assert folder_bytes(path) == pytest.approx(folder_bytes(fresh), rel=0.05)


def test_a_merge_leaves_the_files_of_another_index_alone_that_took_the_place_of_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segments have the same names, which the merge would delete."""
    new = build_vector_index(path.with_name("new"), TABLE[200:320], batch=40)
    build_vector_index(path, TABLE[:120], batch=40)
    assert files_of(path) == files_of(new)
    write = merging.Merger._write

    def replaced(*arguments: Any) -> Any:
        written = write(*arguments)
        path.rename(path.with_name("gone"))
        new.rename(path)
        return written

    before = {file: (new / "segments" / file).read_bytes() for file in files_of(new)}
    writer = IndexWriter(path)
    writer.write(vector_entries(TABLE[120:140], first=120))
    with monkeypatch.context() as patch:
        patch.setattr(merging.Merger, "_write", replaced)
        with pytest.raises(ReplacedIndexError):
            writer.compact(full=True)
        with pytest.raises(ReplacedIndexError):
            writer.close()
    assert {file: (path / "segments" / file).read_bytes() for file in files_of(path)} == before
    assert verify_index(path).faults == ()
    assert verify_index(path.with_name("gone")).faults == ()
