"""What a search says of itself: the plan, the counts, the time of each step; and filters that are remembered."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, entries, unit_fp16
from pyroaring import BitMap

from indexer import planner
from indexer.fields import Kind, Scalar, flatten
from indexer.filters import Compare, Everything, Filter, Not, Or, parse
from indexer.planner import PLANS, SearchPlan
from indexer.postings import Postings
from indexer.reader import IndexReader
from indexer.records import Document, Metadata
from indexer.snapshot import Snapshot
from indexer.store import IndexWriter
from search import Searcher
from search.explain import Explanation
from search.hit_parts import HitParts, LayerPart
from search.query import Query
from search.ranking import Fusion

MODEL = DemoAnalyser()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Forty documents of one passage, n from 0 to 39, and one of two passages."""
    documents = [Document(f"d{n:02d}", f"text {n}", {"n": n}) for n in range(40)]
    return build_index(tmp_path / "index", [*documents, Document("long", "word " * 16, {"n": 99})], MODEL, seal=True)


@pytest.fixture
def searcher(path: Path) -> Iterator[Searcher]:
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


# Explanations


def test_an_answer_has_the_hits_of_search(searcher: Searcher) -> None:
    answer = searcher.answer("text 3", Query(k=7, filter=parse("n >= 2")))
    assert list(answer.hits) == searcher.search("text 3", k=7, filter="n >= 2")


def test_the_counts_are_those_of_the_search(searcher: Searcher) -> None:
    explanation = searcher.answer("text 3", Query(k=2, filter=parse("n < 10 or n = 99"))).explanation
    assert (explanation.documents, explanation.allowed) == (41, 11)
    (plan,) = explanation.plans
    assert (plan.path, plan.rows, plan.allowed) == ("scan", 42, 12)
    assert (plan.scanned_codes, plan.scanned_vectors) == (0, 12)
    assert set(explanation.seconds) == {"model", "filter", "vectors", "documents"}
    assert all(seconds >= 0 for seconds in explanation.seconds.values())


def test_without_a_filter_all_documents_are_allowed(searcher: Searcher) -> None:
    explanation = searcher.answer("text", Query()).explanation
    assert (explanation.documents, explanation.allowed) == (41, 41)
    assert explanation.plans[0].allowed == 42


def test_nothing_allowed_is_no_round(searcher: Searcher) -> None:
    answer = searcher.answer("text", Query(filter=parse("n = 1000")))
    assert (answer.hits, answer.explanation.allowed, answer.explanation.plans) == ((), 0, [])


def test_each_widening_is_a_round(tmp_path: Path) -> None:
    model = DemoAnalyser(passage_words=1)
    documents = [Document("long", "ball " * 100), *(Document(f"d{n}", f"w{n}") for n in range(5))]
    path = build_index(tmp_path / "many", documents, model)
    with Searcher(path, model=as_text_model(model)) as searcher:
        answer = searcher.answer("ball", Query(k=3))
    assert len(answer.hits) == 3
    assert len(answer.explanation.plans) > 1


@pytest.mark.parametrize("plan", PLANS)
def test_a_forced_plan_gives_the_same_hits(searcher: Searcher, plan: str) -> None:
    answer = searcher.answer("text 3", Query(k=5), path=plan)
    assert list(answer.hits) == searcher.search("text 3", k=5)
    assert plan in ("auto", answer.explanation.plans[0].path)


def test_an_unknown_plan_is_refused(searcher: Searcher) -> None:
    with pytest.raises(ValueError, match="unknown plan 'x'"):
        searcher.answer("text", Query(), path="x")


EXPLANATION = Explanation(
    documents=1_000_000,
    allowed=25_000,
    plans=[
        SearchPlan(path="codes", rows=1_200_000, allowed=30_000, scanned_codes=1_100_000, scanned_vectors=2_048),
        SearchPlan(path="codes", rows=1_200_000, allowed=30_000, scanned_codes=1_100_000, scanned_vectors=8_192),
    ],
    seconds={"model": 0.0123456, "vectors": 0.002},
)


def test_the_json_of_an_explanation() -> None:
    rounds = {"plan": "codes", "vectors": 1_200_000, "allowed": 30_000, "scanned_codes": 1_100_000}
    expected = {
        "documents": 1_000_000,
        "allowed": 25_000,
        "rounds": [rounds | {"scanned_vectors": 2_048}, rounds | {"scanned_vectors": 8_192}],
        "milliseconds": {"model": 12.346, "vectors": 2.0},
    }
    assert EXPLANATION.to_json() == expected
    assert json.loads(json.dumps(EXPLANATION.to_json())) == expected


def test_an_explanation_for_reading() -> None:
    assert EXPLANATION.lines() == [
        "allowed: 25,000 of 1,000,000 documents",
        "plan: codes; of 30,000 allowed vectors (of 1,200,000) scanned 1,100,000 codes and 2,048 vectors",
        "plan: codes; of 30,000 allowed vectors (of 1,200,000) scanned 1,100,000 codes and 8,192 vectors",
        "time: model 12.3 ms, vectors 2.0 ms",
    ]


def test_the_time_of_a_step_adds_up_also_where_it_fails() -> None:
    explanation = Explanation()
    with explanation.timed("x"):
        pass
    first = explanation.seconds["x"]
    with pytest.raises(ZeroDivisionError), explanation.timed("x"):
        raise ZeroDivisionError
    assert explanation.seconds["x"] > first


def test_the_command_explains_on_standard_error_only(run: Run, model: str) -> None:
    records = [{"id": f"d{n}", "text": f"text {n}", "n": n} for n in range(5)]
    run("indexer", "add", "index", write_jsonl("r.jsonl", records), "--model", model)
    command = ("search", "query", "index", "text 3", "--where", "n >= 2", "-k", "1")
    explained = run(*command, "--explain")
    assert (explained.code, explained.out) == (0, run(*command).out)
    first, second, hit, layers, matched, last = explained.err.splitlines()
    assert first == "allowed: 3 of 5 documents"
    assert second == "plan: scan; of 3 allowed vectors (of 5) scanned 0 codes and 3 vectors"
    assert hit == "hit 1: 1.0000 of cosine 1.0000"
    assert re.fullmatch(r"  cosine: [-.0-9]+ \(layer -1\)( \+ [-.0-9]+ \(layer -[234]\)){3}", layers)
    assert matched == "  matched: n >= 2"
    assert last.startswith("time: model ")
    in_json = run(*command, "--json", "--explain")
    assert (in_json.code, in_json.out) == (0, run(*command, "--json").out)
    (line,) = in_json.err.splitlines()
    assert json.loads(line)["hits"][0]["matched"] == ["n >= 2"]
    nothing = run("search", "query", "index", "text 3", "--where", "n = 9", "--explain")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err.splitlines()[:2] == ["no document fits", "allowed: 0 of 5 documents"]


# What a score is made of


def test_the_layers_of_a_cosine_sum_to_it(searcher: Searcher) -> None:
    answer = searcher.answer("text 3", Query(k=41), explain=True)
    query = MODEL.vector("text 3").astype(np.float64)
    for hit, parts in zip(answer.hits, answer.explanation.hits, strict=True):
        assert (parts.id, parts.score, parts.cosine) == (hit.id, hit.score, hit.score)
        stored = unit_fp16(MODEL.vector(hit.text[hit.passage.start : hit.passage.end])[None])[0]
        products = stored * query / np.linalg.norm(query)
        assert [layer.layer for layer in parts.layers] == [-1, -3]
        assert [layer.part for layer in parts.layers] == pytest.approx(
            [products[:8].sum(), products[8:].sum()], abs=1e-7
        )
        assert sum(layer.part for layer in parts.layers) == pytest.approx(hit.score, abs=1e-12)


def test_the_layers_of_a_cosine_of_1_sum_to_it(searcher: Searcher) -> None:
    texts = [f"text {n}" for n in range(40)]
    rows = unit_fp16(np.stack([MODEL.vector(text) for text in texts]))
    longer = [text for text, row in zip(texts, rows, strict=True) if np.linalg.norm(row) > 1.0001]
    for text in longer:  # a vector that was rounded to more than length 1
        parts = searcher.answer(text, Query(k=1), explain=True).explanation.hits[0]
        assert parts.score == parts.cosine == 1.0
        assert sum(layer.part for layer in parts.layers) == pytest.approx(1.0, abs=1e-12)
    assert longer


def test_a_vector_s_cosine_has_no_layers(searcher: Searcher) -> None:
    (parts,) = searcher.answer_vector(MODEL.vector("text 3"), Query(k=1), explain=True).explanation.hits
    assert (parts.id, parts.layers) == ("d03", ())
    assert parts.cosine == pytest.approx(1.0, abs=1e-3)


def test_the_parts_of_a_score_by_words(searcher: Searcher) -> None:
    (parts,) = searcher.answer("3", Query(mode="keyword"), explain=True).explanation.hits
    assert (parts.id, parts.bm25, parts.cosine, parts.layers) == ("d03", parts.score, None, ())


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_the_parts_of_a_fused_score_sum_to_it(searcher: Searcher, fusion: str) -> None:
    explanation = searcher.answer("3 text", Query(k=41, mode="hybrid", fusion=fusion), explain=True).explanation
    cosines = {hit.id: hit.score for hit in searcher.search("3 text", k=41)}
    words = {hit.id: hit.score for hit in searcher.search("3 text", k=41, mode="keyword")}
    assert len(explanation.hits) == 41
    for parts in explanation.hits:
        assert parts.fusion is not None
        assert parts.score == parts.fusion.meaning + parts.fusion.words
        assert parts.cosine == cosines[parts.id]
        assert parts.bm25 == words.get(parts.id)
        assert parts.fusion.meaning_rank == 1 + sum(other > cosines[parts.id] for other in cosines.values())
        rank = 1 + sum(other > words[parts.id] for other in words.values()) if parts.id in words else None
        assert parts.fusion.words_rank == rank
        if fusion == "rrf":
            assert parts.fusion.words == (0.0 if rank is None else 1 / (60 + rank))
        assert sum(layer.part for layer in parts.layers) == pytest.approx(parts.cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("n = 3", ["n = 3"]),
        ("n >= 2 and n < 9", ["n >= 2", "n < 9"]),
        ("n = 3 or n = 4", ["n = 3"]),
        ("n = 3 or n = 3", ["n = 3"]),
        ("not n = 4", ["not n = 4"]),
        ("not (n = 4 or n > 5)", ["not n = 4", "not n > 5"]),
        ("not (n = 3 and n = 4)", ["not n = 4"]),
        ("not not n = 3", ["n = 3"]),
        ('id = d03 and (exists label or n in [1, 2, 3] or entity ORG:"x y"*)', ["id = d03", "n in [1, 2, 3]"]),
        ("*", ["*"]),
    ],
)
def test_the_conditions_that_matched(searcher: Searcher, filter: str, expected: list[str]) -> None:
    answer = searcher.answer("text 3", Query(k=41, filter=parse(filter)), explain=True)
    (parts,) = [parts for parts in answer.explanation.hits if parts.id == "d03"]
    assert list(parts.matched) == expected


def test_conditions_are_not_evaluated_hit_by_hit(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    flattened = []

    def counted(metadata: Metadata) -> set[tuple[str, Kind, Scalar]]:
        flattened.append(metadata)
        return flatten(metadata)

    monkeypatch.setattr("indexer.filters.matching.flatten", counted)
    filter = Or(tuple(parse(f"n != {n}") for n in range(100)))
    answer = searcher.answer("text 3", Query(k=41, filter=filter), explain=True)
    matched = {parts.id: parts.matched for parts in answer.explanation.hits}
    assert matched["d03"] == tuple(f"n != {n}" for n in range(100) if n != 3)
    assert len(flattened) <= len(answer.hits)


def test_entities_and_classes_that_matched(tmp_path: Path) -> None:
    path = build_index(tmp_path / "tagged", [Document("a", "Ada sings a song")], MODEL)
    filter = "entity PER:ADA and not entity ORG and (label = sport or label = music)"
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        (parts,) = searcher.answer("song", Query(filter=parse(filter)), explain=True).explanation.hits
    assert parts.matched == ("entity PER:ADA", "not entity ORG:*", "label = music")


def test_the_parts_of_a_hit_for_reading_and_as_json() -> None:
    parts = HitParts(
        "a",
        0.0325,
        cosine=0.75,
        layers=(LayerPart(-1, 0.5), LayerPart(-2, 0.25)),
        bm25=3.5,
        fusion=Fusion(0.0161, 0.0164, 2, 1),
        matched=("n = 3", "lang = de"),
    )
    assert list(parts.lines(4)) == [
        "hit 4: 0.0325 of cosine 0.7500, bm25 3.5000",
        "  cosine: 0.5000 (layer -1) + 0.2500 (layer -2)",
        "  fusion: 0.0161 (meaning, rank 2) + 0.0164 (words, rank 1)",
        "  matched: n = 3; lang = de",
    ]
    assert parts.to_json() == {
        "id": "a",
        "score": 0.0325,
        "cosine": 0.75,
        "layers": [{"layer": -1, "part": 0.5}, {"layer": -2, "part": 0.25}],
        "bm25": 3.5,
        "fusion": {"meaning": {"rank": 2, "part": 0.0161}, "words": {"rank": 1, "part": 0.0164}},
        "matched": ["n = 3", "lang = de"],
    }
    assert HitParts("a", 0.5, cosine=0.5).to_json() == {"id": "a", "score": 0.5, "cosine": 0.5}


def test_a_page_is_explained(searcher: Searcher) -> None:
    page = searcher.answer_page("text 3", Query(k=2, filter=parse("n < 9")), explain=True)
    assert [parts.id for parts in page.explanation.hits] == [hit.id for hit in page.hits]
    assert page.explanation.allowed == 9
    assert page.explanation.hits[0].matched == ("n < 9",)


# Filters that are remembered


def asked(snapshot: Snapshot, filter: Filter) -> list[str]:
    """The statements that finding a filter's documents takes."""
    statements: list[str] = []
    snapshot.connection.set_trace_callback(statements.append)
    try:
        snapshot.allowed(filter)
    finally:
        snapshot.connection.set_trace_callback(None)
    return statements


def test_a_filter_is_evaluated_once_in_a_commit(path: Path) -> None:
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            assert len(asked(snapshot, parse("n < 10 and not n = 3"))) == 2
            assert asked(snapshot, parse("n < 10 and not n = 3")) == []
        with reader.snapshot() as snapshot:  # of the same commit
            assert asked(snapshot, parse("n < 10 and not n = 3")) == []


def test_parts_of_other_filters_are_known_too(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        asked(snapshot, parse("n < 10 or not n = 30"))
        assert asked(snapshot, parse("n < 10")) == []
        assert asked(snapshot, parse("not n = 30")) == []
        assert asked(snapshot, Everything()) == []
        assert len(asked(snapshot, parse("n < 10 and n > 5"))) == 1


def test_conditions_that_python_holds_for_equal_are_not_mixed_up(tmp_path: Path) -> None:
    documents = [Document("one", "x", {"a": 1}), Document("true", "x", {"a": True}), Document("text", "x", {"a": "1"})]
    path = build_index(tmp_path / "kinds", documents)
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        for _ in range(2):
            for text, expected in (
                ("a = 1", [1]), ("a = true", [2]), ("a = '1'", [3]), ("a = 1.0", [1]),
                ("a in [1]", [1]), ("a in [true]", [2]), ("a != 1", []), ("a != true", []),
            ):  # fmt: skip
                assert list(snapshot.allowed(parse(text))) == expected


@pytest.mark.parametrize("change", ["write", "metadata", "remove", "seal", "compact"])
def test_what_is_remembered_follows_a_commit(path: Path, change: str) -> None:
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        with reader.snapshot() as snapshot:
            before = BitMap(snapshot.allowed(parse("n < 10")))
            if change == "write":
                writer.write(entries([Document("new", "text", {"n": 1})], MODEL))
            elif change == "metadata":
                (writer.write(entries([Document("d03", "text 3", {"n": 50})], MODEL)))
            elif change == "remove":
                writer.remove(["d03"])
            elif change == "seal":
                writer.write(entries([Document("new", "text", {"n": 50})], MODEL))
                writer.seal()
            else:
                writer.remove(["d03"])
                writer.compact(full=True)
            assert snapshot.allowed(parse("n < 10")) == before  # its own commit is held still
        with reader.snapshot() as snapshot:
            assert not any("fields" in statement for statement in asked(snapshot, parse("n < 10")))
            expected = {"write": 11, "seal": 10}.get(change, 9)
            assert len(snapshot.allowed(parse("n < 10"))) == expected


def test_searches_leave_what_is_remembered_as_it_is(searcher: Searcher) -> None:
    filters = ["n < 20", "not n < 20", "n < 20 and not n = 3", "n < 20 or n = 30", "* and n < 20", "not *", "*"]
    first = {text: searcher.search("text", k=50, filter=text) for text in filters}
    searcher.similar("d03", filter="n < 20")
    searcher.search_many(["text", "more"], filter="n < 20")
    with searcher._reader.snapshot() as snapshot:
        known = copy.deepcopy(dict(searcher._reader.postings._known))
    assert {text: searcher.search("text", k=50, filter=text) for text in filters} == first
    with searcher._reader.snapshot() as snapshot:
        assert dict(searcher._reader.postings._known) == known
        for filter, entry in known.items():
            assert snapshot.allowed(filter) == entry.documents


def test_no_more_filters_are_remembered_than_there_is_room_for(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        postings, log = Postings(max_bytes=5 * 780), snapshot.view.log
        for number in range(20):
            found = postings.allowed(snapshot.connection, Compare("n", "<", number), log)
            assert found == BitMap(range(1, number + 1))
        assert len(postings._known) == 5
        assert postings.get(Compare("n", "<", 19), snapshot.connection, log) is not None
        assert postings.get(Compare("n", "<", 0), snapshot.connection, log) is None


def test_a_filter_with_more_parts_than_are_remembered_is_right(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        postings, log = Postings(max_bytes=1), snapshot.view.log
        filter = parse("(n < 10 or n = 30 or not n < 39) and not n = 3")
        expected = snapshot.allowed(filter)
        assert postings.allowed(snapshot.connection, filter, log) == expected
        assert postings.allowed(snapshot.connection, Not(filter), log) == snapshot.allowed(Everything()) - expected


def test_the_plan_does_not_depend_on_what_is_remembered(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SCAN_LIMIT", 5)
    plans = [searcher.answer("text", Query(k=3, filter=parse("n < 9"))).explanation.plans for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0][0].path == "codes"
