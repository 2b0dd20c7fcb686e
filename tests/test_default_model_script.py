"""The stages of scripts/train_default_model.py that read word shapes, on a tiny backbone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import tiny

from indexer import iob
from indexer.heads import ContextualTagHead
from indexer.model import TextModel
from indexer.training.data import TaggedText
from indexer.words import word_means

SCRIPTS = Path(__file__).parent.parent / "scripts"
SHAPED = {"entity_types": ["PER"], "tag_head": "contextual", "tag_head_width": 8, "tag_shapes": True}
TEXTS = [
    TaggedText("we met Ada in London", (("PER", 7, 10), ("LOC", 14, 20))),
    TaggedText("we met ada in london", ()),
    TaggedText("Ada and Paris met", (("PER", 0, 3), ("LOC", 8, 13))),
    TaggedText("the 😀 of zurich", ()),
]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from default_model import features, tag_head

    return features, tag_head


@pytest.mark.usefixtures("stages")
def test_the_script_says_how_it_is_called() -> None:
    import train_default_model

    found = CliRunner().invoke(train_default_model.main, ["--help"])
    assert found.exit_code == 0, found.output
    assert "--no-shapes" in found.output


def test_word_states_hold_the_words_and_shapes_that_the_product_computes(stages: Any, tmp_path: Path) -> None:
    features, _ = stages
    loaded = tiny(**SHAPED)
    states = features.Encoder(loaded, tmp_path).word_states("few", TEXTS, exact=True)
    model = TextModel(loaded, device="cpu")
    for number, text in enumerate(TEXTS):
        start, end = states.starts[number : number + 2]
        words = model.word_batch([text.text])
        assert states.shapes[start:end].tolist() == words.shapes[0].tolist()
        with torch.no_grad():
            whole = loaded.model.backbone(*model.tensors([text.text]), output_hidden_states=True).hidden_states
        expected = word_means([whole[layer] for layer in (-1, -2, -3, -4)], words)[0]
        np.testing.assert_allclose(states.states[start:end], expected, atol=2e-3)
    again = features.Encoder(loaded, tmp_path).word_states("few", TEXTS, exact=True)
    assert again.digest() == states.digest()


def test_another_backbone_has_states_of_its_own_in_the_same_cache(stages: Any, tmp_path: Path) -> None:
    features, _ = stages
    first = features.Encoder(tiny(), tmp_path).word_states("few", TEXTS, exact=True)
    second = features.Encoder(tiny(seed=1), tmp_path).word_states("few", TEXTS, exact=True)
    assert (first.states != second.states).any()


def test_a_share_of_the_texts_is_seen_in_other_case(stages: Any) -> None:
    _, tag_head = stages
    model = TextModel(tiny(**SHAPED), device="cpu")
    texts = [text.text for text in TEXTS[:3]]
    shapes = model.word_batch(texts).shapes
    settings = tag_head.TagSettings(small_letters=1.0, capitals=0.0)
    changed = tag_head.other_case(shapes, settings, random.Random(0))
    assert torch.equal(changed, model.word_batch([text.lower() for text in texts]).shapes)
    changed = tag_head.other_case(shapes, replace(settings, small_letters=0.0, capitals=1.0), random.Random(0))
    assert torch.equal(changed, model.word_batch([text.upper() for text in texts]).shapes)
    as_it_is = replace(settings, small_letters=0.0)
    assert torch.equal(tag_head.other_case(shapes, as_it_is, random.Random(0)), shapes)


def test_the_tag_head_learns_case_and_is_kept_in_the_cache(stages: Any, tmp_path: Path) -> None:
    features, tag_head = stages
    encoder = features.Encoder(tiny(), tmp_path)
    states = encoder.word_states("few", TEXTS, exact=True)
    dev = {f"{name} dev": tag_head.dev_set(encoder, name, TEXTS) for name in ("ewt", "btc")}
    settings = tag_head.TagSettings(width=16, dropout=0.0, epochs=24, batch_words=64, learning_rate=0.02, averaging=0.5)
    settings = replace(settings, averaging=0.5, small_letters=0.0, capitals=0.0)
    train = [states] * 9
    tagger, report = tag_head.cached_tag_head(encoder, "teacher", train, dev, settings, "few")
    assert report["best mean F1"] == 1.0
    assert report["settings"]["tag_shapes"] is True
    again, same = tag_head.cached_tag_head(encoder, "teacher", train, dev, settings, "few")
    assert same == report
    kept = zip(tagger.head.parameters(), again.head.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    assert tagger.layers == again.layers == [-2, -3]
    plain, found = tag_head.cached_tag_head(encoder, "teacher", train, dev, replace(settings, tag_shapes=False), "few")
    assert plain.head.shapes is None
    assert found["best mean F1"] < 0.9


def test_training_can_end_with_a_chosen_epoch_and_is_up_to_there_the_same(stages: Any, tmp_path: Path) -> None:
    features, tag_head = stages
    encoder = features.Encoder(tiny(), tmp_path)
    states = encoder.word_states("few", TEXTS, exact=True)
    dev = {f"{name} dev": tag_head.dev_set(encoder, name, TEXTS) for name in ("ewt", "btc")}
    settings = tag_head.TagSettings(width=8, epochs=4, batch_words=64)
    _, whole = tag_head.cached_tag_head(encoder, "student", [states] * 9, dev, settings, "all")
    _, part = tag_head.cached_tag_head(encoder, "last", [states] * 9, dev, settings, "three", keep=3)
    assert part["epoch"] == 3
    assert part["history"] == whole["history"][:3]


def test_words_have_the_mean_of_what_several_heads_think(stages: Any, tmp_path: Path) -> None:
    features, tag_head = stages
    encoder = features.Encoder(tiny(), tmp_path)
    dev = tag_head.dev_set(encoder, "few", TEXTS)
    heads = []
    for layers in ([-1, -2, -3, -4], [-2, -4]):
        torch.manual_seed(len(layers))
        head = ContextualTagHead(len(layers), 32, 7, inner=8, dropout=0.5, shapes=True)
        heads.append(tag_head.Tagger(head, layers))
    first, second = (tag_head.word_probabilities([head], dev) for head in heads)
    for number, mean in enumerate(tag_head.word_probabilities(heads, dev)):
        np.testing.assert_allclose(mean, (first[number] + second[number]) / 2, atol=1e-6)
        np.testing.assert_allclose(mean.sum(axis=1), dev.words[number].known, atol=1e-5)
    for labels, probability in tag_head.predict_words(dev, first):
        assert len(labels) == len(probability)


def test_the_loss_of_teachers_stands_beside_that_of_labels(stages: Any) -> None:
    _, tag_head = stages
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=random)
    labels = torch.tensor([[1, iob.IGNORED, 0, iob.IGNORED]])
    teachers = torch.rand(1, 4, 7, generator=random).softmax(dim=2)
    teachers[0, 2:] = 0  # asked about the first two
    states = torch.zeros(1, 4, 1)
    batch = tag_head.TagBatch(states, labels, labels, labels, teachers)
    log_probs = logits.log_softmax(dim=1)
    hard = -log_probs[[0, 2], [1, 0]]
    to_teachers = -(teachers[0] * log_probs).sum(dim=1)
    expected = (0.75 * hard[0] + 0.25 * to_teachers[0] + to_teachers[1] + hard[1]) / 3
    torch.testing.assert_close(tag_head.tag_loss(logits, batch, soft=0.25), expected)
    torch.testing.assert_close(tag_head.tag_loss(logits, batch, soft=0.0), hard.mean())
    torch.testing.assert_close(tag_head.tag_loss(logits, replace(batch, soft=None), soft=0.25), hard.mean())


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Christ Church Cathedral is the oldest building.", "Christ Church Cathedral"),
        ("The Beatles were a band.", "The Beatles"),
        ("it is raining", ""),
        ("Born in Ohio, she is a singer.", ""),
    ],
)
def test_a_description_names_its_thing_first(stages: Any, text: str, title: str) -> None:  # noqa: ARG001
    from default_model.self_labels import described

    assert (described(text).title, described(text).lead) == (title, bool(title))
