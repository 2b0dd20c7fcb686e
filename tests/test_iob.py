"""IOB2: words, labels, Viterbi and spans; and character spans in the original text through every tokenizer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import byte_bpe, marking, metaspace, multi_task, wordpiece
from tokenizers import Tokenizer

from indexer import iob
from indexer.model import TextModel
from indexer.records import Span
from indexer.words import cut_words

INF = float("inf")


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in iob.split_words(text)]


def offsets(*pairs: tuple[int, int]) -> iob.Offsets:
    return list(pairs)


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it's 5%", ["it", "'", "s", "5", "%"]),
        ("", []),
        (" \t\n\u00a0", []),
        ("snake_case", ["snake", "_", "case"]),
        ("naïve Ångström", ["naïve", "Ångström"]),
        ("Ame\u0301lie, e\u0301", ["Ame\u0301lie", ",", "e\u0301"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("\u0301x", ["\u0301", "x"]),
        ("東京 2024年", ["東京", "2024年"]),
        ("a😀b 👍🏽", ["a", "😀", "b", "👍", "🏽"]),
        ("❤\ufe0fok", ["❤\ufe0f", "ok"]),
        ("x²=½", ["x²", "=", "½"]),
        ("RT @ada_l: #NLP,#fun @13a1", ["RT", "@ada_l", ":", "#NLP", ",", "#fun", "@13a1"]),
        ("ada@example.org C#x @ #", ["ada", "@", "example", ".", "org", "C", "#", "x", "@", "#"]),
        ("@@ada ##x @_", ["@", "@ada", "#", "#x", "@_"]),
        ("@e\u0301tude #हिन्दी @\u0301", ["@e\u0301tude", "#हिन्दी", "@\u0301"]),
        ("#हिन्दी_दिवस @e\u0301_x", ["#हिन्दी_दिवस", "@e\u0301_x"]),
        ("#c\u00adat @foo\u200dbar", ["#c\u00adat", "@foo\u200dbar"]),
        ("name_@example.org _@ada_", ["name", "_", "@", "example", ".", "org", "_", "@ada_"]),
        ("#\ufe0f\u20e3now", ["#\ufe0f\u20e3", "now"]),
        ("Love\u00adlace \u200bAda\u200d,", ["Love\u00adlace", "Ada", ","]),
    ],
)
def test_split_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text(max_size=60))
def test_words_hold_every_visible_character_once_and_in_order(text: str) -> None:
    words = iob.split_words(text)
    ends = [0, *(end for _, end in words)]
    assert all(start >= end for (start, _), end in zip(words, ends, strict=False))
    assert all(start < end for start, end in words)
    invisible = str.maketrans("", "", "\u00ad\u200b\u200c\u200d\u2060\ufeff")
    assert "".join(words_of(text)).translate(invisible) == "".join(text.split()).translate(invisible)


# Words and tokens


def test_tokens_of_words_takes_all_of_several() -> None:
    words, tokens = offsets((0, 6), (7, 9)), offsets((0, 0), (0, 3), (3, 6), (7, 9), (0, 0))
    assert iob.tokens_of_words(words, tokens) == [[1, 2], [3]]


def test_bytes_that_share_one_character_are_all_its_tokens() -> None:
    assert iob.tokens_of_words(offsets((0, 1)), offsets((0, 1), (0, 1), (0, 1), (0, 1))) == [[0, 1, 2, 3]]


def test_a_word_without_a_token_has_none() -> None:
    words, tokens = offsets((0, 2), (3, 4), (5, 7)), offsets((0, 2), (5, 7))
    assert iob.tokens_of_words(words, tokens) == [[0], [], [1]]


def test_a_token_over_two_words_belongs_to_the_first() -> None:
    words, tokens = offsets((0, 1), (1, 2), (3, 5)), offsets((0, 2), (3, 5))
    assert iob.tokens_of_words(words, tokens) == [[0], [], [1]]


def test_a_token_that_starts_between_words_belongs_to_none() -> None:
    assert iob.tokens_of_words(offsets((0, 1), (4, 6)), offsets((0, 1), (2, 6))) == [[0], []]


def test_empty_tokens_belong_to_no_word() -> None:
    assert iob.tokens_of_words(offsets((0, 2)), offsets((0, 0), (1, 1))) == [[]]


def test_tokens_that_stand_in_another_order_than_words() -> None:
    assert iob.tokens_of_words(offsets((0, 2), (3, 5)), offsets((3, 5), (0, 1), (1, 2))) == [[1, 2], [0]]


def test_tokens_of_words_without_words_or_tokens() -> None:
    assert iob.tokens_of_words(offsets(), offsets((0, 1))) == []
    assert iob.tokens_of_words(offsets((0, 1)), offsets()) == [[]]


@pytest.mark.parametrize("whole", [True, False])
def test_a_word_is_read_whole_or_by_its_first_token(*, whole: bool) -> None:
    tokens = offsets((0, 0), (0, 3), (3, 6), (9, 11), (11, 12), (12, 13))
    cut = cut_words("abcdef · xyz!", tokens, whole=whole, shapes=False)
    assert cut.tokens == ([[1, 2], [], [3, 4], [5]] if whole else [[1], [], [3], [5]])
    assert cut.known.tolist() == [True, False, True, True]


def test_trim_offsets_moves_past_white_space() -> None:
    tokens = offsets((0, 2), (2, 6), (6, 8), (0, 0))
    assert iob.trim_offsets("in \u00a0Lo  x", tokens) == [(0, 2), (4, 6), (8, 8), (0, 0)]


# Labels and spans


def test_label_names_stand_in_the_order_of_their_ids() -> None:
    assert iob.label_names(["PER", "LOC"]) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize("types", [1, 3, 5])
def test_k_types_make_2k_plus_1_labels(types: int) -> None:
    assert len(iob.label_names([f"T{number}" for number in range(types)])) == 2 * types + 1


def test_spans_of_labels_tells_neighbours_apart() -> None:
    labels = np.array([1, 2, 0, 3, 3, 4, 4, 1])
    assert iob.spans_of_labels(labels) == [(0, 0, 2), (1, 3, 4), (1, 4, 7), (0, 7, 8)]
    assert iob.spans_of_labels(np.array([], dtype=np.int64)) == []


def test_labels_of_spans_marks_words_that_a_span_touches() -> None:
    words = offsets((0, 3), (4, 8), (9, 12), (13, 15))
    assert iob.labels_of_spans([(1, 5, 11), (0, 13, 15)], words).tolist() == [0, 3, 4, 1]
    assert iob.labels_of_spans([(0, 3, 4)], words).tolist() == [0, 0, 0, 0]  # the space alone


@st.composite
def span_lists(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]]]:
    """A number of words, and (type, first, end) spans that do not overlap."""
    words = draw(st.integers(0, 12))
    cuts = sorted(draw(st.lists(st.integers(0, words), unique=True)))
    spans = [(draw(st.integers(0, 3)), first, end) for first, end in itertools.pairwise(cuts) if draw(st.booleans())]
    return words, spans


@given(span_lists())
def test_spans_to_labels_and_back(case: tuple[int, list[tuple[int, int, int]]]) -> None:
    count, spans = case
    words = [(3 * index, 3 * index + 2) for index in range(count)]
    characters = [(kind, words[first][0], words[end - 1][1]) for kind, first, end in spans]
    assert iob.spans_of_labels(iob.labels_of_spans(characters, words)) == spans


# Viterbi


def is_valid(labels: tuple[int, ...]) -> bool:
    """I-t stands only behind B-t or I-t of the same type."""
    return all(
        label == 0 or label % 2 == 1 or before in (label - 1, label)
        for before, label in zip((0, *labels), labels, strict=False)
    )


def brute_force(log_probs: npt.NDArray[np.float32]) -> float:
    """The best sum of log-probabilities over all valid sequences."""
    words, labels = log_probs.shape
    valid = (path for path in itertools.product(range(labels), repeat=words) if is_valid(path))
    return max(sum(float(log_probs[word, label]) for word, label in enumerate(path)) for path in valid)


@st.composite
def emissions(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    types = draw(st.integers(0, 2))
    batch, words = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    values = st.one_of(st.floats(-9, 0, width=32), st.sampled_from([0.0, -1.0, -INF]))
    shape = (batch, words, 2 * types + 1)
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    lengths = draw(st.lists(st.integers(0, words), min_size=batch, max_size=batch))
    return np.array(flat, dtype=np.float32).reshape(shape), np.array(lengths, dtype=np.int64)


@given(emissions())
def test_viterbi_finds_the_best_valid_sequence(case: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]) -> None:
    log_probs, lengths = case
    best = iob.viterbi(log_probs, lengths)
    assert best.shape == log_probs.shape[:2]
    for row, length in enumerate(lengths.tolist()):
        path = tuple(best[row, :length].tolist())
        assert is_valid(path)
        assert not best[row, length:].any()
        found = sum(float(log_probs[row, word, label]) for word, label in enumerate(path))
        assert found == pytest.approx(brute_force(log_probs[row, :length]), abs=1e-5)


def test_viterbi_begins_a_span_where_inside_alone_would_be_likelier() -> None:
    log_probs = np.log(np.array([[[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]]], dtype=np.float32))
    assert iob.viterbi(log_probs, np.array([2])).tolist() == [[1, 2]]


def test_viterbi_does_not_go_on_with_another_type() -> None:
    log_probs = np.log(np.array([[[0.04, 0.9, 0.02, 0.02, 0.02], [0.02, 0.02, 0.2, 0.06, 0.7]]], dtype=np.float32))
    assert iob.viterbi(log_probs, np.array([2])).tolist() == [[1, 2]]


def test_viterbi_does_not_look_beyond_the_end() -> None:
    log_probs = np.log(np.array([[[0.6, 0.4, 0.0], [1e-6, 1e-6, 1.0]]], dtype=np.float32) + 1e-30)
    assert iob.viterbi(log_probs, np.array([1])).tolist() == [[0, 0]]
    assert iob.viterbi(log_probs, np.array([2])).tolist() == [[1, 2]]


def test_viterbi_without_words() -> None:
    assert iob.viterbi(np.zeros((2, 0, 3), dtype=np.float32), np.zeros(2, dtype=np.int64)).shape == (2, 0)


def test_viterbi_agrees_with_brute_force_on_a_whole_batch() -> None:
    generator = np.random.default_rng(0)
    log_probs = iob.log_softmax(generator.normal(scale=3, size=(50, 5, 5)).astype(np.float32))
    for row, path in enumerate(iob.viterbi(log_probs, np.full(50, 5))):
        found = sum(float(log_probs[row, word, label]) for word, label in enumerate(path.tolist()))
        assert found == pytest.approx(brute_force(log_probs[row]), abs=1e-5)


def test_log_softmax_is_stable_and_sums_to_one() -> None:
    logits = np.array([[1000.0, 1000.0, 0.0], [-5.0, 0.0, 5.0]], dtype=np.float32)
    result = iob.log_softmax(logits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.exp(result).sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(result[0, :2], math.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(np.diff(result[1]), 5.0, rtol=1e-6)


# From text to spans in the original text: the model tags by token, so that the expected spans are known


def tagged(
    text: str, tokenizer: Tokenizer, *, family: str, begin: Sequence[str], inside: Sequence[str] = ()
) -> list[str]:
    """The entities found, cut from the text by their offsets; `begin` and `inside` name tokens."""
    ids = [[tokenizer.token_to_id(token) for token in tokens] for tokens in (begin, inside)]
    assert None not in ids[0] + ids[1]
    model = TextModel(marking(tokenizer, begin=ids[0], inside=ids[1], family=family), device="cpu")
    return [text[span.start : span.end] for span in model.analyse([text])[0].spans]


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("Ada Lovelace met Acme.", ["Ada Lovelace", "Acme"]),
        ("  ADA\tLOVELACE\n(Acme)", ["ADA\tLOVELACE", "Acme"]),
        ("They saw Ångström, ÅNGSTRÖM and Angstrom!", ["Ångström", "ÅNGSTRÖM", "Angstrom"]),
        ("A\u030angstro\u0308m came to Zu\u0308rich.", ["A\u030angstro\u0308m", "Zu\u0308rich"]),
        ("naïve 😀 Ada 👩‍💻 Acme 😀", ["Ada", "Acme"]),
        ("İstanbul: Ada Lovelace", ["Ada Lovelace"]),
        ("(東京) Ada", ["東京", "Ada"]),
        ("我 Ada\u200b Love\u00adlace.", ["Ada\u200b Love\u00adlace"]),
        ("nobody here", []),
        ("", []),
    ],
)
def test_spans_through_a_wordpiece_tokenizer(text: str, entities: list[str]) -> None:
    tokenizer = wordpiece(extra="東京")
    begin = ["ada", "acme", "angstrom", "zurich", "東"]
    assert tagged(text, tokenizer, family="bert", begin=begin, inside=["lovelace"]) == entities


def test_spans_through_a_cased_wordpiece_tokenizer() -> None:
    tokenizer = wordpiece(["Ångström", "Bell"], lowercase=False, strip_accents=False)
    text = "Ångström and Bell and bell"
    assert tagged(text, tokenizer, family="bert", begin=["Ångström", "Bell"]) == ["Ångström", "Bell"]


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("In London,  London!", ["London", "London"]),
        ("é😀 in New York\u00a0London", ["New York"]),
        ("東京 in London", ["London"]),
        ("on 😀 London", ["London"]),
    ],
)
def test_spans_through_a_byte_level_tokenizer(text: str, entities: list[str], trim_offsets: bool) -> None:
    tokenizer = byte_bpe([" London", " New", " York"], trim_offsets=trim_offsets)
    assert tagged(text, tokenizer, family="roberta", begin=["ĠLondon", "ĠNew"], inside=["ĠYork"]) == entities


def test_characters_of_several_bytes_are_one_word() -> None:
    first_byte = byte_bpe().encode("東京", add_special_tokens=False).tokens[0]
    assert tagged("a 東京 b", byte_bpe(), family="roberta", begin=[first_byte]) == ["東京"]


def test_an_emoji_of_four_bytes_is_one_word() -> None:
    first_byte = byte_bpe().encode("😀", add_special_tokens=False).tokens[0]
    assert tagged("é 😀é x😀", byte_bpe(), family="roberta", begin=[first_byte]) == ["😀", "😀"]


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("London is in London", ["London", "London"]),
        ("  in   London,\u00a0Paris", ["London"]),
        ("to New York\nand London", ["New York", "London"]),
        ("é東😀 London", ["London"]),
    ],
)
def test_spans_where_offsets_hold_leading_spaces(text: str, entities: list[str]) -> None:
    tokenizer = metaspace(["London", "New", "York"])
    assert tagged(text, tokenizer, family="xlm-roberta", begin=["▁London", "▁New"], inside=["▁York"]) == entities


def test_span_score_is_the_mean_probability_of_its_words() -> None:
    tokenizer = wordpiece()
    ids = [tokenizer.token_to_id(token) for token in ("ada", "lovelace")]
    loaded = marking(tokenizer, begin=ids[:1], inside=ids[1:], logit=3.0)
    with torch.no_grad():
        (linear,) = loaded.model.tag_head.projection.of_layer
        linear.weight[2] /= 2  # the second word's label is less certain than the first's
    first, second = math.exp(3.0) / (math.exp(3.0) + 2), math.exp(1.5) / (math.exp(1.5) + 2)
    spans = TextModel(loaded, device="cpu").analyse(["met Ada Lovelace"])[0].spans
    assert spans == (Span("ENT", 4, 16, pytest.approx((first + second) / 2, abs=1e-5)),)


def test_span_score_weighs_words_alike_not_tokens() -> None:
    tokenizer = wordpiece(["ada"])  # lovelace becomes eight tokens
    loaded = multi_task(tokenizer)
    model = TextModel(loaded, device="cpu")
    text = "Ada met Lovelace in London, Paris and Rome on Monday"
    encoding = tokenizer.encode(text)
    with torch.no_grad():
        logits = loaded.model(torch.tensor([encoding.ids]), torch.ones(1, len(encoding.ids), dtype=torch.int64))
    probabilities = logits.tag_logits.softmax(dim=-1)[0].double().numpy()
    spans = model.analyse([text])[0].spans
    assert spans
    for span in spans:
        words = [word for word in iob.split_words(text) if span.start <= word[0] < span.end]
        first = [next(i for i, (a, b) in enumerate(encoding.offsets) if a == word[0] and b > a) for word in words]
        kind = loaded.model.config.entity_types.index(span.type)
        labels = [1 + 2 * kind, *[2 + 2 * kind] * (len(words) - 1)]
        expected = np.mean([probabilities[token, label] for token, label in zip(first, labels, strict=True)])
        assert span.score == pytest.approx(float(expected), abs=1e-5)
