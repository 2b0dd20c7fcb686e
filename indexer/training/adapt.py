"""What of a model is trained: everything, the heads, the top layers, or low-rank updates of the backbone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from indexer.heads import MultiTaskModel
from indexer.training.keys import ConfigError
from indexer.training.settings import PhaseSettings

# Query, key and value of each architecture, as its modules are called.
LORA_TARGETS = {
    "bert": ("query", "key", "value"),
    "roberta": ("query", "key", "value"),
    "xlm-roberta": ("query", "key", "value"),
    "camembert": ("query", "key", "value"),
    "electra": ("query", "key", "value"),
    "albert": ("query", "key", "value"),
    "mpnet": ("attn.q", "attn.k", "attn.v"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj"),
    "modernbert": ("Wqkv",),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate, relative to the phase's own: the optimizer's parameter group."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    rate: float
    weight_decay: float


def check_phase(model: MultiTaskModel, phase: PhaseSettings) -> None:
    """Raise `ConfigError` where `adapt` would: a run is refused before its first step, not after a phase of hours."""
    if phase.kind == "lora":
        _lora_targets(model, phase)
    elif phase.kind == "top":
        list(_top_parameters(model, phase.top))


def adapt(model: MultiTaskModel, phase: PhaseSettings) -> list[Group]:
    """Prepare a model for a phase in place, and return what is trained. `restore` undoes it.

    "lora" wraps the backbone, and nothing else, with peft. Raises `ConfigError` where the backbone has no such layers.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if phase.kind == "lora":
        _wrap(model, phase)
    elif phase.kind == "all":
        for parameter in model.backbone.parameters():
            parameter.requires_grad_(True)
    elif phase.kind == "top":
        for parameter in _top_parameters(model, phase.top):
            parameter.requires_grad_(True)
    for name, head in heads_of(model).items():
        for parameter in head.parameters():
            parameter.requires_grad_(name not in phase.freeze_heads)
    return groups(model, phase)


def restore(model: MultiTaskModel, phase: PhaseSettings, *, adapter: Path | None = None) -> None:
    """Make a plain model again: merge low-rank updates into the weights, nothing frozen.

    With `adapter`, the updates are first written to this folder in peft's own format.
    """
    if phase.kind == "lora":
        wrapped: Any = model.backbone
        if adapter is not None:
            wrapped.save_pretrained(str(adapter), safe_serialization=True)
        model.backbone = wrapped.merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def groups(model: MultiTaskModel, phase: PhaseSettings) -> list[Group]:
    """The trainable parameters by learning rate; biases and norms, which have one dimension, do not decay."""
    layers = {id(p): depth for depth, layer in enumerate(_layers(model)) for p in layer.parameters()}
    count = len(_layers(model))
    found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            # Layer-wise rates (Howard and Ruder 2018): the last layer has the full one, embeddings the smallest.
            depth = layers.get(id(parameter), -1 if "embedding" in name.lower() else count - 1)
            rate = phase.rate * phase.layer_decay ** (count - 1 - depth)
        else:
            rate = phase.rate if phase.kind == "heads" else phase.head_learning_rate
        decay = phase.weight_decay if parameter.ndim > 1 else 0.0
        found.setdefault((rate, decay), []).append((name, parameter))
    return [
        Group(tuple(name for name, _ in entries), tuple(parameter for _, parameter in entries), rate, decay)
        for (rate, decay), entries in found.items()
    ]


def heads_of(model: MultiTaskModel) -> dict[str, nn.Module]:
    """The heads that there are, by task."""
    heads = {"class": model.class_head, "tags": model.tag_head}
    return {name: head for name, head in heads.items() if head is not None}


def set_train_mode(model: MultiTaskModel, phase: PhaseSettings) -> None:
    """Dropout is on in what is trained; a frozen backbone and frozen heads stay in eval mode."""
    model.train()
    if phase.kind == "heads":
        model.backbone.eval()
    for name, head in heads_of(model).items():
        if name in phase.freeze_heads:
            head.eval()


def set_dropout(model: nn.Module, share: float | None) -> list[tuple[nn.Dropout, float]]:
    """Give all dropout layers this share; returns what they had. `None` changes nothing."""
    if share is None:
        return []
    before = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for module, _ in before:
        module.p = share
    return before


def _layers(model: MultiTaskModel) -> list[nn.Module]:
    """The backbone's layers from the first to the last; empty where they are shared or cannot be told."""
    count = int(model.backbone.config.num_hidden_layers)
    for module in model.backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _top_parameters(model: MultiTaskModel, top: int) -> Iterator[nn.Parameter]:
    """Of the last `top` layers, and of a norm behind them."""
    layers = _layers(model)
    family = model.backbone.config.model_type
    if not layers:
        raise ConfigError(f"train = 'top:{top}': a backbone of type {family} has no layers to be told apart; use 'all'")
    if top > len(layers):
        raise ConfigError(
            f"train = 'top:{top}': the backbone has {len(layers)} layers, so N is from 1 to {len(layers)}"
        )
    for layer in layers[-top:]:
        yield from layer.parameters()
    for name, module in model.backbone.named_modules():
        if name.rpartition(".")[2] == "final_norm":
            yield from module.parameters()


def _lora_targets(model: MultiTaskModel, phase: PhaseSettings) -> list[str]:
    if find_spec("peft") is None:
        raise ConfigError("train = 'lora' needs peft: pip install 'tagdex[train]'")
    family = str(model.backbone.config.model_type)
    targets = phase.lora.targets or LORA_TARGETS.get(family)
    linear = sorted({name for name, module in model.backbone.named_modules() if isinstance(module, nn.Linear)})
    if targets is None:
        raise ConfigError(
            f"train = 'lora': which layers of a backbone of type {family}? Name them in lora.targets; its linear "
            f"layers are {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
        )
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"lora.targets: the backbone has no linear layer '{target}', only "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
            )
    return list(targets)


def _wrap(model: MultiTaskModel, phase: PhaseSettings) -> None:
    targets = _lora_targets(model, phase)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=phase.lora.rank,
        lora_alpha=phase.lora.alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=phase.lora.dropout,
        target_modules=targets,
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that is on its way out, and tells us nothing.
        warnings.simplefilter("ignore", FutureWarning)
        model.backbone = get_peft_model(model.backbone, config)
