"""The default model, where it is there; TAGDEX_REQUIRE_MODEL=1 forbids the skip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from indexer.adapter import merge, split_adapter
from indexer.checkpoint import DEFAULT_MODEL, load_checkpoint, save_checkpoint
from indexer.model import TextModel
from indexer.sources import MINILM

TEXTS = [
    "",
    "Ada Lovelace met Charles Babbage in London.",
    "The museum in Zürich stays closed on Mondays; 東京 is far away 😀",
    "one two three " * 30,
]


@pytest.fixture(scope="module")
def model(default_model_there: None) -> TextModel:  # noqa: ARG001
    return TextModel.load(device="cpu")


def entities(model: TextModel, text: str) -> list[tuple[str, str]]:
    """(type, text) of each entity."""
    return [(span.type, text[span.start : span.end]) for span in model.analyse([text])[0].spans]


def label(model: TextModel, text: str) -> str | None:
    found = model.analyse([text])[0].label
    return None if found is None else found.name


def test_its_shape(model: TextModel) -> None:
    assert model.name == "default"
    assert model.dimension == 1536
    assert model.class_labels is not None
    assert len(model.class_labels) == 14
    assert model.entity_types == ("PER", "ORG", "LOC")
    assert model.config.pooled_layers == [-1, -2, -3, -4]
    assert model.config.max_length == 256


def test_its_backbone_is_the_published_one_with_its_update(model: TextModel) -> None:
    published = load_checkpoint(MINILM.name).model.backbone.state_dict()
    adapter = split_adapter(load_file(DEFAULT_MODEL / "model.safetensors"), model.config, place="default")
    expected = published if adapter is None else merge(published, adapter)
    found = model.model.backbone.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_its_embedding_is_the_weighted_layers(model: TextModel) -> None:
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer.encode(text).ids])
        with torch.inference_mode():
            states = model.model.backbone(input_ids=ids, output_hidden_states=True).hidden_states
        means = np.stack([states[layer][0].numpy().mean(axis=0) for layer in (-1, -2, -3, -4)])
        if model.config.normalize_layers:
            means = means / np.linalg.norm(means, axis=1, keepdims=True)
        expected = (means * np.array(model.config.weights, dtype=np.float32)[:, None]).ravel()
        np.testing.assert_allclose(model.encode([text])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("model")
def test_its_heads_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_MODEL.rglob("*") if path.is_file()) < 10_000_000


def test_saved_whole_it_is_the_same_model(model: TextModel, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("default") / "model"
    save_checkpoint(load_checkpoint(), folder)
    saved = TextModel.load(folder, device="cpu")
    assert (saved.fingerprint, saved.heads_fingerprint) == (model.fingerprint, model.heads_fingerprint)
    for one, other in zip(model.analyse(TEXTS), saved.analyse(TEXTS), strict=True):
        assert one.pooled.tobytes() == other.pooled.tobytes()
        assert (one.label, one.spans) == (other.label, other.spans)


def test_meaning_decides_what_is_similar(model: TextModel) -> None:
    question = "How do I reset my password?"
    near = model.similarity(question, "I forgot my login and need a new one.")
    far = model.similarity(question, "The volcano erupted twice last spring.")
    assert near > far + 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Ada Lovelace met Charles Babbage in London.",
            [("PER", "Ada Lovelace"), ("PER", "Charles Babbage"), ("LOC", "London")],
        ),
        ("She moved from Paris to New York last year.", [("LOC", "Paris"), ("LOC", "New York")]),
        ("Microsoft and IBM signed the contract.", [("ORG", "Microsoft"), ("ORG", "IBM")]),
        ("Angela Merkel visited Poland on Monday.", [("PER", "Angela Merkel"), ("LOC", "Poland")]),
        ("The train leaves at nine and the tickets are sold out.", []),
    ],
)
def test_entities_of_plain_sentences(model: TextModel, text: str, expected: list[tuple[str, str]]) -> None:
    assert entities(model, text) == expected


def test_entities_all_over_a_long_text(model: TextModel) -> None:
    filler = "The weather stayed mild and nothing much happened in the following weeks. " * 30
    text = f"Ada Lovelace met Charles Babbage in London. {filler}Angela Merkel visited Poland on Monday."
    found = model.analyse([text])[0]
    assert len(found.passages) > 1
    assert {"Ada Lovelace", "Charles Babbage", "London", "Angela Merkel", "Poland"} <= {
        text[span.start : span.end] for span in found.spans
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Northwind Steel is a manufacturer of rolled steel founded in 1951, with headquarters in Ohio and 4,000 "
            "employees.",
            "Company",
        ),
        (
            "Echoes of Rain is the third studio album by the rock band Low Tide, released in 1994 on a small label.",
            "Album",
        ),
        (
            "The red-tailed dune beetle is a species of beetle in the family Carabidae, found in southern Africa.",
            "Animal",
        ),
        (
            "The Last Lighthouse is a 1962 drama film directed by an unknown director and starring two newcomers.",
            "Film",
        ),
        (
            "He is a retired professional footballer who played as a midfielder and won 23 caps for his country.",
            "Athlete",
        ),
    ],
)
def test_classes_of_encyclopedic_texts(model: TextModel, text: str, expected: str) -> None:
    assert label(model, text) == expected


@pytest.mark.parametrize(
    "text",
    ["How do I reset my password?", "How can I cook rice so that it does not stick to the pot?"],
)
def test_the_class_head_abstains_on_how_to_questions(model: TextModel, text: str) -> None:
    assert label(model, text) is None
