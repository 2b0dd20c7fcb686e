"""More like this: several positive and negative examples, as ids and as texts, against the plain formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, document_scores, unit_fp16
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FilterError, ModelError, QueryError
from indexer.records import Document, FloatArray
from search import Examples, Hit, Searcher
from search.similar import combine

MODEL = DemoAnalyser()
CORPUS = {
    "a": "the ball of Ada in Rome",
    "b": "an atom and a cell",
    "c": "a song of Jupiter",
    "d": "nothing in particular",
    "e": "the ball the ball the ball and then Zed " + "filler words " * 20 + "Ada sings",
    "f": "the ball and the song",
}
DOCUMENTS = [Document(id_, text, {"n": n}) for n, (id_, text) in enumerate(CORPUS.items())]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    path = build_index(tmp_path_factory.mktemp("similar") / "index", DOCUMENTS, MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def by_formula(positives: Sequence[Any], negatives: Sequence[Any], weight: float) -> FloatArray:
    """mean of the unit vectors of the positives − weight · mean of those of the negatives, one number at a time."""

    def mean(vectors: Sequence[Any]) -> list[float]:
        units = [[float(x) / sum(float(y) ** 2 for y in vector) ** 0.5 for x in vector] for vector in vectors]
        return [sum(column) / len(units) for column in zip(*units, strict=True)]

    query = mean(positives)
    if negatives:
        query = [x - weight * y for x, y in zip(query, mean(negatives), strict=True)]
    return np.array(query, dtype=np.float32)


# The formula


def test_hand_computed_values() -> None:
    positives = np.array([[2.0, 0.0], [0.0, 0.5]], dtype=np.float32)
    negatives = np.array([[-3.0, 4.0]], dtype=np.float32)
    assert combine(positives, negatives[:0]).tolist() == [0.5, 0.5]
    assert combine(positives, negatives, not_weight=0.5).tolist() == pytest.approx([0.5 + 0.3, 0.5 - 0.4])
    assert (2 * combine(positives, negatives, not_weight=2)).tolist() == pytest.approx([0.5 + 1.2, 0.5 - 1.6])
    assert combine(positives, negatives, not_weight=1e308).tolist() == pytest.approx([0.6, -0.8])


def test_one_example_alone_is_itself() -> None:
    vector = np.array([[3.0, 4.0, 5.0]], dtype=np.float32)
    assert combine(vector, vector[:0]).tolist() == [3.0, 4.0, 5.0]
    assert combine(vector, vector[:, ::-1], not_weight=0).tolist() == [3.0, 4.0, 5.0]


def test_the_length_of_an_example_does_not_matter() -> None:
    random = np.random.default_rng(0)
    positives, negatives = (random.normal(size=(3, 8)).astype(np.float32) for _ in range(2))
    longer = combine(positives * np.float32([[1], [8], [64]]), negatives * np.float32(0.25))
    assert longer == pytest.approx(combine(positives, negatives), abs=1e-6)


def test_half_the_weight_is_the_direction_of_qdrant_s_average_vector() -> None:
    random = np.random.default_rng(1)
    positives, negatives = (random.normal(size=(4, 8)) for _ in range(2))
    positives, negatives = (table / np.linalg.norm(table, axis=1, keepdims=True) for table in (positives, negatives))
    theirs = positives.mean(axis=0) + (positives.mean(axis=0) - negatives.mean(axis=0))
    ours = combine(positives.astype(np.float32), negatives.astype(np.float32))
    assert ours / np.linalg.norm(ours) == pytest.approx(theirs / np.linalg.norm(theirs), abs=1e-6)


def test_examples_that_cancel_out_are_refused() -> None:
    positives = np.array([[1.0, 2.0], [-1.0, -2.0]], dtype=np.float32)
    with pytest.raises(QueryError, match="the examples cancel out"):
        combine(positives, positives[:0])
    with pytest.raises(QueryError, match="the examples cancel out"):
        combine(positives[:1], positives[:1], not_weight=1.0)


# Searches


def test_a_document_and_its_own_text_cancel_out(searcher: Searcher) -> None:
    for id_, text in CORPUS.items():  # the index has the one rounded to fp16
        examples = Examples(ids=(id_,), not_texts=(text,), not_weight=1.0)
        with pytest.raises(QueryError, match="the examples cancel out"):
            searcher.similar(examples)


def test_a_document_s_id_and_an_example_of_it_are_the_same_call(searcher: Searcher) -> None:
    assert searcher.similar("a") == searcher.similar(Examples(ids=("a",)))


def test_a_text_is_searched_as_a_query_of_it(searcher: Searcher) -> None:
    assert searcher.similar(Examples(texts=("the ball",))) == searcher.search("the ball")


def test_all_documents_given_are_left_out(searcher: Searcher) -> None:
    hits = searcher.similar(Examples(ids=("a", "e"), not_ids=("b",), texts=("a song",)))
    assert sorted(ids(hits)) == ["c", "d", "f"]
    assert sorted(ids(searcher.similar(Examples(ids=("a", "f"), not_ids=("b",)), filter="n < 4"))) == ["c", "d"]
    assert searcher.similar(Examples(ids=("a",), not_ids=("b",)), filter="n < 2") == []


def test_a_negative_example_pushes_what_is_like_it_back(searcher: Searcher) -> None:
    liked, disliked = ("the ball", "an atom"), (CORPUS["b"],)
    scores = [
        {hit.id: hit.score for hit in searcher.similar(Examples(texts=liked, not_texts=disliked, not_weight=weight))}
        for weight in (0.0, 0.5, 1.0, 10.0)
    ]
    falling = [by_id["b"] for by_id in scores]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == 4
    assert min(scores[-1], key=lambda id_: scores[-1][id_]) == "b"


_WORDS = st.lists(st.sampled_from(["ball", "atom", "Ada", "Zed", "x", "y"]), min_size=1, max_size=12).map(" ".join)


@given(
    texts=st.lists(_WORDS, min_size=1, max_size=25),
    picks=st.lists(st.integers(0, 24), max_size=4),
    more=st.lists(_WORDS, max_size=2),
    others=st.lists(st.integers(0, 24), max_size=3),
    less=st.lists(_WORDS, max_size=2),
    weight=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    k=st.integers(1, 30),
    offset=st.sampled_from([0, 0, 2]),
)
@settings(max_examples=40, deadline=None)
def test_hits_are_those_of_brute_force(
    texts: list[str],
    picks: list[int],
    more: list[str],
    others: list[int],
    less: list[str],
    weight: float,
    k: int,
    offset: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    analyser = DemoAnalyser(passage_words=3)
    corpus = {f"{n:02d}": text for n, text in enumerate(texts)}
    positive = sorted({f"{n:02d}" for n in picks if n < len(texts)})
    negative = sorted({f"{n:02d}" for n in others if n < len(texts)} - set(positive))
    more, less = sorted(set(more)), sorted(set(less) - set(more))
    if not positive and not more:
        more = ["ball x"]
        less = [text for text in less if text != "ball x"]
    path = build_index(tmp_path_factory.mktemp("i") / "index", [Document(*item) for item in corpus.items()], analyser)

    def vectors(of_ids: list[str], of_texts: list[str]) -> list[Any]:
        stored = [unit_fp16(analyser.vector(corpus[id_])[None])[0] for id_ in of_ids]
        return [*(analyser.vector(text) for text in of_texts), *stored]

    vector = by_formula(vectors(positive, more), vectors(negative, less), weight)
    examples = Examples(ids=positive, texts=more, not_ids=negative, not_texts=less, not_weight=weight)
    with Searcher(path, model=as_text_model(analyser)) as opened:
        if np.linalg.norm(vector) < 1e-2:  # next to nothing is left, and that only by rounding
            return
        hits = opened.similar(examples, k=k, offset=offset)
    left = {id_: text for id_, text in corpus.items() if id_ not in {*positive, *negative}}
    scores = document_scores(left, vector, analyser)
    best = sorted(scores.values(), reverse=True)[offset : offset + k]
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-5)
    assert len(set(ids(hits))) == len(hits)


# What makes no sense


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({}, "more like nothing: give at least one id or text"),
        ({"not_ids": ("a",)}, "more like nothing: give at least one id or text"),
        ({"ids": ("a", "b"), "not_ids": ("b",)}, "the id 'b' is both a positive and a negative example"),
        ({"texts": ("x",), "not_texts": ("x",)}, "the text 'x' is both a positive and a negative example"),
        ({"ids": "ab"}, "ids must be several strings, got one: 'ab'"),
        ({"ids": ("a",), "not_weight": -0.1}, "not_weight must be a number from 0 up, got -0.1"),
        ({"ids": ("a",), "not_weight": float("nan")}, "not_weight must be a number from 0 up, got nan"),
    ],
)
def test_examples_that_make_no_sense_are_refused(examples: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        Examples(**examples)


def test_an_example_counts_once() -> None:
    assert Examples(ids=["a", "b", "a"], texts=["x", "x"]) == Examples(ids=("a", "b"), texts=("x",))


def test_unknown_ids_empty_texts_and_unknown_names_are_errors(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="no document has the id 'nowhere'"):
        searcher.similar(Examples(ids=("a", "nowhere")))
    with pytest.raises(QueryError, match="no document has the id 'nowhere'"):
        searcher.similar(Examples(ids=("a",), not_ids=("nowhere",)))
    with pytest.raises(QueryError, match="text is empty"):
        searcher.similar(Examples(ids=("a",), not_texts=(" ",)))
    with pytest.raises(FilterError, match="unknown class 'politics'"):
        searcher.similar(Examples(ids=("a",)), filter="label = politics")


def test_ids_need_no_model_and_texts_do(searcher: Searcher) -> None:
    examples = Examples(ids=("a", "f"), not_ids=("b",))
    with Searcher(searcher.info.path, model="/nowhere/at/all") as other:
        assert other.similar(examples) == searcher.similar(examples)
        with pytest.raises(ModelError):
            other.similar(Examples(texts=("x",)))


# The command line


def test_the_command_takes_several_examples_of_each_kind(run: Run, model: str) -> None:
    records = [{"id": id_, "text": text} for id_, text in CORPUS.items()]
    assert run("indexer", "add", "index", write_jsonl("records.jsonl", records), "--model", model).code == 0
    flags = ["--id", "a", "--id", "b", "--text", "a song", "--not-id", "c", "--not-text", "Rome", "--not-weight", "0.3"]
    result = run("search", "similar", "index", *flags, "--json")
    assert (result.code, result.err) == (0, "")
    with Searcher("index") as opened:
        examples = Examples(ids=("a", "b"), texts=("a song",), not_ids=("c",), not_texts=("Rome",), not_weight=0.3)
        assert result.jsons == [hit.to_json() for hit in opened.similar(examples)]
    assert {hit["id"] for hit in result.jsons} == {"d", "e", "f"}
    assert_fails(
        run("search", "similar", "index", "--id", "a", "--not-id", "a"),
        "the id 'a' is both a positive and a negative example",
    )
