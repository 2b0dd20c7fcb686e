"""Search by words, and by meaning and words together: BM25 by its formula, fusion by hand, and both sides in step."""

from __future__ import annotations

import json
import math
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_fails, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, document_scores, entries

from indexer import keywords
from indexer.errors import QueryError
from indexer.filters import Compare, HasId
from indexer.metadata import FORMAT, connect_reader
from indexer.reader import IndexReader
from indexer.records import Document
from indexer.settings import settings_of
from indexer.store import IndexWriter
from search import Searcher
from search.explain import Explanation
from search.keywords import expression_of, terms_of
from search.query import Query
from search.ranking import Fusion, Ranked, reciprocal_ranks, weighted_scores
from search.retrieval import by_both

MODEL = DemoAnalyser()
WORDS = ["ball", "atom", "cell", "song", "Ada", "Rome", "tea", "sky", "ox", "zinc"]


def corpus(n: int, *, seed: int = 0) -> list[Document]:
    random_ = random.Random(seed)
    return [
        Document(f"d{number}", " ".join(random_.choices(WORDS, k=random_.randint(1, 20))), {"n": number})
        for number in range(n)
    ]


def bm25(documents: list[Document], words: list[str]) -> dict[str, float]:
    """Robertson and Zaragoza 2009, with k1 = 1.2, b = 0.75, by the plain formula; words that no stemmer changes."""
    texts = {document.id: document.text.lower().split() for document in documents}
    average = sum(map(len, texts.values())) / len(texts)
    scores: dict[str, float] = {}
    for word in words:
        having = [id_ for id_, text in texts.items() if word in text]
        weight = math.log((len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for id_ in having:
            count, length = Counter(texts[id_])[word], len(texts[id_])
            part = count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / average))
            scores[id_] = scores.get(id_, 0.0) + max(weight, 1e-6) * part
    return scores


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build_index(tmp_path / "index", corpus(80))


@pytest.fixture
def searcher(path: Path) -> Iterator[Searcher]:
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


def words_found(searcher: Searcher, text: str) -> set[str]:
    return {hit.id for hit in searcher.search(text, mode="keyword", k=100)}


def check_keywords(path: Path) -> None:
    """FTS5's own comparison of its index with the texts, in a copy."""
    with closing(sqlite3.connect(":memory:")) as copy:
        with closing(connect_reader(path / "meta.sqlite")) as connection:
            connection.backup(copy)
        copy.execute("INSERT INTO keywords (keywords, rank) VALUES ('integrity-check', 1)")


# What is typed


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("steel", '"steel"'),
        ("steel AND NOT ore", '"steel" OR "AND" OR "NOT" OR "ore"'),
        ('"ice port" steel', '"ice port" OR "steel"'),
        ("deliver* ore", '"deliver" * OR "ore"'),
        ('"ice po"*', '"ice po" *'),
        ("x-ray text:a ^b NEAR(c)", '"x-ray" OR "text:a" OR "^b" OR "NEAR(c)"'),
        ("twice twice", '"twice"'),
        ('an "open quote', '"an" OR "open" OR "quote"'),
        ('"" * - ( "', None),
        ("", None),
        ("a\0b", '"a" OR "b"'),
    ],
)
def test_terms_become_an_expression(text: str, expression: str | None) -> None:
    assert expression_of(text) == expression


def test_no_text_is_a_syntax_error(searcher: Searcher) -> None:
    random_ = random.Random(0)
    alphabet = "ab\"*()^:-+ {}[]'\\\n\t.,;%é河🙂\u0301\u200d\ue000AND OR NOT NEAR"
    for _ in range(500):
        text = "x" + "".join(random_.choices(alphabet, k=random_.randint(0, 15)))
        searcher.search(text, mode="keyword")


def test_a_long_text_is_cut_to_its_first_words() -> None:
    assert len(terms_of(" ".join(f"w{n}" for n in range(10_000)))) == 256


# By words


@pytest.mark.parametrize("text", ["zinc", "zinc tea", "ball atom sky"])
def test_scores_are_bm25(searcher: Searcher, text: str) -> None:
    wanted = bm25(corpus(80), text.split())
    found = {hit.id: hit.score for hit in searcher.search(text, mode="keyword", k=100)}
    assert found == pytest.approx(wanted, rel=1e-9)
    hits = searcher.search(text, mode="keyword", k=7)
    assert [hit.id for hit in hits] == sorted(wanted, key=lambda id_: (-found[id_], id_))[:7]


def test_words_are_found_without_case_diacritics_and_endings(tmp_path: Path) -> None:
    texts = {"a": "Two FERRIES to Gdańsk", "b": "The ferry was late", "c": "naïve Ærø", "d": "河流 in 北京"}
    build_index(tmp_path / "i", [Document(id_, text) for id_, text in texts.items()])
    with Searcher(tmp_path / "i") as searcher:
        assert words_found(searcher, "ferry") == {"a", "b"}
        assert words_found(searcher, "gdansk") == {"a"}
        assert words_found(searcher, "NAIVE") == {"c"}
        assert words_found(searcher, "河流") == {"d"}


def test_phrases_and_prefixes(tmp_path: Path) -> None:
    texts = {
        "a": "the ice port of Halden",
        "b": "a port without ice",
        "c": "ported software",
        "d": "x-ray",
        "e": "ray x",
    }
    build_index(tmp_path / "i", [Document(id_, text) for id_, text in texts.items()])
    with Searcher(tmp_path / "i") as searcher:
        assert words_found(searcher, '"ice port"') == {"a"}
        assert words_found(searcher, "hal*") == {"a"}
        assert words_found(searcher, '"ice po"*') == {"a"}
        assert words_found(searcher, "x-ray") == {"d"}


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        ("pay*", {"pay", "payment", "payroll", "ice payment"}),
        ("key*", {"key", "keyboard"}),
        ("bus*", {"bus", "buses", "busy", "business"}),
        ("morning*", {"morning", "mornings", "morningside"}),
        ("try*", {"try", "trying"}),  # no vowel before the y: its stem is "try"
        ("deliver*", {"deliver", "delivery", "deliveries"}),
        ('"ice pay"*', {"ice payment"}),
    ],
)
def test_a_beginning_finds_the_words_that_begin_so(tmp_path: Path, beginning: str, found: set[str]) -> None:
    texts = "pay payment payroll pains key keyboard keeper bus buses busy business but button morning mornings morn"
    texts += " morningside try trying tripod deliver delivery deliveries delight"
    build_index(tmp_path / "i", [Document(text, text) for text in [*texts.split(), "ice payment", "ice pains"]])
    with Searcher(tmp_path / "i") as searcher:
        assert words_found(searcher, beginning) - {"morn"} == found  # one stem: "morning" finds "morn"


def test_search_by_words_needs_no_model(path: Path) -> None:
    with Searcher(path, model="no such model") as searcher:
        assert searcher.search("zinc", mode="keyword", k=1)[0].text.count("zinc") >= 1


def test_a_filter_holds_before_documents_are_cut(searcher: Searcher) -> None:
    allowed = [f"d{n}" for n in range(0, 80, 3)]
    scores = bm25(corpus(80), ["tea"])
    wanted = sorted((id_ for id_ in scores if id_ in allowed), key=lambda id_: (-scores[id_], id_))
    assert len(wanted) > 5
    hits = searcher.search("tea", mode="keyword", k=5, filter=HasId(tuple(allowed)))
    assert [hit.id for hit in hits] == wanted[:5]
    assert len(searcher.search("tea", mode="keyword", k=100, filter=HasId(tuple(allowed)))) == len(wanted)


def test_pages_follow_each_other(searcher: Searcher) -> None:
    whole = [hit.id for hit in searcher.search("tea sky", mode="keyword", k=30)]
    pages = [hit.id for at in range(0, 30, 10) for hit in searcher.search("tea sky", mode="keyword", k=10, offset=at)]
    assert pages == whole


def test_a_query_without_a_word_finds_nothing(searcher: Searcher) -> None:
    assert searcher.search("*** --", mode="keyword") == []


def test_the_passage_is_the_one_with_most_of_the_words(tmp_path: Path) -> None:
    text = "one two three four five six seven eight zinc and some tea with more zinc here nine ten zinc"
    build_index(tmp_path / "i", [Document("a", text)])  # passages of eight words
    with Searcher(tmp_path / "i") as searcher:
        (hit,) = searcher.search("zinc tea", mode="keyword")
    assert hit.text[hit.passage.start : hit.passage.end] == "zinc and some tea with more zinc here"


# In step with everything else


def test_words_behind_a_nul_are_found_where_they_are(tmp_path: Path) -> None:
    text = "aaaa bbbb cccc\0dddd eeee ffff\0\0gggg zinc. Then zinc"
    path = build_index(tmp_path / "index", [Document("nul", text), Document("plain", "zinc and \u00e9 zinc")])
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        docs = snapshot.numbers_of(["nul", "plain"])
        found = keywords.matched_words(snapshot.connection, '"zinc" OR "dddd"', list(docs.values()))
    words = [text[start:end] for start, end in found[docs["nul"]]]
    assert words == ["dddd", "zinc", "zinc"]
    assert found[docs["plain"]] == [(0, 4), (11, 15)]


@pytest.mark.parametrize(
    ("expression", "pattern"),
    [
        ('"zinc" OR "ore"', "zinc|ore"),
        ('"zinc ore"', "zinc ore"),
        ('"ore é zinc"', "ore é zinc"),
        ('"zinc ore" OR "ore é"', "zinc ore(?: é)?"),  # phrases that overlap are one
    ],
)
def test_words_of_a_long_text_are_found_where_they_are(tmp_path: Path, expression: str, pattern: str) -> None:
    texts = {"a": "zinc ore é " * 3_000, "empty": " ", "b": "é zinc ore."}
    path = build_index(tmp_path / "index", [Document(id_, text) for id_, text in texts.items()])
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        docs = snapshot.numbers_of(texts)
        found = snapshot.matched_words(expression, list(docs.values()))
    for id_, text in texts.items():
        assert found.get(docs[id_], []) == [match.span() for match in re.finditer(pattern, text)]


@pytest.mark.parametrize("options", [{}, {"passages": 2}, {"highlight": True}])
def test_no_text_takes_long_to_look_through(tmp_path: Path, options: dict[str, Any]) -> None:
    build_index(tmp_path / "index", [Document("a", "zinc ore. " * 15_000)])
    with Searcher(tmp_path / "index") as searcher:
        started = time.process_time()
        searcher.search("zinc ore", mode="keyword", **options)
        assert time.process_time() - started < 2.0


def test_many_documents_do_not_take_long_to_look_through(tmp_path: Path) -> None:
    chance = random.Random(2)
    words = [f"w{n}" for n in range(1_000)]
    build_index(tmp_path / "index", [Document(f"d{n}", " ".join(chance.choices(words, k=20))) for n in range(1_000)])
    with Searcher(tmp_path / "index") as searcher:
        started = time.process_time()
        found = searcher.search(" ".join(f"w{n}*" for n in range(1, 100)), mode="keyword", k=1_000)
        assert time.process_time() - started < 2.0
    assert len(found) > 900


def test_words_follow_additions_changes_and_removals(path: Path) -> None:
    with Searcher(path) as searcher, IndexWriter(path) as writer:
        assert "new" not in words_found(searcher, "quartz")
        writer.write(entries([Document("new", "quartz and zinc"), Document("d0", "quartz")], MODEL))
        assert words_found(searcher, "quartz") == {"new", "d0"}
        writer.write(entries([Document("new", "felspar")], MODEL))
        assert words_found(searcher, "quartz") == {"d0"}
        assert words_found(searcher, "felspar") == {"new"}
        writer.remove(["d0"])
        assert words_found(searcher, "quartz") == set()
        writer.remove_matching(Compare("n", ">=", 0))
        assert words_found(searcher, " ".join(WORDS)) == set()
        check_keywords(path)


def test_metadata_and_tags_change_without_the_words(path: Path) -> None:
    document = corpus(80)[3]
    with IndexWriter(path) as writer:
        from indexer.store import Entry

        writer.write([Entry(Document(document.id, document.text, {"n": -1}), None)])
        stored = writer.documents_after(0, 100, characters=10**6)
        writer.retag(stored, MODEL.analyse([item.text for item in stored]))
    check_keywords(path)
    with Searcher(path) as searcher:
        assert document.id in words_found(searcher, document.text)


def test_the_keyword_index_stays_right_through_compaction(path: Path) -> None:
    with IndexWriter(path) as writer:
        for turn in range(20):
            writer.write(entries([Document(f"d{n}", f"word{turn} tea") for n in range(turn, 80, 7)], MODEL))
        writer.remove([f"d{n}" for n in range(0, 80, 2)])
        writer.compact(full=True)
    check_keywords(path)


# Fusion


def test_reciprocal_ranks_by_hand() -> None:
    passages = {doc: Ranked(doc, 10 * doc, cosine) for doc, cosine in [(1, 0.9), (2, 0.8), (3, 0.8), (4, 0.1)]}
    fused = reciprocal_ranks([passages[1], passages[2], passages[3]], [(3, 7.0), (4, 5.0)], passages)
    assert fused == [
        Ranked(3, 30, 1 / 62 + 1 / 61, cosine=0.8, bm25=7.0, fusion=Fusion(1 / 62, 1 / 61, 2, 1)),
        Ranked(1, 10, 1 / 61, cosine=0.9, bm25=None, fusion=Fusion(1 / 61, 0.0, 1, None)),
        Ranked(2, 20, 1 / 62, cosine=0.8, bm25=None, fusion=Fusion(1 / 62, 0.0, 2, None)),
        Ranked(4, 40, 1 / 62, cosine=0.1, bm25=5.0, fusion=Fusion(0.0, 1 / 62, None, 2)),
    ]


def test_weighted_scores_by_hand() -> None:
    passages = {doc: Ranked(doc, 10 * doc, cosine) for doc, cosine in [(1, 0.9), (2, 0.5), (3, 0.1)]}
    fused = weighted_scores([(3, 8.0), (2, 4.0)], passages, keyword_weight=0.25)
    assert [(item.doc, pytest.approx(item.score)) for item in fused] == [(1, 0.75), (2, 0.5), (3, 0.25)]
    assert [item.fusion for item in fused] == [
        Fusion(0.75, 0.0, 1, None),
        Fusion(pytest.approx(0.375), 0.125, 2, 2),
        Fusion(0.0, 0.25, 3, 1),
    ]


def test_fusing_nothing_gives_nothing() -> None:
    assert reciprocal_ranks([], [], {}) == weighted_scores([], {}, keyword_weight=0.5) == []


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_hybrid_is_the_fusion_of_both_rankings(searcher: Searcher, fusion: str) -> None:
    documents = corpus(80)
    cosines = document_scores({document.id: document.text for document in documents}, MODEL.vector("zinc sky"), MODEL)
    numbers = {document.id: number for number, document in enumerate(documents, start=1)}
    words = {numbers[id_]: score for id_, score in bm25(documents, ["zinc", "sky"]).items()}
    passages = {numbers[id_]: Ranked(numbers[id_], 0, cosine) for id_, cosine in cosines.items()}
    by_words = sorted(words.items(), key=lambda item: -item[1])
    by_meaning = sorted(passages.values(), key=lambda item: -item.score)
    wanted = (
        reciprocal_ranks(by_meaning, by_words, passages)
        if fusion == "rrf"
        else weighted_scores(by_words, passages, keyword_weight=0.5)
    )
    answer = searcher.answer("zinc sky", Query(k=15, mode="hybrid", fusion=fusion))
    assert [hit.score for hit in answer.hits] == pytest.approx([item.score for item in wanted[:15]], abs=1e-6)
    for hit, parts in zip(answer.hits, answer.explanation.ranked, strict=True):
        assert parts.cosine == pytest.approx(cosines[hit.id], abs=1e-9)
        assert parts.bm25 == (pytest.approx(words[numbers[hit.id]]) if numbers[hit.id] in words else None)


def test_a_document_found_by_words_alone_comes_with_its_best_passage(tmp_path: Path) -> None:
    rare = "one two three four five six seven eight then the word quartz stands here"
    documents = [*(Document(f"d{n}", f"ball atom {n}") for n in range(300)), Document("rare", rare)]
    build_index(tmp_path / "i", documents)
    with Searcher(tmp_path / "i", model=as_text_model(MODEL)) as searcher:
        hits = searcher.search("quartz", mode="hybrid", k=3)
    assert hits[0].id == "rare"
    assert hits[0].text[hits[0].passage.start : hits[0].passage.end] == "then the word quartz stands here"


@pytest.mark.parametrize(("k", "depth"), [(10, 200), (60, 240)])
def test_the_best_of_each_ranking_are_fused_and_no_more(tmp_path: Path, k: int, depth: int) -> None:
    words, chance = [f"w{n}" for n in range(100)], random.Random(1)
    documents = [Document(f"d{n}", " ".join(chance.choices(words, k=6))) for n in range(1_500)]
    with IndexReader(build_index(tmp_path / "index", documents)) as reader, reader.snapshot() as snapshot:
        query = Query(k=k, mode="hybrid", fusion="rrf")
        fused = by_both(snapshot, "w1 w2", MODEL.vector("w1 w2"), query, None, Explanation())
    ranks = sorted(item.fusion.meaning_rank for item in fused if item.fusion and item.fusion.meaning_rank)
    assert ranks[-1] <= depth
    assert len(ranks) >= depth  # with those that tie with the last


def test_hybrid_holds_its_filter_on_both_sides(searcher: Searcher) -> None:
    hits = searcher.search("zinc sky", mode="hybrid", k=100, filter="n >= 20 and n < 40")
    assert {hit.id for hit in hits} == {f"d{n}" for n in range(20, 40)}


def test_hybrid_without_a_word_ranks_by_meaning(searcher: Searcher) -> None:
    by_meaning = [hit.id for hit in searcher.search("?! 🙂", k=20)]
    assert [hit.id for hit in searcher.search("?! 🙂", k=20, mode="hybrid")] == by_meaning


@pytest.mark.parametrize("mode", ["hybrid", "keyword"])
def test_many_texts_at_once_as_one_by_one(searcher: Searcher, mode: str) -> None:
    texts = ["zinc sky", "tea", "nothing of this"]
    assert searcher.search_many(texts, mode=mode) == [searcher.search(text, mode=mode) for text in texts]


def test_a_vector_has_no_words(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="mode 'hybrid' needs a text, got a vector"):
        searcher.answer_vector(np.ones(16, dtype=np.float32), Query(mode="hybrid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bm25"}, "unknown mode 'bm25'; there are cosine, hybrid, keyword"),
        ({"fusion": "sum"}, "unknown fusion 'sum'; there are rrf, weighted"),
        ({"keyword_weight": 1.5}, "keyword_weight must be between 0 and 1, got 1.5"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        Query(**options)  # type: ignore[arg-type]


# On the command line


def test_modes_on_the_command_line(run: Run, model: str) -> None:
    write_jsonl("t.jsonl", [{"id": f"d{n}", "text": f"tea number{n}"} for n in range(5)])
    assert run("indexer", "add", "i", "t.jsonl", "--model", model).code == 0
    assert [hit["id"] for hit in run("search", "query", "i", "number3", "--mode", "keyword", "--json").jsons] == ["d3"]
    result = run("search", "query", "i", "number3", "--mode", "hybrid", "-k", "2", "--json", "--explain")
    assert len(result.jsons) == 2
    explained = json.loads(result.err)["hits"]
    assert [hit["id"] for hit in explained] == [hit["id"] for hit in result.jsons]
    result = run("search", "query", "i", "number3", "--mode", "hybrid", "-k", "2", "--explain")
    assert "hit 1: " in result.err
    assert "cosine" in result.err
    assert "bm25" in result.err
    assert_fails(
        run("search", "query", "i", "", "--mode", "keyword"),
        "the query's text is empty",
    )


def test_settings_of_a_new_index_have_the_newest_format(tmp_path: Path) -> None:
    with IndexWriter(tmp_path / "i", create=settings_of(MODEL)):
        pass
    with closing(connect_reader(tmp_path / "i" / "meta.sqlite")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
