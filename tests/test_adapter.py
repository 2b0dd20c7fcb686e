"""Low-rank updates of a published backbone: merged, read from peft's files, factorised, saved beside the heads."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import multi_task, save_raw, tiny, wordpiece
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from indexer.adapter import Adapter, LowRank, factorise, from_tensors, merge, read_peft, to_tensors
from indexer.backbones import PUBLISHED
from indexer.checkpoint import Loaded, load_checkpoint, save_checkpoint, with_adapter, with_heads
from indexer.errors import ModelError
from indexer.model import TextModel
from indexer.sources import BackboneSource, file_sha256
from indexer.training.adapt import adapt, restore
from indexer.training.settings import LoraSettings, PhaseSettings

TEXTS = ["hello there", "Ada Lovelace met the Acme people in London.", "", "the " * 60]
QUERY = "encoder.layer.0.attention.self.query"
BIAS = "encoder.layer.3.output.dense.bias"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackboneSource]:
    """A published backbone in an installed package, and nobody's digests remembered."""
    folder = tmp_path_factory.mktemp("published")
    package = folder / "tagdex_tests_backbone"
    save_raw(package / "model", wordpiece(), seed=7)
    tokenizer = wordpiece()
    tokenizer.enable_truncation(8)  # as published ones do
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(package / "model" / "tokenizer.json"))
    (package / "__init__.py").touch()
    digest = file_sha256(package / "model" / "model.safetensors")
    found = BackboneSource(name="tagdex-tests/backbone", revision="0" * 40, sha256=digest, package=package.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setitem(PUBLISHED, found.name, found)
        yield found


@pytest.fixture(scope="module")
def checkpoint(source: BackboneSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads and `random_adapter()`, not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(adapted(source), folder, backbone=False, adapter=random_adapter())
    return folder


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def linear_modules(backbone: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}


def random_adapter(backbone: nn.Module | None = None, *, rank: int = 3, scale: float = 0.5, seed: int = 0) -> Adapter:
    """An update in fp16 of all linear layers and of one bias."""
    backbone = tiny().model.backbone if backbone is None else backbone
    draw = torch.Generator().manual_seed(seed)
    matrices = {
        name: LowRank(
            down=torch.randn(rank, module.in_features, generator=draw).mul(0.3).half(),
            up=torch.randn(module.out_features, rank, generator=draw).mul(0.3).half(),
        )
        for name, module in linear_modules(backbone).items()
    }
    return Adapter(matrices, scale, {BIAS: torch.randn(32, generator=draw).half()})


def adapted(source: BackboneSource, adapter: Adapter | None = None, **fields: Any) -> Loaded:
    base = multi_task(**({"max_length": 40} | fields))
    return with_adapter(base, random_adapter() if adapter is None else adapter, source=source)


# Merging


def test_a_merged_weight_is_the_weight_plus_scale_times_up_down() -> None:
    state, adapter = tiny().model.backbone.state_dict(), random_adapter()
    before = {key: tensor.clone() for key, tensor in state.items()}
    merged = merge(state, adapter)
    assert merged.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, before[key])
        pair = adapter.matrices.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if pair is not None:
            expected = tensor.double() + 0.5 * (pair.up.double() @ pair.down.double())
        elif key == BIAS:
            expected = tensor.double() + 0.5 * adapter.vectors[BIAS].double()
        else:
            assert merged[key] is tensor
            continue
        assert merged[key].dtype == torch.float32
        torch.testing.assert_close(merged[key].double(), expected, rtol=0, atol=1e-6)
        assert not torch.equal(merged[key], tensor)


def test_merging_is_a_sum_in_fixed_order_whatever_the_threads() -> None:
    """Bit by bit what numpy gives element by element: no product of matrices, whose order a processor chooses."""
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(70, 50)).astype(np.float32)
    down, up = draw.normal(size=(5, 50)).astype(np.float32), draw.normal(size=(70, 5)).astype(np.float32)
    expected = np.zeros_like(weight)
    for k in range(5):
        expected = (expected + up[:, k, None] * down[k]).astype(np.float32)
    expected = weight + expected * np.float32(0.3)
    adapter = Adapter({"x": LowRank(torch.from_numpy(down), torch.from_numpy(up))}, 0.3)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            merged = merge({"x.weight": torch.from_numpy(weight)}, adapter)
            assert merged["x.weight"].numpy().tobytes() == expected.tobytes()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": torch.zeros(32, 2)}, rf"adapter\.{QUERY}\.up has shape \[32, 2\], expected \[32, 3\]"),
        ({"down": torch.zeros(3, 31)}, rf"adapter\.{QUERY}\.down has shape \[3, 31\], expected \[3, 32\]"),
        ({"down": torch.zeros(3)}, r"has shape \[3\], expected \[3, 32\]"),
        ({"down": torch.zeros(0, 32), "up": torch.zeros(32, 0)}, r"has rank 0; of \[32, 32\] it is from 1 to 32"),
        ({"down": torch.zeros(33, 32), "up": torch.zeros(32, 33)}, r"has rank 33; of \[32, 32\] it is from 1 to 32"),
        ({"up": torch.full((32, 3), torch.nan)}, r"up holds values that are not finite"),
        ({"down": torch.full((3, 32), torch.inf).half()}, r"down holds values that are not finite"),
        ({"down": torch.ones(3, 32).long()}, r"down holds values of type torch\.int64, not floats"),
        (
            {"down": torch.full((3, 32), 1e30), "up": torch.full((32, 3), 1e30)},
            rf"makes {QUERY}\.weight hold values that are not finite, at the scale 0\.5",
        ),
    ],
)
def test_an_update_of_the_wrong_kind_is_refused(changes: dict[str, Tensor], message: str) -> None:
    adapter = random_adapter()
    pair = replace(adapter.matrices[QUERY], **changes)
    with pytest.raises(ModelError, match=message):
        merge(tiny().model.backbone.state_dict(), replace(adapter, matrices={QUERY: pair}))


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf"), 1e7])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ModelError, match=f"the scale is from 0 to 1e.06, got {scale}"):
        merge(tiny().model.backbone.state_dict(), random_adapter(scale=scale))


def test_a_strength_is_a_share_of_the_scale() -> None:
    adapter = random_adapter(scale=2.0)
    assert [adapter.scaled(strength).scale for strength in (0, 0.25, 1)] == [0.0, 0.5, 2.0]
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ModelError, match=f"the strength of an adapter is from 0 to 1, got {strength}"):
            adapter.scaled(strength)


# peft's files


def peft_folder(folder: Path, *, rank: int = 2, **config: Any) -> Path:
    """A LoRA of one layer as peft writes it."""
    folder.mkdir()
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", "use_dora": False, "rank_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    draw = torch.Generator().manual_seed(0)
    halves = {"A": torch.randn(rank, 32, generator=draw), "B": torch.randn(32, rank, generator=draw) * 0.01}
    save_file(
        {f"base_model.model.{QUERY}.lora_{half}.weight": tensor for half, tensor in halves.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_what_a_training_phase_writes_apart_merges_as_peft_merges_it(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = multi_task().model
    before = copy.deepcopy(model.backbone.state_dict())
    phase = PhaseSettings(train="lora", lora=LoraSettings(rank=4, alpha=6.0, targets=("query", "dense"), save="apart"))
    adapt(model, phase)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # values that fp16 has: what rounding costs is measured below
                parameter.copy_(torch.randn_like(parameter).mul(0.1).half().float())
    restore(model, phase, adapter=tmp_path / "adapter-1")
    adapter = read_peft(tmp_path / "adapter-1")
    assert adapter.scale == 1.5
    assert adapter.matrices.keys() == {
        name for name in linear_modules(model.backbone) if not name.endswith(("key", "value"))
    }
    merged, expected = merge(before, adapter), model.backbone.state_dict()
    assert merged.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=1e-6)
    assert not torch.equal(merged[f"{QUERY}.weight"], before[f"{QUERY}.weight"])


def test_peft_factors_are_rounded_to_half_precision_relative_to_their_largest(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "lora")
    path = folder / "adapter_model.safetensors"
    weights = {key: tensor * (1e-7 if "lora_B" in key else 1.0) for key, tensor in load_file(path).items()}
    save_file(weights, path)  # an update of some 1e-9, of which fp16 itself holds nothing
    pair = read_peft(folder, strength=0.5).matrices[QUERY]
    assert (pair.down.dtype, pair.up.dtype) == (torch.float16, torch.float16)
    down, up = (weights[f"base_model.model.{QUERY}.lora_{half}.weight"].double() for half in "AB")
    exact = up @ down
    error = (pair.up.double() @ pair.down.double() - exact).abs().max() / exact.abs().max()
    assert error < 2**-10
    assert read_peft(folder, strength=0.5).scale == 4.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True: only a plain low-rank update can be read"),
        ({"use_rslora": True}, "use_rslora is True: only a plain"),
        ({"rank_pattern": {"query": 3}}, "rank_pattern is {'query': 3}: only a plain"),
        ({"bias": "all"}, "bias is 'all': only a plain"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True: only a plain"),
        ({"of_a_later_version": 3}, "of_a_later_version is 3: only a plain"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', expected true"),
        ({"r": 3}, r"lora_A\.weight has shape \[2, 32\], but by adapter_config\.json rank 3"),
        ({"r": 0}, "r must be a number above 0, to 1e.06, got 0"),
        ({"r": True}, "r must be a number above 0, to 1e.06, got True"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number above 0, to 1e.06, got '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number above 0, to 1e.06, got nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number above 0, to 1e.06, got 1000"),
    ],
)
def test_another_method_than_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_peft(peft_folder(tmp_path / "lora", **config))
    assert str(tmp_path / "lora") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"base_model.model.{QUERY}.lora_A.weight"), f"holds adapter.{QUERY}.up, but not .*down"),
        (lambda w: w.update({"extra.weight": torch.zeros(1)}), r"holds extra\.weight, which is no part of a plain"),
        (
            lambda w: w.update({"base_model.model.x.lora_magnitude_vector": torch.zeros(1)}),
            "holds .*lora_magnitude_vector, which is no part of a plain",
        ),
        (lambda w: next(iter(w.values())).fill_(torch.nan), "holds values that are not finite"),
        (lambda w: w.update({key: value.long() for key, value in w.items()}), "holds values of type .*int64"),
        (lambda w: [value.fill_(1e30) for value in w.values()], "its largest value, 1e.30, is not finite in fp16"),
        (lambda w: w.clear(), "holds no tensors"),
    ],
)
def test_damaged_peft_files_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    path = peft_folder(tmp_path / "lora") / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ModelError, match=message) as caught:
        read_peft(tmp_path / "lora")
    assert str(path) in str(caught.value)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is not a folder: an adapter has"):
        read_peft(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="it is not an adapter folder"):
        read_peft(tmp_path)
    folder = peft_folder(tmp_path / "lora")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="weights in other forms"):
        read_peft(folder)


# Factorising


def trained(rank: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts before and after a training of all weights, or one whose matrices change by a rank."""
    before = tiny().model.backbone.state_dict()
    draw = torch.Generator().manual_seed(3)
    after = {}
    for key, tensor in before.items():
        noise = torch.randn(tensor.shape, generator=draw)
        if rank is not None and tensor.ndim == 2:
            noise = torch.randn(len(tensor), rank, generator=draw) @ torch.randn(rank, tensor.shape[1], generator=draw)
        after[key] = tensor + noise * 0.01
    return before, after


def test_a_difference_of_low_rank_is_found_again() -> None:
    before, after = trained(rank=2)
    adapter = factorise(before, after, rank=2)
    assert {tensor.dtype for tensor in to_tensors(adapter).values()} == {torch.float16}
    merged = merge(before, adapter)
    for key, tensor in after.items():  # embeddings, biases and norms as well
        change = (tensor - before[key]).abs().max()
        assert (merged[key] - tensor).abs().max() < change * 2e-3


def test_of_any_difference_the_nearest_of_that_rank_is_kept() -> None:
    before, after = trained()
    key = f"{QUERY}.weight"
    difference = (after[key] - before[key]).double()
    values = torch.linalg.svdvals(difference)
    for rank in (1, 5, 32, 100):
        adapter = factorise(before, after, rank=rank)
        pair = adapter.matrices[QUERY]
        assert pair.down.shape == (min(rank, 32), 32)
        left = (pair.up.double() @ pair.down.double() - difference).norm()
        assert abs(left - values[rank:].norm()) < 2e-3 * difference.norm()
    types = adapter.matrices["embeddings.token_type_embeddings"]  # a matrix of two rows
    assert types.down.shape == (2, 32)


def test_what_did_not_change_is_left_out() -> None:
    before, after = trained()
    after = {key: after[key] if key in (f"{QUERY}.weight", BIAS) else tensor for key, tensor in before.items()}
    adapter = factorise(before, after, rank=4)
    assert (adapter.matrices.keys(), adapter.vectors.keys(), adapter.scale) == ({QUERY}, {BIAS}, 1.0)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"x.weight": torch.ones(3, 2)}, r"x\.weight had shape \[2, 3\], and has \[3, 2\]"),
        ({}, r"x\.weight is in one of them alone"),
        ({"x.weight": torch.zeros(2, 3)}, "the two state dicts are alike"),
        ({"x.weight": torch.full((2, 3), torch.nan)}, r"x\.weight: the difference holds values that are not finite"),
    ],
)
def test_two_states_of_different_models_are_refused(after: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        factorise({"x.weight": torch.zeros(2, 3)}, after, rank=1)


def test_what_is_no_matrix_nor_vector_and_no_rank_is_refused() -> None:
    with pytest.raises(ModelError, match=r"conv\.weight of shape \[2, 2, 2\] has changed"):
        factorise({"conv.weight": torch.zeros(2, 2, 2)}, {"conv.weight": torch.ones(2, 2, 2)}, rank=1)
    with pytest.raises(ModelError, match="the rank of an adapter is at least 1, got 0"):
        factorise({}, {}, rank=0)


# Checkpoints


@pytest.mark.parametrize("made", ["by hand", "from peft", "by factorising"])
def test_save_and_load_gives_the_same_model_bit_by_bit(
    tmp_path: Path, source: BackboneSource, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made == "by hand":
        adapter = random_adapter()
    elif made == "from peft":
        adapter = read_peft(peft_folder(tmp_path / "lora"), strength=0.3)
    else:
        adapter = factorise(*trained(), rank=3).scaled(0.7)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    model = adapted(source, adapter)
    save_checkpoint(model, tmp_path / "model", backbone=False, adapter=adapter)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_checkpoint(tmp_path / "model")
    state, expected = loaded.model.state_dict(), model.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert (loaded.fingerprint, loaded.heads_fingerprint) == (model.fingerprint, model.heads_fingerprint)
    config = loaded.model.config
    assert (config.adapter_scale, config.backbone_source) == (adapter.scale, source.reference)
    first, second = TextModel(model, device="cpu").analyse(TEXTS), TextModel(loaded, device="cpu").analyse(TEXTS)
    for one, other in zip(first, second, strict=True):
        assert one.vectors.tobytes() == other.vectors.tobytes()
        assert (one.passages, one.label, one.spans) == (other.passages, other.label, other.spans)


def test_the_embeddings_are_those_of_the_merged_backbone(folder: Path, source: BackboneSource) -> None:
    raw = load_checkpoint(source.name)
    backbone = raw.model.backbone
    backbone.load_state_dict(merge(backbone.state_dict(), random_adapter()))
    expected = TextModel(raw, device="cpu").encode(["hello there"])
    bare = TextModel(load_checkpoint(source.name), device="cpu").encode(["hello there"])
    found = TextModel.load(folder, device="cpu").encode(["hello there"])
    assert found.tobytes() == expected.tobytes()
    assert np.abs(found - bare).max() > 0.1


def test_fingerprints_tell_backbones_adapters_and_strengths_apart(source: BackboneSource) -> None:
    bare = adapted(source, random_adapter().scaled(0))
    models = [adapted(source, random_adapter().scaled(strength)) for strength in (0.5, 1)]
    models += [adapted(source, random_adapter(seed=1)), bare]
    assert len({model.fingerprint for model in models}) == 4
    assert len({model.heads_fingerprint for model in models}) == 1
    assert torch.equal(bare.model.backbone.state_dict()[f"{QUERY}.weight"], raw_weight(source))


def raw_weight(source: BackboneSource) -> Tensor:
    weight: Tensor = load_checkpoint(source.name).model.backbone.state_dict()[f"{QUERY}.weight"]
    return weight


def test_another_scale_in_the_configuration_is_another_model_though_digests_are_remembered(
    folder: Path, source: BackboneSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = load_checkpoint(folder).fingerprint
    digests = tmp_path / "cache" / "tagdex" / "digests"
    before = len(list(digests.iterdir()))
    assert load_checkpoint(folder).fingerprint == first
    assert len(list(digests.iterdir())) == before > 0
    change_config(folder, adapter_scale=0.25)
    second = load_checkpoint(folder)
    assert second.fingerprint == adapted(source, random_adapter(scale=0.25)).fingerprint != first


def test_saved_whole_it_is_the_same_model_without_an_adapter(tmp_path: Path, source: BackboneSource) -> None:
    model = adapted(source)
    save_checkpoint(model, tmp_path / "whole")
    loaded = load_checkpoint(tmp_path / "whole")
    assert (loaded.fingerprint, loaded.heads_fingerprint) == (model.fingerprint, model.heads_fingerprint)
    config = loaded.model.config
    assert (config.backbone_source, config.adapter_scale) == (None, None)
    assert not [key for key in load_file(tmp_path / "whole" / "model.safetensors") if key.startswith("adapter.")]


def test_new_heads_on_an_adapted_backbone_are_saved_with_the_same_adapter(checkpoint: Path, tmp_path: Path) -> None:
    fresh = with_heads(load_checkpoint(checkpoint), class_labels=["a", "b"], seed=5)
    save_checkpoint(fresh, tmp_path / "second", backbone=False, adapter=random_adapter())
    loaded = load_checkpoint(tmp_path / "second")
    assert (loaded.fingerprint, loaded.heads_fingerprint) == (fresh.fingerprint, fresh.heads_fingerprint)


def test_heads_without_an_adapter_are_saved_as_before(tmp_path: Path, source: BackboneSource) -> None:
    raw = load_checkpoint(source.name)
    model = with_heads(raw, class_labels=["a", "b"])
    model.model.config.backbone_source = source.reference
    save_checkpoint(model, tmp_path / "heads", backbone=False)
    loaded = load_checkpoint(tmp_path / "heads")
    assert (loaded.fingerprint, loaded.heads_fingerprint) == (raw.fingerprint, model.heads_fingerprint)
    assert loaded.model.config.adapter_scale is None


def test_what_would_be_loaded_as_another_model_is_not_saved(tmp_path: Path, source: BackboneSource) -> None:
    model, adapter = adapted(source), random_adapter()
    for other in (None, adapter.scaled(0.5), random_adapter(seed=1)):
        with pytest.raises(ModelError, match=r"backbone is not tagdex-tests/backbone.*: \d+ of \d+ weights differ"):
            save_checkpoint(model, tmp_path / "model", backbone=False, adapter=other)
    with pytest.raises(ModelError, match="takes no adapter: that is in the weights already"):
        save_checkpoint(model, tmp_path / "model", adapter=adapter)
    words = replace(model, tokenizer=wordpiece(["other", "words"]))
    with pytest.raises(ModelError, match="tokenizer is not that of tagdex-tests/backbone with this adapter"):
        save_checkpoint(words, tmp_path / "model", backbone=False, adapter=adapter)
    assert not (tmp_path / "model").exists()


def test_an_adapter_needs_a_backbone_of_its_kind(source: BackboneSource) -> None:
    with pytest.raises(ModelError, match="needs the published backbone that it changes"):
        with_adapter(multi_task(), random_adapter())
    narrow = multi_task(encoder={"intermediate_size": 48})
    with pytest.raises(ModelError, match=r"of shape \[64, 32\], but the model's has the shape \[48, 32\]"):
        with_adapter(narrow, random_adapter(), source=source)
    shallow = multi_task(encoder={"num_hidden_layers": 3}, pool_layers=[-1])
    with pytest.raises(ModelError, match=r"holds encoder\.layer\.3\..*, which the model's backbone does not have"):
        with_adapter(shallow, random_adapter(), source=source)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"adapter.{QUERY}.up"), f"holds adapter.{QUERY}.down, but not adapter.{QUERY}.up"),
        (lambda w: w.pop(f"adapter.{QUERY}.down"), f"holds adapter.{QUERY}.up, but not adapter.{QUERY}.down"),
        (
            lambda w: w.update({"adapter.pooler.down": torch.zeros(1, 32), "adapter.pooler.up": torch.zeros(32, 1)}),
            r"holds adapter\.pooler\.down, but the backbone has no pooler\.weight",
        ),
        (
            lambda w: w.update({f"adapter.{QUERY}.up": torch.zeros(31, 3)}),
            r"query\.up has shape \[31, 3\], expected \[32, 3\]",
        ),
        (lambda w: w[f"adapter.{QUERY}.up"].fill_(torch.inf), r"query\.up holds values that are not finite"),
        (
            lambda w: w.update(
                {f"adapter.{QUERY}.down": torch.zeros(0, 32), f"adapter.{QUERY}.up": torch.zeros(32, 0)}
            ),
            r"query\.down has rank 0; of \[32, 32\] it is from 1 to 32",
        ),
        (
            lambda w: w.update({"adapter.x.middle": torch.zeros(1)}),
            r"holds adapter\.x\.middle; an adapter's tensors end",
        ),
        (
            lambda w: w.update({"adapter.down": torch.zeros(1), "adapter..up": torch.zeros(1)}),
            r"holds adapter\.{2}up, but not adapter\.{2}down",
        ),
        (lambda w: w.update({"adapter.down": torch.zeros(1)}), r"holds adapter\.down; an adapter's tensors end"),
        (
            lambda w: w.update({f"adapter.{QUERY}.weight.delta": torch.zeros(32)}),
            r"query\.weight of the backbone has shape \[32, 32\] and torch\.float32: 1 dimensions of floats are needed",
        ),
        (
            lambda w: w.update({f"adapter.{BIAS}.delta": torch.zeros(31)}),
            r"bias\.delta has shape \[31\], expected \[32\]",
        ),
        (
            lambda w: w.update({f"adapter.{BIAS}.delta": torch.zeros(32).int()}),
            r"bias\.delta holds values of type torch\.int32, not floats",
        ),
        (
            lambda w: [w.pop(key) for key in list(w) if key.startswith("adapter.")],
            r"holds no tensor adapter\.…, but config\.json has adapter_scale 0\.5",
        ),
        (
            lambda w: w.update({f"backbone.{QUERY}.weight": torch.zeros(32, 32)}),
            rf"holds backbone\.{QUERY}\.weight, but by config\.json the backbone comes from its backbone_source",
        ),
    ],
)
def test_a_damaged_adapter_is_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, message)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("scale", ["1", True, [], -1, 1e7, 10**400, float("nan")])
def test_a_scale_in_the_configuration_is_a_number(folder: Path, scale: object) -> None:
    change_config(folder, adapter_scale=scale)
    assert_refused(folder, "adapter_scale")


def test_an_adapter_without_its_scale_is_refused(folder: Path) -> None:
    change_config(folder, adapter_scale=None)
    assert_refused(folder, r"model\.safetensors holds adapter\..*, but config\.json has no adapter_scale")


def test_an_adapter_beside_a_whole_backbone_is_refused(tmp_path: Path) -> None:
    save_checkpoint(multi_task(), tmp_path / "scale")
    change_config(tmp_path / "scale", adapter_scale=1.0)
    assert_refused(tmp_path / "scale", "holds its whole backbone, but there is adapter_scale 1.0 as well")
    save_checkpoint(multi_task(), tmp_path / "tensors")
    path = tmp_path / "tensors" / "model.safetensors"
    save_file(load_file(path) | to_tensors(random_adapter()), path)
    assert_refused(path.parent, r"holds its whole backbone, but there is adapter\..* as well: an adapter changes")


def test_rank_16_over_all_linear_layers_of_a_minilm_takes_less_than_3_mb(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bert", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    with torch.device("meta"):
        backbone = AutoModel.from_config(config, add_pooling_layer=False)
    assert len(linear_modules(backbone)) == 36
    adapter = replace(random_adapter(backbone, rank=16), vectors={})
    path = tmp_path / "adapter.safetensors"
    save_file(to_tensors(adapter), path)
    assert 1_300_000 < path.stat().st_size < 1_400_000
    again = from_tensors(load_file(path), scale=adapter.scale, place=str(path))
    assert again.matrices.keys() == adapter.matrices.keys()
