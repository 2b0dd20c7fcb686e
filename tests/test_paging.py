"""Pages of a query while the index changes, compared with a plain model of what they promise."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, write_jsonl
from fakes import (
    DemoAnalyser,
    as_text_model,
    build_index,
    build_vector_index,
    clustered,
    document_scores,
    entries,
)

from indexer.errors import CursorError, QueryError
from indexer.filters import And, Filter, HasId, HasLabel, parse
from indexer.records import Document
from indexer.store import Entry, IndexWriter
from search import Searcher
from search.cursor import MAX_SHOWN, Cursor, decode, encode, query_digest
from search.hits import Hit
from search.paging import WOBBLE, Page
from search.query import Query

MODEL = DemoAnalyser()
WORDS = ("ball", "race", "tea", "ox", "zinc", "Ada", "port")
TEXT = "ball zinc Ada"
FILTER = "n < 20"

SEEDS = range(60 if os.environ.get("TAGDEX_LONG_TESTS") else 2)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"min_score": 0.0},
    {"distinct": 0.9},
    {"mmr": 0.5},
    {"distinct": 0.9, "mmr": 0.7},
    {"mode": "keyword"},
    {"mode": "keyword", "distinct": 0.9},
    {"mode": "hybrid"},
    {"mode": "hybrid", "fusion": "weighted"},
    {"mode": "hybrid", "mmr": 0.5},
    {"entities": "filter"},
    {"entities": "boost", "boost": 0.5},
    {"mode": "hybrid", "entities": "boost"},
]


@dataclass
class World:
    """An index that changes at random, and what is in it. A text that was written has a stamp of its own."""

    path: Path
    random: np.random.Generator
    documents: dict[str, Document] = field(default_factory=dict)
    stamps: dict[str, int] = field(default_factory=dict)
    made: int = 0

    def text(self) -> str:
        """Of few words, so that there are equal scores and near-duplicates; sometimes of several passages."""
        words = self.random.choice(WORDS, size=int(self.random.choice([1, 2, 3, 12])))
        return " ".join(words.tolist())

    def put(self, writer: IndexWriter, ids: list[str]) -> None:
        new = [Document(id_, self.text(), {"n": int(self.random.integers(24))}) for id_ in ids]
        new = [document for document in new if self._text_of(document.id) != document.text]
        writer.write(entries(new, MODEL))
        for document in new:
            self.made += 1
            self.documents[document.id], self.stamps[document.id] = document, self.made

    def set_metadata(self, writer: IndexWriter, ids: list[str]) -> None:
        changed = [replace(self.documents[id_], metadata={"n": int(self.random.integers(24))}) for id_ in ids]
        writer.write([Entry(document, None) for document in changed])
        self.documents |= {document.id: document for document in changed}

    def remove(self, writer: IndexWriter, ids: list[str]) -> None:
        writer.remove(ids)
        for id_ in ids:
            del self.documents[id_], self.stamps[id_]

    def change(self, writer: IndexWriter) -> None:
        """One of the things that happen to an index."""
        some = [str(id_) for id_ in self.random.permutation(sorted(self.documents))[: int(self.random.integers(1, 4))]]
        match int(self.random.integers(7)):
            case 0:
                self.put(writer, [f"new{self.made}", f"new{self.made}b"])
            case 1:
                self.put(writer, some)
            case 2:
                self.set_metadata(writer, some)
            case 3:
                self.remove(writer, some)
            case 4:  # back under its id, with the same text
                before = [self.documents[id_] for id_ in some]
                self.remove(writer, some)
                writer.write(entries(before, MODEL))
                for document in before:
                    self.made += 1
                    self.documents[document.id], self.stamps[document.id] = document, self.made
            case 5:
                writer.seal()
            case _:
                writer.compact(full=True, codes="always")

    def _text_of(self, id_: str) -> str | None:
        return self.documents[id_].text if id_ in self.documents else None


def still_there(world: World, first: dict[str, int], *, filtered: bool) -> list[str]:
    """The documents of the first page's commit that have their texts still, and that the filter allows now."""
    return [
        id_
        for id_, document in world.documents.items()
        if first.get(id_) == world.stamps[id_] and (not filtered or document.metadata["n"] < 20)
    ]


def wanted_page(
    searcher: Searcher,
    there: list[str],
    shown: set[str],
    hidden: set[str],
    k: int,
    options: dict[str, Any],
    *,
    last: float,
    sharing: bool,
) -> list[str]:
    """The best of what is still there that was not shown; by brute force, or by a search for those ids alone.

    By cosine alone, no document comes before the place that the pages have reached, `last`, the score of the last hit.
    What is hidden by a hit takes no part any more, nor does what would hide one now, and is put among it. `sharing`:
    whether documents shared the query's entities at first.
    """
    if set(options) <= {"min_score"}:
        texts = {hit.id: hit.text for hit in searcher.search(TEXT, k=1_000, filter=HasId(tuple(there)))}
        scores = document_scores(texts, MODEL.vector(TEXT), MODEL)
        ranked = sorted(texts, key=lambda id_: (-round(scores[id_], 9), id_))
        low, high = options.get("min_score", -2.0), last + WOBBLE
        return [id_ for id_ in ranked if id_ not in shown and low <= scores[id_] <= high][:k]
    if "entities" in options and not sharing:
        options = {name: value for name, value in options.items() if name not in ("entities", "boost")}
    high = last + WOBBLE if options in ({}, {"entities": "filter"}) else 9.0
    while True:
        query = Query(k=1_000, filter=HasId(tuple(id_ for id_ in there if id_ not in hidden)), **options)
        answer = searcher.answer(TEXT, query)
        if options.get("entities") == "filter" and not answer.explanation.entities.sharing:  # type: ignore[union-attr]
            return []
        copies = {hit.id for hit in answer.hits if hit.id not in shown and not shown.isdisjoint(hit.hidden)}
        if not copies:
            return [hit.id for hit in answer.hits if hit.score <= high and hit.id not in shown][:k]
        hidden |= copies


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pages_of_a_changing_index(tmp_path: Path, options: dict[str, Any], seed: int) -> None:
    random = np.random.default_rng([seed, *map(ord, str(options))])
    world = World(build_index(tmp_path / "index", [], MODEL), random)
    filtered = bool(seed % 2)
    query = Query(k=3, filter=parse(FILTER) if filtered else None, **options)
    with IndexWriter(world.path) as writer, Searcher(world.path, model=as_text_model(MODEL)) as searcher:
        world.put(writer, [f"d{n}" for n in range(28)])
        first = dict(world.stamps)
        always = set(still_there(world, first, filtered=filtered))
        shown: list[str] = []
        hidden: set[str] = set()
        cursor: str | None = None
        last, sharing = 2.0, False
        while True:
            k = int(random.integers(1, 5))
            there = still_there(world, first, filtered=filtered)
            page = searcher.answer_page(TEXT, replace(query, k=k), cursor)
            if cursor is None and (use := page.explanation.entities) is not None:
                sharing = use.sharing > 0
            expected = wanted_page(searcher, there, {*shown}, hidden, k, options, last=last, sharing=sharing)
            assert [hit.id for hit in page.hits] == expected
            shown += expected
            hidden |= {id_ for hit in page.hits for id_ in hit.hidden}
            if page.cursor is None:
                break
            cursor, last = page.cursor, page.hits[-1].score
            for _ in range(int(random.integers(4))):
                world.change(writer)
                always &= set(still_there(world, first, filtered=filtered))
    assert len(shown) == len(set(shown))
    assert hidden.isdisjoint(shown)
    if "min_score" not in options and "filter" not in str(options) and "keyword" not in str(options):
        assert always <= {*shown, *hidden}


def pages(searcher: Searcher, text: str = TEXT, **options: Any) -> Iterator[Page]:
    page = searcher.page(text, **options)
    yield page
    while page.cursor is not None:
        page = searcher.page(text, cursor=page.cursor, **options)
        yield page


def ids(hits: tuple[Hit, ...] | list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    random = np.random.default_rng(0)
    documents = [Document(f"d{n:02}", " ".join(random.choice(WORDS, size=1 + n % 3)), {"n": n % 24}) for n in range(40)]
    path = build_index(tmp_path / "index", documents, MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        yield searcher


@pytest.mark.parametrize("options", [o for o in OPTIONS if "fusion" not in o], ids=str)
def test_pages_of_an_index_at_rest_are_those_of_search(searcher: Searcher, options: dict[str, Any]) -> None:
    found = list(pages(searcher, k=7, **options))
    assert [hit for page in found for hit in page.hits] == searcher.search(TEXT, k=100, **options)
    assert all(len(page.hits) == 7 for page in found[:-1])
    assert 1 <= len(found[-1].hits) <= 7


def test_a_query_without_hits_has_no_cursor(searcher: Searcher) -> None:
    page = searcher.page(TEXT, filter="n = 1000")
    assert (page.hits, page.cursor) == ((), None)


def test_the_last_hits_have_no_cursor(searcher: Searcher) -> None:
    assert searcher.page(TEXT, k=40).cursor is None
    assert searcher.page(TEXT, k=39).cursor is not None


def test_a_vector_has_pages(searcher: Searcher) -> None:
    vector = MODEL.vector(TEXT)
    first = searcher.page(vector, k=5)
    assert ids(searcher.page(vector, k=5, cursor=first.cursor).hits) == ids(searcher.search(TEXT, k=5, offset=5))
    with pytest.raises(CursorError, match="of another query"):
        searcher.page(2 * vector, cursor=first.cursor)
    with pytest.raises(QueryError, match="mode 'hybrid' needs a text, got a vector"):
        searcher.page(vector, mode="hybrid")


def test_no_page_misses_what_codes_miss(tmp_path: Path) -> None:
    table = clustered(3_000, dimension=32)
    path = build_vector_index(tmp_path / "index", table)
    with IndexWriter(path) as writer:
        writer.compact(full=True, codes="always")
    query = clustered(1, dimension=32, seed=5)[0]
    best = [f"d{n}" for n in np.argsort(-(table.astype(np.float16).astype(np.float64) @ query), kind="stable")]
    with Searcher(path) as searcher:
        found: list[str] = []
        cursor = None
        for _ in range(10):
            page = searcher.page(query, k=50, cursor=cursor)
            cursor = page.cursor
            found += ids(page.hits)
    assert found == best[:500]


def test_a_vector_that_differs_in_its_last_bits_neither_repeats_nor_skips(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, turn = searcher.model.encode, iter(range(1_000))

    def shaken(texts: list[str]) -> Any:
        noise = np.random.default_rng(next(turn)).normal(size=MODEL.dimension)
        return (exact(texts) * (1 + 1e-7 * noise)).astype(np.float32)

    monkeypatch.setattr(searcher.model, "encode", shaken)
    found = [hit.id for page in pages(searcher, k=1) for hit in page.hits]
    assert len(found) == 40
    assert len(set(found)) == 40


def test_a_plain_ranking_has_short_cursors(tmp_path: Path) -> None:
    path = build_vector_index(tmp_path / "index", clustered(2_000))
    query = clustered(1, seed=3)[0]
    with Searcher(path) as searcher:
        deep = searcher.page(query, k=1_500)
        assert deep.cursor is not None
        assert len(decode(deep.cursor).shown) < 20
        assert len(deep.cursor) < 200
        following = searcher.page(query, k=10, cursor=deep.cursor)
        assert following.hits == tuple(searcher.search_vector(query, k=10, offset=1_500))


def test_a_score_is_the_same_however_it_was_found(tmp_path: Path) -> None:
    path = build_vector_index(tmp_path / "index", clustered(1_500, dimension=64))
    with IndexWriter(path) as writer:
        writer.compact(full=True, codes="always")
    query = clustered(1, dimension=64, seed=9)[0]
    with Searcher(path) as searcher:
        exact = {hit.id: hit.score for hit in searcher.search_vector(query, k=1_500)}
        for k in (1, 2, 3, 10, 100):
            for plan in ("codes", "scan"):
                for hit in searcher.answer_vector(query, Query(k=k), path=plan).hits:
                    assert hit.score == exact[hit.id]
            first = searcher.page(query, k=k).hits[-1].id
            alone = searcher.search_vector(query, k=1, filter=HasId((first,)))
            assert alone[0].score == exact[first]


# What a cursor refuses


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ball", {}),
        (TEXT, {"filter": "n < 21"}),
        (TEXT, {}),
        (TEXT, {"filter": FILTER, "mode": "keyword"}),
        (TEXT, {"filter": FILTER, "mode": "hybrid"}),
        (TEXT, {"filter": FILTER, "min_score": 0.1}),
        (TEXT, {"filter": FILTER, "distinct": 0.9}),
        (TEXT, {"filter": FILTER, "mmr": 0.9}),
    ],
)
def test_a_cursor_of_another_query_is_refused(searcher: Searcher, text: str, options: dict[str, Any]) -> None:
    cursor = searcher.page(TEXT, k=2, filter=FILTER).cursor
    assert searcher.page(TEXT, k=3, filter=FILTER, cursor=cursor).hits
    with pytest.raises(CursorError, match="the cursor is of another query"):
        searcher.page(text, cursor=cursor, **options)


def test_options_of_fusion_are_part_of_the_query(searcher: Searcher) -> None:
    page = searcher.answer_page(TEXT, Query(k=2, mode="hybrid"))
    for options in ({"fusion": "rrf"}, {"keyword_weight": 0.3}):
        with pytest.raises(CursorError, match="of another query"):
            searcher.answer_page(TEXT, Query(k=2, mode="hybrid", **options), page.cursor)  # type: ignore[arg-type]


def test_a_cursor_of_another_index_is_refused(searcher: Searcher, tmp_path: Path) -> None:
    cursor = searcher.page(TEXT, k=2).cursor
    other = build_index(tmp_path / "other", [Document("x", "tea")], MODEL)
    with (
        Searcher(other, model=as_text_model(MODEL)) as another,
        pytest.raises(CursorError, match=r"of another index \(id [0-9a-f]{16}, this one has [0-9a-f]{16}\)"),
    ):
        another.page(TEXT, cursor=cursor)


def test_a_cursor_of_a_later_commit_is_refused(searcher: Searcher) -> None:
    cursor = searcher.page(TEXT, k=2).cursor
    assert cursor is not None
    state = decode(cursor)
    later = encode(replace(state, commit=state.commit + 1))
    with pytest.raises(CursorError, match=f"of commit {state.commit + 1}, this index is at commit {state.commit}"):
        searcher.page(TEXT, cursor=later)


STATE = Cursor(
    "0123456789abcdef", "fedcba9876543210", 12, 345, 20, 0.123456789, frozenset({7, 1, 99_999}), frozenset({5, 2}), True
)


@pytest.mark.parametrize(
    "state", [STATE, replace(STATE, index=None, limit=None, shown=frozenset(), hidden=frozenset())]
)
def test_cursors_round_trip(state: Cursor) -> None:
    text = encode(state)
    assert decode(text) == state
    assert encode(decode(text)) == text
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_cursor_with_one_wrong_character_is_refused() -> None:
    text = encode(STATE)
    for at in range(len(text)):
        for character in ("A", "z", "-", "!", "é", ""):
            changed = text[:at] + character + text[at + 1 :]
            if _bytes_of(changed) == _bytes_of(text):
                continue  # nothing but bits that base64 leaves unused
            with pytest.raises(CursorError, match="the cursor is damaged"):
                decode(changed)


@pytest.mark.parametrize("text", ["", "x", "AAAA", "\ud800", " ", "AQAAAAA", "=" * 8, "é"])
def test_what_is_no_cursor_is_refused(searcher: Searcher, text: str) -> None:
    with pytest.raises(CursorError, match="the cursor is damaged"):
        searcher.page(TEXT, cursor=text)


def _bytes_of(text: str) -> bytes | None:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None


def forged(record: object, *, version: int = 2) -> str:
    deflated = zlib.compress(record if isinstance(record, bytes) else json.dumps(record).encode())
    data = bytes([version]) + zlib.crc32(bytes([version]) + deflated).to_bytes(4, "little") + deflated
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b" " * 2**21,
        {},
        [],
        ["i", "q", 1, 2, 3, 0.5, [], []],
        [1, "q", 1, 2, 3, 0.5, [], [], True],
        ["i", None, 1, 2, 3, 0.5, [], [], True],
        ["i", "q", -1, 2, 3, 0.5, [], [], True],
        ["i", "q", 1, 2**63, 3, 0.5, [], [], True],
        ["i", "q", 1, 2, True, 0.5, [], [], True],
        ["i", "q", 1, 2, 3, "x", [], [], True],
        ["i", "q", 1, 2, 3, 0.5, {}, [], True],
        ["i", "q", 1, 2, 3, 0.5, [1, -1], [], True],
        ["i", "q", 1, 2, 3, 0.5, [], [1.5], True],
        ["i", "q", 1, 2, 3, 0.5, [2**62, 2**62, 2**62], [], True],
        ["i", "q", 1, 2, 3, 0.5, [], [], 1],
        ["i", "q", 1, 2, 3, 0.5, [], [2**32], True],  # no document has such a number
    ],
    ids=range(17),
)
def test_what_nobody_encodes_is_refused(record: object) -> None:
    with pytest.raises(CursorError, match="the cursor is damaged"):
        decode(forged(record))


def test_a_cursor_of_another_form_says_so() -> None:
    with pytest.raises(CursorError, match="the cursor has form 1, this version of tagdex reads form 2"):
        decode(forged(["i"], version=1))


def test_a_cursor_does_not_grow_without_end() -> None:
    most = frozenset(range(0, 50 * MAX_SHOWN, 50))
    assert len(encode(replace(STATE, shown=most, hidden=frozenset()))) < 2 * MAX_SHOWN
    with pytest.raises(QueryError, match=r"more than 10,000 hits, the most that a cursor remembers: narrow"):
        encode(replace(STATE, shown=most, hidden=frozenset({1})))


def test_what_a_hit_has_hidden_does_not_hide_others_when_that_hit_goes(tmp_path: Path) -> None:
    angles = np.radians([5, 20, 35, 80])  # each is near the next, and the first is not near the third
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    path = build_vector_index(tmp_path / "index", table)
    with Searcher(path) as searcher, IndexWriter(path) as writer:
        query = np.array([1.0, 0.0], dtype=np.float32)
        first = searcher.page(query, k=1, distinct=0.95)
        assert [(hit.id, hit.hidden) for hit in first.hits] == [("d0", ("d1",))]
        writer.remove(["d0"])
        rest = searcher.page(query, k=9, distinct=0.95, cursor=first.cursor)
    assert [(hit.id, hit.hidden) for hit in rest.hits] == [("d2", ()), ("d3", ())]


@pytest.mark.parametrize("how", ["comes", "goes"])
def test_whether_entities_filter_is_decided_on_the_first_page(tmp_path: Path, how: str) -> None:
    documents = [Document(f"t{n}", f"tea cup {n}", {"n": 1}) for n in range(4)]
    path = build_index(tmp_path / "index", [*documents, Document("ada", "Ada writes", {"n": 0})], MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as searcher, IndexWriter(path) as writer:
        if how == "goes":
            writer.write(
                entries([Document("ada", "Ada writes", {"n": 1}), Document("b", "Ada reads", {"n": 1})], MODEL)
            )
        options: Any = {"k": 1, "entities": "filter", "filter": "n = 1"}
        first = searcher.page("Ada tea", **options)
        shown = [hit.id for hit in first.hits]
        if how == "comes":
            writer.write([Entry(Document("ada", "Ada writes", {"n": 1}), None)])
        else:
            writer.remove(["ada", "b"])
        cursor = first.cursor
        while cursor is not None:
            page = searcher.page("Ada tea", cursor=cursor, **options)
            shown += [hit.id for hit in page.hits]
            cursor = page.cursor
    assert sorted(shown) == (["ada", "t0", "t1", "t2", "t3"] if how == "comes" else shown[:1])


def test_a_reranked_search_has_no_pages(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="a cross-encoder reads the best hits only"):
        searcher.answer_page(TEXT, Query(rerank="no/such-model"))


def test_what_hits_show_may_differ_from_page_to_page(searcher: Searcher) -> None:
    first = searcher.answer_page(TEXT, Query(k=3))
    second = searcher.answer_page(TEXT, Query(k=3, passages=2, highlight=True), first.cursor)
    assert [hit.id for hit in second.hits] == ids(searcher.search(TEXT, k=3, offset=3))
    assert all(hit.passages and hit.highlight for hit in second.hits)


def test_an_offset_and_a_cursor_do_not_go_together(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="offset must be 0 with a cursor, got 5"):
        searcher.answer_page(TEXT, Query(offset=5))


def test_the_digest_tells_queries_apart() -> None:
    filters: list[Filter | None] = [None, HasLabel("a"), HasLabel("b"), And((HasLabel("a"), HasLabel("b")))]
    queries = [Query(filter=filter) for filter in filters] + [
        Query(mode="keyword"),
        Query(mmr=0.5),
        Query(distinct=0.5),
    ]
    digests = [query_digest(text, query) for text in ("a", "b") for query in queries]
    assert len(set(digests)) == len(digests)
    assert query_digest("a", Query(k=5)) == query_digest("a", Query(k=6))


def test_the_id_of_an_index_stays(tmp_path: Path) -> None:
    path = build_index(tmp_path / "index", [Document("a", "tea"), Document("b", "ox")], MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        cursor = searcher.page("tea", k=1).cursor
    with IndexWriter(path) as writer:
        writer.write(entries([Document("c", "sky")], MODEL))
        writer.compact(full=True)
    with Searcher(path, model=as_text_model(MODEL)) as searcher:
        assert ids(searcher.page("tea", cursor=cursor).hits) == ["b"]


# The command


def test_the_command_pages(run: Run, model: str) -> None:
    records = [{"id": f"d{n}", "text": f"text {n}", "n": n} for n in range(5)]
    run("indexer", "add", "index", write_jsonl("r.jsonl", records), "--model", model)
    command = ("search", "query", "index", "text 3", "-k", "2", "--json", "--cursor")
    whole = [json.loads(line)["id"] for line in run(*command[:4], "--json").out.splitlines()]
    *first, last = map(json.loads, run(*command).out.splitlines())
    run("indexer", "add", "index", write_jsonl("s.jsonl", [{"id": "e", "text": "text 3"}]), "--model", model)
    *second, after = map(json.loads, run(*command, last["cursor"]).out.splitlines())
    *third, end = map(json.loads, run(*command, after["cursor"]).out.splitlines())
    assert [hit["id"] for hit in (*first, *second, *third)] == whole
    assert end == {"cursor": None}
    refused = run(*command, last["cursor"], "--where", "n > 1")
    assert (refused.code, refused.out) == (1, "")
    assert "the cursor is of another query" in refused.err
    assert "offset must be 0" in run(*command, last["cursor"], "--offset", "2").err


def test_the_command_says_for_reading_where_the_next_page_begins(run: Run, model: str) -> None:
    records = [{"id": f"d{n}", "text": f"text {n}"} for n in range(3)]
    run("indexer", "add", "index", write_jsonl("r.jsonl", records), "--model", model)
    first = run("search", "query", "index", "text", "-k", "2", "--cursor")
    words = first.err.split()
    assert words[:3] == ["next", "page:", "--cursor"]
    second = run("search", "query", "index", "text", "-k", "2", "--cursor", words[3])
    assert second.err == "no more hits\n"
    assert second.out.count(" d") == 1


def test_gaps_of_numbers_are_what_is_kept() -> None:
    numbers = sorted(STATE.shown)
    packed = base64.urlsafe_b64decode(encode(STATE) + "==")
    assert json.loads(zlib.decompress(packed[5:]))[-3] == [numbers[0], *(b - a for a, b in pairwise(numbers))]
