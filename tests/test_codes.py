"""One-bit codes: the rotation, selectors obeyed, recall after exact reranking, the rerank factor, damaged files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from fakes import build_vector_index, clustered, vector_entries, written_segment

from indexer import codes, compaction, store
from indexer import segments as segment_files
from indexer.codes import (
    FEW,
    PARTS_FROM,
    ROUNDS,
    SHORTLIST,
    CodeSpace,
    factors,
    load_code_space,
    new_code_space,
    packed_bits,
    save_code_space,
)
from indexer.errors import CorruptIndexError
from indexer.merging import CODE_SPACE_SHA256
from indexer.planner import search_segments, search_segments_many
from indexer.reader import IndexReader
from indexer.records import FloatArray
from indexer.segments import CALIBRATION_K, CALIBRATION_QUERIES, CALIBRATION_RECALL, calibrate
from indexer.settings import read_setting
from indexer.store import IndexWriter
from indexer.vectors import IdArray, Segment
from indexer.verify import verify_index

WIDTH = 32


@pytest.fixture(autouse=True)
def _codes_from_500_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.merging.CODES_FROM", 500)


def spherical(rows: int, *, seed: int = 0) -> FloatArray:
    table = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def nearest(table: FloatArray, query: FloatArray, n: int) -> IdArray:
    """Brute force over the vectors as they are stored."""
    return np.argsort(-(table.astype(np.float16).astype(np.float64) @ query.astype(np.float64)), kind="stable")[:n]


def codes_found(
    segment: Segment, space: CodeSpace, rotated: FloatArray, n: int, allowed: Any = None
) -> list[tuple[IdArray, FloatArray]]:
    """For each query the positions and estimates of the best codes."""
    assert segment.codes is not None
    estimates, found = segment.codes.search(space, rotated, n, allowed)
    return list(zip(found, estimates, strict=True))


# The space


def matrix(space: CodeSpace) -> FloatArray:
    return space.rotate(np.eye(space.dimension, dtype=np.float32))


@pytest.mark.parametrize("dimension", [1, 2, 7, 32, 300, 1536])
def test_the_rotation_is_orthogonal(dimension: int) -> None:
    rotation = matrix(new_code_space(clustered(10, dimension=dimension).astype(np.float16)))
    assert (rotation.shape, rotation.dtype) == ((dimension, dimension), np.float32)
    np.testing.assert_allclose(rotation.astype(np.float64) @ rotation.T, np.eye(dimension), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dimension", [300, 384, 1536])
def test_the_rotation_spreads_every_component_over_all(dimension: int) -> None:
    """As a dense random rotation does: the entries are normal with variance 1 / dimension, none of them large."""
    entries = matrix(new_code_space(clustered(10, dimension=dimension).astype(np.float16))) * np.sqrt(dimension)
    assert np.abs(entries).max() < 7
    assert abs(entries.std() - 1) < 0.01
    assert abs(np.mean(entries**4) - 3) < 0.5  # 3 for a normal distribution


def test_the_rotation_depends_on_the_dimension_only() -> None:
    first, second = (new_code_space(clustered(50, seed=seed).astype(np.float16)) for seed in (1, 2))
    np.testing.assert_array_equal(matrix(first), matrix(second))
    assert not np.array_equal(first.centre, second.centre)


def test_the_centre_is_the_mean_of_the_rotated_vectors() -> None:
    table = clustered(500).astype(np.float16)
    space = new_code_space(table)
    np.testing.assert_allclose(space.centre, space.rotate(table.astype(np.float32)).mean(axis=0), rtol=0, atol=1e-5)


def test_a_rotation_keeps_cosines() -> None:
    table = clustered(100)
    rotated = new_code_space(table.astype(np.float16)).rotate(table)
    np.testing.assert_allclose(rotated @ rotated.T, table @ table.T, rtol=0, atol=1e-5)


def plain_space(table: FloatArray) -> CodeSpace:
    """Without a rotation, but for the order of the components: two rounds put them back."""
    a, b = factors(WIDTH)
    signs = np.ones((ROUNDS, WIDTH), dtype=np.float32)
    left, right = (np.stack([np.eye(size, dtype=np.float32)] * ROUNDS) for size in (a, b))
    centre = CodeSpace(signs, left, right, table[0]).rotate(table.mean(axis=0)[None])[0]
    return CodeSpace(signs, left, right, centre)


def test_a_rotation_spreads_what_stands_in_few_dimensions() -> None:
    # Codes hold the signs; of these vectors, all but 4 of 32 signs say nothing as long as they are not rotated.
    table = np.zeros((2_000, WIDTH), dtype=np.float32)
    table[:, :4] = np.random.default_rng(0).normal(size=(2_000, 4))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    found = {}
    for name, space in (
        ("rotated", new_code_space(table.astype(np.float16))),
        ("plain", plain_space(table)),
    ):
        index = faiss.IndexRaBitQ(WIDTH, faiss.METRIC_INNER_PRODUCT)
        index.train(space.centre[None])
        index.add_sa_codes(space.encode(table.astype(np.float16)))
        hits = [
            np.intersect1d(index.search(space.rotate(query[None]), 100)[1][0], nearest(table, query, 10)).size
            for query in table[::100]
        ]
        found[name] = np.mean(hits) / 10
    assert found["rotated"] > found["plain"] + 0.05


def test_saving_and_loading_give_the_same_space(tmp_path: Path) -> None:
    space = new_code_space(clustered(100).astype(np.float16))
    sha256 = save_code_space(space, tmp_path / "space.npy")
    loaded = load_code_space(tmp_path / "space.npy", dimension=WIDTH)
    np.testing.assert_array_equal(matrix(loaded), matrix(space))
    np.testing.assert_array_equal(loaded.centre, space.centre)
    assert sha256 == hashlib.sha256((tmp_path / "space.npy").read_bytes()).hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == ["space.npy"]


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_space_is_refused(tmp_path: Path, keep: float) -> None:
    file = tmp_path / "space.npy"
    save_code_space(new_code_space(clustered(100).astype(np.float16)), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CorruptIndexError, match=r"space\.npy cannot be read"):
        load_code_space(file, dimension=WIDTH)


def test_a_space_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptIndexError, match=r"space\.npy cannot be read \(FileNotFoundError\)"):
        load_code_space(tmp_path / "space.npy", dimension=WIDTH)


def test_a_space_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    for table in (np.zeros((WIDTH, WIDTH), dtype=np.float32), np.zeros((WIDTH + 1, WIDTH)), np.zeros(3, np.float32)):
        np.save(tmp_path / "space.npy", table)
        with pytest.raises(CorruptIndexError, match=r"space\.npy holds \("):
            load_code_space(tmp_path / "space.npy", dimension=WIDTH)


# Scanning codes


@pytest.fixture(scope="module")
def table() -> FloatArray:
    return clustered(3_000, clusters=60)


@pytest.fixture(scope="module")
def space(table: FloatArray) -> CodeSpace:
    return new_code_space(table.astype(np.float16))


@pytest.fixture
def segment(tmp_path: Path, table: FloatArray, space: CodeSpace) -> Segment:
    return written_segment(tmp_path, table, space=space)


@pytest.mark.parametrize("allowed", [0, 1, 7, 8, 9, 300, 2_999, 3_000])
def test_scanned_codes_are_allowed_ones_only(
    segment: Segment, table: FloatArray, space: CodeSpace, allowed: int
) -> None:
    random = np.random.default_rng(allowed)
    mask = np.zeros(len(table), dtype=bool)
    mask[random.permutation(len(table))[:allowed]] = True
    for query in space.rotate(table[:5]):
        for n in (1, 10, 5_000):
            ((positions, estimates),) = codes_found(segment, space, query[None], n, mask)
            assert len(positions) == len(estimates) == min(n, allowed)
            assert len(set(positions.tolist())) == len(positions)
            assert mask[positions].all()


def test_all_codes_are_scanned_without_a_selector(segment: Segment, table: FloatArray, space: CodeSpace) -> None:
    ((positions, _),) = codes_found(segment, space, space.rotate(table[:1]), 10**6, None)
    assert sorted(positions.tolist()) == list(range(len(table)))


def test_estimates_are_close_to_the_cosines(segment: Segment, table: FloatArray, space: CodeSpace) -> None:
    ((positions, estimates),) = codes_found(segment, space, space.rotate(table[:1]), len(table), None)
    cosines = table[positions] @ table[0]
    assert np.corrcoef(estimates, cosines)[0, 1] > 0.8  # with 32 bits each
    assert abs(float(np.mean(estimates - cosines))) < 0.02


def test_recall_at_the_calibrated_factor(segment: Segment, table: FloatArray, space: CodeSpace) -> None:
    """Queries that calibration has not seen: near the stored vectors, but none of them."""
    queries = clustered(200, clusters=60, seed=0)[100:] + np.random.default_rng(9).normal(size=(100, WIDTH)) * 0.05
    hits = 0
    for query in (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32):
        found, plan = search_segments([segment], query, 10, space=space, path="codes")
        assert plan.scanned_codes == len(table)
        hits += np.intersect1d(found.vids - 1, nearest(table, query, 10)).size
    assert hits / 1_000 >= 0.99


@pytest.mark.parametrize("cached", [codes._CACHED, 7])
@pytest.mark.parametrize("share", [1, 40, 1_000])
def test_codes_at_some_positions_have_the_estimates_of_a_scan(
    segment: Segment, table: FloatArray, space: CodeSpace, share: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_CACHED", cached)
    positions = np.random.default_rng(share).permutation(len(segment))[: len(segment) // share]
    assert segment.codes is not None
    rotated = np.concatenate([space.rotate(table[at : at + 1]) for at in (3, 700)])
    scanned, at = segment.codes.scan(rotated, len(segment))
    of_all = np.zeros((2, len(segment)), dtype=np.float32)
    np.put_along_axis(of_all, at, scanned, axis=1)
    for n in (1, 20, len(segment)):
        estimates, found = segment.codes.judge(space, rotated, n, positions)
        assert found.shape == (2, min(n, len(positions)))
        for row in range(2):
            alone = segment.codes.judge(space, rotated[row : row + 1], n, positions)
            np.testing.assert_array_equal(found[row], alone[1][0])
            np.testing.assert_array_equal(estimates[row], alone[0][0])
            assert (np.diff(estimates[row]) <= 0).all()
            assert len(np.unique(found[row])) == len(found[row])
            assert np.isin(found[row], positions).all()
        # The same up to what the packed form rounds its tables to.
        np.testing.assert_allclose(estimates, np.take_along_axis(of_all, found, axis=1), rtol=0, atol=0.02)


def test_few_codes_are_looked_at_alone(segment: Segment, table: FloatArray, space: CodeSpace) -> None:
    """The plan says how many codes were looked at; of the same filter, what is found is the same either way."""
    enough = len(segment) // FEW
    for allowed in (enough, enough + 1):
        docs = np.zeros(segment.highest_doc + 1, dtype=bool)
        docs[segment.docs[np.random.default_rng(3).permutation(len(segment))[:allowed]]] = True
        found, plan = search_segments([segment], table[3], 5, space=space, allowed_docs=docs, path="codes")
        assert plan.scanned_codes == (allowed if allowed == enough else len(segment))
        exact, _ = search_segments([segment], table[3], 5, space=space, allowed_docs=docs, path="scan")
        assert found.vids.tolist() == exact.vids.tolist()


def test_codes_survive_the_file(segment: Segment, table: FloatArray, space: CodeSpace) -> None:
    fresh = space.pack(space.encode(table.astype(np.float16)))
    query = space.rotate(table[:1])
    estimates, labels = fresh.search(query, 50)
    ((positions, read),) = codes_found(segment, space, query[:1], 50, None)
    assert positions.tolist() == labels[0].tolist()
    np.testing.assert_allclose(read, estimates[0], rtol=0, atol=1e-6)


# Half of the bits packed


@pytest.fixture(scope="module")
def wide() -> FloatArray:
    """Vectors of which half of the bits are packed."""
    table = clustered(2_000, dimension=PARTS_FROM, clusters=60, seed=4)
    assert packed_bits(PARTS_FROM) == PARTS_FROM // 2
    return table


@pytest.fixture(scope="module")
def wide_space(wide: FloatArray) -> CodeSpace:
    return new_code_space(wide.astype(np.float16))


@pytest.fixture(scope="module")
def wide_segment(wide: FloatArray, wide_space: CodeSpace, tmp_path_factory: pytest.TempPathFactory) -> Segment:
    return written_segment(tmp_path_factory.mktemp("wide"), wide, space=wide_space)


def test_half_of_the_bits_speaks_for_all(wide: FloatArray, wide_space: CodeSpace) -> None:
    """What FAISS makes of the packed half, against the estimate written out."""
    table, query, bits = wide.astype(np.float16), wide_space.rotate(wide[5:6])[0], packed_bits(PARTS_FROM)
    residuals = np.concatenate([wide_space.rotate(row[None].astype(np.float32)) for row in table]) - wide_space.centre
    asked = query - wide_space.centre
    share = PARTS_FROM / bits * (residuals**2).sum(axis=1) / np.abs(residuals).sum(axis=1)
    products = (np.sign(residuals[:, :bits]) * asked[:bits]).sum(axis=1) * share + residuals @ wide_space.centre
    packed = wide_space.pack(wide_space.encode(table))
    estimates, at = packed.search(query[None, :bits], len(table))
    expected = products[at[0]]
    offset = expected - estimates[0]  # the same for all vectors: what is added for the query alone
    assert np.abs(offset - np.median(offset)).max() < 0.03
    assert np.corrcoef(estimates[0], expected)[0, 1] > 0.995
    errors = products - residuals @ query
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.08


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_what_half_of_the_bits_finds_is_judged_by_all(
    wide_segment: Segment, wide: FloatArray, wide_space: CodeSpace, share: float
) -> None:
    codes = wide_segment.codes
    assert codes is not None
    random = np.random.default_rng(1)
    allowed = None if share == 1.0 else random.random(len(wide)) < share
    rotated = np.concatenate([wide_space.rotate(wide[at : at + 1]) for at in (3, 700)])
    places = np.arange(len(wide)) if allowed is None else np.flatnonzero(allowed)
    every, at = wide_space.best(codes.plain[places], rotated, len(places))
    for n in (1, 7, len(wide) // SHORTLIST, len(wide)):
        estimates, found = codes.search(wide_space, rotated, n, allowed)
        assert found.shape == estimates.shape == (2, min(n, len(places)))
        for row in range(2):
            alone = codes.search(wide_space, rotated[row : row + 1], n, allowed)
            np.testing.assert_array_equal((found[row], estimates[row]), (alone[1][0], alone[0][0]))
            of_all = dict(zip(places[at[row]].tolist(), every[row].tolist(), strict=True))
            assert estimates[row].tolist() == [of_all[place] for place in found[row].tolist()]
            assert (np.diff(estimates[row]) <= 0).all()
            assert len(np.unique(found[row])) == len(found[row])
            if n * SHORTLIST >= len(places):
                np.testing.assert_array_equal(estimates[row], every[row][:n])


def test_recall_with_half_of_the_bits(wide_segment: Segment, wide: FloatArray, wide_space: CodeSpace) -> None:
    random = np.random.default_rng(9)
    hits, asked = 0, 50
    for at in random.permutation(len(wide))[:asked]:
        query = wide[at] + random.normal(size=PARTS_FROM).astype(np.float32) * np.float32(0.3 / PARTS_FROM**0.5)
        query /= np.linalg.norm(query)
        found, plan = search_segments([wide_segment], query, 10, space=wide_space, path="codes")
        assert plan.scanned_codes == len(wide)
        hits += np.intersect1d(found.vids - 1, nearest(wide, query, 10)).size
    assert hits / (10 * asked) >= 0.99


# Calibration


def recall_at(segment: Segment, table: FloatArray, space: CodeSpace, factor: int) -> float:
    """Brute force: recall@10 of the segment's own vectors, each left out of its own answer."""
    hits = 0
    for own in np.linspace(0, len(table) - 1, CALIBRATION_QUERIES).astype(np.int64).tolist():
        query = table[own].astype(np.float16).astype(np.float32)
        answer = [at for at in nearest(table, query, CALIBRATION_K + 1).tolist() if at != own][:CALIBRATION_K]
        guesses = codes_found(segment, space, space.rotate(query[None]), factor * CALIBRATION_K + 1, None)[0][
            0
        ].tolist()
        hits += len(set(answer) & set([at for at in guesses if at != own][: factor * CALIBRATION_K]))
    return hits / (CALIBRATION_QUERIES * CALIBRATION_K)


@pytest.mark.parametrize("kind", ["clustered", "spherical"])
def test_calibration_takes_one_step_more_than_reaches_the_recall(tmp_path: Path, kind: str) -> None:
    table = clustered(2_000, clusters=40) if kind == "clustered" else spherical(1_000)
    space = new_code_space(table.astype(np.float16))
    segment = written_segment(tmp_path, table, space=space)
    enough = segment_files._FACTORS.index(segment.rerank) - 1  # a step more is taken than the sample needs
    assert enough > 0
    assert recall_at(segment, table, space, segment_files._FACTORS[enough]) >= CALIBRATION_RECALL
    assert recall_at(segment, table, space, segment_files._FACTORS[enough - 1]) < CALIBRATION_RECALL


def test_calibration_of_vectors_that_are_all_equal_ends(tmp_path: Path) -> None:
    table = np.repeat(clustered(1), 600, axis=0)
    segment = written_segment(tmp_path, table, space=new_code_space(clustered(50).astype(np.float16)))
    assert segment.rerank in segment_files._FACTORS


def test_calibration_of_the_same_segment_is_the_same(segment: Segment, space: CodeSpace) -> None:
    assert segment.codes is not None
    assert calibrate(segment, segment.codes, space) == segment.rerank


# In an index


@pytest.fixture
def index(tmp_path: Path, table: FloatArray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A thousand vectors in one segment with codes."""
    monkeypatch.setattr(store, "SEAL_ROWS", 250)
    path = build_vector_index(tmp_path / "index", table[:1_000], batch=250)
    with IndexReader(path) as reader:
        (record,) = reader.info().segments
    assert (record.rows, record.factory) == (1_000, "SQfp16,RaBitQfs")
    return path


def test_the_space_s_checksum_is_kept(index: Path) -> None:
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        sha256 = read_setting(snapshot.connection, CODE_SPACE_SHA256)
    assert sha256 == hashlib.sha256((index / "segments" / "codes.space.npy").read_bytes()).hexdigest()


def test_later_segments_share_the_space(index: Path, table: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (index / "segments" / "codes.space.npy").read_bytes()
    monkeypatch.setattr(store, "SEAL_ROWS", 250)
    monkeypatch.setattr(compaction, "TIERS", (250, 1_000, 4_000))
    with IndexWriter(index) as writer:
        for first in range(1_000, 3_000, 250):
            writer.write(vector_entries(table[first : first + 250], first=first))
    assert (index / "segments" / "codes.space.npy").read_bytes() == before
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        assert [segment.codes is not None for segment in snapshot.view.segments] == [True] * 3
        for query in table[::300]:
            found, plan = snapshot.search_vectors(query, 10, path="codes")
            assert plan.scanned_codes == 3_000
            assert len(set(found.vids.tolist()) & {int(at) + 1 for at in nearest(table, query, 10)}) >= 9


def change_space(index: Path) -> None:
    file = index / "segments" / "codes.space.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 64
    file.write_bytes(bytes(data))


def test_a_changed_space_is_refused_by_the_writer(index: Path, table: FloatArray) -> None:
    change_space(index)
    message = r"codes\.space\.npy is not what was written; run 'indexer verify"
    writer = IndexWriter(index)
    writer.write(vector_entries(table[1_000:1_600], first=1_000))
    with pytest.raises(CorruptIndexError, match=message):
        writer.compact(full=True)
    with pytest.raises(CorruptIndexError, match=message):
        writer.close()  # when the new segment is to have codes, too
    with IndexWriter(index) as writer:
        assert writer.state.documents == 1_600
        writer.compact(codes="never")


def test_a_space_that_is_gone_is_refused_by_writer_and_reader(index: Path) -> None:
    (index / "segments" / "codes.space.npy").unlink()
    with IndexWriter(index) as writer:
        writer.remove([f"d{n}" for n in range(10)])
        with pytest.raises(CorruptIndexError, match=r"codes\.space\.npy is not what was written"):
            writer.compact(full=True)
    with (
        IndexReader(index) as reader,
        pytest.raises(CorruptIndexError, match=r"codes\.space\.npy cannot be read"),
        reader.snapshot(),
    ):
        pass


@pytest.mark.parametrize("damage", ["change", "delete"])
def test_a_changed_space_is_found_by_verify(index: Path, damage: str) -> None:
    assert verify_index(index).faults == ()
    if damage == "change":
        change_space(index)
    else:
        (index / "segments" / "codes.space.npy").unlink()
    expected = {"change": "its SHA-256 is not the one that was written", "delete": "the file is gone"}[damage]
    assert [(f.place, f.problem) for f in verify_index(index).faults] == [("segments/codes.space.npy", expected)]


def test_changed_codes_are_found_by_verify(index: Path) -> None:
    (file,) = (index / "segments").glob("*.codes.faiss")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    assert [(f.place, f.problem) for f in verify_index(index).faults] == [
        (f"segments/{file.name}", "its SHA-256 is not the one that was written")
    ]


def test_an_index_without_large_segments_has_no_space(tmp_path: Path, table: FloatArray) -> None:
    path = build_vector_index(tmp_path / "small", table[:400])
    with IndexWriter(path) as writer:
        writer.compact(full=True)
    assert not (path / "segments" / "codes.space.npy").exists()
    assert verify_index(path).faults == ()


def test_a_space_whose_index_does_not_know_of_it_goes_when_a_writer_opens(tmp_path: Path, table: FloatArray) -> None:
    # As a crash leaves it between writing the file and naming it.
    path = build_vector_index(tmp_path / "small", table[:10])
    save_code_space(new_code_space(table.astype(np.float16)), path / "segments" / "codes.space.npy")
    IndexWriter(path).close()
    assert not (path / "segments" / "codes.space.npy").exists()


@pytest.mark.parametrize("path", ["auto", "codes", "scan"])
@pytest.mark.parametrize("share", [None, 0.5, 0.02, 0.0])
def test_queries_together_find_what_each_finds_alone(
    segment: Segment, table: FloatArray, space: CodeSpace, path: str, share: float | None
) -> None:
    """Bit by bit, from a segment with codes and one without, however many are asked at once."""
    few = Segment(
        "few", segment.index, segment.vids + 10_000, segment.docs, segment.live & (np.arange(len(table)) % 7 == 0)
    )
    allowed = None if share is None else np.random.default_rng(1).random(int(segment.docs.max()) + 1) < share
    queries = table[:40] + np.random.default_rng(2).normal(size=(40, WIDTH)).astype(np.float32) * 0.05
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    options: Any = {"space": space, "allowed_docs": allowed, "path": path}
    for count in (1, 2, 31, 40):
        together = search_segments_many([segment, few], queries[:count], 10, **options)
        assert len(together) == count
        for query, (found, plan) in zip(queries, together, strict=False):
            alone, own_plan = search_segments([segment, few], query, 10, **options)
            assert plan == own_plan
            assert found.vids.tolist() == alone.vids.tolist()
            assert found.scores.tobytes() == alone.scores.tobytes()


def test_all_that_is_rescored_comes_back_where_it_is_little(segment: Segment, table: FloatArray) -> None:
    positions = np.array([5, 2_000, 7, 6])
    found, cosines = segment.score(table[7], 1, positions)
    assert sorted(found.tolist()) == sorted(positions.tolist())
    np.testing.assert_allclose(
        cosines, segment.table[found].astype(np.float64) @ table[7].astype(np.float64), atol=1e-6
    )
    everything, _ = segment.score(table[7], 3, np.arange(len(table)))
    assert len(everything) == 3
    nothing, none = segment.score(table[7], 3, np.arange(0))
    assert len(nothing) == len(none) == 0
