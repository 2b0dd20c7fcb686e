"""`TextModel` as a whole: what it says about itself, odd texts, and use from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import LABELS, TYPES, byte_bpe, multi_task, tiny, wordpiece
from tokenizers import processors

from indexer.checkpoint import save_checkpoint
from indexer.errors import ModelError
from indexer.model import TextModel
from indexer.records import Analysis, Passage

ODD = [
    "",
    " ",
    "\n\t\u00a0",
    "\x00",
    "a\r\nb",
    "\ufeffx",
    "e\u0301" * 20,
    "👩‍👩‍👧‍👦",
    "ﷺ",
    "A" * 5000,
    "[SEP] [PAD] <s>",
    "\ud800",
]


def test_what_a_model_says_about_itself(tmp_path: Path) -> None:
    saved = multi_task()
    save_checkpoint(saved, tmp_path / "model")
    model = TextModel.load(tmp_path / "model", device="cpu")
    assert model.dimension == 128
    assert model.class_labels == tuple(LABELS)
    assert model.entity_types == tuple(TYPES)
    assert model.name == str(tmp_path / "model")
    assert (model.fingerprint, model.heads_fingerprint) == (saved.fingerprint, saved.heads_fingerprint)


def test_a_model_without_heads_gives_no_label_and_no_spans() -> None:
    model = TextModel(tiny(), device="cpu")
    assert (model.class_labels, model.entity_types, model.heads_fingerprint) == (None, None, None)
    analysis = model.analyse(["Ada Lovelace met Acme in London."])[0]
    assert (analysis.label, analysis.spans) == (None, ())
    assert np.array_equal(analysis.pooled, model.encode(["Ada Lovelace met Acme in London."])[0])


def test_in_steps_a_text_gets_the_same_analysis() -> None:
    model = TextModel(multi_task(), device="cpu", batch_tokens=64)
    texts = ["Ada Lovelace met Acme in London. " * 40, "", "hello there"]
    *steps, analyses = model.analyse_in_steps(texts)
    assert (len(steps) > 2, set(steps)) == (True, {None})
    for got, expected in zip(analyses or (), model.analyse(texts), strict=True):
        assert (got.passages, got.label, got.spans) == (expected.passages, expected.label, expected.spans)
        np.testing.assert_array_equal(got.vectors, expected.vectors)
        np.testing.assert_array_equal(got.pooled, expected.pooled)
    assert [len(found or ()) for found in model.analyse_in_steps(["hello"])] == [1]
    assert list(model.analyse_in_steps([])) == [[]]


def test_no_texts_give_no_analyses() -> None:
    assert TextModel(multi_task(), device="cpu").analyse([]) == []


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_odd_texts_get_an_embedding_and_spans_inside_them(family: str, text: str) -> None:
    tokenizer = wordpiece() if family == "bert" else byte_bpe()
    model = TextModel(multi_task(tokenizer, family=family, max_length=48), device="cpu")
    analysis = model.analyse([text])[0]
    assert np.isfinite(analysis.pooled).all()
    assert analysis.vectors.shape == (len(analysis.passages), 128)
    assert all(0 <= passage.start <= passage.end <= len(text) for passage in analysis.passages)
    assert all(text[span.start : span.end].strip() for span in analysis.spans)
    assert all(0.0 <= span.score <= 1.0 for span in analysis.spans)


def test_spans_are_sorted_and_do_not_overlap() -> None:
    analysis = TextModel(multi_task(max_length=40, seed=7), device="cpu").analyse(
        ["Ada met the Acme people in London! " * 20]
    )[0]
    assert len(analysis.spans) > 10
    for one, other in zip(analysis.spans, analysis.spans[1:], strict=False):
        assert one.start < one.end <= other.start


def test_half_a_surrogate_pair_is_read_as_an_unknown_character() -> None:
    model = TextModel(multi_task(), device="cpu")
    found, expected = (model.analyse([text])[0] for text in ("a \ud800 Ada", "a \ufffd Ada"))
    assert found.pooled.tobytes() == expected.pooled.tobytes()
    assert found.spans == expected.spans


def test_an_empty_text_without_special_tokens_is_one_token() -> None:
    tokenizer = byte_bpe()
    tokenizer.post_processor = processors.ByteLevel()
    model = TextModel(multi_task(tokenizer, family="roberta"), device="cpu")
    alone, beside = model.analyse([""])[0], model.analyse(["", "Ada met Acme"])[0]
    assert alone.passages == (Passage(0, 0, 1),)
    assert np.isfinite(alone.pooled).all()
    np.testing.assert_allclose(beside.pooled, alone.pooled, rtol=0, atol=1e-5)
    assert alone.spans == ()


def test_texts_handed_in_stay_as_they_are() -> None:
    texts = ["b", "a", "c"]
    TextModel(multi_task(), device="cpu").analyse(texts)
    assert texts == ["b", "a", "c"]


def test_tuples_of_texts_are_read_like_lists() -> None:
    model = TextModel(tiny(), device="cpu")
    assert model.encode(("a", "b")).tobytes() == model.encode(["a", "b"]).tobytes()


def test_several_threads_may_share_a_model() -> None:
    model = TextModel(multi_task(max_length=40), device="cpu")
    texts = [f"Ada Lovelace met {number} people in London. " * (number % 5 + 1) for number in range(24)]
    expected = [model.analyse([text])[0] for text in texts]

    def analyse(text: str) -> Analysis:
        return model.analyse([text])[0]

    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(analyse, texts), expected, strict=True):
            assert found.pooled.tobytes() == one.pooled.tobytes()
            assert (found.passages, found.label, found.spans) == (one.passages, one.label, one.spans)


def test_a_missing_default_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("indexer.checkpoint.DEFAULT_MODEL", tmp_path / "nowhere")
    for name in (None, "default"):
        with pytest.raises(ModelError, match="this installation lacks its default model"):
            TextModel.load(name, device="cpu")
