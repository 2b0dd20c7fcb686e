"""Long texts: passages that lose nothing, and what is pooled, voted and tagged over them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import semchunk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import byte_bpe, marking, metaspace, multi_task, tiny, wordpiece
from tokenizers import Tokenizer

from indexer import passages
from indexer.checkpoint import Loaded
from indexer.errors import ModelError
from indexer.model import TextModel
from indexer.passages import split_passages
from indexer.records import FloatArray, Passage

SENTENCES = "Ada Lovelace met the Acme people in London. They went to Paris; nobody knows why!\n\nIn 1843, it rained. "


def long_text(words: int, *, seed: int = 0) -> str:
    """Words, punctuation, paragraphs, wide white space and very long words, at random."""
    generator = random.Random(seed)
    pieces = ["hello", "Ada", "Ångström", "naïve", "東京", "😀", "x" * 30, "a-b_c/d.e", "(the)", "1,843", "London."]
    gaps = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", "\u00a0", ""]
    return "".join(generator.choice(pieces) + generator.choice(gaps) for _ in range(words))


def visible(text: str) -> list[int]:
    """Where the visible characters stand."""
    return [index for index, character in enumerate(text) if not character.isspace()]


def covered(passages: tuple[Passage, ...]) -> list[int]:
    return [index for passage in passages for index in range(passage.start, passage.end)]


def states_of(loaded: Loaded, text: str) -> list[FloatArray]:
    """All hidden states of one text, (tokens, width) each, the embedding layer's first."""
    ids = torch.tensor([loaded.tokenizer.encode(loaded.model.config.prefix + text).ids])
    with torch.no_grad():
        result = loaded.model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return [state[0].numpy() for state in result.hidden_states]


# Where a text is cut


def count_characters(text: str) -> int:
    return len(text)


def test_a_text_that_fits_is_one_passage_with_its_white_space() -> None:
    assert split_passages("  two words \n", tokens=13, max_tokens=13, count=count_characters) == [(0, 13)]


def test_paragraphs_are_cut_before_sentences_and_words() -> None:
    text = "One two. Three.\n\nFour five six."
    found = split_passages(text, tokens=31, max_tokens=15, count=count_characters)
    assert [text[start:end] for start, end in found] == ["One two. Three.", "Four five six."]


def test_sentences_are_cut_before_words() -> None:
    text = "One two three. Four five six."
    found = split_passages(text, tokens=29, max_tokens=20, count=count_characters)
    assert [text[start:end] for start, end in found] == ["One two three.", "Four five six."]


def test_a_word_that_does_not_fit_is_cut_too() -> None:
    found = split_passages("x" * 25, tokens=25, max_tokens=10, count=count_characters)
    assert found == [(0, 10), (10, 20), (20, 25)]


def test_white_space_alone_is_one_empty_passage() -> None:
    assert split_passages(" \n" * 50, tokens=100, max_tokens=10, count=count_characters) == [(0, 0)]


@settings(deadline=None)
@given(st.text(alphabet="ab é東😀.,;!?-()\n\t\u00a0'", max_size=200), st.integers(1, 30))
def test_each_visible_character_stands_in_exactly_one_passage(text: str, max_tokens: int) -> None:
    found = split_passages(text, tokens=len(text), max_tokens=max_tokens, count=count_characters)
    held = [index for start, end in found for index in range(start, end) if not text[index].isspace()]
    assert held == visible(text)
    assert all(end - start <= max_tokens for start, end in found)


@settings(deadline=None)
@given(st.text(alphabet="ab é東😀.,;!?-()\n\t\u00a0'", max_size=200), st.integers(1, 30))
def test_packed_words_hold_each_visible_character_too(text: str, max_tokens: int) -> None:
    found = passages._packed(text, max_tokens, count_characters)
    held = [index for start, end in found for index in range(start, end) if not text[index].isspace()]
    assert held == visible(text)
    assert all(end - start <= max_tokens for start, end in found)


def test_packed_words_end_with_a_sentence_or_a_line_where_one_ends_in_the_second_half() -> None:
    text = "One two three. Four five\nsix seven eight nine ten."
    found = passages._packed(text, 24, count_characters)
    assert [text[start:end] for start, end in found] == ["One two three. Four five", "six seven eight nine", "ten."]


@pytest.mark.parametrize("name", ["prose", "readme", "code", "one word", "lines", "no space"])
def test_ordinary_texts_are_cut_as_semchunk_cuts_them(name: str) -> None:
    root = Path(__file__).parents[1]
    text = {
        "prose": SENTENCES * 60,
        "readme": (root / "README.md").read_text(encoding="utf-8"),
        "code": Path(__file__).read_text(encoding="utf-8"),
        "one word": "x" * 10_000,
        "lines": "\n".join(str(n * 7919) for n in range(2_000)),
        "no space": "東京" * 3_000,
    }[name]

    def count(piece: str) -> int:
        return len(re.findall(r"\w{1,4}|[^\w\s]", piece))

    _, expected = semchunk.chunk(text, 60, count, memoize=False, offsets=True)
    assert split_passages(text, tokens=count(text), max_tokens=60, count=count) == [tuple(place) for place in expected]


def test_a_text_of_thousands_of_separators_costs_no_more_than_a_few_readings() -> None:
    runs = "".join("word" + " " * (n + 1) for n in range(1_500))  # one level of semchunk's recursion for each
    signs = "".join(
        f"ab{sign}{space}" for sign in ".?!;,()[]'\"`*:/\\&-" for space in "\u00a0\u2000\u2001\u2002\u2003\u2004 "
    )
    deep = "".join("w" + " " * (n + 2) for n in range(100)) + "word " * 40_000  # few separators, each over all the rest
    for text in (runs, signs * 50, deep):
        counted = 0

        def count(piece: str) -> int:
            nonlocal counted
            counted += len(piece)
            return len(piece.split())

        found = split_passages(text, tokens=count(text), max_tokens=10, count=count)
        assert "".join("".join(text[start:end].split()) for start, end in found) == "".join(text.split())
        assert all(count(text[start:end]) <= 10 for start, end in found)
        assert counted <= 40 * len(text)


# Windows of a model


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [("bert", wordpiece(extra="東京")), ("roberta", byte_bpe([" London"])), ("xlm-roberta", metaspace(["London"]))],
)
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_nothing_is_lost_and_every_window_fits(family: str, tokenizer: Tokenizer, prefix: str) -> None:
    model = TextModel(tiny(tokenizer, family=family, max_length=24, prefix=prefix), device="cpu")
    for seed in range(4):
        text = long_text(150, seed=seed)
        analysis = model.analyse([text])[0]
        held = covered(analysis.passages)
        assert len(analysis.passages) > 5
        assert [index for index in held if not text[index].isspace()] == visible(text)
        assert len(held) == len(set(held))
        assert analysis.vectors.shape == (len(analysis.passages), 128)
        for passage in analysis.passages:
            tokens = len(tokenizer.encode(prefix + text[passage.start : passage.end]).ids)
            assert passage.tokens == tokens <= 24


def test_a_text_of_exactly_one_window_is_not_cut() -> None:
    loaded = tiny(max_length=20)
    model = TextModel(loaded, device="cpu")
    assert [p.tokens for p in model.analyse(["the " * 18])[0].passages] == [20]
    assert [p.tokens for p in model.analyse(["the " * 19])[0].passages] == [20, 3]


def test_white_space_longer_than_a_window_is_one_empty_passage() -> None:
    model = TextModel(tiny(byte_bpe(), family="roberta", max_length=24), device="cpu")
    blank, empty = model.analyse([" " * 100, ""])
    assert blank.passages == (Passage(0, 0, 2),)
    assert np.array_equal(blank.pooled, empty.pooled)


def test_each_passage_has_the_vector_of_its_text() -> None:
    loaded = tiny(max_length=24)
    model = TextModel(loaded, device="cpu")
    text = SENTENCES * 4
    analysis = model.analyse([text])[0]
    for passage, vector in zip(analysis.passages, analysis.vectors, strict=True):
        states = states_of(loaded, text[passage.start : passage.end])
        expected = np.concatenate([states[layer].mean(axis=0) for layer in (-1, -2, -3, -4)])
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_pooled_is_the_mean_over_all_tokens_of_all_windows(normalize: bool) -> None:
    weights = [1.0, 0.5, 0.0, 0.25]
    loaded = tiny(max_length=24, layer_weights=weights, normalize_layers=normalize)
    model = TextModel(loaded, device="cpu")
    text = SENTENCES * 4
    analysis = model.analyse([text])[0]
    windows = [states_of(loaded, text[passage.start : passage.end]) for passage in analysis.passages]
    parts = []
    for layer, weight in zip((-1, -2, -3, -4), weights, strict=True):
        mean = np.concatenate([states[layer] for states in windows]).mean(axis=0)  # one token, one vote
        parts.append(weight * (mean / np.linalg.norm(mean) if normalize else mean))
    np.testing.assert_allclose(analysis.pooled, np.concatenate(parts), rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode([text])[0], analysis.pooled, rtol=0, atol=1e-5)


def test_pooled_of_one_window_is_its_vector() -> None:
    analysis = TextModel(tiny(), device="cpu").analyse(["hello there"])[0]
    assert analysis.pooled.tobytes() == analysis.vectors[0].tobytes()
    assert analysis.pooled.dtype == np.float32


def test_class_is_the_token_weighted_mean_of_the_windows_logits() -> None:
    loaded = multi_task(max_length=24, class_temperature=1.5)
    text = SENTENCES * 4
    analysis = TextModel(loaded, device="cpu").analyse([text])[0]
    head = loaded.model.class_head.linear
    total, tokens = np.zeros(3), 0
    for passage in analysis.passages:
        last = states_of(loaded, text[passage.start : passage.end])[-1]
        total += len(last) * (last[0] @ head.weight.detach().numpy().T + head.bias.detach().numpy())
        tokens += len(last)
    scaled = total / tokens / 1.5
    probabilities = np.exp(scaled) / np.exp(scaled).sum()
    assert analysis.label is not None
    assert analysis.label.name == loaded.model.config.class_labels[int(probabilities.argmax())]
    assert analysis.label.score == pytest.approx(probabilities.max(), abs=1e-5)


def test_entities_are_the_union_with_offsets_in_the_whole_text() -> None:
    tokenizer = wordpiece()
    ids = {word: tokenizer.token_to_id(word) for word in ("ada", "acme", "london", "lovelace")}
    loaded = marking(tokenizer, begin=[ids["ada"], ids["acme"], ids["london"]], inside=[ids["lovelace"]], max_length=32)
    text = "  " + SENTENCES * 10
    analysis = TextModel(loaded, device="cpu").analyse([text])[0]
    assert len(analysis.passages) > 5
    assert [text[span.start : span.end] for span in analysis.spans] == ["Ada Lovelace", "Acme", "London"] * 10
    assert list(analysis.spans) == sorted(analysis.spans, key=lambda span: span.start)


# The prefix


@pytest.mark.parametrize(
    ("family", "tokenizer", "token"),
    [
        ("bert", wordpiece(), "london"),
        ("roberta", byte_bpe([" London"]), "ĠLondon"),
        ("roberta", byte_bpe([" London"], trim_offsets=False), "ĠLondon"),
        ("xlm-roberta", metaspace(["London"]), "▁London"),
    ],
)
def test_a_prefix_is_never_tagged_and_moves_no_offsets(family: str, tokenizer: Tokenizer, token: str) -> None:
    loaded = marking(tokenizer, begin=[tokenizer.token_to_id(token)], family=family, prefix="to London: ")
    spans = TextModel(loaded, device="cpu").analyse(["London and London", ""])
    assert [(span.start, span.end) for span in spans[0].spans] == [(0, 6), (11, 17)]
    assert spans[1].spans == ()


def test_a_prefix_is_pooled_with_the_text() -> None:
    plain, prefixed = TextModel(tiny(), device="cpu"), TextModel(tiny(prefix="the london "), device="cpu")
    assert np.array_equal(prefixed.encode(["hello"]), plain.encode(["the london hello"]))
    analysis = prefixed.analyse(["hello"])[0]
    assert analysis.passages == (Passage(0, 5, 5),)


def test_a_prefix_stands_before_every_window() -> None:
    loaded = tiny(prefix="the london ", max_length=24)
    text = SENTENCES * 3
    analysis = TextModel(loaded, device="cpu").analyse([text])[0]
    assert len(analysis.passages) > 2
    for passage, vector in zip(analysis.passages, analysis.vectors, strict=True):
        states = states_of(loaded, text[passage.start : passage.end])
        assert passage.tokens == len(states[-1])
        np.testing.assert_allclose(vector[:32], states[-1].mean(axis=0), rtol=0, atol=1e-5)


# Windows that cannot work, and size


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"max_length": 0}, "max_length is 0, but special tokens and prefix take 2"),
        ({"max_length": 9}, "max_length is 9, but special tokens and prefix take 2"),
        ({"max_length": 16, "prefix": "the " * 10}, "special tokens and prefix take 12 of them"),
        ({"max_length": 161}, "max_length is 161, but the backbone takes 160 tokens"),
        ({"max_length": 160, "family": "roberta"}, "max_length is 160, but the backbone takes 15[0-9] tokens"),
    ],
)
def test_a_window_that_cannot_hold_a_text_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        tiny(**fields)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "xlm-roberta", "deberta-v2", "albert"])
def test_the_largest_window_works_in_every_family(family: str) -> None:
    tokenizer = wordpiece() if family in ("bert", "distilbert") else byte_bpe()
    longest = 158 if family in ("mpnet", "xlm-roberta") else 160
    model = TextModel(tiny(tokenizer, family=family, max_length=longest), device="cpu")
    assert max(passage.tokens for passage in model.analyse(["x " * 400])[0].passages) > 150


def test_a_text_of_half_a_megabyte() -> None:
    loaded = multi_task(max_length=160, encoder={"num_hidden_layers": 1}, pool_layers=[-1])
    text = SENTENCES * 4900
    assert len(text) > 500_000
    analysis = TextModel(loaded, device="cpu", batch_tokens=8192).analyse([text])[0]
    held = covered(analysis.passages)
    assert len(analysis.passages) > 500
    assert [index for index in held if not text[index].isspace()] == visible(text)
    assert np.isfinite(analysis.pooled).all()
    assert all(text[span.start : span.end].strip() for span in analysis.spans)
