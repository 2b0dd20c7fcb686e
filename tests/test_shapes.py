"""Shapes of words: what they are for awkward texts, where they stand among the tokens, what a head learns from them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import byte_bpe, metaspace, multi_task, tiny, wordpiece
from training import configure, raw, save

from indexer import iob
from indexer.checkpoint import Loaded, heads_fingerprint, load_checkpoint, save_checkpoint, with_heads
from indexer.errors import ModelError
from indexer.heads import SHAPE_WIDTH, ContextualTagHead, ShapeEmbedding
from indexer.model import TextModel
from indexer.shapes import CAPITALS, LOWERED, Shape, word_shapes
from indexer.training.encoded import encode
from indexer.training.keys import ConfigError
from indexer.training.loop import train
from indexer.training.scoring import forward, predict_spans
from indexer.training.sets import read_set
from indexer.training.settings import build_config
from indexer.training.states import cached_states
from indexer.words import word_means

CONTEXTUAL = {"tag_head": "contextual", "tag_head_width": 16, "tag_layers": [-1, -2]}
TEXTS = ["Hello there", "Ada Lovelace met the ACME people in London, of all places", "hi", "", "日本語 and 😀"]


def shapes_of(text: str) -> list[str]:
    return [Shape(shape).name for shape in word_shapes(text, iob.split_words(text))]


def with_shapes(tokenizer: Any = None, **fields: Any) -> Loaded:
    return multi_task(tokenizer, **(CONTEXTUAL | {"tag_shapes": True} | fields))


# Words


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("", []),
        (" \n\u200b", []),
        ("Ada met Bob", ["TITLE_FIRST", "LOWER", "TITLE"]),
        ("so it is. Then not", ["LOWER"] * 3 + ["SENTENCE_END", "TITLE_FIRST", "LOWER"]),
        ("a line\nAnother one", ["LOWER", "LOWER", "TITLE_FIRST", "LOWER"]),
        ("by J. Smith now", ["LOWER", "INITIAL", "SENTENCE_END", "TITLE", "LOWER"]),
        ('"Yes" she said', ["PUNCTUATION", "TITLE_FIRST", "PUNCTUATION", "LOWER", "LOWER"]),
        ("apple and pear", ["LOWER_WITHOUT_CAPITALS"] * 3),
        ("STOP THE WAR", ["UPPER_IN_CAPITALS"] * 3),
        ("Dog Bites Man in Street", [*["TITLE_IN_HEADLINE"] * 3, "LOWER", "TITLE_IN_HEADLINE"]),
        ("NATO", ["UPPER"]),
        ("the iPhone of McDonald", ["LOWER", "MIXED", "LOWER", "MIXED"]),
        (
            "An F16, the 2nd of 1815",
            ["TITLE_FIRST", "DIGITS_UPPER", "PUNCTUATION", "LOWER", "DIGITS_LOWER", "LOWER", "DIGITS"],
        ),
        (
            "thx @Ada_L: #Nlp #fun #1 @",
            ["LOWER", "HANDLE", "PUNCTUATION", "TAG_UPPER", "TAG_LOWER", "DIGITS", "HANDLE"],
        ),
        ("See www.Acme.org now", ["TITLE_FIRST", *["LINK"] * 5, "LOWER"]),
        ("at bob@Acme.org", ["LOWER_WITHOUT_CAPITALS"] * 2 + ["LINK"] * 4),
        ("日本語 Мир हिन्दी 😀", ["NO_CASE", "TITLE", "NO_CASE", "PUNCTUATION"]),
        ("an E\u0301 E\u0301a e\u0301", ["LOWER", "INITIAL", "TITLE", "LOWER"]),
        ("Ǆ ǅa ½ Ⅳ", ["INITIAL", "TITLE", "DIGITS", "DIGITS_UPPER"]),
    ],
)
def test_shapes_of_words(text: str, shapes: list[str]) -> None:
    assert shapes_of(text) == shapes


@pytest.mark.parametrize(
    "text", ["Ada met Bob and the NATO. She saw F16 there", "Big News From The Front", "see #Nlp at Acme @Ada_L iPhone"]
)
def test_tables_give_the_shapes_of_small_letters_and_of_capitals(text: str) -> None:
    words = iob.split_words(text)
    shapes = word_shapes(text, words)
    assert [LOWERED[shape] for shape in shapes] == word_shapes(text.lower(), words)
    assert [CAPITALS[shape] for shape in shapes] == word_shapes(text.upper(), words)


# Words of a batch


@pytest.mark.parametrize(
    "tokenizer", [wordpiece(), byte_bpe((" met",)), metaspace(("met",))], ids=["bert", "bpe", "spm"]
)
def test_a_word_has_its_tokens_and_its_shape(tokenizer: Any) -> None:
    text = "Xyzzy met É1 ok"
    model = TextModel(with_shapes(tokenizer), device="cpu")
    (window,) = model.windows([text])
    words = model.words(window, text)
    assert words.shapes == [Shape.TITLE_FIRST, Shape.LOWER, Shape.DIGITS_UPPER, Shape.LOWER]
    tokens = model.token_offsets(window, text)
    assert all(words.tokens)
    assert len(words.tokens[0]) > 1
    for (start, end), own in zip(words.offsets, words.tokens, strict=True):
        assert all(start <= tokens[token][0] < tokens[token][1] <= end for token in own)


def test_the_prefix_and_padding_have_no_words() -> None:
    model = TextModel(with_shapes(prefix="Query: "), device="cpu")
    words = model.word_batch(["Ada met", "Ada"])
    assert words.tokens.tolist() == [[0, 0, 1], [7, 8, 7]]  # behind [CLS], q, ##u, ##e, ##r, ##y, :
    assert words.starts.tolist() == [0, 1, 2, 3]
    assert words.mask.tolist() == [[1, 1], [1, 0]]
    assert words.shapes.tolist() == [[Shape.TITLE_FIRST, Shape.LOWER], [Shape.TITLE_FIRST, Shape.NONE]]


@pytest.mark.parametrize("tag_head", ["linear", "contextual"])
def test_a_word_is_read_as_its_first_token_or_the_mean_of_all(tag_head: str) -> None:
    model = TextModel(multi_task(tag_head=tag_head), device="cpu")
    texts = ["xyzzyplugh met Ada", "plover"]
    words, batch = model.word_batch(texts), model.tensors(texts)
    with torch.no_grad():
        states = model.model.backbone(*batch, output_hidden_states=True).hidden_states
        found = word_means([states[-1], states[0]], words)
        given = model.model(*batch, words=words, classes=False, embedding=False).tag_logits
        head = model.model.tag_head
        expected = head(head.project([word_means([states[-1]], words)]), words.mask)
    known = words.mask.bool()
    torch.testing.assert_close(given[known], expected[known], rtol=1e-4, atol=1e-4)
    joined = torch.cat([states[-1], states[0]], dim=2)
    assert found.shape == (2, 3, 64)
    for row, text in enumerate(texts):
        (window,) = model.windows([text])
        for word, tokens in enumerate(iob.tokens_of_words(iob.split_words(text), model.token_offsets(window, text))):
            assert word > 0 or len(tokens) > 1
            read = joined[row, tokens] if tag_head == "contextual" else joined[row, tokens[:1]]
            torch.testing.assert_close(found[row, word], read.mean(dim=0), rtol=0, atol=1e-5)
    assert not found[1, 1:].any()


def test_texts_without_words_have_one_row_of_padding() -> None:
    model = TextModel(with_shapes(), device="cpu")
    assert model.word_batch(["", "  "]).mask.tolist() == [[0], [0]]
    assert [analysis.spans for analysis in model.analyse(["", "  "])] == [(), ()]


# The head


def test_padding_does_not_change_the_logits() -> None:
    model = TextModel(with_shapes(), device="cpu")
    with torch.no_grad():
        together = model.model(*model.tensors(TEXTS), words=model.word_batch(TEXTS)).tag_logits
        for row, text in enumerate(TEXTS):
            alone = model.model(*model.tensors([text]), words=model.word_batch([text])).tag_logits
            torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_analyses_of_a_batch_and_of_single_texts_agree() -> None:
    model = TextModel(with_shapes(), device="cpu")
    texts = [*TEXTS, "Ada met " + "XyzzyPlugh" * 30, "Ada met the ACME people in London. " * 12]
    together = model.analyse(texts)
    assert max(len(analysis.passages) for analysis in together) > 1
    for text, analysis in zip(texts, together, strict=True):
        (alone,) = model.analyse([text])
        assert [(s.type, s.start, s.end) for s in alone.spans] == [(s.type, s.start, s.end) for s in analysis.spans]
        assert np.allclose(alone.vectors, analysis.vectors, atol=1e-5)


def test_case_reaches_the_tags_and_nothing_else() -> None:
    texts = ["ada met the acme people", "Ada met the ACME people"]
    for loaded, differ in ((with_shapes(), True), (multi_task(**CONTEXTUAL), False)):
        model = TextModel(loaded, device="cpu")
        with torch.no_grad():
            lower, mixed = (model.model(*model.tensors([text]), words=model.word_batch([text])) for text in texts)
        assert torch.equal(lower.tag_logits, mixed.tag_logits) is not differ
        assert torch.equal(lower.class_logits, mixed.class_logits)
        assert torch.equal(lower.layer_means, mixed.layer_means)


def test_a_head_that_reads_shapes_asks_for_them() -> None:
    model = TextModel(with_shapes(), device="cpu")
    batch = model.tensors(["hello"])
    with pytest.raises(ModelError, match="reads the shapes of words"):
        model.model(*batch)
    assert model.model(*batch, tags=False).tag_logits is None


def test_dropout_hides_shapes_of_words_in_training_alone() -> None:
    torch.manual_seed(0)
    table = ShapeEmbedding(dropout=0.5)
    shapes = torch.tensor([[Shape.NONE, Shape.UNKNOWN] + [int(Shape.TITLE)] * 400])
    dropped = table.train()(shapes)
    hidden = (dropped == table.table.weight[Shape.UNKNOWN]).all(dim=2)[0]
    kept = (dropped == table.table(shapes)).all(dim=2)[0]
    assert bool((hidden | kept).all())
    assert kept[:2].all()
    assert 150 < int(hidden.sum()) < 250
    assert torch.equal(table.eval()(shapes), table.table(shapes))


def test_a_head_without_shapes_has_no_place_for_them() -> None:
    plain, shaped = (ContextualTagHead(1, 8, 5, inner=4, dropout=0.1, shapes=shapes) for shapes in (False, True))
    assert plain.convolutions[0].linear.in_features == 3 * 4
    assert shaped.convolutions[0].linear.in_features == 3 * (4 + SHAPE_WIDTH)
    assert {name.partition(".")[0] for name in shaped.state_dict()} - {
        name.partition(".")[0] for name in plain.state_dict()
    } == {"shapes"}


def test_a_head_learns_case_from_shapes_and_cannot_without() -> None:
    """Apple the company and apple the fruit are the same tokens to an uncased backbone."""
    texts = ["we like Apple a lot", "we like apple a lot", "Apple is good", "an apple is good"]
    companies = [text.find("Apple") for text in texts]
    found: dict[bool, list[list[int]]] = {}
    for shapes in (True, False):
        loaded = tiny(
            wordpiece(("apple", "we", "like", "lot", "is", "good")),
            entity_types=["ORG"],
            tag_shapes=shapes,
            **CONTEXTUAL,
        )
        model = TextModel(loaded, device="cpu")
        batch, words = model.tensors(texts), model.word_batch(texts)
        labels = torch.zeros_like(words.mask)
        for row, place in enumerate(companies):
            if place >= 0:
                labels[row, texts[row][:place].count(" ")] = 1
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in loaded.model.tag_head.parameters():
                parameter.mul_(0.3)
        optimizer = torch.optim.Adam(loaded.model.tag_head.parameters(), lr=0.02)
        for _ in range(60):
            logits = loaded.model(*batch, words=words, embedding=False, classes=False).tag_logits
            loss = torch.nn.functional.cross_entropy(logits[:2].flatten(end_dim=1), labels[:2].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[shapes] = [[span.start for span in analysis.spans] for analysis in model.analyse(texts[:2])]
    assert found[True] == [[8], []]
    assert found[False][0] == found[False][1]


# Configuration, checkpoints, training


def test_shapes_change_the_heads_fingerprint_alone() -> None:
    with_them, without = with_shapes(), multi_task(**CONTEXTUAL)
    assert with_them.fingerprint == without.fingerprint
    assert with_them.heads_fingerprint != without.heads_fingerprint
    without.model.config.tag_shapes = True  # the same weights, read otherwise
    assert heads_fingerprint(without.model) != without.heads_fingerprint


def test_a_checkpoint_from_before_shapes_loads_as_it_was(tmp_path: Path) -> None:
    saved = multi_task(**CONTEXTUAL)
    save_checkpoint(saved, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("tag_shapes", None)
    file.write_text(json.dumps(config), encoding="utf-8")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.heads_fingerprint == saved.heads_fingerprint
    assert loaded.model.config.tag_shapes is False


def test_a_linear_head_with_shapes_is_refused() -> None:
    with pytest.raises(ModelError, match="tag_shapes needs the tag_head 'contextual', got 'linear'"):
        multi_task(tag_shapes=True)
    with pytest.raises(ModelError, match="tag_shapes must be of type bool"):
        multi_task(**CONTEXTUAL, tag_shapes="yes")
    table = {"output": "x", "data": [{"task": "tags", "path": "x.jsonl"}], "model": {"tag_shapes": True}}
    with pytest.raises(ConfigError, match=r"\[model\]: tag_shapes = true needs tag_head = 'contextual', got 'linear'"):
        build_config(table)


def test_a_new_head_has_shapes_only_if_asked() -> None:
    base = with_shapes()
    assert with_heads(base, entity_types=["X"]).model.config.tag_shapes is False
    assert with_heads(base, class_labels=["a", "b"]).model.tag_head is base.model.tag_head
    asked = with_heads(base, entity_types=["X"], tag_head="contextual", tag_shapes=True)
    assert asked.model.tag_head.shapes is not None


def write_cased(folder: Path) -> None:
    """Spans that only case tells: a word is a PER where it is capitalised."""
    generator = random.Random(0)
    lines = []
    for _ in range(60):
        names = [generator.choice(("ada", "paris", "london", "zurich")) for _ in range(4)]
        names = [name.title() if generator.random() < 0.4 else name for name in names]
        text, spans = "the", []
        for name in names:
            if name[0].isupper():
                spans.append([len(text) + 1, len(text) + 1 + len(name), "PER"])
            text += f" {name} met"
        lines.append(json.dumps({"text": text, "entities": spans}))
    (folder / "spans.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["heads", "all"])
def test_training_from_a_configuration_learns_case(tmp_path: Path, kind: str) -> None:
    write_cased(tmp_path)
    data = {"task": "tags", "path": "spans.jsonl", "dev": 0.3}
    model = {**CONTEXTUAL, "head_dropout": 0.0, "tag_shapes": True}
    phase = {
        "train": kind,
        "epochs": 6,
        "learning_rate": 1e-2 if kind == "heads" else 1e-4,
        "head_learning_rate": 1e-2,
    }
    scores = {}
    for shapes in (True, False):
        config = configure(tmp_path, f"run-{shapes}", [data], phase, model={**model, "tag_shapes": shapes})
        scores[shapes] = train(config, base=raw()).scores["spans (tags)"]
    assert scores[True] > 0.95
    assert scores[False] < 0.7
    assert load_checkpoint(tmp_path / "run-True" / "model").model.config.tag_shapes is True


def test_cached_states_give_what_the_whole_model_gives(tmp_path: Path) -> None:
    write_cased(tmp_path)
    model = TextModel(with_shapes(entity_types=["PER"]), device="cpu")
    config = configure(tmp_path, "run", [{"task": "tags", "path": "spans.jsonl"}], {"train": "heads"})
    spans = read_set(config.data[0], root=tmp_path, seed=0)
    encoded = encode(spans.settings, spans.train, model)
    states = cached_states(model, encoded, tmp_path / "cache")
    texts = [example.text for example in spans.train]  # type: ignore[union-attr]
    product = [[(s.type, s.start, s.end) for s in analysis.spans] for analysis in model.analyse(texts)]
    assert sum(map(len, product)) > 0
    assert predict_spans(model, encoded) == product
    assert predict_spans(model, encoded, states) == product
    hidden = [replace(words, shapes=[Shape.UNKNOWN] * len(words.tokens)) for words in encoded.words or []]
    unseen = replace(encoded, words=hidden)
    with torch.no_grad():
        logits, without = (forward(model, one, [0, 1], states).tag_logits for one in (encoded, unseen))
    assert not torch.allclose(logits, without, atol=0.1)


def test_a_base_with_shapes_is_trained_on(tmp_path: Path) -> None:
    write_cased(tmp_path)
    base = save(with_shapes(entity_types=["PER"]), tmp_path / "base")
    data = {"task": "tags", "path": "spans.jsonl", "dev": 0.2}
    config = configure(tmp_path, "run", [data], {"train": "heads", "epochs": 1}, model={"base": base})
    train(config)
    assert load_checkpoint(tmp_path / "run" / "model").model.config.tag_shapes is True
