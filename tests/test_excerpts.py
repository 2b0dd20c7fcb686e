"""What of a hit's text is shown: its best passages, their neighbours, and the best sentence; sentences by rules."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, assert_fails, write_jsonl
from fakes import DemoAnalyser, as_text_model, build_index, passage_scores
from hypothesis import given
from hypothesis import strategies as st
from models import byte_bpe, metaspace, multi_task, tiny, wordpiece
from tokenizers import Tokenizer

from indexer.encoder import concatenate_layers
from indexer.errors import ModelError, QueryError
from indexer.model import TextModel
from indexer.records import Document
from search import Hit, Searcher
from search.hits import BestPassage, Entity, FoundPassage, Highlight, Stretch
from search.query import Query
from search.render import SHOWN_CHARACTERS, render_hit
from search.sentences import split_sentences

MODEL = DemoAnalyser()  # passages of eight words
LONG = " ".join(f"{word}{number}" for number in range(7) for word in ("ball", "atom", "cell", "song", "tea", "sky"))
CORPUS = [Document("long", LONG), Document("short", "ball3 atom3 tea"), Document("other", "ox zinc " * 12)]
TEXTS = {document.id: document.text for document in CORPUS}


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    path = build_index(tmp_path / "index", CORPUS, MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


# Sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("Dr. Ada met J. R. Smith. Then she left.", ["Dr. Ada met J. R. Smith.", "Then she left."]),
        ("It rose 3.14 points at example.com. Good.", ["It rose 3.14 points at example.com.", "Good."]),
        ("The U.S. Army, e.g. Fig. 3, said No. 7.", ["The U.S. Army, e.g. Fig. 3, said No. 7."]),
        ("He said (really!). Then left.", ["He said (really!).", "Then left."]),
        ('"Go!" she said. "Now."', ['"Go!" she said.', '"Now."']),
        ("„Ja.“ Nein.", ["„Ja.“ Nein."]),
        ("He paused... and went on. Then", ["He paused... and went on.", "Then"]),
        ("它来了。「好！」再见", ["它来了。", "「好！」", "再见"]),
        ("A heading\n\nA line\nbroken. End", ["A heading", "A line\nbroken.", "End"]),
        ("One\r\n\r\nTwo", ["One", "Two"]),
        ("He said no. They met in Dec. 1999 at No. 7.", ["He said no.", "They met in Dec. 1999 at No. 7."]),
        ("In 1999. 42 came.", ["In 1999.", "42 came."]),
        ("  \n\n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == sentences


@given(st.text(alphabet="aB.!?… \n\r\t\"'”)。！0-", max_size=60))
def test_sentences_hold_every_visible_character_once_and_in_order(text: str) -> None:
    found = split_sentences(text)
    assert "".join("".join(text[start:end].split()) for start, end in found) == "".join(text.split())
    assert all(start < end for start, end in found)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    assert all(text[start:end] == text[start:end].strip() for start, end in found)


@pytest.mark.parametrize("piece", [".", ". ", "!)", "\n", " \n", "a.", "”", "。"])
def test_no_text_takes_long_to_split(piece: str) -> None:
    text = piece * (200_000 // len(piece)) + "x"
    started = time.process_time()
    split_sentences(text)
    assert time.process_time() - started < 2.0


# Passages


def test_passages_are_the_best_ones_by_brute_force(searcher: Searcher) -> None:
    scores = passage_scores(TEXTS, MODEL.vector("ball3 atom3"), MODEL)
    for hit in searcher.search("ball3 atom3", passages=3):
        own = sorted(((score, -start) for (id_, start), score in scores.items() if id_ == hit.id), reverse=True)
        assert hit.passages is not None
        assert [(p.score, -p.start) for p in hit.passages] == [
            (pytest.approx(score, abs=1e-12), start) for score, start in own[:3]
        ]
        assert [p.text for p in hit.passages] == [hit.text[p.start : p.end] for p in hit.passages]
        assert (hit.passages[0].start, hit.passages[0].end) == (hit.passage.start, hit.passage.end)
        assert hit.passages[0].score == hit.score
        assert hit.passages[0].before is None


def test_passages_do_not_change_the_hits(searcher: Searcher) -> None:
    plain = searcher.search("ball3 atom3")
    assert [hit.to_json() for hit in plain] == [
        {key: value for key, value in hit.to_json().items() if key != "passages"}
        for hit in searcher.search("ball3 atom3", passages=2)
    ]


def test_neighbours_are_the_passages_next_to_each(searcher: Searcher) -> None:
    spans = [(p.start, p.end) for p in MODEL.analyse([LONG])[0].passages]
    for count in (1, 2, 9):
        (hit,) = searcher.search("ball3 atom3", passages=9, neighbours=count, filter="id = long")
        assert hit.passages is not None
        assert sorted((p.start, p.end) for p in hit.passages) == spans
        for passage in hit.passages:
            at = spans.index((passage.start, passage.end))
            before, after = spans[max(0, at - count) : at], spans[at + 1 : at + 1 + count]
            assert passage.before == tuple(Stretch(a, b, LONG[a:b]) for a, b in before)
            assert passage.after == tuple(Stretch(a, b, LONG[a:b]) for a, b in after)


def test_passages_of_equal_scores_are_in_the_order_of_the_text(searcher: Searcher) -> None:
    (hit,) = searcher.search("ox zinc", passages=5, filter="id = other")
    assert hit.passages is not None
    assert len({passage.score for passage in hit.passages}) == 1
    assert [passage.start for passage in hit.passages] == sorted(passage.start for passage in hit.passages)


def test_in_a_hybrid_search_passages_have_cosines(searcher: Searcher) -> None:
    (hit,) = searcher.search("ball3 atom3", passages=1, mode="hybrid", filter="id = long")
    (plain,) = searcher.search("ball3 atom3", passages=1, filter="id = long")
    assert hit.passages == plain.passages


def test_by_words_passages_have_the_number_of_words(searcher: Searcher) -> None:
    (hit,) = searcher.search("ball3 atom3 sky6", passages=3, mode="keyword", filter="id = long")
    assert hit.passages is not None
    assert [passage.score for passage in hit.passages] == [2.0, 1.0, 0.0]
    assert hit.passages[0].start == hit.passage.start
    assert "ball3 atom3" in hit.passages[0].text
    assert "sky6" in hit.passages[1].text
    assert hit.passages[2].start == 0


def test_a_vector_has_passages_too(searcher: Searcher) -> None:
    answer = searcher.answer_vector(MODEL.vector("ball3 atom3"), Query(passages=2, neighbours=1))
    assert list(answer.hits) == searcher.search("ball3 atom3", passages=2, neighbours=1)
    assert set(answer.explanation.seconds) == {"filter", "vectors", "documents", "passages"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passages": -1}, "passages must be at least 0, got -1"),
        ({"passages": 1, "neighbours": -1}, "neighbours must be at least 0, got -1"),
        ({"neighbours": 1}, "neighbours are those of passages: ask for at least 1 passage"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        Query(**options)  # type: ignore[arg-type]


def test_the_json_has_what_is_asked_for(searcher: Searcher) -> None:
    (hit,) = searcher.search("ball3 atom3 tea", k=1, passages=1, neighbours=1, highlight=True, mode="keyword")
    plain = searcher.search("ball3 atom3 tea", k=1, mode="keyword")[0].to_json()
    assert hit.to_json() == plain | {
        "passages": [{"start": 0, "end": 15, "score": 3.0, "text": "ball3 atom3 tea", "before": [], "after": []}],
        "highlight": {"start": 0, "end": 15},
    }


# The embeddings of parts of a text


def by_hand(model: TextModel, text: str, parts: list[tuple[int, int]]) -> np.ndarray:
    """One text by the plain formula: the mean of the states of the tokens that begin in each part."""
    encoding = model.tokenizer.encode(model.config.prefix + text)
    whole, shift = model.config.prefix + text, len(model.config.prefix)
    with torch.inference_mode():
        states = model.model.backbone(
            input_ids=torch.tensor([encoding.ids]),
            attention_mask=torch.ones(1, len(encoding.ids), dtype=torch.long),
            output_hidden_states=True,
        ).hidden_states
    begins = {  # by token, without white space before it; special tokens and white space alone have none
        at: a + len(whole[a:b]) - len(whole[a:b].lstrip()) - shift
        for at, (a, b) in enumerate(encoding.offsets)
        if whole[a:b].strip()
    }
    rows = []
    for start, end in parts:
        inside = [at for at, begin in begins.items() if start <= begin < end]
        means = torch.stack([states[layer][0, inside].mean(dim=0) for layer in model.config.pooled_layers])
        rows.append(
            concatenate_layers(means[None], weights=model.config.weights, normalize=model.config.normalize_layers)[0]
        )
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("tokenizer", [wordpiece(), byte_bpe([" ada", " met"]), metaspace(["ada", "met", "paris"])])
@pytest.mark.parametrize("prefix", ["", "query: "])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_part_s_embedding_is_the_mean_of_its_tokens_states(
    tokenizer: Tokenizer, prefix: str, normalize: bool
) -> None:
    model = TextModel(
        tiny(tokenizer, prefix=prefix, normalize_layers=normalize, layer_weights=[0.5, 1.0, 0.0, 2.0]), device="cpu"
    )
    texts = ["ada met lovelace. hello there, paris!  the acme", "hello ada", "in london ada met the acme of zurich."]
    parts = [[(0, 17), (18, 47)], [(0, 9)], [(0, 9), (10, 13), (14, 37)]]
    found = model.part_vectors(texts, parts)
    for text, own, rows in zip(texts, parts, found, strict=True):
        np.testing.assert_allclose(rows, by_hand(model, text, own), rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_text_of_several_windows() -> None:
    model = TextModel(tiny(max_length=16), device="cpu")
    text = "hello there ada. " * 12
    windows = model.analyse([text])[0].passages
    assert len(windows) > 2
    whole = (0, len(text))
    (rows,) = model.part_vectors([text], [[whole, (windows[1].start, windows[1].end), (len(text) - 1, len(text))]])
    own = [by_hand(model, text[w.start : w.end], [(0, w.end - w.start)])[0] for w in windows]
    weights = np.array([w.tokens - 2 for w in windows], dtype=np.float64)
    np.testing.assert_allclose(rows[0], np.tensordot(weights / weights.sum(), own, axes=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[1], own[1], rtol=1e-4, atol=1e-5)
    assert not rows[2].any()  # white space has no token


def test_no_texts_have_no_parts() -> None:
    assert TextModel(tiny(), device="cpu").part_vectors([], []) == []


# The best sentence

STORY = "Ada met acme in London. Hello there, Paris! The angstrom is in Zurich. Lovelace met Ada."


@pytest.fixture(scope="module")
def tiny_model() -> TextModel:
    return TextModel(multi_task(), device="cpu")


@pytest.fixture
def stories(tmp_path: Path, tiny_model: TextModel) -> Iterator[Searcher]:
    from indexer import add_documents

    documents = [Document("story", STORY), Document("one", "Paris met acme"), Document("long", f"{STORY} " * 8)]
    add_documents(tmp_path / "stories", documents, model=tiny_model)
    with Searcher(tmp_path / "stories", model=tiny_model) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["cosine", "hybrid"])
@pytest.mark.parametrize("text", ["hello paris", "angstrom zurich", "acme london", "ada lovelace"])
def test_the_sentence_nearest_to_the_query_is_highlighted(
    stories: Searcher, tiny_model: TextModel, mode: str, text: str
) -> None:
    query = tiny_model.encode([text])[0].astype(np.float64)
    hits = stories.search(text, highlight=True, mode=mode)
    assert {hit.id for hit in hits} == {"story", "one", "long"}
    for hit in hits:
        passage = hit.text[hit.passage.start : hit.passage.end]
        sentences = split_sentences(passage)
        rows = by_hand(tiny_model, passage, sentences).astype(np.float64)
        cosines = rows @ query / np.linalg.norm(rows, axis=1)
        start, end = sentences[int(cosines.argmax())]
        assert hit.highlight == Highlight(hit.passage.start + start, hit.passage.start + end)


def test_the_highlight_is_of_the_best_passage(stories: Searcher) -> None:
    (hit,) = stories.search("ada lovelace", highlight=True, passages=2, filter="id = long")
    assert hit.passages is not None
    assert len(hit.passages) == 2
    assert hit.highlight is not None
    assert hit.passages[0].start <= hit.highlight.start < hit.highlight.end <= hit.passages[0].end


def test_by_words_the_sentence_with_most_of_them_is_highlighted(tmp_path: Path, model: str) -> None:
    from indexer import add_documents

    add_documents(tmp_path / "stories", [Document("story", STORY)], model=model)
    with Searcher(tmp_path / "stories", model="/no/such/model") as searcher:  # none is loaded
        for words, sentence in (
            ("london ada acme", "Ada met acme in London."),
            ("paris", "Hello there, Paris!"),
            ("ada", "Ada met acme in London."),  # the first of two
            ("lovelace ada zurich", "Lovelace met Ada."),
        ):
            (hit,) = searcher.search(words, highlight=True, mode="keyword")
            assert hit.highlight is not None
            assert hit.text[hit.highlight.start : hit.highlight.end] == sentence


def test_the_best_sentence_for_a_vector_needs_the_model(stories: Searcher, tiny_model: TextModel) -> None:
    vector = tiny_model.encode(["hello paris"])[0]
    hits = stories.answer_vector(vector, Query(highlight=True)).hits
    assert list(hits) == stories.search("hello paris", highlight=True)
    with (
        Searcher(stories.info.path, model="/no/such/model") as searcher,
        pytest.raises(ModelError, match="/no/such/model"),
    ):
        searcher.answer_vector(vector, Query(highlight=True))


def test_a_document_without_a_text_has_no_highlight(tmp_path: Path) -> None:
    from indexer.records import Analysis, Passage
    from indexer.settings import settings_of
    from indexer.store import Entry, IndexWriter

    row = np.ones(16, dtype=np.float32)
    with IndexWriter(tmp_path / "empty", create=settings_of(MODEL)) as writer:
        writer.write([Entry(Document("a", "", vector=row), Analysis((Passage(0, 0, 0),), row[None], row, None, ()))])
    with Searcher(tmp_path / "empty", model=as_text_model(MODEL)) as searcher:
        (hit,) = searcher.search("x", highlight=True, passages=1)
    assert hit.highlight is None
    assert hit.passages == (FoundPassage(0, 0, pytest.approx(hit.score), ""),)


# On a terminal


def shown_hit(text: str, **fields: object) -> Hit:
    plain = {"id": "d", "score": 0.5, "metadata": {}, "label": None, "entities": ()}
    return Hit(**({"text": text, "passage": BestPassage(0, len(text))} | plain | fields))  # type: ignore[arg-type]


def test_a_highlight_is_in_quotes_without_colours() -> None:
    entities = (Entity("PER", "Ada", 7, 10, 0.9), Entity("LOC", "Rome", 18, 22, 0.9))
    hit = shown_hit("Hello. Ada met in Rome. Bye.", entities=entities, highlight=Highlight(7, 23))
    assert render_hit(hit, 1, colour=False, width=80).splitlines()[1] == (
        "     Hello. «[Ada PER] met in [Rome LOC].» Bye."
    )


def test_a_highlight_is_underlined_with_colours() -> None:
    hit = shown_hit("Hello. Ada met. Bye.", entities=(Entity("PER", "Ada", 7, 10, 0.9),), highlight=Highlight(7, 15))
    line = render_hit(hit, 1, colour=True, width=80).splitlines()[1]
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == "     Hello. Ada met. Bye."
    assert "\x1b[4mmet.\x1b[0m" in line
    assert "\x1b[36m\x1b[1m\x1b[4mAda\x1b[0m" in line
    assert line.endswith(" Bye.")


def test_a_highlight_far_behind_the_start_is_shown() -> None:
    text = "filler words. " * 100 + "Here it is. " + "more words. " * 100
    at = text.index("Here")
    hit = shown_hit(text, highlight=Highlight(at, at + 11))
    shown = " ".join(render_hit(hit, 1, colour=False, width=80).split())
    assert "… «Here it is.» more words." in shown
    assert len(shown) < SHOWN_CHARACTERS + 50
    last = shown_hit(text[: at + 11], highlight=Highlight(at, at + 11))
    assert render_hit(last, 1, colour=False, width=80).endswith("«Here it is.»")


def test_passages_are_listed_with_scores_offsets_and_neighbours() -> None:
    text = "One two. Ada three. Four five."
    passages = (
        FoundPassage(9, 19, 0.51239, text[9:19], (Stretch(0, 8, text[:8]),), (Stretch(20, 30, text[20:]),)),
        FoundPassage(0, 8, 2.0, text[:8]),
    )
    hit = shown_hit(
        text,
        passage=BestPassage(9, 19),
        passages=passages,
        entities=(Entity("PER", "Ada", 9, 12, 0.9),),
        highlight=Highlight(9, 19),
    )
    assert render_hit(hit, 1, colour=False, width=80).splitlines() == [
        "  1. 0.5000  d",
        "     passage 1  0.5124  9–19",
        "       (0–8) One two.",
        "       … «[Ada PER] three.» …",
        "       (20–30) Four five.",
        "     passage 2  2  0–8",
        "       One two. …",
    ]


# The command line


def test_the_command_shows_passages_and_a_highlight(run: Run, model: str) -> None:
    run("indexer", "add", "index", write_jsonl("r.jsonl", [{"id": "s", "text": f"{STORY} " * 8}]), "--model", model)
    options = ("--passages", "2", "--neighbours", "1", "--highlight")
    result = run("search", "query", "index", "hello paris", *options, "--json")
    with Searcher("index") as searcher:
        hits = searcher.search("hello paris", passages=2, neighbours=1, highlight=True)
    assert result.jsons == [json.loads(json.dumps(hit.to_json())) for hit in hits]
    assert list(result.jsons[0])[-3:] == ["passage", "passages", "highlight"]
    shown = run("search", "query", "index", "hello paris", *options, "--explain")
    assert "     passage 2  " in shown.out
    assert "«" in shown.out
    assert re.search(r"time: .*passages .* ms, highlight .* ms", shown.err)
    assert_fails(
        run("search", "query", "index", "hello", "--neighbours", "1"),
        "neighbours are those of passages: ask for at least 1 passage",
    )
