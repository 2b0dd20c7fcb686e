"""Evaluation: files of queries and judgements, measures by hand-computed values, modes compared query by query."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, assert_usage, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index
from hypothesis import given, settings
from hypothesis import strategies as st

import search.evaluate
from indexer.errors import FilterError, InputError, QueryError, TagdexError
from indexer.records import Document
from indexer.store import IndexWriter
from search import Hit, Searcher
from search.evaluate import evaluate, rank
from search.evaluate_report import evaluation_json, query_json, query_lines, report_lines
from search.judged import read_qrels, read_queries
from search.paired import paired_difference
from search.query import MODES

MODEL = DemoAnalyser()


@pytest.fixture
def needs_ir_measures() -> None:
    pytest.importorskip("ir_measures", reason="the extra 'eval' is not installed")


# Files of queries


def written(folder: Path, content: str | bytes, name: str = "file") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


TREC_TOPICS = """
<top>
<num> Number: 301
<title> International
  Organized Crime

<desc> Description:
Identify organizations with p < 0.05 &amp; more.

<narr> Narrative:
None.
</top>
<top><num>302</num>
<title>Topic: AT&amp;T &eacute;tude &nonsense; R&D</title><desc>x</desc></top>
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"_id": "b", "text": " zwei ä "}\n\n{"_id": 7, "text": "x\\ty", "metadata": {}}\n',
            {"b": "zwei ä", "7": "x\ty"},
        ),
        ('{"id": "b", "text": "zwei"}', {"b": "zwei"}),
        ("b\tzwei wörter\r\n a \t one \n", {"b": "zwei wörter", "a": "one"}),
        ("\ufeffq1\tafter a byte order mark\n", {"q1": "after a byte order mark"}),
        (TREC_TOPICS, {"301": "International Organized Crime", "302": "AT&T étude &nonsense; R&D"}),
    ],
)
def test_queries_are_read_in_every_form(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    assert read_queries(written(tmp_path, content)) == expected
    assert list(read_queries(written(tmp_path, content))) == list(expected)


def test_compressed_queries_are_read(tmp_path: Path) -> None:
    assert read_queries(written(tmp_path, gzip.compress(b"a\tone\n"), "queries.tsv.gz")) == {"a": "one"}


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ('{"_id": "a", "text": "x"}\n{"_id": "b", "text": ', 2, "is not JSON"),
        ('{"_id": "a", "text": "x"}\n[1]', 2, "a line must be a JSON object"),
        ('{"_id": "a", "body": "x"}', 1, "a query needs the field 'text', there are _id, body"),
        ('{"text": "x"}', 1, "a query needs the field '_id', there are text"),
        ('{"_id": true, "text": "x"}', 1, "the field '_id' must be a string, got True"),
        ('{"_id": "a", "text": null}', 1, "the field 'text' must be a string, got None"),
        ('{"_id": "a", "text": "\\ud800"}', 1, "query 'a' has a lone surrogate"),
        ('{"_id": "a", "text": " "}', 1, "the text of query 'a' is empty"),
        ('{"_id": "a", "text": "x"}\n\n{"_id": "a", "text": "y"}', 3, "query 'a' was already in line 1"),
        ("a\tx\nb y\n", 2, "has 1 column separated by tabs, a query has 2"),
        ("a\tx\ty\n", 1, "has 3 columns separated by tabs, a query has 2"),
        ("a\tx\n\ty\n", 2, "the query's id is empty"),
        ("a\t\n", 1, "the text of query 'a' is empty"),
        ("<top>\n<num> 1\n</top>", 1, "the topic has no <title>"),
        ("<top>\n<title> x\n</top>", 1, "the topic has no <num>"),
        ("<top>\n<num> 1\n<title> x\n<title> y\n</top>", 4, "the topic of line 1 has a second <title>"),
        ("\n<top>\n<num> 1\n<title> x\n", 2, "the topic is not closed by </top>"),
        ("<top>\n<num> 1\n<title> x\n<top>", 4, "the topic of line 1 is not closed by </top>"),
        ("<top><num>1<title>x</top>\n</top>", 2, "</top> closes no topic"),
        ("<topics>\n", 1, "looks like TREC topics, but has no <top>"),
        ("<top>\n<num> 1\n<title>\n</top>", 1, "the text of query '1' is empty"),
    ],
)
def test_a_query_that_cannot_be_read_is_named_by_file_and_line(
    tmp_path: Path, content: str, line: int, problem: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_queries(path)
    assert (error.value.source, error.value.line) == (path, line)
    assert problem in str(error.value)


@pytest.mark.parametrize("read", [read_queries, read_qrels])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, read: Any) -> None:
    for path, problem in (
        (str(tmp_path / "nowhere"), "there is no such file"),
        (written(tmp_path, "", "nothing"), "is empty"),
        (written(tmp_path, "\n \n", "blank"), "is empty"),
        (written(tmp_path, b"q1\t0\td\xe9\t1\n"), "line 1: byte 0xE9 at offset 6 is not UTF-8"),
        (str(tmp_path), "is a folder: name the file in it"),
    ):
        with pytest.raises(InputError, match=problem) as error:
            read(path)
        assert error.value.source == path


# Files of judgements


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\ta\t1\n",
        "q1\ta\t2\r\nq1\tb\t0\r\n\r\nq2\ta\t1",
        "q1 0 a 2\nq1 Q0 b 0\nq2\t0\ta\t1\n",
        "q1 0 a 2\nq1 0 b 0\nq1 0 b 0\nq2 0 a 1\n",
    ],
)
def test_judgements_are_read_in_every_form(tmp_path: Path, content: str) -> None:
    assert read_qrels(written(tmp_path, content)) == {"q1": {"a": 2, "b": 0}, "q2": {"a": 1}}


def test_an_id_with_spaces_needs_tabs(tmp_path: Path) -> None:
    assert read_qrels(written(tmp_path, "q 1\ta document\t-1\n")) == {"q 1": {"a document": -1}}


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("query\tdocument\trelevance\nq1\ta\t1\n", 1, "the header must be query-id TAB corpus-id TAB score"),
        ("query-id\tcorpus-id\tscore\nq1\ta\n", 2, "has 2 columns, a judgement has 3: query-id TAB"),
        (
            "query-id\tcorpus-id\tscore\nq1\ta\t0.5\n",
            2,
            "the relevance must be a whole number up to 1,000,000, got '0.5'",
        ),
        ("q1 0 a 1\nq1 0 a\n", 2, "has 3 columns, a judgement has 4: query, iteration, document, relevance"),
        ("q1 0 a x\n", 1, "the relevance must be a whole number up to 1,000,000, got 'x'"),
        ("q1 0 a 99999999999999999999\n", 1, "the relevance must be a whole number"),
        ("q1 0 a 1\nq2 0 a 1\nq1 0 a 2\n", 3, "document 'a' is judged 2 for query 'q1', and 1 in a line before"),
        ("query-id\tcorpus-id\tscore\n\ta\t1\n", 2, "the id of the query is empty"),
        ("query-id\tcorpus-id\tscore\nq\t \t1\n", 2, "the id of the document is empty"),
    ],
)
def test_a_judgement_that_cannot_be_read_is_named_by_file_and_line(
    tmp_path: Path, content: str, line: int, problem: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_qrels(path)
    assert (error.value.source, error.value.line) == (path, line)
    assert problem in str(error.value)


def test_a_header_without_judgements_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no judgement"):
        read_qrels(written(tmp_path, "query-id\tcorpus-id\tscore\n"))


# Paired differences


def test_wins_losses_ties_and_the_mean_difference() -> None:
    paired = paired_difference([0.5, 0.2, 0.1 + 0.2, 0.0, 1.0], [0.75, 0.1, 0.3, 0.0, 1.0])
    assert (paired.wins, paired.losses, paired.ties) == (1, 1, 3)
    assert paired.difference == pytest.approx(0.03, abs=1e-12)
    assert paired.low <= paired.difference <= paired.high


def test_the_interval_is_that_of_all_draws_of_two_queries() -> None:
    # Differences 0 and 1: the mean of a draw is 0, 0.5 or 1, with chances 1/4, 1/2 and 1/4.
    paired = paired_difference([0.0, 0.0], [0.0, 1.0])
    assert (paired.low, paired.high) == (0.0, 1.0)


def test_the_interval_agrees_with_the_normal_one_of_many_queries() -> None:
    random = np.random.default_rng(1)
    first = random.uniform(size=500)
    second = first + random.normal(0.02, 0.3, size=500)
    paired = paired_difference(first.tolist(), second.tolist())
    error = 1.96 * np.std(second - first) / math.sqrt(500)
    assert paired.low == pytest.approx(paired.difference - error, abs=0.1 * error)
    assert paired.high == pytest.approx(paired.difference + error, abs=0.1 * error)


def test_the_same_seed_gives_the_same_interval_and_swapping_the_sides_turns_it() -> None:
    first, second = [0.1, 0.9, 0.4, 0.4], [0.3, 0.2, 0.4, 0.8]
    assert paired_difference(first, second, seed=3) == paired_difference(first, second, seed=3)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert (back.wins, back.losses, back.ties) == (there.losses, there.wins, there.ties)


def test_queries_that_are_all_equal_have_no_difference() -> None:
    paired = paired_difference([0.3] * 5, [0.3] * 5)
    assert (paired.difference, paired.low, paired.high, paired.ties) == (0.0, 0.0, 0.0, 5)


# Measures


class BothWays(Searcher):
    """A searcher with another mode: cosine's hits in reverse."""

    def search_many(self, texts: Any, *, mode: str = "cosine", **options: Any) -> list[list[Hit]]:
        answers = super().search_many(texts, mode="cosine", **options)
        return answers if mode == "cosine" else [hits[::-1] for hits in answers]


DOCUMENTS = [Document(f"d{n}", f"word{n} text{n} the ball", {"n": n}) for n in range(12)]
QUERIES = {f"q{n}": f"word{n}" for n in range(6)}


@pytest.fixture
def searcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searcher]:
    monkeypatch.setattr(search.evaluate, "MODES", ("cosine", "reverse"))
    with BothWays(build_index(tmp_path / "index", DOCUMENTS, MODEL), model=as_text_model(MODEL)) as opened:
        yield opened


def by_hand(ranking: list[str], levels: dict[str, int], *, depth: int) -> dict[str, float]:
    """nDCG@10, RR@10, R@depth and AP@depth by their formulas (Järvelin & Kekäläinen 2002; Voorhees & Harman 2005)."""
    relevant = [id_ for id_, level in levels.items() if level > 0]
    gains = [max(0, levels.get(id_, 0)) for id_ in ranking[:10]]
    ideal = sorted((max(0, level) for level in levels.values()), reverse=True)[:10]
    places = [place for place, id_ in enumerate(ranking[:depth], start=1) if id_ in relevant]

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(place + 1) for place, value in enumerate(values, start=1))

    return {
        "nDCG@10": dcg(gains) / dcg(ideal),
        "RR@10": next((1 / place for place in places if place <= 10), 0.0),
        f"R@{depth}": len(places) / len(relevant),
        f"AP@{depth}": sum(found / place for found, place in enumerate(places, start=1)) / len(relevant),
    }


@pytest.mark.usefixtures("needs_ir_measures")
def test_measures_are_those_of_their_formulas(searcher: Searcher) -> None:
    qrels = {
        "q0": {"d0": 1},
        "q1": {"d3": 2, "d1": 1, "d5": 0, "d7": -2},
        "q2": {f"d{n}": 1 for n in range(12)},
        "q3": {"nowhere": 2, "d9": 1},
    }
    evaluation = evaluate(searcher, QUERIES, qrels, depth=11)
    assert evaluation.measures == ("nDCG@10", "RR@10", "R@11", "AP@11")
    assert [result.mode for result in evaluation.modes] == ["cosine", "reverse"]
    for result in evaluation.modes:
        for id_, levels in qrels.items():
            ranking = [hit.id for hit in searcher.search_many([QUERIES[id_]], k=11, mode=result.mode)[0]]
            assert result.scores[id_] == pytest.approx(by_hand(ranking, levels, depth=11), abs=1e-9)
        for name in evaluation.measures:
            assert result.means[name] == pytest.approx(sum(result.scores[id_][name] for id_ in qrels) / 4)


@pytest.mark.usefixtures("needs_ir_measures")
def test_hand_computed_values(searcher: Searcher) -> None:
    ranking = [hit.id for hit in searcher.search("word0", k=12)]
    assert ranking[0] == "d0"
    second, eleventh = ranking[1], ranking[10]
    evaluation = evaluate(searcher, {"q": "word0"}, {"q": {second: 1, eleventh: 1}}, modes=["cosine"], depth=11)
    (result,) = evaluation.modes
    assert result.means == pytest.approx(
        {
            "nDCG@10": (1 / math.log2(3)) / (1 + 1 / math.log2(3)),
            "RR@10": 0.5,
            "R@11": 1.0,
            "AP@11": (1 / 2 + 2 / 11) / 2,
        }
    )


@given(
    levels=st.dictionaries(st.integers(0, 14), st.integers(-1, 3), min_size=1).filter(lambda d: max(d.values()) > 0),
    depth=st.integers(10, 14),
)
@settings(max_examples=40, deadline=None)
def test_any_judgements_give_the_values_of_the_formulas(levels: dict[int, int], depth: int) -> None:
    pytest.importorskip("ir_measures", reason="the extra 'eval' is not installed")
    ranking = [f"d{n}" for n in range(12)]
    judged = {f"d{id_}": max(0, level) for id_, level in levels.items()}
    measured = search.evaluate._Measures(search.evaluate.default_measures(depth), depth=depth)
    assert measured.score({"q": judged}, {"q": ranking[:depth]})["q"] == pytest.approx(
        by_hand(ranking, judged, depth=depth), abs=1e-9
    )


@pytest.mark.usefixtures("needs_ir_measures")
def test_ties_are_measured_in_the_order_shown(tmp_path: Path) -> None:
    # trec_eval would put the highest id first among equal scores.
    same = [Document(f"d{n}", "the same text") for n in range(8)]
    with Searcher(build_index(tmp_path / "index", same, MODEL), model=as_text_model(MODEL)) as opened:
        evaluation = evaluate(opened, {"q": "x"}, {"q": {"d0": 1}}, modes=["cosine"], measures=["RR@10"])
    assert evaluation.modes[0].means == {"RR@10": 1.0}


@pytest.mark.usefixtures("needs_ir_measures")
def test_a_query_without_hits_counts_as_nothing_found(searcher: Searcher) -> None:
    evaluation = evaluate(searcher, QUERIES, {"q0": {"d0": 1}, "q1": {"elsewhere": 1}}, modes=["cosine"])
    assert evaluation.modes[0].scores["q1"] == {"nDCG@10": 0.0, "RR@10": 0.0, "R@100": 0.0, "AP@100": 0.0}
    assert evaluation.modes[0].means["RR@10"] == 0.5


@pytest.mark.usefixtures("needs_ir_measures")
@pytest.mark.parametrize("measure", ["nDCG@10", "Judged@10", "Judged", "P@5", "NumRet"])
def test_a_query_whose_ranking_is_empty_counts_0_by_every_measure(tmp_path: Path, measure: str) -> None:
    queries = {"some": "word0", "none": "quartz"}
    qrels = {id_: {"d0": 1} for id_ in queries}
    options: Any = {"modes": ["keyword"], "measures": [measure], "depth": 12}
    with Searcher(build_index(tmp_path / "index", DOCUMENTS, MODEL)) as opened:
        both = evaluate(opened, queries, qrels, **options).modes[0]
        alone = evaluate(opened, {"none": "quartz"}, qrels, **options).modes[0]
    assert both.scores["some"][measure] > 0
    assert both.scores["none"] == alone.means == {measure: 0.0}


@pytest.mark.usefixtures("needs_ir_measures")
def test_modes_are_compared_query_by_query(searcher: Searcher) -> None:
    qrels = {id_: {f"d{id_[1:]}": 1} for id_ in QUERIES}
    evaluation = evaluate(searcher, QUERIES, qrels, measures=["RR@10", "R@100"])
    by_measure = {comparison.measure: comparison for comparison in evaluation.comparisons}
    assert [(c.first, c.second) for c in evaluation.comparisons] == [("cosine", "reverse")] * 2
    cosine, reverse = ([result.scores[id_]["RR@10"] for id_ in QUERIES] for result in evaluation.modes)
    assert by_measure["RR@10"].paired == paired_difference(cosine, reverse)
    assert by_measure["RR@10"].paired.losses == 6
    assert by_measure["R@100"].paired.ties == 6  # all twelve are within 100, either way


@pytest.mark.usefixtures("needs_ir_measures")
def test_batches_change_nothing(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank(searcher, QUERIES, mode="cosine", depth=3)
    monkeypatch.setattr(search.evaluate, "BATCH", 4)
    assert rank(searcher, QUERIES, mode="cosine", depth=3) == whole
    assert [len(ids) for ids in whole.values()] == [3] * 6


@pytest.mark.usefixtures("needs_ir_measures")
def test_all_modes_are_evaluated_unless_some_are_asked_for(tmp_path: Path) -> None:
    with Searcher(build_index(tmp_path / "index", DOCUMENTS, MODEL), model=as_text_model(MODEL)) as opened:
        evaluation = evaluate(opened, QUERIES, {"q0": {"d0": 1}}, measures=["RR@10"])
        assert tuple(result.mode for result in evaluation.modes) == MODES
        assert len(evaluation.comparisons) == len(MODES) * (len(MODES) - 1) / 2
        for result in evaluation.modes:
            ranking = [hit.id for hit in opened.search("word0", k=100, mode=result.mode)]
            assert result.means["RR@10"] == pytest.approx(1 / (1 + ranking.index("d0")))


@pytest.mark.usefixtures("needs_ir_measures")
def test_an_index_without_a_model_is_evaluated_by_words_alone(tmp_path: Path) -> None:
    with Searcher(build_vector_index(tmp_path / "index", np.eye(4, dtype=np.float32), text="some words")) as opened:
        evaluation = evaluate(opened, {"q": "words"}, {"q": {"d3": 1}}, measures=["R@100", "RR@10"])
    assert [result.mode for result in evaluation.modes] == ["keyword"]
    assert evaluation.modes[0].means == {"R@100": 1.0, "RR@10": 0.25}


# What is left out


@pytest.mark.usefixtures("needs_ir_measures")
def test_what_cannot_be_measured_is_counted(searcher: Searcher) -> None:
    qrels = {
        "q0": {"d0": 1, "gone1": 1, "gone2": 0},
        "q1": {"d1": 0},
        "q2": {},
        "q5": {"gone3": 1},
        "q9": {"d9": 1, "gone4": 1},
    }
    coverage = evaluate(searcher, QUERIES, qrels, modes=["cosine"]).coverage
    assert coverage.queries == 2
    assert coverage.unjudged == ("q2", "q3", "q4")
    assert coverage.without_relevant == ("q1",)
    assert coverage.without_text == ("q9",)
    assert coverage.missing == ("gone1", "gone2", "gone3")
    assert coverage.missing_relevant == ("gone1", "gone3")
    assert coverage.filtered == ()


@pytest.mark.usefixtures("needs_ir_measures")
def test_a_filter_takes_its_documents_out_of_the_judgements(searcher: Searcher) -> None:
    qrels = {"q0": {"d0": 1, "d6": 1, "gone": 1}, "q1": {"d1": 1}, "q7": {"d7": 1}}
    evaluation = evaluate(searcher, QUERIES, qrels, modes=["cosine"], filter="n >= 6")
    assert list(evaluation.queries) == ["q0"]
    assert evaluation.coverage.filtered == ("d0", "d1")
    assert evaluation.coverage.without_relevant == ("q1",)
    assert evaluation.coverage.missing == ("gone",)
    assert evaluation.modes[0].means["R@100"] == 0.5  # d6 of d6 and gone


@pytest.mark.usefixtures("needs_ir_measures")
def test_an_index_that_changes_meanwhile_is_said(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    original = search.evaluate.rank

    def rank_and_write(*arguments: Any, **options: Any) -> dict[str, list[str]]:
        with IndexWriter(searcher.info.path) as writer:
            writer.remove([DOCUMENTS[-1].id])
        return original(*arguments, **options)

    assert not evaluate(searcher, QUERIES, {"q0": {"d0": 1}}, modes=["cosine"]).changed
    monkeypatch.setattr(search.evaluate, "rank", rank_and_write)
    evaluation = evaluate(searcher, QUERIES, {"q0": {"d0": 1}}, modes=["cosine"])
    assert evaluation.changed
    assert list(report_lines(evaluation))[-1].startswith("the index changed meanwhile")


# What makes no sense


@pytest.mark.usefixtures("needs_ir_measures")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ["psychic"]}, "unknown mode 'psychic'; there are cosine, reverse"),
        ({"modes": []}, "no mode to evaluate was given"),
        ({"measures": []}, "no measure was given"),
        ({"measures": ["beauty@10"]}, "unknown measure 'beauty@10': names are those of ir_measures"),
        ({"measures": ["nDCG@x"]}, "unknown measure 'nDCG@x'"),
        ({"measures": ["R"]}, "ir_measures cannot compute R here"),
        ({"measures": ["R@100"], "depth": 50}, "R@100 looks at 100 documents a query, but 50 are ranked"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(searcher: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        evaluate(searcher, QUERIES, {"q0": {"d0": 1}}, **options)


@pytest.mark.usefixtures("needs_ir_measures")
def test_queries_and_judgements_that_do_not_belong_together_are_refused(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="none of the 6 queries has a relevant document: there are judgements for 1 q"):
        evaluate(searcher, QUERIES, {"other": {"d0": 1}})
    with pytest.raises(QueryError, match="none of the 6 queries has a relevant document under the filter"):
        evaluate(searcher, QUERIES, {"q0": {"d0": 1}}, filter="n = 5")
    with pytest.raises(FilterError, match="unknown class 'politics'"):
        evaluate(searcher, QUERIES, {"q0": {"d0": 1}}, filter="label = politics")


def test_without_the_extra_the_error_names_it(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_measures", None)
    with pytest.raises(TagdexError, match=r"evaluation needs ir_measures: pip install 'tagdex\[eval\]'"):
        evaluate(searcher, QUERIES, {"q0": {"d0": 1}})


# Output


@pytest.mark.usefixtures("needs_ir_measures")
def test_the_report_has_a_table_comparisons_and_remarks(searcher: Searcher) -> None:
    qrels = {"q0": {"d0": 1, "gone": 1}, "q1": {"d1": 1}, "q9": {"d9": 1}}
    evaluation = evaluate(searcher, QUERIES, qrels, measures=["RR@10"])
    lines = list(report_lines(evaluation))
    assert lines[0] == "2 queries, 100 documents ranked for each"
    assert lines[2].split() == ["mode", "RR@10", "ms/query"]
    assert [line.split()[:2] for line in lines[3:5]] == [
        [result.mode, f"{result.means['RR@10']:.4f}"] for result in evaluation.modes
    ]
    assert lines[6].split("  ")[0] == "compared"
    assert lines[7].startswith("reverse − cosine  RR@10")
    assert lines[7].split()[-3:] == ["0", "2", "0"]
    assert lines[9:] == [
        "queries left out, having no judged document: 4 (q2, q3, q4, …)",
        "judged queries without a text, so not asked: 1 (q9)",
        "judged documents not in the index: 1 (gone)",
        "relevant ones among those, which count as not found: 1 (gone)",
    ]
    assert not [line for line in report_lines(evaluation, compare=False) if line.startswith("compared")]


@pytest.mark.usefixtures("needs_ir_measures")
def test_each_query_has_a_line_and_an_object(searcher: Searcher) -> None:
    evaluation = evaluate(searcher, QUERIES, {"q0": {"d0": 1}, "q1": {"d1": 1}}, measures=["RR@10"])
    heading, first, _ = query_lines(evaluation)
    assert heading.split() == ["query", "cosine", "RR@10", "reverse", "RR@10", "text"]
    values = [f"{result.scores['q0']['RR@10']:.4f}" for result in evaluation.modes]
    assert first.split() == ["q0", *values, "word0"]
    assert next(query_json(evaluation)) == {
        "query": "q0",
        "text": "word0",
        "scores": {result.mode: dict(result.scores["q0"]) for result in evaluation.modes},
    }
    whole = evaluation_json(evaluation)
    assert whole["modes"]["cosine"]["measures"] == dict(evaluation.modes[0].means)
    assert [comparison["measure"] for comparison in whole["comparisons"]] == ["RR@10"]
    assert whole["left_out"]["unjudged"] == ["q2", "q3", "q4", "q5"]


@pytest.fixture
def index(run: Run, model: str) -> str:
    """An index of three documents in the current folder, with queries and judgements in both forms beside it."""
    records = [
        {"id": f"d{n}", "text": text, "n": n} for n, text in enumerate(("the acme race", "hello", "ada in paris"))
    ]
    assert run("indexer", "add", "index", write_jsonl("records.jsonl", records), "--model", model).code == 0
    write_jsonl("queries.jsonl", [{"_id": "q0", "text": "the acme race"}, {"_id": "q1", "text": "hello"}])
    Path("topics").write_text("<top><num>q0<title>the acme race</top>\n<top><num>q1<title>hello</top>\n")
    Path("qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    Path("qrels.txt").write_text("q0 0 d0 1\nq1 0 d1 1\n")
    return "index"


@pytest.mark.usefixtures("needs_ir_measures")
def test_the_command_gives_the_same_for_both_forms(run: Run, index: str) -> None:
    outputs = []
    for queries, qrels in (("queries.jsonl", "qrels.tsv"), ("topics", "qrels.txt")):
        result = run("search", "evaluate", index, "--queries", queries, "--qrels", qrels, "--mode", "cosine", "--json")
        assert (result.code, result.err) == (0, "")
        (whole,) = result.jsons
        whole["modes"]["cosine"].pop("seconds")
        outputs.append(whole)
    assert outputs[0] == outputs[1]
    assert outputs[0]["modes"] == {"cosine": {"measures": {"nDCG@10": 1.0, "RR@10": 1.0, "R@100": 1.0, "AP@100": 1.0}}}


@pytest.mark.usefixtures("needs_ir_measures")
def test_the_command_prints_tables_and_lines(run: Run, index: str) -> None:
    arguments = ("search", "evaluate", index, "--queries", "queries.jsonl", "--qrels", "qrels.tsv", "--mode", "cosine")
    result = run(*arguments, "--per-query", "--where", "n < 1", "-k", "5")
    lines = result.out.splitlines()
    assert lines[0].split() == ["query", "nDCG@5", "RR@5", "R@5", "AP@5", "text"]
    assert lines[1].split() == ["q0", *["1.0000"] * 4, "the", "acme", "race"]
    assert lines[3] == "1 query, 5 documents ranked for each"
    assert "judged documents not under the filter, and left out: 1 (d1)" in lines
    objects = run(*arguments, "--per-query", "--json").jsons
    assert [record.get("query") for record in objects[:-1]] == ["q0", "q1"]
    assert objects[-1]["queries"] == 2


def test_the_command_s_errors_are_one_line(run: Run, index: str) -> None:
    Path("bad.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\tvery\n")
    assert_fails(
        run("search", "evaluate", index, "--queries", "queries.jsonl", "--qrels", "bad.tsv"),
        "bad.tsv, line 2: the relevance must be a whole number up to 1,000,000, got 'very'",
    )
    assert_usage(run("search", "evaluate", index, "--queries", "queries.jsonl"), "Missing option '--qrels'.")
    files = ("--queries", "queries.jsonl", "--qrels", "qrels.tsv")
    assert_usage(
        run("search", "evaluate", index, *files, "--mode", "psychic"),
        "Invalid value for '--mode': 'psychic' is not one of 'cosine', 'hybrid', 'keyword'.",
    )


# Documents by id


def test_present_gives_the_ids_that_are_there_and_allowed(searcher: Searcher) -> None:
    assert searcher.present(["d1", "d11", "zz", "\ud800", "d1", "d1\0"]) == {"d1", "d11"}
    assert searcher.present(["d1", "d11"], filter="n > 5") == {"d11"}
    assert searcher.present([]) == set()
