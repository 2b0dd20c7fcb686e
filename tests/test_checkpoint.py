"""Models on disk: round trips, fingerprints, and the refusal of everything that is damaged or would run code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import WORDS, byte_bpe, metaspace, multi_task, save_raw, tiny, wordpiece
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5Model

from indexer.checkpoint import attach, load_checkpoint, save_checkpoint, with_heads
from indexer.errors import ModelError
from indexer.fingerprint import tensors_digest, tokenizer_digest
from indexer.model import TextModel
from indexer.sources import BackboneSource, cached_digest, file_sha256, find_backbone

TEXTS = ["hello there", "Ada Lovelace met the Acme people in London.", "", "the " * 60]


def own_folder(folder: Path, **fields: Any) -> Path:
    save_checkpoint(multi_task(**({"max_length": 40} | fields)), folder / "own")
    return folder / "own"


def raw_folder(folder: Path, family: str = "bert", tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    save_raw(folder / "raw", wordpiece() if tokenizer is None else tokenizer, family, **changes)
    return folder / "raw"


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    return message


# Round trips


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="linear"),
        pytest.param({"tag_head": "contextual", "tag_head_width": 16, "tag_layers": [-1, -2]}, id="contextual"),
        pytest.param({"tag_head": "contextual", "tag_head_width": 16, "tag_shapes": True}, id="shapes"),
        pytest.param({"class_head": "pooled", "class_head_width": 16}, id="pooled class head"),
        pytest.param({"entity_types": None, "normalize_layers": True, "layer_weights": [1, 0.5, 0, 0.3]}, id="class"),
        pytest.param({"class_labels": None, "prefix": "query: ", "pool_layers": [-1, 0]}, id="tags"),
        pytest.param({"class_threshold": 0.5, "class_temperature": 2.5}, id="threshold"),
        pytest.param({"family": "distilbert"}, id="distilbert"),
        pytest.param({"family": "deberta-v2"}, id="deberta-v2"),
    ],
)
def test_save_and_load_gives_the_same_model(tmp_path: Path, fields: dict[str, Any]) -> None:
    saved = multi_task(**({"max_length": 40} | fields))
    save_checkpoint(saved, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert (loaded.fingerprint, loaded.heads_fingerprint) == (saved.fingerprint, saved.heads_fingerprint)
    assert loaded.name == str((tmp_path / "model").resolve())
    first, second = TextModel(saved, device="cpu").analyse(TEXTS), TextModel(loaded, device="cpu").analyse(TEXTS)
    for one, other in zip(first, second, strict=True):
        assert one.vectors.tobytes() == other.vectors.tobytes()
        assert one.pooled.tobytes() == other.pooled.tobytes()
        assert (one.passages, one.label, one.spans) == (other.passages, other.label, other.spans)


def test_a_checkpoint_is_json_and_safetensors_alone(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_second_save_writes_the_same_weights_and_fingerprints(tmp_path: Path) -> None:
    first = load_checkpoint(own_folder(tmp_path))
    save_checkpoint(first, tmp_path / "again")
    second = load_checkpoint(tmp_path / "again")
    assert (second.fingerprint, second.heads_fingerprint) == (first.fingerprint, first.heads_fingerprint)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "own" / "model.safetensors"
    ).read_bytes()


def test_save_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty: choose another folder"):
        save_checkpoint(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_heads_alone_need_to_know_their_backbone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs config\.backbone_source"):
        save_checkpoint(multi_task(), tmp_path / "heads", backbone=False)


def test_half_precision_weights_are_read_as_fp32(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    change_weights(folder, lambda weights: weights.update({key: value.half() for key, value in weights.items()}))
    loaded = load_checkpoint(folder)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert TextModel(loaded, device="cpu").encode(["hello"]).dtype == np.float32


def test_a_loaded_model_is_in_eval_mode(tmp_path: Path) -> None:
    assert not any(module.training for module in load_checkpoint(own_folder(tmp_path)).model.modules())
    assert not any(module.training for module in load_checkpoint(raw_folder(tmp_path)).model.modules())


# Raw Hugging Face folders


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [
        ("bert", wordpiece()),
        ("distilbert", wordpiece()),
        ("electra", wordpiece()),
        ("roberta", byte_bpe()),
        ("mpnet", byte_bpe()),
        ("modernbert", byte_bpe()),
        ("albert", metaspace()),
        ("deberta-v2", metaspace()),
    ],
)
def test_a_raw_folder_gives_the_backbones_own_states(tmp_path: Path, family: str, tokenizer: Tokenizer) -> None:
    backbone = save_raw(tmp_path / "raw", tokenizer, family)
    model = TextModel.load(tmp_path / "raw", device="cpu")
    assert (model.class_labels, model.entity_types, model.heads_fingerprint) == (None, None, None)
    ids = torch.tensor([tokenizer.encode("hello there").ids])
    with torch.no_grad():
        states = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer][0].mean(dim=0) for layer in (-1, -2, -3, -4)]).numpy()
    np.testing.assert_allclose(model.encode(["hello there"])[0], expected, rtol=0, atol=1e-5)
    analysis = model.analyse(["hello there"])[0]
    assert (analysis.label, analysis.spans) == (None, ())


@pytest.mark.parametrize(("family", "window"), [("bert", 160), ("roberta", 158), ("mpnet", 158)])
def test_a_raw_models_window_ends_with_its_positions(tmp_path: Path, family: str, window: int) -> None:
    tokenizer = wordpiece() if family == "bert" else byte_bpe()
    model = TextModel.load(raw_folder(tmp_path, family, tokenizer), device="cpu")
    assert model.config.max_length == window
    assert model.encode(["hello " * 500]).shape == (1, 128)


def test_a_raw_models_window_is_256_at_most(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, max_position_embeddings=300)
    assert load_checkpoint(folder).model.config.max_length == 256


def test_a_raw_models_window_ends_where_its_tokenizer_says(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=wordpiece(), pad_token="[PAD]", model_max_length=64).save_pretrained(
        folder
    )
    assert load_checkpoint(folder).model.config.max_length == 64


def test_truncation_and_padding_in_a_tokenizer_file_are_not_used(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = load_checkpoint(folder)
    assert len(loaded.tokenizer.encode("the the the the the the").ids) == 8
    assert len(loaded.tokenizer.encode("the").ids) == 3


def test_a_raw_model_saved_as_ours_is_the_same_model(tmp_path: Path) -> None:
    raw = load_checkpoint(raw_folder(tmp_path))
    save_checkpoint(raw, tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    assert (ours.fingerprint, ours.heads_fingerprint) == (raw.fingerprint, None)
    first, second = (TextModel(loaded, device="cpu").encode(TEXTS) for loaded in (raw, ours))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_heads_of_another_kind_in_a_raw_folder_are_left_alone(tmp_path: Path, prefix: str) -> None:
    folder = raw_folder(tmp_path)
    expected = TextModel.load(folder, device="cpu").encode(["hello"])

    def add_head(weights: dict[str, Tensor]) -> None:
        for key in list(weights):
            weights[prefix + key] = weights.pop(key)
        weights["cls.predictions.bias"] = torch.zeros(5)

    change_weights(folder, add_head)
    assert TextModel.load(folder, device="cpu").encode(["hello"]).tobytes() == expected.tobytes()


# Fingerprints


def fingerprint_of(*, change: Callable[[torch.nn.Module], object] | None = None, **options: Any) -> str:
    loaded = multi_task(**options)
    if change is not None:
        with torch.no_grad():
            change(loaded.model.backbone)
        loaded = attach(loaded.model, loaded.tokenizer, name="changed")
    return loaded.fingerprint


def test_fingerprints_are_sha256_and_repeatable() -> None:
    first, second = multi_task(), multi_task()
    assert (first.fingerprint, first.heads_fingerprint) == (second.fingerprint, second.heads_fingerprint)
    for fingerprint in (first.fingerprint, first.heads_fingerprint or ""):
        assert len(bytes.fromhex(fingerprint)) == 32


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"pool_layers": [-2, -1, -3, -4]}, id="order of layers"),
        pytest.param({"pool_layers": [-1]}, id="layers"),
        pytest.param({"layer_weights": [1.0, 1.0, 1.0, 0.9]}, id="layer weights"),
        pytest.param({"normalize_layers": True}, id="normalize layers"),
        pytest.param({"prefix": "query: "}, id="prefix"),
        pytest.param({"max_length": 127}, id="max length"),
        pytest.param({"seed": 1}, id="all weights"),
        pytest.param({"tokenizer": wordpiece(strip_accents=False)}, id="accents"),
        pytest.param({"tokenizer": wordpiece(WORDS[::-1])}, id="order of the vocabulary"),
        pytest.param({"tokenizer": wordpiece([*WORDS[1:], "other"])}, id="a word of the vocabulary"),
        pytest.param({"encoder": {"num_attention_heads": 2}}, id="attention heads"),
        pytest.param({"encoder": {"hidden_act": "relu"}}, id="activation"),
        pytest.param({"encoder": {"layer_norm_eps": 1e-5}}, id="layer norm"),
        pytest.param({"encoder": {"is_decoder": True}}, id="causal"),
    ],
)
def test_whatever_changes_an_embedding_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    assert fingerprint_of(**changed) != fingerprint_of()


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("deberta-v2", {"position_buckets": 4}),
        ("deberta-v2", {"max_relative_positions": 7}),
        ("modernbert", {"local_attention": 4}),
        ("modernbert", {"layer_types": ["full_attention"] * 4}),
        (
            "modernbert",
            {
                "rope_parameters": {
                    kind: {"rope_type": "default", "rope_theta": 10.0}
                    for kind in ("full_attention", "sliding_attention")
                }
            },
        ),
        ("mpnet", {"hidden_act": "relu"}),
        ("distilbert", {"n_heads": 2}),
        ("distilbert", {"activation": "relu"}),
    ],
)
def test_each_familys_own_fields_change_the_fingerprint(family: str, changed: dict[str, Any]) -> None:
    assert fingerprint_of(family=family, encoder=changed) != fingerprint_of(family=family)


def test_one_weight_in_its_last_bit_changes_the_fingerprint() -> None:
    def nudge(backbone: torch.nn.Module) -> None:
        bias = backbone.encoder.layer[2].output.dense.bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(1.0))

    assert fingerprint_of(change=nudge) != fingerprint_of()


def test_swapped_layers_change_the_fingerprint() -> None:
    def swap(backbone: torch.nn.Module) -> None:
        first, second = backbone.encoder.layer[0], backbone.encoder.layer[1]
        backbone.encoder.layer[0], backbone.encoder.layer[1] = second, first

    assert fingerprint_of(change=swap) != fingerprint_of()


def test_lower_casing_alone_changes_the_tokenizers_digest() -> None:
    assert tokenizer_digest(wordpiece(lowercase=False)) != tokenizer_digest(wordpiece())
    same_entries = wordpiece(lowercase=False)
    same_entries.normalizer = BertNormalizer(lowercase=True, strip_accents=True)
    assert tokenizer_digest(same_entries) != tokenizer_digest(wordpiece(lowercase=False))


def test_accents_and_two_swapped_entries_change_the_tokenizers_digest() -> None:
    assert tokenizer_digest(wordpiece(strip_accents=False)) != tokenizer_digest(wordpiece())
    assert tokenizer_digest(wordpiece(["ada", "acme"])) != tokenizer_digest(wordpiece(["acme", "ada"]))


def test_a_tokenizer_saved_again_keeps_the_fingerprint(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.save(str(tmp_path / "one.json"), pretty=True)
    again = Tokenizer.from_file(str(tmp_path / "one.json"))
    again.enable_truncation(7)
    again.enable_padding()
    assert multi_task(again).fingerprint == multi_task(tokenizer).fingerprint
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    through_transformers = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert multi_task(through_transformers).fingerprint == multi_task(tokenizer).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"class_labels": ["a", "b", "c"]},
        {"entity_types": ["A", "B", "C", "D", "E"]},
        {"class_labels": None},
        {"entity_types": None},
        {"tag_layers": [-2]},
        {"tag_head": "contextual", "tag_head_width": 16},
        {"class_head": "pooled", "class_head_width": 16},
        {"class_temperature": 2.0},
        {"class_threshold": 0.4},
    ],
)
def test_what_changes_the_heads_changes_their_fingerprint_alone(changed: dict[str, Any]) -> None:
    before, after = multi_task(), multi_task(**changed)
    assert after.heads_fingerprint != before.heads_fingerprint
    assert after.fingerprint == before.fingerprint


def test_a_heads_weights_change_its_fingerprint_alone() -> None:
    before, after = multi_task(), multi_task()
    with torch.no_grad():
        after.model.tag_head.projection.of_layer[0].bias[0] += 1.0
    after = attach(after.model, after.tokenizer, name="changed")
    assert after.heads_fingerprint != before.heads_fingerprint
    assert after.fingerprint == before.fingerprint


def test_tensors_digest_sees_names_shapes_and_values() -> None:
    plain = {"a": torch.arange(4.0), "b": torch.ones(2)}
    assert tensors_digest(plain) == tensors_digest(dict(reversed(plain.items())))
    digests = [
        tensors_digest(tensors)
        for tensors in (
            plain,
            {"a": torch.arange(4.0), "c": torch.ones(2)},
            {"a": torch.arange(4.0).reshape(2, 2), "b": torch.ones(2)},
            {"a": torch.arange(4.0), "b": torch.tensor([1.0, 2.0])},
        )
    ]
    assert len(set(digests)) == 4


def test_a_fresh_tag_head_leaves_embeddings_and_classes_bit_identical() -> None:
    base = multi_task(class_head="pooled")
    fresh = with_heads(base, entity_types=["CITY"], tag_head="contextual", tag_layers=[-1, -2])
    assert fresh.fingerprint == base.fingerprint
    assert fresh.heads_fingerprint != base.heads_fingerprint
    before, after = (TextModel(loaded, device="cpu").analyse(TEXTS) for loaded in (base, fresh))
    assert [one.vectors.tobytes() for one in after] == [one.vectors.tobytes() for one in before]
    assert [one.label for one in after] == [one.label for one in before]
    assert {span.type for one in after for span in one.spans} <= {"CITY"}


def test_a_fresh_class_head_leaves_embeddings_and_entities_bit_identical() -> None:
    base = multi_task()
    fresh = with_heads(base, class_labels=["yes", "no"])
    assert fresh.fingerprint == base.fingerprint
    before, after = (TextModel(loaded, device="cpu").analyse(TEXTS) for loaded in (base, fresh))
    assert [one.pooled.tobytes() for one in after] == [one.pooled.tobytes() for one in before]
    assert [one.spans for one in after] == [one.spans for one in before]
    assert all(one.label is not None and one.label.name in ("yes", "no") for one in after)


# Damaged folders: one line each, and never a random weight in silence


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"{no json", "config.json cannot be read", id="no JSON"),
        pytest.param(b"\xff\xfe", "config.json cannot be read", id="no UTF-8"),
        pytest.param(b"[" * 100_000, "config.json cannot be read", id="deep"),
        pytest.param(b"[1, 2]", "config.json must hold a JSON object, not list", id="list"),
        pytest.param(b"null", "config.json must hold a JSON object, not NoneType", id="null"),
        pytest.param(b"{}", "cannot be loaded", id="empty object"),
        pytest.param(b'{"model_type": "nonesuch"}', "nonesuch", id="unknown type"),
        pytest.param(b'{"model_type": 3}', "cannot be loaded", id="type is no string"),
        pytest.param(b'{"model_type": "bert", "hidden_size": "x"}', "hidden_size", id="wrong field"),
        pytest.param(b'{"model_type": "bert", "hidden_size": -3}', "cannot be loaded", id="negative size"),
        pytest.param(b'{"model_type": "bert", "hidden_size": 31}', "hidden size", id="contradiction"),
        pytest.param(b'{"model_type": "tagdex"}', "no encoder_config.model_type", id="no backbone"),
        pytest.param(b'{"model_type": "tagdex", "encoder_config": [1]}', "encoder_config", id="backbone is a list"),
        pytest.param(
            b'{"model_type": "tagdex", "encoder_config": {"model_type": "nonesuch"}}',
            "unknown backbone type 'nonesuch'",
            id="unknown backbone",
        ),
        pytest.param(
            b'{"model_type": "tagdex", "encoder_config": {"model_type": "bert", "hidden_size": "x"}}',
            "config.json does not describe a model",
            id="wrong field of the backbone",
        ),
    ],
)
def test_a_config_that_describes_no_model(
    tmp_path: Path, folder_of: Callable[[Path], Path], content: bytes, problem: str
) -> None:
    folder = folder_of(tmp_path)
    (folder / "config.json").write_bytes(content)
    assert problem in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool_layers", 3),
        ("pool_layers", "abc"),
        ("pool_layers", [-1.0]),
        ("tag_layers", [True]),
        ("layer_weights", ["a", 1, 1, 1]),
        ("layer_weights", [float("nan"), 1, 1, 1]),
        ("layer_weights", [float("inf"), 1, 1, 1]),
        ("normalize_layers", "yes"),
        ("class_labels", "abc"),
        ("class_labels", [1, 2, 3]),
        ("entity_types", [None, "B", "C", "D", "E"]),
        ("entity_types", ["", "B", "C", "D", "E"]),
        ("class_temperature", float("nan")),
        ("class_temperature", 10**400),
        ("class_threshold", -(10**400)),
        ("head_dropout", 1.0),
        ("tag_head_width", 0),
        ("class_head", ["linear"]),
        ("class_threshold", "x"),
        ("max_length", "x"),
        ("max_length", 20.5),
        ("prefix", 3),
        ("backbone_source", 3),
        ("encoder_config", 3),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_its_name(tmp_path: Path, field: str, value: object) -> None:
    folder = own_folder(tmp_path)
    change_config(folder, **{field: value})
    assert f"{field} must be" in refusal(folder)


@pytest.mark.parametrize(
    ("folder_of", "file", "problem"),
    [
        (own_folder, "config.json", "has no config.json"),
        (raw_folder, "config.json", "has no config.json"),
        (own_folder, "model.safetensors", "has no model.safetensors"),
        (raw_folder, "model.safetensors", "no file named model.safetensors"),
    ],
)
def test_a_missing_file(tmp_path: Path, folder_of: Callable[[Path], Path], file: str, problem: str) -> None:
    folder = folder_of(tmp_path)
    (folder / file).unlink()
    assert problem in refusal(folder)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    own, raw = own_folder(tmp_path), raw_folder(tmp_path)
    (own / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(own)
    for path in raw.glob("tokenizer*"):  # the loader would make up an empty one
        path.unlink()
    assert "has no tokenizer" in refusal(raw)


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
def test_a_tokenizer_that_is_none(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").write_text("{nonsense")
    refusal(folder)


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
def test_a_tokenizer_of_another_model(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    folder = folder_of(tmp_path)
    wordpiece([f"w{number}" for number in range(100)]).save(str(folder / "tokenizer.json"))
    assert "the tokenizer gives ids up to 197, but the backbone knows 110 entries" in refusal(folder)


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
@pytest.mark.parametrize("kept", [0.0, 1e-5, 0.5, 0.999])
def test_truncated_weights(tmp_path: Path, folder_of: Callable[[Path], Path], kept: float) -> None:
    folder = folder_of(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(kept * len(content))])
    assert "SafetensorError" in refusal(folder)


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
def test_a_missing_weight(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    folder = folder_of(tmp_path)

    def drop(weights: dict[str, Tensor]) -> None:
        del weights[next(key for key in weights if key.endswith("encoder.layer.1.output.dense.weight"))]

    change_weights(folder, drop)
    message = refusal(folder)
    assert "lacks" in message
    assert "encoder.layer.1.output.dense.weight" in message


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
def test_a_weight_of_another_shape(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    folder = folder_of(tmp_path)

    def reshape(weights: dict[str, Tensor]) -> None:
        key = next(key for key in weights if key.endswith("encoder.layer.1.output.dense.weight"))
        weights[key] = torch.zeros(3, 3)

    change_weights(folder, reshape)
    message = refusal(folder)
    assert "shape" in message
    assert "encoder.layer.1.output.dense.weight" in message


def test_no_weight_at_all(tmp_path: Path) -> None:
    own, raw = own_folder(tmp_path), raw_folder(tmp_path)
    for folder in (own, raw):
        change_weights(folder, lambda weights: weights.clear())
        assert "lacks" in refusal(folder)


def test_a_weight_that_the_model_does_not_have(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    change_weights(folder, lambda weights: weights.update({"class_head.extra": torch.zeros(2)}))
    assert "has class_head.extra, which the model does not" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["backbone.encoder.layer.0.output.dense.bias", "tag_head.projection.of_layer.0.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, key: str, value: float) -> None:
    folder = own_folder(tmp_path)
    change_weights(folder, lambda weights: weights[key].view(-1)[0].fill_(value))
    assert f"{key} holds values that are not finite" in refusal(folder)


def test_nan_in_a_raw_folder_never_becomes_an_embedding(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    change_weights(folder, lambda weights: weights["encoder.layer.0.output.dense.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        TextModel.load(folder, device="cpu").encode(["hello"])


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    config = T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=200)
    T5Model(config).save_pretrained(folder)
    assert "is an encoder-decoder; only encoders can be used" in refusal(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_path_that_leads_nowhere_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: give a folder with config\.json, or a hub name"):
        load_checkpoint(name)


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ModelError, match="is not a model folder"):
        load_checkpoint(tmp_path / "model")


def test_a_hub_name_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be loaded from the hub or its cache") as caught:
        load_checkpoint("tagdex-tests/no-such-model")
    assert len(str(caught.value).splitlines()) == 1


# Nothing in a folder is ever executed


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that code in a model folder would create."""
    return tmp_path / "executed"


def write_code(folder: Path, witness: Path) -> dict[str, dict[str, str]]:
    """A module that leaves a trace when it is imported, and the `auto_map` that names it."""
    code = f"open({str(witness)!r}, 'w').close()\nfrom transformers import {{}} as {{}}\n"
    (folder / "configuration_evil.py").write_text(code.format("BertConfig", "EvilConfig"))
    (folder / "modeling_evil.py").write_text(code.format("BertModel", "EvilModel"))
    (folder / "tokenization_evil.py").write_text(code.format("PreTrainedTokenizerFast", "EvilTokenizer"))
    return {
        "auto_map": {
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModel": "modeling_evil.EvilModel",
            "AutoTokenizer": "tokenization_evil.EvilTokenizer",
        }
    }


def test_the_code_of_these_tests_would_leave_its_trace(tmp_path: Path, witness: Path) -> None:
    write_code(tmp_path, witness)
    exec((tmp_path / "modeling_evil.py").read_text(), {})
    assert witness.exists()


def test_code_of_an_unknown_model_type_is_refused_and_not_run(tmp_path: Path, witness: Path) -> None:
    folder = raw_folder(tmp_path)
    change_config(folder, model_type="evil", **write_code(folder, witness))
    refusal(folder)
    assert not witness.exists()
    assert not [name for name in sys.modules if "_evil" in name]


def test_code_beside_a_known_model_type_is_not_run(tmp_path: Path, witness: Path) -> None:
    folder = raw_folder(tmp_path)
    expected = TextModel.load(folder, device="cpu").encode(["hello"])
    auto_map = write_code(folder, witness)
    change_config(folder, **auto_map)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | auto_map))
    assert TextModel.load(folder, device="cpu").encode(["hello"]).tobytes() == expected.tobytes()
    assert not witness.exists()


def test_code_in_a_folder_of_ours_is_not_run(tmp_path: Path, witness: Path) -> None:
    folder = own_folder(tmp_path)
    auto_map = write_code(folder, witness)
    encoder = json.loads((folder / "config.json").read_text())["encoder_config"]
    change_config(folder, **auto_map, encoder_config=encoder | auto_map)
    load_checkpoint(folder)
    change_config(folder, encoder_config=encoder | auto_map | {"model_type": "evil"})
    assert "unknown backbone type 'evil'" in refusal(folder)
    assert not witness.exists()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.witness),)


def test_the_pickle_of_these_tests_would_leave_its_trace(witness: Path) -> None:
    pickle.loads(pickle.dumps(Evil(witness)))
    assert witness.exists()


@pytest.mark.parametrize("folder_of", [own_folder, raw_folder])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_refused_and_not_run(
    tmp_path: Path, witness: Path, folder_of: Callable[[Path], Path], name: str
) -> None:
    folder = folder_of(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Evil(witness)}, folder / name)
    refusal(folder)
    assert not witness.exists()


def test_pickled_weights_are_refused_even_where_they_are_harmless(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refusal(folder)


def test_a_pickle_beside_safetensors_is_not_run(tmp_path: Path, witness: Path) -> None:
    folder = raw_folder(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(witness)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Evil(witness)))
    load_checkpoint(folder)
    assert not witness.exists()


# The cache of digests


class Counted:
    """Computes "a" × 64, then "b" × 64, …; counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        return "abcdef"[self.calls - 1] * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"first")
    return tmp_path / "weights"


def test_a_digest_is_computed_once(cache: Path, weights: Path) -> None:
    compute = Counted()
    assert [cached_digest("test", [weights], compute) for _ in range(3)] == ["a" * 64] * 3
    assert compute.calls == 1
    assert [path.read_text() for path in (cache / "tagdex" / "digests").iterdir()] == ["a" * 64]


@pytest.mark.usefixtures("cache")
def test_a_digest_is_computed_again_when_a_file_changes(weights: Path) -> None:
    compute = Counted()
    cached_digest("test", [weights], compute)
    stamp = weights.stat().st_mtime_ns
    weights.write_bytes(b"other")  # as long as before
    os.utime(weights, ns=(stamp + 1000, stamp + 1000))
    assert cached_digest("test", [weights], compute) == "b" * 64
    weights.write_bytes(b"longer than before")
    os.utime(weights, ns=(stamp + 1000, stamp + 1000))
    assert cached_digest("test", [weights], compute) == "c" * 64


@pytest.mark.usefixtures("cache")
def test_digests_of_another_kind_or_file_are_told_apart(weights: Path) -> None:
    compute = Counted()
    copy = Path(shutil.copy2(weights, weights.with_name("copy")))
    found = [cached_digest(*case, compute) for case in (("x", [weights]), ("y", [weights]), ("x", [copy]))]
    assert found == ["a" * 64, "b" * 64, "c" * 64]


@pytest.mark.usefixtures("cache")
def test_a_tokenizer_that_was_replaced_is_another_one_although_its_digest_was_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_checkpoint(multi_task(wordpiece()), folder)
    first, again = load_checkpoint(folder), load_checkpoint(folder)
    assert again.fingerprint == first.fingerprint
    other = wordpiece()
    other.normalizer = BertNormalizer(lowercase=False, strip_accents=True)
    other.save(str(folder / "tokenizer.json"))
    changed = load_checkpoint(folder)
    assert changed.fingerprint != first.fingerprint
    assert changed.fingerprint == attach(changed.model, changed.tokenizer, name="in memory").fingerprint


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"x" * 64, b"a" * 63])
def test_a_corrupt_entry_is_computed_again_and_replaced(cache: Path, weights: Path, content: bytes) -> None:
    compute = Counted()
    cached_digest("test", [weights], compute)
    (entry,) = (cache / "tagdex" / "digests").iterdir()
    entry.write_bytes(content)
    assert cached_digest("test", [weights], compute) == "b" * 64
    assert entry.read_text() == "b" * 64


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path, weights: Path) -> None:
    compute = Counted()
    cache.write_text("a file where the folder should be")
    assert cached_digest("test", [weights], compute) == "a" * 64
    assert cached_digest("test", [weights], compute) == "b" * 64


def test_a_folder_where_the_entry_should_be_is_done_without(cache: Path, weights: Path) -> None:
    compute = Counted()
    cached_digest("test", [weights], compute)
    (entry,) = (cache / "tagdex" / "digests").iterdir()
    entry.unlink()
    entry.mkdir()
    assert cached_digest("test", [weights], compute) == "b" * 64


@pytest.mark.usefixtures("cache")
def test_a_changed_checkpoint_gets_another_fingerprint_in_spite_of_the_cache(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    before = load_checkpoint(folder)
    assert load_checkpoint(folder).fingerprint == before.fingerprint
    change_weights(folder, lambda weights: weights["backbone.encoder.layer.0.output.dense.bias"].add_(1.0))
    after = load_checkpoint(folder)
    assert after.fingerprint != before.fingerprint
    assert after.heads_fingerprint == before.heads_fingerprint


# Published backbones


def test_a_published_backbone_must_have_the_published_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_published_backbone"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")  # it is found, never imported
    (package / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    good = BackboneSource(
        name="someone/some",
        revision="0" * 40,
        sha256=file_sha256(package / "model" / "model.safetensors"),
        package=package.name,
    )
    assert find_backbone(good) == package / "model"
    (package / "model" / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ModelError, match="is not the file that was published as someone/some: its SHA-256 is"):
        find_backbone(good)


def test_file_sha256_is_that_of_the_standard() -> None:
    path = Path(__file__)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_backbone_source_without_its_hash_is_refused(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    change_config(folder, backbone_source={"name": "someone/some", "revision": "1"})
    with pytest.raises(ModelError, match="backbone_source lacks 'sha256'"):
        load_checkpoint(folder)
