"""Query in, hits out: whole documents, exact filters, k whenever k exist, against brute force."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DemoAnalyser, as_text_model, build_index, document_scores, entries
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import CorruptIndexError, FilterError, FingerprintError, ModelError, NotAnIndexError, QueryError
from indexer.filters import HasId
from indexer.records import Document, Label
from indexer.store import IndexWriter
from search import Hit, Searcher
from search.hits import BestPassage, Entity

MODEL = DemoAnalyser()

CORPUS = [
    Document("a", "the ball of Ada in Rome", {"year": 2019, "lang": "en"}),
    Document("b", "an atom and a cell", {"year": 2020, "lang": "de"}),
    Document("c", "a song of Jupiter", {"year": 2021}),
    Document("d", "nothing in particular", {"year": 2022, "lang": "en"}),
    Document("e", "the ball the ball the ball and then Zed " + "filler words " * 20 + "Ada sings", {"lang": "en"}),
]


@pytest.fixture
def open_index(tmp_path: Path) -> Iterator[Callable[..., Searcher]]:
    opened: list[Searcher] = []

    def build(documents: list[Document] = CORPUS, *, analyser: DemoAnalyser = MODEL, seal: bool = False) -> Searcher:
        path = build_index(tmp_path / f"index{len(opened)}", documents, analyser, seal=seal)
        opened.append(Searcher(path, model=as_text_model(analyser)))
        return opened[-1]

    yield build
    for searcher in opened:
        searcher.close()


@pytest.fixture
def searcher(open_index: Callable[..., Searcher]) -> Searcher:
    return open_index()


def ids(hits: list[Hit]) -> str:
    return "".join(hit.id for hit in hits)


# Hits


def test_hits_are_documents_by_brute_force(searcher: Searcher) -> None:
    scores = document_scores({document.id: document.text for document in CORPUS}, MODEL.vector("the ball"), MODEL)
    hits = searcher.search("the ball")
    assert ids(hits) == "".join(sorted(scores, key=lambda id_: (-scores[id_], id_)))
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-12)


def test_a_hit_holds_everything_about_its_document(searcher: Searcher) -> None:
    (hit,) = searcher.search("the ball of Ada in Rome", k=1)
    assert hit == Hit(
        id="a",
        score=hit.score,
        text="the ball of Ada in Rome",
        metadata={"year": 2019, "lang": "en"},
        label=Label("sport", 0.75),
        entities=(Entity("PER", "Ada", 12, 15, 0.5), Entity("ORG", "Rome", 19, 23, 0.5)),
        passage=BestPassage(0, 23),
    )
    assert hit.score == pytest.approx(1.0, abs=1e-3)


def test_a_hit_s_json_has_the_fields_of_the_command_line(searcher: Searcher) -> None:
    (hit,) = searcher.search("an atom and a cell", k=1)
    assert hit.to_json() == {
        "id": "b",
        "score": hit.score,
        "text": "an atom and a cell",
        "metadata": {"year": 2020, "lang": "de"},
        "label": {"name": "science", "score": 0.75},
        "entities": [],
        "passage": {"start": 0, "end": 18},
    }
    (other,) = searcher.search("nothing in particular", k=1)
    assert other.to_json()["label"] is None


def test_a_long_document_is_one_hit_with_the_offsets_of_its_best_passage(searcher: Searcher) -> None:
    text = CORPUS[4].text
    passages = MODEL.analyse([text])[0].passages
    assert len(passages) > 4
    for passage in (passages[0], passages[-1]):
        hits = searcher.search(text[passage.start : passage.end])
        assert ids(hits).count("e") == 1
        assert hits[0].id == "e"
        assert hits[0].text == text
        assert (hits[0].passage.start, hits[0].passage.end) == (passage.start, passage.end)
        assert [entity.text for entity in hits[0].entities] == ["Zed", "Ada"]


def test_a_filter_is_true_of_the_document_not_of_its_best_passage(searcher: Searcher) -> None:
    # Zed stands in the first passage of e, Ada in its last.
    assert ids(searcher.search("the ball", filter="entity *:zed and entity PER:ada")) == "e"


def test_commits_are_seen_by_the_next_query(searcher: Searcher) -> None:
    assert len(searcher.search("ball")) == 5
    with IndexWriter(searcher.info.path) as writer:
        writer.remove(["a"])
        assert "a" not in ids(searcher.search("ball"))
        writer.write(entries([Document("f", "ball")], MODEL))
        assert searcher.search("ball", k=1)[0].id == "f"


# Order, k and offset


@pytest.mark.parametrize("seal", [False, True])
def test_ties_are_broken_by_id_with_and_without_offset(open_index: Callable[..., Searcher], seal: bool) -> None:
    searcher = open_index([Document(f"{n:03d}", "the same text") for n in reversed(range(300))], seal=seal)
    assert [hit.id for hit in searcher.search("another text", k=10)] == [f"{n:03d}" for n in range(10)]
    assert [hit.id for hit in searcher.search("another text", k=10, offset=145)] == [
        f"{n:03d}" for n in range(145, 155)
    ]


def test_paging_covers_everything_exactly_once(open_index: Callable[..., Searcher]) -> None:
    texts = ["the same text", "another", " ".join(f"w{n}" for n in range(40)), "some text"]
    searcher = open_index([Document(f"{n:03d}", texts[n % 4]) for n in range(130)], seal=True)
    everything = [hit.id for hit in searcher.search("some text", k=1000)]
    paged = [hit.id for at in range(0, 140, 7) for hit in searcher.search("some text", k=7, offset=at)]
    assert paged == everything
    assert sorted(everything) == [f"{n:03d}" for n in range(130)]


@pytest.mark.parametrize(("k", "offset", "expected"), [(10, 0, 5), (5, 4, 1), (5, 5, 0), (1, 10**6, 0), (2, 1, 2)])
def test_k_and_offset_beyond_the_end(searcher: Searcher, k: int, offset: int, expected: int) -> None:
    assert len(searcher.search("ball", k=k, offset=offset)) == expected


def test_negative_scores_are_kept(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index([Document(f"{n}", f"unrelated{n} word{n}") for n in range(40)])
    hits = searcher.search("query", k=40)
    assert len(hits) == 40
    assert hits[-1].score < 0


@pytest.mark.parametrize("least", [-1.0, -0.1, 0.0, 0.2, 1.0])
def test_min_score_leaves_out_lower_ones_only(open_index: Callable[..., Searcher], least: float) -> None:
    searcher = open_index([Document(f"{n}", f"unrelated{n} word{n}") for n in range(40)])
    everything = searcher.search("query", k=40)
    assert searcher.search("query", k=40, min_score=least) == [hit for hit in everything if hit.score >= least]
    assert (
        searcher.search("query", k=3, offset=1, min_score=least)
        == [hit for hit in everything if hit.score >= least][1:4]
    )


def test_min_score_keeps_a_hit_of_exactly_that_score(searcher: Searcher) -> None:
    third = searcher.search("the ball")[2]
    assert len(searcher.search("the ball", min_score=third.score)) == 3


_WORDS = st.lists(st.sampled_from(["ball", "atom", "Ada", "Zed", "x", "y"]), min_size=1, max_size=30).map(" ".join)


@given(
    texts=st.lists(_WORDS, min_size=1, max_size=40),
    chosen=st.none() | st.sets(st.integers(0, 45), max_size=45),
    k=st.integers(1, 50),
    offset=st.sampled_from([0, 0, 1, 7]),
    query=_WORDS,
    like=st.none() | st.integers(0, 39),
    seal=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_k_documents_come_back_whenever_k_exist_and_they_are_the_best(
    texts: list[str],
    chosen: set[int] | None,
    k: int,
    offset: int,
    query: str,
    like: int | None,
    seal: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    analyser = DemoAnalyser(passage_words=3)
    corpus = {f"{n:02d}": text for n, text in enumerate(texts)}
    path = build_index(
        tmp_path_factory.mktemp("i") / "index", [Document(*item) for item in corpus.items()], analyser, seal=seal
    )
    only = None if chosen is None else HasId(tuple(f"{n:02d}" for n in sorted(chosen)))
    left_out = None if like is None or like >= len(texts) else f"{like:02d}"
    with Searcher(path, model=as_text_model(analyser)) as searcher:
        if left_out is None:
            hits = searcher.search(query, k=k, offset=offset, filter=only)
            vector = analyser.vector(query)
        else:
            hits = searcher.similar(left_out, k=k, offset=offset, filter=only)
            analysis = analyser.analyse([corpus[left_out]])[0]
            table = analysis.pooled[None].astype(np.float64)
            vector = (table / np.linalg.norm(table)).astype(np.float16).astype(np.float32)[0]
    scores = document_scores(
        {id_: text for id_, text in corpus.items() if id_ != left_out and (chosen is None or int(id_) in chosen)},
        vector,
        analyser,
    )
    assert len(hits) == max(0, min(k, len(scores) - offset))
    assert len({hit.id for hit in hits}) == len(hits)
    assert {hit.id for hit in hits} <= scores.keys()
    best = sorted(scores.values(), reverse=True)[offset : offset + k]
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-9)
    for before, after in pairwise(hits):
        assert (-before.score, before.id) < (-after.score, after.id)


# Filters


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("year >= 2021", "cd"),
        ("lang = en", "ade"),
        ("not lang = en", "bc"),
        ("label = sport", "ae"),
        ("exists label", "abce"),
        ("entity PER:ada", "ae"),
        ("entity ORG:jup*", "c"),
        ("entity LOC", "e"),
        ("lang = en and not entity *", "d"),
        ("id in [a, d, nowhere]", "ad"),
        ("year = 1900", ""),
        ("*", "abcde"),
    ],
)
@pytest.mark.parametrize("seal", [False, True])
def test_every_hit_satisfies_the_filter_and_all_that_do_are_found(
    open_index: Callable[..., Searcher], filter: str, expected: str, seal: bool
) -> None:
    searcher = open_index(seal=seal)
    assert "".join(sorted(ids(searcher.search("some words", filter=filter)))) == expected
    assert searcher.search("some words", filter=filter, k=1)[:1] == searcher.search("some words", filter=filter)[:1]


def test_names_that_the_index_does_not_know_are_errors_that_list_those_it_does(searcher: Searcher) -> None:
    with pytest.raises(FilterError, match=r"unknown class 'politics' \(this index knows music, science, sport\)"):
        searcher.search("x", filter="label = politics")
    with pytest.raises(FilterError, match=r"unknown entity type 'DATE' \(this index knows LOC, ORG, PER\)"):
        searcher.similar("a", filter="not entity DATE:today")


@pytest.mark.parametrize("filter", ["label = sport", "exists label", "entity PER", "year = 1 or not entity *"])
def test_an_untagged_index_refuses_filters_on_tags(open_index: Callable[..., Searcher], filter: str) -> None:
    searcher = open_index(analyser=DemoAnalyser(heads=False))
    with pytest.raises(FilterError, match=r"was built without tags, so it cannot be filtered by (class|entity)"):
        searcher.search("x", filter=filter)
    assert ids(searcher.search("an atom and a cell", k=1, filter="lang = de")) == "b"
    (hit,) = searcher.search("the ball of Ada in Rome", k=1)
    assert (hit.label, hit.entities) == (None, ())


def test_a_filter_that_does_not_parse_says_where(searcher: Searcher) -> None:
    with pytest.raises(FilterError, match="at character 8: year >=⟨here⟩"):
        searcher.search("x", filter="year >=")


# Similar


def test_similar_leaves_the_document_itself_out(searcher: Searcher) -> None:
    assert len(searcher.similar("a")) == 4
    assert "a" not in ids(searcher.similar("a"))
    assert "a" not in ids(searcher.similar("a", filter="lang = en"))


def test_similar_finds_a_copy_first(open_index: Callable[..., Searcher]) -> None:
    long = " ".join(f"w{n}" for n in range(20))
    searcher = open_index([*CORPUS, Document("copy", CORPUS[0].text), Document("l1", long), Document("l2", long)])
    assert searcher.similar("a", k=1)[0].id == "copy"
    hits = searcher.similar("l1", k=7)
    assert hits[0].id == "l2"
    assert "l1" not in [hit.id for hit in hits]


def test_similar_needs_no_model(searcher: Searcher) -> None:
    with Searcher(searcher.info.path, model="/nowhere/at/all") as other:
        assert other.similar("a") == searcher.similar("a")


def test_an_unknown_id_is_named(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="no document has the id 'x y'"):
        searcher.similar("x y")


def test_similar_in_an_index_of_one_document_finds_nothing(open_index: Callable[..., Searcher]) -> None:
    assert open_index(CORPUS[:1]).similar("a") == []


# Queries that make no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": -3}, "k must be at least 1, got -3"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
        ({"min_score": float("nan")}, "min_score must be a number, got nan"),
        ({"mode": "psychic"}, "unknown mode 'psychic'; there are cosine"),
    ],
)
def test_options_that_make_no_sense_are_refused(searcher: Searcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        searcher.search("x", **options)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), (" \n\t", "is empty"), ("a\udc80b", "lone surrogate")])
def test_texts_that_cannot_be_embedded_are_refused(searcher: Searcher, text: str, message: str) -> None:
    with pytest.raises(QueryError, match=f"the query's text (has a )?{message}"):
        searcher.search(text)


def test_an_empty_index_finds_nothing(open_index: Callable[..., Searcher]) -> None:
    searcher = open_index()
    with IndexWriter(searcher.info.path) as writer:
        writer.remove([document.id for document in CORPUS])
    assert searcher.search("ball") == []
    assert searcher.search("ball", filter="*") == []


# Models


def test_another_model_is_refused_with_both_fingerprints(searcher: Searcher) -> None:
    other = DemoAnalyser(seed=1, name="other")
    with (
        Searcher(searcher.info.path, model=as_text_model(other)) as wrong,
        pytest.raises(
            FingerprintError, match=rf"built with model demo .*{MODEL.fingerprint[:12]}.*{other.fingerprint[:12]}"
        ),
    ):
        wrong.search("x")


def test_a_model_that_has_moved_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", CORPUS, DemoAnalyser(name="/moved/model"))
    with (
        Searcher(path) as searcher,
        pytest.raises(ModelError, match=r"/moved/model, which cannot be loaded: .* pass its new place with --model"),
    ):
        searcher.search("x")


def test_similarity_is_the_cosine_of_two_texts(searcher: Searcher) -> None:
    a, b = (MODEL.vector(text).astype(np.float64) for text in ("the ball", "a song"))
    assert searcher.similarity("the ball", "a song") == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert searcher.similarity("same", "same") == pytest.approx(1.0)


# Damage


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET text = 'forged' WHERE id = 'b'",
        "UPDATE documents SET metadata = '{}' WHERE id = 'b'",
        "UPDATE documents SET label = NULL WHERE id = 'b'",
        'UPDATE passages SET "end" = 3 WHERE doc = 2',
        "INSERT INTO entities VALUES (2, 0, 2, 1, 0.5)",
    ],
)
def test_a_changed_row_is_an_error_that_names_the_document(searcher: Searcher, statement: str) -> None:
    with closing(sqlite3.connect(os.path.join(searcher.info.path, "meta.sqlite"), isolation_level=None)) as connection:
        connection.execute(statement)
    with pytest.raises(CorruptIndexError, match=r"document 'b' \(number 2\) does not match its stored digest"):
        searcher.search("an atom and a cell")
    assert "b" not in ids(searcher.search("x", filter="not id = b"))


def test_a_document_that_has_vanished_is_an_error_that_names_it(searcher: Searcher) -> None:
    with closing(sqlite3.connect(os.path.join(searcher.info.path, "meta.sqlite"), isolation_level=None)) as connection:
        connection.execute("DELETE FROM documents WHERE id = 'b'")
    with pytest.raises(CorruptIndexError, match="document number 2"):
        searcher.search("an atom and a cell")


def test_what_is_not_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError):
        Searcher(tmp_path)
