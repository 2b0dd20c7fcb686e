"""The plan over several segments: how many candidates of each are looked at, and that nothing is missed by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import clustered, written_segment

from indexer.codes import PARTS_FROM, SHORTLIST, CodeSpace, new_code_space
from indexer.helpers import Helpers
from indexer.planner import search_segments, search_segments_many
from indexer.records import FloatArray
from indexer.vectors import IdArray, Segment, exact_scores

N = 3


def written(folder: Path, parts: Sequence[FloatArray], space: CodeSpace, *, reranks: Sequence[int]) -> list[Segment]:
    """A segment of each part, with the rerank factor that is given instead of the calibrated one."""
    firsts = np.cumsum([1, *map(len, parts)])
    return [
        replace(written_segment(folder, part, name=f"{first}", first_vid=int(first), space=space), rerank=rerank)
        for first, part, rerank in zip(firsts, parts, reranks, strict=False)
    ]


def unit(table: FloatArray) -> FloatArray:
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def best_ranked(found: list[tuple[FloatArray, IdArray]], rank: int) -> list[IdArray]:
    """Of each segment what is among the `rank` best of all, in plain Python."""
    order = sorted(((-e, part, p) for part, (es, ps) in enumerate(found) for e, p in zip(es, ps, strict=True)))[:rank]
    return [np.array([p for _, owner, p in order if owner == part], dtype=np.int64) for part in range(len(found))]


def whole_way(segments: Sequence[Segment], space: CodeSpace, query: FloatArray, n: int) -> tuple[list[int], int]:
    """Vids of the n best, and how many vectors are read, where each segment is asked at once for all it may have."""
    wanted, rotated = n * segments[0].rerank, space.rotate(query[None])
    found = []
    for segment in segments:
        assert segment.codes is not None
        estimates, at = segment.codes.scan(rotated, wanted * SHORTLIST)
        found.append((estimates[0], at[0]))
    judged = []
    for segment, at in zip(segments, best_ranked(found, wanted * SHORTLIST), strict=True):
        assert segment.codes is not None
        estimates, positions = segment.codes.judge(space, rotated, wanted, at)
        judged.append((estimates[0], positions[0]))
    chosen = best_ranked(judged, wanted)
    vids = np.concatenate([segment.vids[at] for segment, at in zip(segments, chosen, strict=True)])
    scores = np.concatenate(
        [exact_scores(segment.rows(at), query) for segment, at in zip(segments, chosen, strict=True)]
    )
    return vids[np.argsort(-scores)[:n]].tolist(), len(vids)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Segment], CodeSpace, FloatArray]:
    """Six segments of wide vectors, of which the fourth holds everything that is near to the queries."""
    random = np.random.default_rng(1)
    centre = random.normal(size=PARTS_FROM)
    topic = unit(centre + 1.2 * random.normal(size=(500, PARTS_FROM)))
    parts = [clustered(rows, dimension=PARTS_FROM, seed=rows) for rows in (400, 300, 350, 500, 250, 420)]
    parts[3] = topic
    space = new_code_space(np.concatenate(parts).astype(np.float16))
    queries = unit(centre + 1.2 * random.normal(size=(20, PARTS_FROM)))
    return written(tmp_path_factory.mktemp("wide"), parts, space, reranks=[3] * 6), space, queries


def test_a_segment_that_may_have_more_is_asked_again(wide: tuple[list[Segment], CodeSpace, FloatArray]) -> None:
    segments, space, queries = wide
    for query in queries:
        found, plan = search_segments(segments, query, N, space=space, path="codes")
        vids, read = whole_way(segments, space, query, N)
        assert found.vids.tolist() == vids
        assert plan.scanned_vectors == read
        assert plan.scanned_codes >= sum(map(len, segments)) + len(segments[3])


def test_no_helper_and_no_other_query_changes_an_answer(wide: tuple[list[Segment], CodeSpace, FloatArray]) -> None:
    segments, space, queries = wide
    queries = np.concatenate([queries, segments[0].table[:20].astype(np.float32)])
    alone = [search_segments(segments, query, N, space=space, path="codes") for query in queries]
    helpers = Helpers(3)
    together = search_segments_many(segments, queries, N, space=space, path="codes", helpers=helpers)
    helpers.shutdown()
    for (one, plan), (other, same) in zip(alone, together, strict=True):
        assert (one.vids.tolist(), one.scores.tolist(), plan) == (other.vids.tolist(), other.scores.tolist(), same)


@pytest.mark.parametrize("rows", [[1_000], [500, 500], [250] * 4, [800, 200], [900, 300, 300, 300, 80]])
def test_where_all_segments_are_alike_each_is_scanned_once(tmp_path: Path, rows: list[int]) -> None:
    table = clustered(sum(rows), dimension=PARTS_FROM, clusters=200, seed=3)
    space = new_code_space(table.astype(np.float16))
    segments = written(tmp_path, np.split(table, np.cumsum(rows)[:-1]), space, reranks=[3] * len(rows))
    scanned = [search_segments(segments, query, N, space=space, path="codes")[1].scanned_codes for query in table[::50]]
    assert np.median(scanned) == sum(rows)


@pytest.mark.parametrize("dimension", [64, PARTS_FROM])
@pytest.mark.parametrize("filtered", [False, True])
def test_answers_in_a_small_hard_segment_are_found_beside_a_large_easy_one(
    tmp_path: Path, dimension: int, filtered: bool
) -> None:
    random = np.random.default_rng(2)
    easy = clustered(3_000, dimension=dimension, clusters=20)
    centre = random.normal(size=dimension)
    hard, queries = (unit(centre + 0.5 * random.normal(size=(rows, dimension))) for rows in (300, 30))
    space = new_code_space(np.concatenate([easy, hard]).astype(np.float16))
    segments = written(tmp_path, [easy, hard], space, reranks=[2, 24])
    segments[1] = replace(segments[1], docs=segments[1].docs + len(easy))
    allowed = np.ones(100 + 3_300, dtype=bool)
    allowed[100:3_100] = np.arange(3_000) < 100 if filtered else True
    found = [
        search_segments(segments, query, 10, space=space, allowed_docs=allowed, path="codes")[0].vids
        for query in queries
    ]
    right = [3_001 + np.argsort(-(hard.astype(np.float16).astype(np.float32) @ query))[:10] for query in queries]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(right, found, strict=True)]) >= 0.99
