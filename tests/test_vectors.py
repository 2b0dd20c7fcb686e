"""Segments of fp16 vectors: exact search against plain numpy, selectors obeyed, damaged files refused."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from fakes import unit_fp16
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import vectors
from indexer.errors import CorruptIndexError, InputError
from indexer.vectors import Segment, search_segments, write_segment

DIMENSION = 8


def random_unit(rows: int, *, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray[Any, np.dtype[np.float32]]:
    return vectors.normalise(np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32))


def tail(rows: int, *, first_vid: int = 1, seed: int = 0) -> Segment:
    segment = Segment.empty(DIMENSION)
    segment.append(
        range(first_vid, first_vid + rows), range(100, 100 + rows), random_unit(rows, seed=seed).astype(np.float16)
    )
    return segment


def written(folder: Path, rows: int, *, name: str = "0000000001", first_vid: int = 1, seed: int = 0) -> Segment:
    vids, docs = np.arange(first_vid, first_vid + rows), np.arange(100, 100 + rows)
    write_segment(folder, name, vids, docs, random_unit(rows, seed=seed).astype(np.float16))
    return Segment.open(folder, name, dimension=DIMENSION, rows=rows)


@pytest.fixture(params=["gather", "scan"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways a segment is searched: by reading the allowed vectors, and by faiss with a selector."""
    monkeypatch.setattr(vectors, "GATHER_LIMIT", 10**9 if request.param == "gather" else 0)


# Normalising


def test_normalise_gives_rows_of_length_one_in_their_direction() -> None:
    rows = np.array([[3.0, 4.0], [0.0, -1e-3], [1e30, 1e30]], dtype=np.float32)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(vectors.normalise(rows), [[0.6, 0.8], [0, -1], [root, root]], rtol=1e-6)


def test_normalise_leaves_what_it_is_given_alone() -> None:
    rows = np.array([[3.0, 4.0]], dtype=np.float32)
    vectors.normalise(rows)
    assert rows.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_a_vector_without_direction_is_refused_with_its_number(bad: float) -> None:
    rows = np.ones((3, 2), dtype=np.float32)
    rows[1] = bad
    with pytest.raises(InputError, match=r"^vector 1 has length (nan|inf|0\.0): it has no direction"):
        vectors.normalise(rows)


def test_a_blob_is_little_endian_fp16() -> None:
    assert vectors.to_blob(np.array([1.0, -2.0], dtype=np.float32)) == bytes.fromhex("003c00c0")


# Searching one segment


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 100])
def test_results_are_allowed_ones_only(rows: int) -> None:
    segment = tail(rows)
    query = random_unit(1, seed=1)[0]
    masks = [np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool), np.arange(rows) % 3 == 0]
    masks += [np.arange(rows) == at for at in (0, rows // 2, rows - 1)]
    scores = segment.rows(np.arange(rows)).astype(np.float64) @ query.astype(np.float64)
    for mask in masks:
        for n in (1, 2, rows, rows + 5):
            found = segment.search(query, n, mask)
            best = sorted(np.flatnonzero(mask), key=lambda at: -scores[at])[:n]
            assert sorted(found.tolist()) == sorted(best)


@pytest.mark.usefixtures("_path")
def test_more_wanted_than_there_are_gives_all_without_padding() -> None:
    assert sorted(tail(5).search(random_unit(1)[0], 1000, np.ones(5, dtype=bool)).tolist()) == [0, 1, 2, 3, 4]


def test_gathering_and_scanning_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    segment, query = tail(500), random_unit(1, seed=5)[0]
    mask = np.random.default_rng(0).random(500) < 0.5
    found = {}
    for limit in (0, 10**9):
        monkeypatch.setattr(vectors, "GATHER_LIMIT", limit)
        found[limit] = sorted(segment.search(query, 20, mask).tolist())
    assert found[0] == found[10**9]


@pytest.mark.usefixtures("_path")
def test_dead_vectors_are_never_found(tmp_path: Path) -> None:
    segment = written(tmp_path, 50)
    segment.kill(np.array([3, 17, 18, 50, 99], dtype=np.int64))
    found = search_segments([segment], random_unit(1)[0], 50)
    assert sorted(found.vids.tolist()) == [vid for vid in range(1, 51) if vid not in (3, 17, 18, 50)]


def test_killing_passes_over_vids_that_are_not_there() -> None:
    segment = tail(4, first_vid=10)
    segment.kill(np.array([1, 9, 14, 1000], dtype=np.int64))
    segment.kill(np.array([], dtype=np.int64))
    assert segment.live.tolist() == [True] * 4


def test_killing_in_an_empty_tail_does_nothing() -> None:
    segment = Segment.empty(DIMENSION)
    segment.kill(np.array([1, 2], dtype=np.int64))
    assert segment.live.tolist() == []


def test_an_empty_tail_has_no_rows() -> None:
    assert Segment.empty(DIMENSION).rows(np.zeros(0, dtype=np.int64)).shape == (0, DIMENSION)


def test_a_tail_grows() -> None:
    segment = tail(3)
    segment.append([7, 9], [200, 201], random_unit(2, seed=9).astype(np.float16))
    assert segment.vids.tolist() == [1, 2, 3, 7, 9]
    assert segment.docs.tolist() == [100, 101, 102, 200, 201]
    np.testing.assert_array_equal(segment.rows(np.array([3, 4])), random_unit(2, seed=9).astype(np.float16))


# Searching several segments


def test_nothing_to_search_gives_nothing() -> None:
    for segments in ([], [Segment.empty(DIMENSION)]):
        found = search_segments(segments, random_unit(1)[0], 10)
        assert (found.vids.tolist(), found.docs.tolist(), found.scores.tolist()) == ([], [], [])


def test_equal_scores_are_in_the_order_of_their_vids() -> None:
    first, second = Segment.empty(2), Segment.empty(2)
    same = np.array([[1.0, 0.0]] * 3, dtype=np.float16)
    second.append([1, 5, 9], [1, 1, 1], same)
    first.append([2, 6, 7], [2, 2, 2], same)
    found = search_segments([first, second], np.array([1.0, 0.0], dtype=np.float32), 6)
    assert found.vids.tolist() == [1, 2, 5, 6, 7, 9]


def test_scores_are_the_cosine_in_fp64_and_within_one() -> None:
    segment = Segment.empty(3)
    rows = vectors.normalise(np.array([[1, 2, 3], [-1, -2, -3], [3, 0, -1]], dtype=np.float32))
    segment.append([1, 2, 3], [1, 2, 3], rows.astype(np.float16))
    found = search_segments([segment], rows[0], 3)
    exact = rows.astype(np.float16).astype(np.float64) @ rows[0].astype(np.float64)
    assert found.vids.tolist() == [1, 3, 2]
    np.testing.assert_allclose(found.scores, np.clip(exact, -1, 1)[[0, 2, 1]], rtol=0, atol=1e-15)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    wanted=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dead=st.sampled_from([0.0, 0.3]),
    limit=st.sampled_from([0, 10, 10**9]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_search_over_segments_and_tail_equals_numpy(
    sizes: list[int],
    wanted: int,
    share: float,
    dead: float,
    limit: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    random = np.random.default_rng(seed)
    total = sum(sizes)
    raw = random.normal(size=(total, DIMENSION)).astype(np.float32)
    vids = np.sort(random.choice(10 * total + 1, size=total, replace=False)).astype(np.int64)
    docs = random.integers(0, 30, size=total)
    table = unit_fp16(raw)
    folder = tmp_path_factory.mktemp("segments")
    segments, at = [], 0
    for number, size in enumerate(sizes):
        rows = slice(at, at + size)
        if number == len(sizes) - 1 or size == 0:
            segment = Segment.empty(DIMENSION)
            segment.append(vids[rows].tolist(), docs[rows].tolist(), table[rows].astype(np.float16))
        else:
            write_segment(folder, str(number), vids[rows], docs[rows], table[rows].astype(np.float16))
            segment = Segment.open(folder, str(number), dimension=DIMENSION, rows=size)
        segments.append(segment)
        at += size
    is_dead = random.random(total) < dead
    for segment in segments:
        segment.kill(vids[is_dead])
    allowed_docs = random.random(30) < share
    query = random.normal(size=DIMENSION).astype(np.float32)
    query /= np.linalg.norm(query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "GATHER_LIMIT", limit)
        found = search_segments(segments, query, wanted, allowed_docs=allowed_docs)
    scores = np.clip(table @ query.astype(np.float64), -1, 1)
    candidates = np.flatnonzero(allowed_docs[docs] & ~is_dead)
    best = candidates[np.lexsort((vids[candidates], -scores[candidates]))][:wanted]
    assert found.vids.tolist() == vids[best].tolist()
    assert found.docs.tolist() == docs[best].tolist()
    np.testing.assert_allclose(found.scores, scores[best], rtol=0, atol=1e-14)


# Files


def test_a_mapped_segment_outlives_the_scope_that_opened_it(tmp_path: Path) -> None:
    def opened() -> Segment:
        return written(tmp_path, 3000)

    segment = opened()
    gc.collect()
    for file in tmp_path.iterdir():
        file.unlink()  # the mapping keeps the file's bytes
    np.testing.assert_array_equal(segment.rows(np.arange(3000)), random_unit(3000).astype(np.float16))
    found = search_segments([segment], random_unit(1)[0], 1)
    assert found.vids.tolist() == [1]


def test_a_segment_is_two_files_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0000000001.fp16.faiss", "0000000001.ids.npy"]


def test_the_ids_file_holds_vids_and_documents(tmp_path: Path) -> None:
    written(tmp_path, 3, first_vid=5)
    ids = np.load(tmp_path / "0000000001.ids.npy")
    assert (ids.dtype, ids.tolist()) == (np.dtype("<i8"), [[5, 6, 7], [100, 101, 102]])


@pytest.mark.parametrize("missing", ["fp16.faiss", "ids.npy"])
def test_a_missing_file_is_file_not_found(tmp_path: Path, missing: str) -> None:
    written(tmp_path, 3)
    (tmp_path / f"0000000001.{missing}").unlink()
    with pytest.raises(FileNotFoundError):
        Segment.open(tmp_path, "0000000001", dimension=DIMENSION, rows=3)


@pytest.mark.parametrize(("dimension", "rows"), [(DIMENSION + 1, 3), (DIMENSION, 4)])
def test_a_segment_that_contradicts_the_manifest_is_refused(tmp_path: Path, dimension: int, rows: int) -> None:
    written(tmp_path, 3)
    with pytest.raises(
        CorruptIndexError,
        match=rf"segment 0000000001 has 3 vectors of 8 dimensions .* manifest says {rows} of {dimension}",
    ):
        Segment.open(tmp_path, "0000000001", dimension=dimension, rows=rows)


@pytest.mark.parametrize("factory", ["Flat", "SQ8"])
def test_another_kind_of_index_is_refused(tmp_path: Path, factory: str) -> None:
    written(tmp_path, 3)
    other = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    other.train(random_unit(3))
    other.add(random_unit(3))
    faiss.write_index(other, str(tmp_path / "0000000001.fp16.faiss"))
    with pytest.raises(CorruptIndexError, match="not SQfp16; run 'indexer verify'"):
        Segment.open(tmp_path, "0000000001", dimension=DIMENSION, rows=3)


@pytest.mark.parametrize("suffix", ["fp16.faiss", "ids.npy"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    written(tmp_path, 100)
    file = tmp_path / f"0000000001.{suffix}"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CorruptIndexError, match="segment 0000000001 cannot be read"):
        Segment.open(tmp_path, "0000000001", dimension=DIMENSION, rows=100)


@pytest.mark.parametrize("suffix", ["fp16.faiss", "ids.npy"])
def test_a_file_whose_last_bytes_do_not_fit_is_an_error_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    # faiss only prints when its last bytes do not fit, and numpy's `save` says nothing at all.
    written(tmp_path, 1000, name="whole")
    size = {file.name.removeprefix("whole."): file.stat().st_size for file in tmp_path.iterdir()}[suffix]
    if suffix == "ids.npy":  # the larger file of the two, when the vectors are shorter than the ids
        table, dimension = np.zeros((1000, 2), dtype=np.float16), 2
    else:
        table, dimension = random_unit(1000, dimension=16).astype(np.float16), 16
        size += 1000 * 2 * (16 - DIMENSION)
    ids = np.arange(1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_segment(tmp_path, "cut", ids, ids, table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("cut.*.tmp"))
    assert not (tmp_path / f"cut.{suffix}").exists()
    write_segment(tmp_path, "cut", ids, ids, table)
    assert Segment.open(tmp_path, "cut", dimension=dimension, rows=1000).vids.tolist() == ids.tolist()
