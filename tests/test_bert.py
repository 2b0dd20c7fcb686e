"""Our BERT computes what transformers' does; what it cannot compute is left to transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_raw, wordpiece
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig as TheirConfig
from transformers import BertModel as TheirModel

from indexer.backbones import load_backbone
from indexer.bert import BertModel, reads
from indexer.checkpoint import load_checkpoint
from indexer.config import TagdexConfig
from indexer.fingerprint import _ARCHITECTURE

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


def both(**changes: Any) -> tuple[Any, BertModel]:
    torch.manual_seed(0)
    config = TheirConfig(**(SMALL | changes))
    theirs = TheirModel(config, add_pooling_layer=False).eval()
    found = reads(config.to_dict())
    assert found is not None
    ours = BertModel(found).eval()
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def batch(*lengths: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5},
        {"pad_token_id": None, "type_vocab_size": 1},
        {"pad_token_id": 7, "num_attention_heads": 1, "num_hidden_layers": 1},
    ],
)
@pytest.mark.parametrize("lengths", [(5,), (32, 32), (7, 1, 20)])
def test_states_are_those_of_transformers(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    theirs, ours = both(**changes)
    ids, mask = batch(*lengths)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        found = ours(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert found.hidden_states is not None
    assert len(found.hidden_states) == len(expected.hidden_states)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[mask.bool()], other[mask.bool()], rtol=1e-5, atol=1e-6)
    assert found.last_hidden_state is found.hidden_states[-1]


def test_only_the_states_that_are_asked_for_are_kept() -> None:
    _, ours = both()
    ids, mask = batch(4, 3)
    whole = ours(ids, mask, output_hidden_states=True).hidden_states
    some = ours(ids, mask, output_hidden_states=[-1, 1]).hidden_states
    assert whole is not None
    assert some is not None
    assert [state is None for state in some] == [True, False, True, False]
    assert torch.equal(some[1], whole[1])
    assert torch.equal(some[-1], whole[-1])
    assert ours(ids, mask).hidden_states is None


def test_gradients_are_those_of_transformers() -> None:
    theirs, ours = both(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids, mask = batch(6, 9)
    for model in (theirs.train(), ours.train()):
        (model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()] ** 3).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if (gradient := expected[name].grad) is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_dropout_is_of_attention_and_of_states() -> None:
    for changes in ({"hidden_dropout_prob": 0.0}, {"attention_probs_dropout_prob": 0.0}):
        _, ours = both(**changes)
        ids, mask = batch(9)
        assert not torch.equal(ours.train()(ids, mask).last_hidden_state, ours(ids, mask).last_hidden_state)
        assert torch.equal(ours.eval()(ids, mask).last_hidden_state, ours(ids, mask).last_hidden_state)


def test_new_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    found = reads({"model_type": "bert", **SMALL, "vocab_size": 5_000, "initializer_range": 0.05, "pad_token_id": 3})
    assert found is not None
    model = BertModel(found)
    words, dense = model.embeddings.word_embeddings.weight, model.encoder.layer[1].intermediate.dense
    assert float(words.detach().std()) == pytest.approx(0.05, rel=0.02)
    assert float(dense.weight.detach().std()) == pytest.approx(0.05, rel=0.1)
    assert not dense.bias.any()
    assert not words[3].any()
    assert bool((model.embeddings.LayerNorm.weight == 1).all())


def test_a_configuration_says_the_same_as_that_of_transformers() -> None:
    for changes in ({}, {"pad_token_id": None}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-7}):
        theirs = TheirConfig(**(SMALL | changes))
        ours = reads(theirs.to_dict())
        for name in _ARCHITECTURE:  # a fingerprint must not depend on who computes
            assert getattr(ours, name, None) == getattr(theirs, name, None), name
    assert reads({"model_type": "bert"}) == reads(TheirConfig().to_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"hidden_act": ["gelu"]},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"hidden_size": 25},
        {"hidden_size": "24"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": True},
        {"vocab_size": -5},
        {"pad_token_id": 50},
        {"pad_token_id": -1},
        {"pad_token_id": 0.0},
        {"hidden_dropout_prob": 1.5},
        {"layer_norm_eps": float("nan")},
        {"initializer_range": None},
    ],
)
def test_any_other_configuration_is_left_to_transformers(changes: dict[str, Any]) -> None:
    assert reads({"model_type": "bert", **SMALL}) is not None
    assert reads({"model_type": "bert", **SMALL, **changes}) is None


def test_a_folder_gives_our_model_with_the_weights_in_it(tmp_path: Path) -> None:
    theirs: Any = save_raw(tmp_path / "raw", wordpiece())
    ours = load_backbone(str(tmp_path / "raw"), name="raw")
    assert isinstance(ours, BertModel)
    expected = theirs.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert isinstance(load_checkpoint(tmp_path / "raw").model.backbone, BertModel)


def test_more_tokens_than_positions_are_refused() -> None:
    _, ours = both(max_position_embeddings=8)
    with pytest.raises(ValueError, match="takes 8 tokens, got 9"):
        ours(*batch(9))


@pytest.mark.parametrize("change", ["prefixed", "twice", "gamma", "another file"])
def test_weights_are_those_that_transformers_reads(tmp_path: Path, change: str) -> None:
    save_raw(tmp_path, wordpiece())
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "embeddings.LayerNorm.weight"
    other = torch.arange(len(weights[name]), dtype=torch.float32)
    if change == "prefixed":
        save_file({f"bert.{key}": tensor for key, tensor in weights.items()}, path, metadata={"format": "pt"})
    elif change == "twice":
        save_file({**weights, f"bert.{name}": other}, path, metadata={"format": "pt"})
    elif change == "gamma":
        renamed = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for key, tensor in weights.items()}
        save_file(renamed, path, metadata={"format": "pt"})
    else:
        save_file({**weights, name: other}, tmp_path / "other.safetensors", metadata={"format": "pt"})
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    expected = TheirModel.from_pretrained(tmp_path, add_pooling_layer=False).state_dict()
    found = load_backbone(str(tmp_path), name="raw").state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = TagdexConfig(encoder_config={"model_type": "bert"}, class_labels=["é", "b"], max_length=99, prefix="x: ")
    config.save(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert '"model_type": "tagdex"' in text
    TagdexConfig(class_labels=["\ud800", "b"]).save(tmp_path)
    assert "pool_layers" not in text  # its default
    assert TagdexConfig.from_dict(json.loads(text) | {"of another version": 1}) == config


@pytest.mark.usefixtures("default_model_there")
def test_the_default_model_needs_no_transformers() -> None:
    """Importing its models takes longer than a query does otherwise."""
    code = (
        "import sys; from indexer import TextModel; TextModel.load().encode(['a boat']);"
        "print([name for name in ('transformers', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
