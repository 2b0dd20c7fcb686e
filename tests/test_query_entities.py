"""What the entities of a query do: only documents that share any, or those raised; against brute force."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, assert_fails, assert_usage, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, build_vector_index, clustered, document_scores

from indexer.errors import FingerprintError, ModelError, QueryError
from indexer.fields import normalise_entity
from indexer.filters import parse, parse_entity_flag
from indexer.records import Analysis, Document, Passage, Span
from indexer.settings import settings_of
from indexer.store import Entry, IndexWriter
from search import Searcher
from search.entities import QueryEntity, entities_of
from search.query import Query
from search.ranking import Ranked, in_order, reciprocal_ranks

MODEL = DemoAnalyser()
NAMES = ["Ada", "Bob", "Jupiter", "Rome", "Sparta", "Zed"]
WORDS = ["ball", "atom", "cell", "song", "tea", "sky", "ox", "zinc"]
DOCUMENTS = 120


def corpus() -> list[Document]:
    """Documents of one or two passages; about a third of them names anybody."""
    random_ = random.Random(7)
    documents = []
    for number in range(DOCUMENTS):
        words = random_.choices(WORDS, k=random_.randint(3, 12))
        if number % 3 == 0:
            words += random_.sample(NAMES, k=random_.randint(1, 3))
        documents.append(Document(f"d{number:03d}", " ".join(words), {"n": number}))
    return documents


TEXTS = {document.id: document.text for document in corpus()}


def share(id_: str, *names: str) -> float:
    return sum(name in TEXTS[id_].split() for name in names) / len(names)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("entities") / "index", corpus(), MODEL)


@pytest.fixture
def searcher(path: Path) -> Iterator[Searcher]:
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


# Those of the query


def test_entities_are_found_once_in_the_order_of_the_text() -> None:
    text = "IBM met  Ada;  I.B.M.'s\nAda"
    spans = [Span("ORG", 0, 3, 0.9), Span("PER", 9, 12, 0.9), Span("ORG", 15, 23, 0.9), Span("ORG", 24, 27, 0.9)]
    assert entities_of(text, spans) == (
        QueryEntity("ORG", "IBM", "ibm"),
        QueryEntity("PER", "Ada", "ada"),
        QueryEntity("ORG", "Ada", "ada"),
    )


def test_white_space_inside_a_name_is_one_space() -> None:
    assert entities_of("Halden\n  Steel", [Span("ORG", 0, 14, 0.9)]) == (
        QueryEntity("ORG", "Halden Steel", "halden steel"),
    )


# Only documents that share any


@pytest.mark.parametrize("mode", ["cosine", "hybrid", "keyword"])
@pytest.mark.parametrize("filter", [None, "n < 60"])
def test_a_filter_by_entities_is_the_filter_that_one_would_write(
    searcher: Searcher, mode: str, filter: str | None
) -> None:
    written = "(entity PER:Ada or entity ORG:Rome)" + (f" and {filter}" if filter else "")
    found = searcher.search("tea with Ada in Rome", entities="filter", filter=filter, mode=mode, k=50)
    assert found == searcher.search("tea with Ada in Rome", filter=written, mode=mode, k=50)
    assert 5 < len(found) < 50
    assert all(share(hit.id, "Ada", "Rome") > 0 for hit in found)


def test_the_explanation_says_which_entities_were_found(searcher: Searcher) -> None:
    query = Query(entities="filter", filter=parse("n < 60"))
    explanation = searcher.answer("tea with Ada in Rome", query).explanation
    counts = [sum(share(f"d{n:03d}", name) > 0 for n in range(60)) for name in ("Ada", "Rome")]
    sharing = sum(share(f"d{n:03d}", "Ada", "Rome") > 0 for n in range(60))
    assert explanation.to_json()["entities"] == {
        "asked": "filter",
        "done": "filter",
        "sharing": sharing,
        "found": [
            {"type": "PER", "text": "Ada", "form": "ada", "documents": counts[0]},
            {"type": "ORG", "text": "Rome", "form": "rome", "documents": counts[1]},
        ],
    }
    assert explanation.lines()[1] == (
        f"entities: PER:Ada ({counts[0]}), ORG:Rome ({counts[1]}); searched only what shares any: {sharing} documents"
    )
    assert (explanation.allowed, explanation.documents) == (sharing, DOCUMENTS)
    assert explanation.notes == []


@pytest.mark.parametrize("use", ["filter", "boost"])
@pytest.mark.parametrize(
    ("text", "filter", "note"),
    [
        ("tea and sky", None, "the query names no entity that the model finds: searched without"),
        (
            "tea with Xerxes",
            None,
            "no document under the filter shares an entity of the query (LOC:Xerxes): searched without",
        ),
        (
            "tea with Ada",
            "not entity PER:Ada",
            "no document under the filter shares an entity of the query (PER:Ada): searched without",
        ),
    ],
)
def test_where_no_document_shares_any_it_says_so_and_searches_without(
    searcher: Searcher, use: str, text: str, filter: str | None, note: str
) -> None:
    answer = searcher.answer(text, Query(entities=use, filter=None if filter is None else parse(filter)))
    assert list(answer.hits) == searcher.search(text, filter=filter)
    assert answer.explanation.notes == [note]
    assert answer.explanation.lines()[1] == f"entities: {note}"
    assert answer.explanation.to_json()["entities"]["done"] == "nothing"


# Documents that share any, raised


def raised(weight: float, *, filter: int = DOCUMENTS) -> list[tuple[str, float]]:
    """Brute force for "tea with Ada in Rome": cosine + weight · share, best first, equal ones by id."""
    scores = document_scores(TEXTS, MODEL.vector("tea with Ada in Rome"), MODEL)
    scores = {
        id_: score + weight * share(id_, "Ada", "Rome") for id_, score in scores.items() if id_ < f"d{filter:03d}"
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("k", [1, 3, 10, 200])
def test_a_boost_is_exact_also_for_documents_outside_the_best_k(searcher: Searcher, weight: float, k: int) -> None:
    hits = searcher.search("tea with Ada in Rome", entities="boost", boost=weight, k=k)
    wanted = raised(weight)[:k]
    assert [hit.id for hit in hits] == [id_ for id_, _ in wanted]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-12)


def test_a_boost_brings_in_documents_that_a_plain_search_leaves_out(searcher: Searcher) -> None:
    plain = {hit.id for hit in searcher.search("tea with Ada in Rome", k=3)}
    assert not plain >= {hit.id for hit in searcher.search("tea with Ada in Rome", k=3, entities="boost", boost=0.6)}


def test_pages_of_a_boosted_search_fit_together_under_a_filter(searcher: Searcher) -> None:
    pages = [
        hit.id
        for offset in range(0, 60, 7)
        for hit in searcher.search(
            "tea with Ada in Rome", entities="boost", boost=0.3, k=7, offset=offset, filter="n < 60"
        )
    ]
    assert pages == [id_ for id_, _ in raised(0.3, filter=60)]


def test_the_parts_of_a_boosted_score_are_shown(searcher: Searcher) -> None:
    answer = searcher.answer("tea with Ada in Rome", Query(entities="boost", boost=0.5, k=4))
    for hit, ranked in zip(answer.hits, answer.explanation.ranked, strict=True):
        assert ranked.cosine is not None
        assert ranked.boost == pytest.approx(0.5 * share(hit.id, "Ada", "Rome"))
        assert hit.score == ranked.cosine + ranked.boost
    first = answer.explanation.to_json()["hits"][0]
    assert list(first) == ["score", "cosine", "bm25", "boost"]
    assert answer.explanation.to_json()["entities"]["weight"] == 0.5
    assert "; raised what shares any by up to 0.5: " in answer.explanation.lines()[1]


def test_words_are_raised_by_the_share_of_their_best_score(searcher: Searcher) -> None:
    plain = searcher.search("tea Ada Rome", mode="keyword", k=DOCUMENTS)
    wanted = {hit.id: hit.score + 0.4 * share(hit.id, "Ada", "Rome") * plain[0].score for hit in plain}
    for k in (2, 9, DOCUMENTS):
        found = searcher.search("tea Ada Rome", mode="keyword", k=k, entities="boost", boost=0.4)
        assert [hit.id for hit in found] == sorted(wanted, key=lambda id_: (-wanted[id_], id_))[:k]
        assert [hit.score for hit in found] == pytest.approx([wanted[hit.id] for hit in found])


@pytest.mark.parametrize("depth", [10, 200])
def test_a_hybrid_search_fuses_the_raised_rankings(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    from search import retrieval

    monkeypatch.setattr(retrieval, "FUSED_AT_LEAST", depth)
    monkeypatch.setattr(retrieval, "FUSED_PER_WANTED", 1)
    text = "tea with Ada in Rome"
    numbers = {id_: at for at, id_ in enumerate(TEXTS)}
    meaning = searcher.search(text, k=DOCUMENTS, entities="boost", boost=0.3)
    words = searcher.search(text, k=DOCUMENTS, mode="keyword", entities="boost", boost=0.3)
    ranked = {hit.id: Ranked(numbers[hit.id], 0, hit.score) for hit in meaning}
    fused = reciprocal_ranks(
        [ranked[hit.id] for hit in meaning[:depth]],
        [(numbers[hit.id], hit.score) for hit in words[:depth]],
        {item.doc: item for item in ranked.values()},
    )
    wanted = in_order(fused, {number: id_ for id_, number in numbers.items()})
    answer = searcher.answer(text, Query(mode="hybrid", fusion="rrf", entities="boost", boost=0.3))
    assert [(numbers[hit.id], hit.score) for hit in answer.hits] == [(item.doc, item.score) for item in wanted[:10]]
    plain = {hit.id: hit.score for hit in searcher.search(text, k=DOCUMENTS)}
    for hit, item in zip(answer.hits, answer.explanation.ranked, strict=True):
        assert item.cosine == plain[hit.id]
        assert item.boost == pytest.approx(0.3 * share(hit.id, "Ada", "Rome"))


# What cannot be asked


def test_an_index_without_tags_has_no_entities_to_share(tmp_path: Path) -> None:
    model = DemoAnalyser(heads=False)
    with (
        Searcher(build_index(tmp_path / "index", corpus()[:3], model), model=as_text_model(model)) as searcher,
        pytest.raises(
            QueryError, match=r"index was built without entities, so its documents share none .*'indexer retag'"
        ),
    ):
        searcher.search("tea with Ada", entities="filter")


def test_a_model_without_a_tag_head_finds_no_entities(path: Path) -> None:
    with (
        Searcher(path, model=as_text_model(DemoAnalyser(heads=False, name="bare"))) as searcher,
        pytest.raises(ModelError, match=r"bare has no tag head, .* pass --model with the model that tagged .*demo"),
    ):
        searcher.search("tea with Ada", entities="boost")


def test_entities_of_other_heads_are_not_compared(path: Path) -> None:
    other = DemoAnalyser(name="other")
    other.heads_fingerprint = "0" * 64
    with Searcher(path, model=as_text_model(other)) as searcher:
        assert searcher.search("tea with Ada")
        with pytest.raises(FingerprintError, match=r"was tagged with the heads of demo .*, got those of other"):
            searcher.search("tea with Ada", entities="filter")


def test_a_vector_names_no_entities(tmp_path: Path) -> None:
    path = build_vector_index(tmp_path / "index", clustered(3))
    with Searcher(path) as searcher, pytest.raises(QueryError, match="entities 'boost' are those of a text"):
        searcher.answer_vector(np.ones(32, dtype=np.float32), Query(entities="boost"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": "x"}, "unknown use of entities 'x'; there are filter, boost"),
        ({"boost": -0.1}, "boost must be between 0 and 1,000, got -0.1"),
        ({"boost": float("nan")}, "boost must be between 0 and 1,000, got nan"),
        ({"boost": float("inf")}, "boost must be between 0 and 1,000, got inf"),
        ({"boost": 1e308}, "boost must be between 0 and 1,000, got 1e.308"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        Query(**options)  # type: ignore[arg-type]


# Spellings, prefixes, negation

SPELLINGS = ["IBM", "I.B.M.", "IBM's", "I.B.M.’s", "ibm", "ＩＢＭ", "IBM Research", "Acme"]


@pytest.fixture
def spelled(tmp_path: Path) -> Iterator[Searcher]:
    """One document a spelling, whole texts of one ORG each; and one without an entity."""
    entries = [
        Entry(
            Document(f"s{number}", text),
            Analysis((Passage(0, len(text), 1),), row[None], row, None, (Span("ORG", 0, len(text), 0.9),)),
        )
        for number, (text, row) in enumerate(zip(SPELLINGS, clustered(len(SPELLINGS), dimension=16), strict=True))
    ]
    text = "none"
    row = clustered(1, dimension=16, seed=3)[0]
    entries.append(Entry(Document("none", text), Analysis((Passage(0, 4, 1),), row[None], row, None, ())))
    with IndexWriter(tmp_path / "spelled", create=settings_of(MODEL)) as writer:
        writer.write(entries)
    with Searcher(tmp_path / "spelled", model=as_text_model(MODEL)) as searcher:
        yield searcher


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["ORG:IBM"], {0, 1, 2, 3, 4, 5}),
        (["ORG:I.B.M."], {0, 1, 2, 3, 4, 5}),
        (["ORG:ibm’s"], {0, 1, 2, 3, 4, 5}),
        (["*:IBM"], {0, 1, 2, 3, 4, 5}),
        (["PER:IBM"], set()),
        (["ORG:ib*"], {0, 1, 2, 3, 4, 5, 6}),
        (["ORG:I.B.M. r*"], {6}),
        (["!ORG:I.B.M."], {6, 7, 8}),
        (["!ORG:ib*"], {7, 8}),
        (["!ORG"], {8}),
        (["ORG:i*", "!ORG:IBM"], {6}),
        (["ORG:IBM", "ORG:Acme"], set()),
    ],
)
def test_spellings_prefixes_and_negation_of_entity_filters(
    spelled: Searcher, flags: list[str], found: set[int]
) -> None:
    from search.cli_options import flag_filter

    hits = spelled.search("anything", filter=flag_filter(flags, (), None), k=20)
    names = {f"s{number}" if number < len(SPELLINGS) else "none" for number in found}
    assert {hit.id for hit in hits} == names


def test_any_of_several_entities_is_an_or(spelled: Searcher) -> None:
    hits = spelled.search("anything", filter="entity ORG:I.B.M. or entity ORG:acme", k=20)
    assert {hit.id for hit in hits} == {"s0", "s1", "s2", "s3", "s4", "s5", "s7"}


def test_a_query_s_spelling_finds_all_spellings(spelled: Searcher) -> None:
    assert normalise_entity("IBM's") == "ibm"
    hits = spelled.search("Roma IBM", entities="filter", k=20)  # IBM is PER for the demo model, whose I is one
    assert len(hits) == len(SPELLINGS) + 1
    model = DemoAnalyser()
    model.analyse = lambda texts, tags=True: [  # type: ignore[method-assign, assignment]
        Analysis(a.passages, a.vectors, a.pooled, None, (Span("ORG", 0, 5, 0.9),))
        for a in MODEL.analyse(texts, tags=tags)
    ]
    with Searcher(spelled.info.path, model=as_text_model(model)) as searcher:
        hits = searcher.search("I.B.M quarterly", entities="filter", k=20)
    assert {hit.id for hit in hits} == {"s0", "s1", "s2", "s3", "s4", "s5"}


def test_flags_negate() -> None:
    assert parse_entity_flag("!ORG:acme*") == parse("not entity ORG:acme*")


# Entities that occur together


def test_the_entities_of_a_query_s_hits_are_a_facet(searcher: Searcher) -> None:
    hits = searcher.search("tea with Ada in Rome", k=20)
    counts = Counter(entity for hit in hits for entity in {(e.type, normalise_entity(e.text)) for e in hit.entities})
    facets = searcher.facets("tea with Ada in Rome", names=["entity"], of=20, top=50)
    values = facets["entity"].values
    assert {(value.type, normalise_entity(str(value.value))): value.count for value in values} == counts
    assert len(counts) > 2


# The command line


@pytest.fixture
def tagged(run: Run, model: str) -> str:
    """An index of the tiny model, whose random heads find entities in most texts."""
    random_ = random.Random(1)
    vocabulary = ["hello", "there", "ada", "lovelace", "london", "paris", "acme", "met", "zurich", "in"]
    records = [{"id": f"d{n}", "text": " ".join(random_.choices(vocabulary, k=6)), "n": n} for n in range(30)]
    run("indexer", "add", "index", write_jsonl("r.jsonl", records), "--model", model)
    return "index"


def test_the_command_filters_by_the_entities_of_its_text(run: Run, tagged: str) -> None:
    command = ("search", "query", tagged, "ada lovelace met acme in london", "--auto-filter", "--explain")
    result = run(*command, "--json")
    assert result.code == 0
    line = run(*command).err.splitlines()[1]
    assert line.startswith("entities: ")
    with Searcher(tagged) as searcher:
        answer = searcher.answer("ada lovelace met acme in london", Query(entities="filter"))
    assert result.jsons == [json.loads(json.dumps(hit.to_json())) for hit in answer.hits]
    assert line == answer.explanation.lines()[1]
    assert answer.explanation.entities is not None
    assert json.loads(result.err)["entities"] == answer.explanation.entities.to_json()


def test_the_command_boosts_by_the_weight_given(run: Run, tagged: str) -> None:
    for options, weight in ((("--boost",), 0.1), (("--boost", "0.7"), 0.7)):
        result = run("search", "query", tagged, "ada lovelace met acme", *options, "--json")
        with Searcher(tagged) as searcher:
            hits = searcher.search("ada lovelace met acme", entities="boost", boost=weight)
        assert result.jsons == [json.loads(json.dumps(hit.to_json())) for hit in hits]


def test_the_command_says_that_it_did_not_filter(run: Run, tagged: str) -> None:
    result = run("search", "query", tagged, "ada", "--where", "n < 0", "--auto-filter")
    assert result.code == 0
    assert "searched without" in result.err
    assert result.out == ""


def test_the_command_refuses_both_at_once(run: Run, tagged: str) -> None:
    result = run("search", "query", tagged, "ada", "--auto-filter", "--boost", "0.1")
    assert_usage(result, "'--auto-filter' and '--boost' exclude each other.")


def test_the_command_refuses_an_index_without_tags(run: Run, raw_model: str) -> None:
    run("indexer", "add", "raw", write_jsonl("r.jsonl", [{"id": "a", "text": "hello"}]), "--model", raw_model)
    assert_fails(
        run("search", "query", "raw", "ada", "--auto-filter"),
        "the index was built without entities, so its documents share none with a query; 'indexer retag' with a "
        "model that finds some adds them",
    )
