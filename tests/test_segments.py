"""Segments on disk: their files and checksums, codes for large ones, dead rows left out, damaged files refused."""

from __future__ import annotations

import gc
import hashlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
import pytest
from fakes import clustered, written_segment

from indexer import segments as segment_files
from indexer.codes import CodeSpace, new_code_space
from indexer.durable import vector_crc, write_file
from indexer.errors import CorruptIndexError
from indexer.planner import search_segments
from indexer.records import FloatArray
from indexer.segments import Block, SegmentRecord, live_blocks, open_segment, write_segment
from indexer.vectors import new_flat_index

WIDTH = 8
NAME = "0000000001"


def unit(rows: int, *, seed: int = 0, dimension: int = WIDTH) -> FloatArray:
    return clustered(rows, dimension=dimension, clusters=max(1, rows), seed=seed)


def blocks_of(vectors: FloatArray, *, size: int, first_vid: int = 1) -> Iterator[Block]:
    for start in range(0, len(vectors), size):
        rows = vectors[start : start + size].astype(np.float16)
        vids = np.arange(first_vid + start, first_vid + start + len(rows), dtype=np.int64)
        yield Block(vids, vids + 99, rows)


def write(folder: Path, rows: int, *, name: str = NAME, dimension: int = WIDTH, **options: object) -> SegmentRecord:
    blocks = blocks_of(unit(rows, dimension=dimension), size=7)
    return write_segment(folder, name, blocks, dimension=dimension, **{"space": None, **options})  # type: ignore[arg-type]


@pytest.fixture
def space() -> CodeSpace:
    return new_code_space(unit(100).astype(np.float16))


# What is written


def test_the_record_says_what_was_written(tmp_path: Path) -> None:
    record = write(tmp_path, 30)
    assert (record.name, record.first_vid, record.last_vid, record.rows) == (NAME, 1, 30, 30)
    assert (record.rerank, record.factory, record.faiss_version) == (0, "SQfp16", faiss.__version__)
    assert [file.name for file in record.files] == [f"{NAME}.fp16.faiss", f"{NAME}.ids.npy"]
    for file in record.files:
        data = (tmp_path / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_segment_is_its_files_and_nothing_else(tmp_path: Path) -> None:
    record = write(tmp_path, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [file.name for file in record.files]


def test_the_ids_file_holds_vids_and_documents(tmp_path: Path) -> None:
    write_segment(tmp_path, NAME, blocks_of(unit(3), size=2, first_vid=5), dimension=WIDTH, space=None)
    ids = np.load(tmp_path / f"{NAME}.ids.npy")
    crcs = [vector_crc(5 + n, 104 + n, row.astype("<f2").tobytes()) for n, row in enumerate(unit(3))]
    assert (ids.dtype, ids.tolist()) == (np.dtype("<i8"), [[5, 6, 7], [104, 105, 106], crcs])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_blocks_become_one_segment_in_their_order(tmp_path: Path, size: int) -> None:
    table = unit(30)
    record = write_segment(tmp_path, NAME, blocks_of(table, size=size), dimension=WIDTH, space=None)
    segment = open_segment(tmp_path, record, dimension=WIDTH)
    assert segment.vids.tolist() == list(range(1, 31))
    assert segment.docs.tolist() == list(range(100, 130))
    np.testing.assert_array_equal(segment.table, table.astype(np.float16))
    assert segment.all_live


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_the_vectors_file_is_what_faiss_would_write(tmp_path: Path, rows: int) -> None:
    write(tmp_path, rows)
    index = new_flat_index(WIDTH)
    index.add_sa_codes(unit(rows).astype("<f2").view(np.uint8))
    faiss.write_index(index, str(tmp_path / "by_faiss"))
    assert (tmp_path / f"{NAME}.fp16.faiss").read_bytes() == (tmp_path / "by_faiss").read_bytes()


def test_vectors_of_another_width_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"7 vectors of 9 numbers have shape \(7, 8\)"):
        write_segment(tmp_path, NAME, blocks_of(unit(7, dimension=8), size=7), dimension=9, space=None)
    assert not list(tmp_path.iterdir())


def test_codes_are_written_in_a_space(tmp_path: Path, space: CodeSpace) -> None:
    record = write(tmp_path, 30, space=space)
    assert (record.factory, len(record.files), record.rerank > 0) == ("SQfp16,RaBitQfs", 4, True)
    segment = open_segment(tmp_path, record, dimension=WIDTH)
    assert segment.codes is not None
    assert (segment.codes.packed.ntotal, len(segment.codes), segment.rerank) == (30, 30, record.rerank)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_codes_of_a_few_rows_find_all_of_them(tmp_path: Path, space: CodeSpace, rows: int) -> None:
    segment = open_segment(tmp_path, write(tmp_path, rows, space=space), dimension=WIDTH)
    found, _ = search_segments([segment], unit(1)[0], 20, space=space, path="codes")
    assert len(found.vids) == rows


def test_codes_that_are_known_are_not_computed_again(
    tmp_path: Path, space: CodeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, dead = unit(300), np.arange(1, 301, 3)
    parts = [
        written_segment(tmp_path, table[at : at + 100], name=f"{at}", first_vid=at + 1, space=space).without(dead)
        for at in (0, 100, 200)
    ]
    kept = np.setdiff1d(np.arange(1, 301), dead) - 1
    expected = space.encode(table[kept].astype(np.float16))
    monkeypatch.setattr(CodeSpace, "encode", None)
    record = write_segment(tmp_path, "m", live_blocks(parts), dimension=WIDTH, space=space)
    merged = open_segment(tmp_path, record, dimension=WIDTH)
    assert merged.codes is not None
    np.testing.assert_array_equal(merged.codes.plain, expected)


def test_no_codes_are_written_without_a_space(tmp_path: Path) -> None:
    assert [file.name for file in write(tmp_path, 10).files] == [f"{NAME}.fp16.faiss", f"{NAME}.ids.npy"]


# Merging


def test_live_blocks_leave_dead_rows_out_and_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "_BLOCK", 8)
    table = unit(60)
    dead = np.array([1, 2, 9, 10, 11, 12, 13, 14, 15, 16, 25, 40, 60], dtype=np.int64)  # a whole block among them
    parts = [
        written_segment(tmp_path, table[:25], name="a").without(dead),
        written_segment(tmp_path, table[25:26], name="b", first_vid=26, docs=[7]).without(dead),
        written_segment(tmp_path, table[26:], name="c", first_vid=27).without(dead),
    ]
    blocks = list(live_blocks(parts))
    assert all(0 < len(block.vids) <= 8 for block in blocks)
    vids, docs, vectors = (np.concatenate([block[part] for block in blocks]) for part in range(3))
    kept = np.array([vid for vid in range(1, 61) if vid not in dead])
    assert vids.tolist() == kept.tolist()
    assert docs.tolist() == [100 + v - 1 if v < 26 else 7 if v == 26 else 100 + v - 27 for v in kept.tolist()]
    np.testing.assert_array_equal(vectors, table[kept - 1].astype(np.float16))
    merged = open_segment(tmp_path, write_segment(tmp_path, "m", blocks, dimension=WIDTH, space=None), dimension=WIDTH)
    np.testing.assert_array_equal(merged.table, vectors)


def test_a_merged_segment_answers_as_its_parts_did(tmp_path: Path, space: CodeSpace) -> None:
    table, dead = unit(300), np.arange(1, 301, 3)
    parts = [
        written_segment(tmp_path, table[at : at + 100], name=f"{at}", first_vid=at + 1).without(dead)
        for at in (0, 100, 200)
    ]
    merged = open_segment(
        tmp_path,
        write_segment(tmp_path, "m", live_blocks(parts), dimension=WIDTH, space=space),
        dimension=WIDTH,
    )
    assert (len(merged), merged.codes is not None) == (200, True)
    for query in table[:20]:
        before, _ = search_segments(parts, query, 10, space=None)
        for path in ("scan", "auto"):
            after, _ = search_segments([merged], query, 10, space=space, path=path)
            assert (after.vids.tolist(), after.scores.tolist()) == (before.vids.tolist(), before.scores.tolist())


# Opening


def test_a_mapped_segment_outlives_the_scope_that_opened_it(tmp_path: Path) -> None:
    table = unit(3_000)

    def opened() -> FloatArray:
        return written_segment(tmp_path, table).table

    mapped = opened()
    gc.collect()
    for file in tmp_path.iterdir():
        file.unlink()  # the mapping keeps the file's bytes
    np.testing.assert_array_equal(mapped, table.astype(np.float16))


def test_a_mapped_segment_can_be_searched_when_its_files_are_gone(tmp_path: Path) -> None:
    table = unit(3_000)
    segment = written_segment(tmp_path, table)
    for file in tmp_path.iterdir():
        file.unlink()
    for path in ("scan", "codes"):
        assert search_segments([segment], table[5], 1, space=None, path=path)[0].vids.tolist() == [6]


@pytest.fixture
def record(tmp_path: Path, space: CodeSpace) -> SegmentRecord:
    """A segment of 100 rows with codes."""
    return write(tmp_path, 100, space=space)


SUFFIXES = [".fp16.faiss", ".ids.npy", ".codes.faiss", ".codes.npy"]


@pytest.mark.parametrize("missing", SUFFIXES)
def test_a_missing_file_is_file_not_found(tmp_path: Path, record: SegmentRecord, missing: str) -> None:
    (tmp_path / f"{NAME}{missing}").unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAME}{missing}"):
        open_segment(tmp_path, record, dimension=WIDTH)


@pytest.mark.parametrize(("dimension", "rows"), [(WIDTH + 1, 100), (WIDTH, 101), (WIDTH, 99)])
def test_a_segment_that_contradicts_the_manifest_is_refused(
    tmp_path: Path, record: SegmentRecord, dimension: int, rows: int
) -> None:
    with pytest.raises(
        CorruptIndexError,
        match=rf"segment {NAME} has \[100\] vectors of 8 dimensions .* manifest says {rows} of {dimension};",
    ):
        open_segment(tmp_path, replace(record, rows=rows), dimension=dimension)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "SQfp16", "RaBitQ", "IVF1,RaBitQfs", "IVF2,RaBitQfs"])
@pytest.mark.parametrize("suffix", [".fp16.faiss", ".codes.faiss"])
def test_another_kind_of_index_is_refused(tmp_path: Path, record: SegmentRecord, factory: str, suffix: str) -> None:
    if (factory, suffix) in {("SQfp16", ".fp16.faiss"), ("IVF1,RaBitQfs", ".codes.faiss")}:
        return
    other = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    other.train(unit(100))
    other.add(unit(100))
    faiss.write_index(other, str(tmp_path / f"{NAME}{suffix}"))
    expected = "not SQfp16; run 'indexer verify'" if suffix == ".fp16.faiss" else "has codes of Index"
    with pytest.raises(CorruptIndexError, match=expected):
        open_segment(tmp_path, record, dimension=WIDTH)


def test_codes_of_another_number_of_vectors_are_refused(
    tmp_path: Path, record: SegmentRecord, space: CodeSpace
) -> None:
    codes = space.pack(space.encode(unit(99).astype(np.float16)))
    faiss.write_index(codes, str(tmp_path / f"{NAME}.codes.faiss"))
    with pytest.raises(CorruptIndexError, match=rf"segment {NAME} has \[99, 100\] vectors"):
        open_segment(tmp_path, record, dimension=WIDTH)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((99, 9), "u1", r"\[99, 100\] vectors"),
        ((100, 10), "u1", r"\(100, 10\) uint8, expected 9 bytes each"),
        ((100, 9), "i1", r"\(100, 9\) int8, expected 9 bytes each"),
        ((900,), "u1", r"\(900,\) uint8, expected 9 bytes each"),
    ],
)
def test_plain_codes_of_another_shape_or_type_are_refused(
    tmp_path: Path, record: SegmentRecord, shape: tuple[int, ...], kind: str, expected: str
) -> None:
    np.save(tmp_path / f"{NAME}.codes.npy", np.zeros(shape, dtype=kind))
    with pytest.raises(CorruptIndexError, match=expected):
        open_segment(tmp_path, record, dimension=WIDTH)


def test_a_segment_of_fewer_files_than_it_needs_is_refused(tmp_path: Path, record: SegmentRecord) -> None:
    with pytest.raises(CorruptIndexError, match=rf"segment {NAME} has no {NAME}.codes.npy; run 'indexer verify --rep"):
        open_segment(tmp_path, replace(record, files=record.files[:3]), dimension=WIDTH)


def test_ids_of_another_shape_or_type_are_refused(tmp_path: Path, record: SegmentRecord) -> None:
    for ids in (
        np.zeros((3, 99), dtype=np.int64),
        np.zeros((2, 100), dtype=np.int64),
        np.zeros((3, 100)),
        np.zeros(100, dtype=np.int64),
    ):
        np.save(tmp_path / f"{NAME}.ids.npy", ids)
        with pytest.raises(CorruptIndexError, match=rf"segment {NAME} has \[100\] vectors of 8 dimensions and ids of"):
            open_segment(tmp_path, record, dimension=WIDTH)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, record: SegmentRecord, suffix: str, keep: float) -> None:
    file = tmp_path / f"{NAME}{suffix}"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CorruptIndexError, match=f"segment {NAME} cannot be read"):
        open_segment(tmp_path, record, dimension=WIDTH)


# A full disk


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_whose_last_bytes_do_not_fit_is_an_error_and_leaves_no_part_of_it(
    tmp_path: Path, space: CodeSpace, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a name, faiss only prints when its last bytes do not fit, and numpy's `save` says nothing at all.
    whole = write(tmp_path, 1_000, name="whole", space=space)
    (size,) = (file.bytes for file in whole.files if file.name == f"whole{suffix}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(path: Path, write: Callable[[BinaryIO], None]) -> None:
        if path.name == f"cut{suffix}":
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
        write_file(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(segment_files, "write_file", limited)
        try:
            with pytest.raises(OSError, match="File too large"):
                write(tmp_path, 1_000, name="cut", space=space)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("cut.*.tmp"))
    assert not (tmp_path / f"cut{suffix}").exists()
    again = open_segment(tmp_path, write(tmp_path, 1_000, name="cut", space=space), dimension=WIDTH)
    assert again.vids.tolist() == list(range(1, 1_001))
