"""Low-rank updates of a backbone: checked, merged into its weights, read from peft's files, made from a difference.

A matrix W (out, in) becomes W + scale · up @ down (Hu et al. 2021, LoRA); a vector gets scale · delta added. In a
checkpoint they are `adapter.<module>.down` (rank, in), `adapter.<module>.up` (out, rank), `adapter.<parameter>.delta`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indexer.config import MAX_SCALE, TagdexConfig
from indexer.errors import ModelError
from indexer.finite import all_finite
from indexer.folders import check_files, read_json, read_weights

PREFIX = "adapter."

_PEFT_PREFIX = "base_model.model."
# What an adapter_config.json may say; all else, with a value, is a variant whose update is another one.
_PEFT_PLAIN = {"peft_type", "r", "lora_alpha", "lora_dropout", "init_lora_weights", "target_modules", "exclude_modules"}
_PEFT_PLAIN |= {"layers_pattern", "layers_to_transform", "inference_mode", "task_type", "auto_mapping", "revision"}
_PEFT_PLAIN |= {"base_model_name_or_path", "peft_version", "megatron_core", "qalora_group_size"}


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update up @ down of one matrix (out, in): `down` (rank, in), `up` (out, rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """An update of a backbone: `matrices` by module, `vectors` (biases, norms) by parameter, `scale` for all of them.

    `read_peft` and `factorise` round to fp16, which is what they write: a model is the same before and after saving.
    """

    matrices: Mapping[str, LowRank]
    scale: float
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def scaled(self, strength: float) -> Adapter:
        """The same update times `strength` in [0, 1], on top of its scale. Raises `ModelError` for another one."""
        if not 0 <= strength <= 1:
            raise ModelError(f"the strength of an adapter is from 0 to 1, got {strength}")
        return replace(self, scale=self.scale * strength)


def merge(state: Mapping[str, Tensor], adapter: Adapter, *, place: str = "the adapter") -> dict[str, Tensor]:
    """A backbone's state dict with the update added, in fp32; tensors that it does not change are the same objects.

    The result is the same bit by bit on every machine, as an index remembers the hash of the weights: there are only
    elementwise operations in a fixed order, where the sums of a matrix product depend on the processor and its threads.
    Raises `ModelError` for an update that does not fit the state dict; `place` names it.
    """
    _check(state, adapter, place)
    scale = torch.tensor(adapter.scale, dtype=torch.float32)
    added = {f"{module}.weight": _product(pair) for module, pair in adapter.matrices.items()}
    added |= {parameter: delta.float() for parameter, delta in adapter.vectors.items()}
    changed = {key: state[key].float() + update * scale for key, update in added.items()}
    for key, tensor in changed.items():
        if not all_finite(tensor):
            raise ModelError(f"{place} makes {key} hold values that are not finite, at the scale {adapter.scale:g}")
    return {**state, **changed}


def to_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; the scale stands in its configuration."""
    tensors = {f"{PREFIX}{parameter}.delta": delta for parameter, delta in adapter.vectors.items()}
    for module, pair in adapter.matrices.items():
        tensors |= {f"{PREFIX}{module}.down": pair.down, f"{PREFIX}{module}.up": pair.up}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor], *, scale: float, place: str) -> Adapter:
    """The update in a checkpoint's tensors. Raises `ModelError` for one of no such name, or half of a pair."""
    matrices: dict[str, LowRank] = {}
    vectors: dict[str, Tensor] = {}
    for name in sorted(tensors):
        module, _, part = name.removeprefix(PREFIX).rpartition(".")
        if name != f"{PREFIX}{module}.{part}" or part not in ("down", "up", "delta"):
            raise ModelError(f"{place} holds {name}; an adapter's tensors end in .down, .up or .delta")
        if part == "delta":
            vectors[module] = tensors[name]
            continue
        other = f"{PREFIX}{module}.{'up' if part == 'down' else 'down'}"
        if other not in tensors:
            raise ModelError(f"{place} holds {name}, but not {other}")
        matrices[module] = LowRank(tensors[f"{PREFIX}{module}.down"], tensors[f"{PREFIX}{module}.up"])
    return Adapter(matrices, scale, vectors)


def split_adapter(weights: dict[str, Tensor], config: TagdexConfig, *, place: str) -> Adapter | None:
    """Take the adapter's tensors out of a checkpoint's. Raises `ModelError` where there should be none, or some."""
    tensors = {key: weights.pop(key) for key in sorted(weights) if key.startswith(PREFIX)}
    scale, first = config.adapter_scale, next(iter(tensors), None)
    whole = next((key for key in sorted(weights) if key.startswith("backbone.")), None)
    if config.backbone_source is None:
        if first is not None or scale is not None:
            raise ModelError(
                f"{place} holds its whole backbone, but there is {first or f'adapter_scale {scale}'} as well: "
                "an adapter changes the published backbone that backbone_source in config.json names"
            )
        return None
    if whole is not None:
        raise ModelError(f"{place} holds {whole}, but by config.json the backbone comes from its backbone_source")
    if first is None and scale is not None:
        raise ModelError(f"{place} holds no tensor {PREFIX}…, but config.json has adapter_scale {scale}")
    if first is not None and scale is None:
        raise ModelError(f"{place} holds {first}, but config.json has no adapter_scale")
    return None if scale is None else from_tensors(tensors, scale=float(scale), place=place)


def read_peft(folder: str | Path, *, strength: float = 1.0) -> Adapter:
    """The update in a LoRA folder as peft writes it, rounded to fp16; scale is alpha / rank · strength.

    Read without peft: adapter_config.json and adapter_model.safetensors. Raises `ModelError`, also for a variant of
    LoRA that is no plain low-rank update.
    """
    folder = Path(folder)
    path = folder / "adapter_model.safetensors"
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: an adapter has adapter_config.json and {path.name}")
    check_files(folder)
    config = read_json(folder / "adapter_config.json", kind="an adapter")
    _check_plain(config, str(folder / "adapter_config.json"))
    rank, alpha = float(config["r"]), float(config["lora_alpha"])
    tensors = {}
    for name, tensor in read_weights(path).items():
        module, _, part = name.removeprefix(_PEFT_PREFIX).rpartition(".lora_")
        half = {"A.weight": "down", "B.weight": "up"}.get(part)
        if not name.startswith(_PEFT_PREFIX) or half is None:
            raise ModelError(f"{path} holds {name}, which is no part of a plain low-rank update")
        if tensor.ndim != 2 or tensor.shape[half == "up"] != rank:
            raise ModelError(f"{path}: {name} has shape {list(tensor.shape)}, but by adapter_config.json rank {rank:g}")
        _check_values(name, tensor, str(path))
        tensors[f"{PREFIX}{module}.{half}"] = tensor
    if not tensors:
        raise ModelError(f"{path} holds no tensors")
    whole = from_tensors(tensors, scale=alpha / rank, place=str(path))
    halved = {module: _half(pair, f"{path}: {module}") for module, pair in whole.matrices.items()}
    return replace(whole, matrices=halved).scaled(strength)


def factorise(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, rank: int) -> Adapter:
    """The nearest update of this rank from one state dict to another, rounded to fp16; scale is 1.

    Matrices by singular value decomposition, each on its own (Eckart and Young 1936), at most of the rank that they can
    have; vectors whole. What has not changed is left out. Raises `ModelError` for state dicts of two kinds, or alike.
    """
    if rank < 1:
        raise ModelError(f"the rank of an adapter is at least 1, got {rank}")
    if different := sorted(before.keys() ^ after.keys()):
        raise ModelError(f"two state dicts of one model are needed: {different[0]} is in one of them alone")
    matrices: dict[str, LowRank] = {}
    vectors: dict[str, Tensor] = {}
    for key in sorted(before):
        if before[key].shape != after[key].shape:
            raise ModelError(f"{key} had shape {list(before[key].shape)}, and has {list(after[key].shape)}")
        difference = (after[key].detach().double() - before[key].detach().double()).float().cpu()
        if not all_finite(difference):
            raise ModelError(f"{key}: the difference holds values that are not finite")
        if not difference.any():
            continue
        module = key.removesuffix(".weight")
        if difference.ndim == 1:
            vectors[key] = _rounded(difference, key)
        elif difference.ndim == 2 and module != key:
            left, values, right = torch.linalg.svd(difference, full_matrices=False)
            kept = min(rank, int((values > 0).sum()))
            roots = values[:kept].sqrt()
            matrices[module] = _half(LowRank(down=roots[:, None] * right[:kept], up=left[:, :kept] * roots), module)
        else:
            raise ModelError(f"{key} of shape {list(difference.shape)} has changed; an adapter is of weight matrices")
    if not matrices and not vectors:
        raise ModelError("the two state dicts are alike: there is nothing to make an adapter from")
    return Adapter(matrices, 1.0, vectors)


def _check_plain(config: Mapping[str, Any], place: str) -> None:
    """Raise `ModelError` for an adapter_config.json of another method or variant than plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{place}: peft_type is {_shown(config.get('peft_type'))}, expected 'LORA'")
    if config.get("init_lora_weights") not in (None, True, False, "gaussian"):  # others change the weights themselves
        raise ModelError(f"{place}: init_lora_weights is {_shown(config['init_lora_weights'])}, expected true")
    for key, value in config.items():
        if key not in _PEFT_PLAIN and value not in (None, False, {}, [], "none"):
            raise ModelError(f"{place}: {key} is {_shown(value)}: only a plain low-rank update can be read")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SCALE:
            raise ModelError(f"{place}: {key} must be a number above 0, to {MAX_SCALE:g}, got {_shown(value)}")


def _check(state: Mapping[str, Tensor], adapter: Adapter, place: str) -> None:
    if not 0 <= adapter.scale <= MAX_SCALE:
        raise ModelError(f"{place}: the scale is from 0 to {MAX_SCALE:g}, got {adapter.scale}")
    for name, tensor in to_tensors(adapter).items():
        _check_values(name, tensor, place)
    for parameter, delta in adapter.vectors.items():
        name = f"{PREFIX}{parameter}.delta"
        _check_shape(name, delta, _weight(state, parameter, 1, name, place), place)
    for module, pair in adapter.matrices.items():
        down, up = f"{PREFIX}{module}.down", f"{PREFIX}{module}.up"
        out, into = _weight(state, f"{module}.weight", 2, down, place)
        rank = pair.down.shape[0] if pair.down.ndim else 0
        if not 1 <= rank <= min(out, into):
            raise ModelError(f"{place}: {down} has rank {rank}; of [{out}, {into}] it is from 1 to {min(out, into)}")
        _check_shape(down, pair.down, (rank, into), place)
        _check_shape(up, pair.up, (out, rank), place)


def _check_values(name: str, tensor: Tensor, place: str) -> None:
    if not tensor.is_floating_point():
        raise ModelError(f"{place}: {name} holds values of type {tensor.dtype}, not floats")
    if not all_finite(tensor.float()):
        raise ModelError(f"{place}: {name} holds values that are not finite")


def _weight(state: Mapping[str, Tensor], key: str, dimensions: int, name: str, place: str) -> tuple[int, ...]:
    """The shape of a weight that is updated."""
    weight = state.get(key)
    if weight is None:
        raise ModelError(f"{place} holds {name}, but the backbone has no {key}")
    if weight.ndim != dimensions or not weight.is_floating_point():
        raise ModelError(
            f"{place} holds {name}, but {key} of the backbone has shape {list(weight.shape)} and {weight.dtype}: "
            f"{dimensions} dimensions of floats are needed"
        )
    return tuple(weight.shape)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], place: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ModelError(f"{place}: {name} has shape {list(tensor.shape)}, expected {list(expected)}")


def _product(pair: LowRank) -> Tensor:
    """up @ down in fp32, as a sum of outer products from the first to the last: products of fp16 values are exact."""
    down, up = pair.down.float(), pair.up.float()
    total = torch.zeros(up.shape[0], down.shape[1])
    for column, row in zip(up.T, down, strict=True):
        total += column[:, None] * row
    return total


def _half(pair: LowRank, name: str) -> LowRank:
    """Both factors in fp16; before, a power of two goes from the larger to the smaller, so that neither underflows."""
    down, up = pair.down.double(), pair.up.double()
    largest = float(down.abs().max()), float(up.abs().max())
    if min(largest) > 0:
        factor = 2.0 ** round((math.log2(largest[0]) - math.log2(largest[1])) / 2)
        down, up = down / factor, up * factor
    return LowRank(_rounded(down, f"{name}.down"), _rounded(up, f"{name}.up"))


def _rounded(tensor: Tensor, name: str) -> Tensor:
    half = tensor.half()
    if not all_finite(half):
        raise ModelError(f"{name}: its largest value, {float(tensor.abs().max()):g}, is not finite in fp16")
    return half


def _shown(value: object) -> str:
    return repr(value)[:200]
