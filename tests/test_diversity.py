"""Hits that differ: near-duplicates collapsed, maximal marginal relevance, against the plain definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_usage, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index, clustered
from hypothesis import given, settings
from hypothesis import strategies as st

import search.diversity
from indexer.errors import QueryError
from indexer.reader import IndexReader
from indexer.records import Document, FloatArray
from search import Hit, Searcher
from search.diversity import MMR_POOL, Group, collapse, diversify, marginal_relevance
from search.ranking import Ranked
from search.render import render_hit

MODEL = DemoAnalyser()


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def plane(*degrees: float) -> FloatArray:
    """Unit vectors at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def cosine(first: Any, second: Any) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(first, second, strict=True))
    return float(dot / (sum(float(x) ** 2 for x in first) * sum(float(y) ** 2 for y in second)) ** 0.5)


# Near-duplicates


def test_a_candidate_joins_the_first_leader_that_is_near_enough() -> None:
    # Within 30.7° for 0.86. The third is near to both leaders; the fifth to a member of the first group only.
    vectors = plane(0, 40, 20, -25, -50, 50)
    assert collapse(vectors, [""] * 6, threshold=0.86, wanted=6) == [[0, 2, 3], [1, 5], [4]]
    assert collapse(vectors, [""] * 6, threshold=0.95, wanted=6) == [[0], [1, 5], [2], [3], [4]]


def test_the_same_text_is_a_duplicate_whatever_the_vectors() -> None:
    vectors = plane(0, 90, 180, 270)
    texts = ["Ａcme\u00a0Corp.", "other", "  ACME corp. ", "acme corp"]
    assert collapse(vectors, texts, threshold=0.99, wanted=4) == [[0, 2], [1], [3]]


def test_texts_without_a_word_are_not_compared() -> None:
    assert collapse(plane(0, 90, 180), ["", " ", ""], threshold=0.99, wanted=3) == [[0], [1], [2]]


def test_the_threshold_itself_is_near_enough() -> None:
    stored = plane(12, 12, 13).astype(np.float16).astype(np.float32)  # their length is not quite 1
    assert collapse(stored, ["a", "b", "c"], threshold=1.0, wanted=3) == [[0, 1], [2]]
    limit = cosine(stored[0], stored[2])
    assert collapse(stored, ["a", "b", "c"], threshold=limit, wanted=3) == [[0, 1, 2]]


def test_enough_groups_take_no_new_leader_but_go_on_collecting() -> None:
    assert collapse(plane(0, 90, 180, 1), [""] * 4, threshold=0.9, wanted=2) == [[0, 3], [1]]
    assert collapse(plane(0)[:0], [], threshold=0.9, wanted=2) == []


def groups_by_definition(vectors: FloatArray, texts: Sequence[str], threshold: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for at, vector in enumerate(vectors):
        for group in groups:
            same = texts[group[0]].split() == texts[at].split() != []
            if same or cosine(vectors[group[0]], vector) >= threshold - 1e-12:
                group.append(at)
                break
        else:
            groups.append([at])
    return groups


@given(seed=st.integers(0, 10_000), n=st.integers(0, 40), threshold=st.sampled_from([0.3, 0.6, 0.8, 0.95]))
@settings(max_examples=40, deadline=None)
def test_groups_are_those_of_the_definition_and_stay_when_more_candidates_come(
    seed: int, n: int, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    vectors = clustered(n, dimension=4, clusters=4, seed=seed) if n else np.zeros((0, 4), dtype=np.float32)
    texts = [random.choice(["", "x", f"text {at}"]) for at in range(n)]
    expected = groups_by_definition(vectors, texts, threshold)
    assert collapse(vectors, texts, threshold=threshold, wanted=n + 1) == expected
    for fewer in (n // 2, n // 3):
        leaders = [group[0] for group in collapse(vectors[:fewer], texts[:fewer], threshold=threshold, wanted=n + 1)]
        assert leaders == [group[0] for group in expected][: len(leaders)]


@pytest.mark.parametrize("block", [1, 7, 256])
@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.99, 1.0])
def test_groups_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch, block: int, threshold: float) -> None:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((40, 12))[rng.integers(0, 40, 300)] + rng.choice([0.0, 0.1], (300, 1))
    texts = [f"text {number}" for number in rng.integers(0, 200, 300)]
    monkeypatch.setattr(search.diversity, "BLOCK", block)
    vectors = vectors.astype(np.float32)
    groups = groups_by_definition(vectors, texts, threshold)
    assert collapse(vectors, texts, threshold=threshold, wanted=300) == groups
    assert 1 < len(groups) < 200


# Maximal marginal relevance


def test_the_next_is_relevant_and_unlike_those_before() -> None:
    # Query at 0°. The second is nearly the first again; the third is less relevant, but on the other side.
    vectors = plane(10, 12, -30, 60)
    scores = [float(np.cos(np.radians(angle))) for angle in (10, 12, 30, 60)]
    assert marginal_relevance(scores, vectors, balance=1.0) == [0, 1, 2, 3]
    assert marginal_relevance(scores, vectors, balance=0.5) == [0, 2, 1, 3]
    assert marginal_relevance(scores, vectors, balance=0.0) == [0, 3, 2, 1]


def test_hand_computed_steps() -> None:
    vectors = plane(0, 0, 90)
    # After the first: 0.5·0.9 − 0.5·1 = −0.05 against 0.5·0.2 − 0.5·0 = 0.1.
    assert marginal_relevance([1.0, 0.9, 0.2], vectors, balance=0.5) == [0, 2, 1]
    # 0.8·0.9 − 0.2·1 = 0.52 against 0.8·0.2 = 0.16.
    assert marginal_relevance([1.0, 0.9, 0.2], vectors, balance=0.8) == [0, 1, 2]


def test_equal_marginal_relevance_keeps_the_order_of_the_ranking() -> None:
    assert marginal_relevance([0.5] * 4, plane(7, 7, 7, 7), balance=0.3) == [0, 1, 2, 3]
    assert marginal_relevance([], plane(0)[:0], balance=0.5) == []


def order_by_definition(scores: Sequence[float], vectors: FloatArray, balance: float) -> list[int]:
    order: list[int] = []
    while len(order) < len(scores):
        marginal = {
            at: balance * scores[at]
            - (1 - balance) * max((cosine(vectors[at], vectors[before]) for before in order), default=0.0)
            for at in range(len(scores))
            if at not in order
        }
        best = max(marginal.values())
        order.append(min(at for at, value in marginal.items() if value >= best - 1e-9))
    return order


@given(seed=st.integers(0, 10_000), n=st.integers(1, 15), balance=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
@settings(max_examples=40, deadline=None)
def test_the_order_is_that_of_the_definition(seed: int, n: int, balance: float) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n, 5)).astype(np.float32)
    scores = sorted(random.uniform(-1, 1, size=n).round(1).tolist(), reverse=True)
    order = marginal_relevance(scores, vectors, balance=balance)
    assert order == order_by_definition(scores, vectors, balance)
    if balance == 1.0:
        assert order == list(range(n))


# Widening


class Ranking:
    """Documents 0, 1, …, best first; `asked` collects how many were asked for."""

    def __init__(self, vectors: FloatArray) -> None:
        self.vectors = vectors
        self.asked: list[int] = []

    def rank(self, n: int) -> list[Ranked]:
        self.asked.append(n)
        return [Ranked(at, at, 1.0 - at / 10_000) for at in range(min(n, len(self.vectors)))]

    def describe(self, ranked: Sequence[Ranked]) -> tuple[FloatArray, list[str]]:
        return self.vectors[[item.doc for item in ranked]], [""] * len(ranked)

    def diversify(self, wanted: int, *, distinct: float | None = None, mmr: float | None = None) -> list[Group]:
        return diversify(self.rank, self.describe, wanted=wanted, distinct=distinct, mmr=mmr)


def test_more_candidates_are_asked_for_until_enough_are_distinct() -> None:
    ranking = Ranking(plane(*[0] * 300, 45, 90))
    groups = ranking.diversify(3, distinct=0.99)
    assert [group.best.doc for group in groups] == [0, 300, 301]
    assert [len(group.hidden) for group in groups] == [299, 0, 0]
    assert ranking.asked == [32, 128, 512]


def test_widening_ends_with_the_documents_and_with_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [group.best.doc for group in Ranking(plane(*[0] * 40)).diversify(5, distinct=0.9)] == [0]
    monkeypatch.setattr(search.diversity, "MOST_EXAMINED", 100)
    ranking = Ranking(plane(*[0] * 300, 45))
    assert [group.best.doc for group in ranking.diversify(2, distinct=0.99)] == [0]
    assert ranking.asked == [32, 100]


def test_without_distinct_nothing_is_hidden_and_no_more_is_asked_for() -> None:
    ranking = Ranking(plane(*range(300)))
    groups = ranking.diversify(7, mmr=0.5)
    assert ranking.asked == [MMR_POOL]
    assert sorted(group.best.doc for group in groups) == list(range(MMR_POOL))
    assert not any(group.hidden for group in groups)


def test_beyond_the_pool_the_ranking_s_order_goes_on() -> None:
    ranking = Ranking(clustered(300, seed=1))
    groups = ranking.diversify(150, mmr=0.5)
    docs = [group.best.doc for group in groups]
    assert docs[MMR_POOL:] == list(range(MMR_POOL, 150))
    assert docs[:MMR_POOL] == [group.best.doc for group in ranking.diversify(10, mmr=0.5)]


# Searches

TEXTS = {
    "a1": "the ball of Ada in Rome",
    "a2": "The  BALL of Ada in Rome",
    "a3": "the ball of Ada in Rome",
    "b": "an atom and a cell",
    "c1": "a song of Jupiter",
    "c2": "a song of Jupiter",
    "d": "the ball in the song of Ada " + "and filler words " * 6,
    "e": "nothing in particular",
}


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    documents = [Document(id_, text, {"n": n}) for n, (id_, text) in enumerate(TEXTS.items())]
    path = build_index(tmp_path_factory.mktemp("diversity") / "index", documents, MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["cosine", "hybrid", "keyword"])
def test_duplicates_are_one_hit_with_the_ids_of_those_hidden(searcher: Searcher, mode: str) -> None:
    plain = ids(searcher.search("the ball", k=8, mode=mode))
    hits = searcher.search("the ball", k=8, distinct=0.98, mode=mode)
    kept = {"a1": "a", "a2": "a", "a3": "a", "c1": "c", "c2": "c"}
    expected = list(dict.fromkeys(kept.get(id_, id_) for id_ in plain))
    assert [kept.get(id_, id_) for id_ in ids(hits)] == expected
    for hit in hits:
        twins = [id_ for id_ in plain if kept.get(id_, id_) == kept.get(hit.id, hit.id)]
        assert (hit.id, list(hit.hidden)) == (twins[0], twins[1:])


def test_k_and_offset_count_what_is_left(searcher: Searcher) -> None:
    everything = searcher.search("the ball", k=8, distinct=0.98)
    assert len(everything) == 5
    assert ids(searcher.search("the ball", k=3, distinct=0.98)) == ids(everything)[:3]
    paged = [hit.id for at in range(6) for hit in searcher.search("the ball", k=1, offset=at, distinct=0.98)]
    assert paged == ids(everything)


def test_min_score_and_filters_come_before(searcher: Searcher) -> None:
    hits = searcher.search("the ball", k=8, distinct=0.98, filter="id in [a2, a3, b]")
    assert sorted(sorted([hit.id, *hit.hidden]) for hit in hits) == [["a2", "a3"], ["b"]]
    least = searcher.search("the ball", k=8)[3].score
    hits = searcher.search("the ball", k=8, distinct=0.98, min_score=least)
    expected = [hit.id for hit in searcher.search("the ball", k=8, min_score=least)]
    assert sorted(id_ for hit in hits for id_ in (hit.id, *hit.hidden)) == sorted(expected)


def test_mmr_orders_hits_by_the_definition_over_the_documents_embeddings(searcher: Searcher) -> None:
    plain = searcher.search("the ball", k=8)
    vectors = np.stack([MODEL.vector(hit.text) for hit in plain])
    order = order_by_definition([hit.score for hit in plain], vectors, 0.4)
    hits = searcher.search("the ball", k=8, mmr=0.4)
    # Vectors are stored in fp16, so copies may change places with each other.
    assert [TEXTS[hit.id].lower().split() for hit in hits] == [plain[at].text.lower().split() for at in order]
    assert {hit.id: hit.score for hit in hits} == {hit.id: hit.score for hit in plain}
    assert [hit.id for at in range(8) for hit in searcher.search("the ball", k=1, offset=at, mmr=0.4)] == ids(hits)
    assert searcher.search("the ball", k=8, mmr=1.0) == plain


@pytest.mark.parametrize("mode", ["hybrid", "keyword"])
def test_mmr_of_other_scores_starts_with_the_best(searcher: Searcher, mode: str) -> None:
    plain = searcher.search("the ball of Ada", k=8, mode=mode)
    hits = searcher.search("the ball of Ada", k=8, mode=mode, mmr=0.5)
    assert hits[0] == plain[0]
    assert sorted(ids(hits)) == sorted(ids(plain))
    assert searcher.search("the ball of Ada", k=8, mode=mode, mmr=1.0) == plain


def test_both_together_and_in_every_call(searcher: Searcher) -> None:
    options: Any = {"k": 3, "distinct": 0.98, "mmr": 0.5}
    hits = searcher.search("the ball", **options)
    assert len({hit.text.lower() for hit in hits}) == 3
    assert searcher.search_many(["the ball", "a song"], **options) == [hits, searcher.search("a song", **options)]
    assert searcher.search_vector(MODEL.vector("the ball"), **options) == hits
    similar = searcher.similar("b", **options)
    assert len({hit.text.lower() for hit in similar}) == 3
    assert "b" not in {id_ for hit in similar for id_ in (hit.id, *hit.hidden)}


def test_k_distinct_documents_are_found_behind_many_copies(tmp_path: Any) -> None:
    vectors = np.concatenate([plane(*[1] * 500), plane(20, 40, 60, 80)])
    with Searcher(build_vector_index(tmp_path / "index", vectors)) as opened:
        hits = opened.search_vector(plane(0)[0], k=4, distinct=0.99)
        assert ids(hits) == ["d0", "d500", "d501", "d502"]
        assert len(hits[0].hidden) == 499
        assert ids(opened.search_vector(plane(0)[0], k=2, offset=3, distinct=0.99)) == ["d502", "d503"]


def test_vectors_of_documents_are_those_of_one_by_one(searcher: Searcher) -> None:
    with IndexReader(searcher.info.path) as reader, reader.snapshot() as snapshot:
        docs = [snapshot.numbers_of([id_])[id_] for id_ in ("d", "b", "a1", "d")]
        table = snapshot.document_vectors(docs)
        assert table.dtype == np.float32
        for row, doc, id_ in zip(table, docs, ("d", "b", "a1", "d"), strict=True):
            assert row.tolist() == snapshot.document_vector(doc).tolist()
            assert cosine(row, MODEL.vector(TEXTS[id_])) == pytest.approx(1.0, abs=1e-5)
        assert snapshot.document_vectors([]).shape == (0, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distinct": 0.0}, "distinct must be a cosine above 0 and up to 1, got 0.0"),
        ({"distinct": 1.5}, "distinct must be a cosine above 0 and up to 1, got 1.5"),
        ({"distinct": float("nan")}, "distinct must be a cosine above 0 and up to 1, got nan"),
        ({"mmr": -0.1}, "mmr must be between 0 and 1, got -0.1"),
        ({"mmr": float("nan")}, "mmr must be between 0 and 1, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(searcher: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        searcher.search("x", **options)


# Output


def test_hidden_ids_are_shown(searcher: Searcher) -> None:
    (hit,) = searcher.search("the ball of Ada in Rome", k=1, distinct=0.98)
    assert hit.to_json()["hidden"] == list(hit.hidden)
    assert "  (+ 2 near-duplicates)" in render_hit(hit, 1, colour=False, width=100).splitlines()[0]
    (plain,) = searcher.search("the ball of Ada in Rome", k=1)
    assert "hidden" not in plain.to_json()


def test_the_command_line_takes_a_threshold_or_none(run: Run, model: str) -> None:
    records = [
        {"id": "a", "text": "the acme race"},
        {"id": "b", "text": "The acme  race"},
        {"id": "c", "text": "paris"},
    ]
    assert run("indexer", "add", "index", write_jsonl("records.jsonl", records), "--model", model).code == 0
    for flags in (["--distinct"], ["--distinct=1"], ["--distinct", "1", "--mmr", "0.7"]):
        hits = run("search", "query", "index", "acme", "--json", *flags).jsons
        assert sorted(tuple(sorted([hit["id"], *hit.get("hidden", [])])) for hit in hits) == [("a", "b"), ("c",)]
    hits = run("search", "similar", "index", "--id", "c", "--distinct", "--json").jsons
    assert [(hit["id"], hit["hidden"]) for hit in hits] == [("a", ["b"])]
    assert_usage(
        run("search", "query", "index", "acme", "--mmr", "2"),
        "Invalid value for '--mmr': 2.0 is not in the range 0<=x<=1.",
    )
