"""The model that a run starts from: the base's backbone, and the heads that the data ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from indexer.checkpoint import Loaded, attach
from indexer.config import TagdexConfig
from indexer.heads import MultiTaskModel, PooledClassHead
from indexer.training.data import TaggedText
from indexer.training.keys import ConfigError
from indexer.training.sets import ClassExample, DataSet
from indexer.training.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Start:
    """The model, for each head in words what became of it, and the tasks whose heads are `new`, of random weights."""

    loaded: Loaded
    heads: dict[str, str]
    new: frozenset[str]


def start_model(base: Loaded, settings: ModelSettings, sets: Sequence[DataSet], *, seed: int) -> Start:
    """A model with the backbone of `base`, whose weights it shares, and heads for the labels of the data.

    A head is kept, weights included, where it knows all labels of its data, or has no data; otherwise a new one takes
    its place. Raises `ConfigError` where labels are given that lack one of the data, and where a pooled class head that
    is kept would get other layers than it was trained on.
    """
    config = type(base.model.config).from_dict(base.model.config.to_dict())
    for name in ("pool_layers", "layer_weights", "normalize_layers", "max_length"):
        value = getattr(settings, name)
        if value is not None:
            setattr(config, name, list(value) if isinstance(value, tuple) else value)
    heads: dict[str, str] = {}
    kept = {"class": True, "tags": True}
    chosen = {
        "class": _choose("class", settings, sets, base.model.config.class_labels),
        "tags": _choose("tags", settings, sets, base.model.config.entity_types),
    }
    if (labels := chosen["class"]) is not None:
        heads["class"] = _words(labels, base.model.config.class_labels)
        kept["class"] = False
        config.class_labels, config.class_head = labels, settings.class_head
        config.class_head_width, config.head_dropout = settings.class_head_width, settings.head_dropout
        config.class_temperature, config.class_threshold = 1.0, 0.0
    elif base.model.class_head is not None:
        heads["class"] = f"the base's, {len(base.model.config.class_labels or ())} labels"
        _check_pooled(base.model, config)
    if (types := chosen["tags"]) is not None:
        heads["tags"] = _words(types, base.model.config.entity_types)
        kept["tags"] = False
        config.entity_types, config.tag_head = types, settings.tag_head
        config.tag_head_width, config.head_dropout = settings.tag_head_width, settings.head_dropout
        config.tag_layers, config.tag_shapes = list(settings.tag_layers), settings.tag_shapes
    elif base.model.tag_head is not None:
        heads["tags"] = f"the base's, {len(base.model.config.entity_types or ())} types"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiTaskModel(config)
    model.backbone = base.model.backbone
    if kept["class"]:
        model.class_head = base.model.class_head
    if kept["tags"]:
        model.tag_head = base.model.tag_head
    new = frozenset(task for task, stays in kept.items() if not stays)
    return Start(attach(model, base.tokenizer, name=base.name), heads, new)


def _check_pooled(base: MultiTaskModel, config: TagdexConfig) -> None:
    """A pooled class head reads the means of the pooled layers; their weights and norms, which it does not, may change.

    A linear class head reads the last layer, and a tag head that is kept keeps its own layers, too.
    """
    if not isinstance(base.class_head, PooledClassHead):
        return
    states = int(base.backbone.config.num_hidden_layers) + 1
    read = base.config.pooled_layers
    if [layer % states for layer in read] != [layer % states for layer in config.pooled_layers]:
        raise ConfigError(
            f"[model] pool_layers = {config.pooled_layers}: the base's class head, which is kept, was trained on the "
            f"means of the layers {read}: leave pool_layers out, or give data for class and set new_heads = ['class']"
        )


def labels_of(sets: Sequence[DataSet], task: str) -> list[str]:
    """The labels or types of the examples to train on, sorted."""
    found: set[str] = set()
    for one in sets:
        if one.task != task:
            continue
        for example in one.train:
            if isinstance(example, ClassExample):
                found.add(example.label)
            elif isinstance(example, TaggedText):
                found |= {kind for kind, _, _ in example.spans}
    return sorted(found)


def _choose(
    task: str, settings: ModelSettings, sets: Sequence[DataSet], known: Sequence[str] | None
) -> list[str] | None:
    """The labels of a new head; `None` where the base's stays, or where there is none."""
    given = settings.class_labels if task == "class" else settings.entity_types
    labels = labels_of(sets, task)
    if given is not None:
        missing = [label for label in labels if label not in given]
        if missing:
            key = "class_labels" if task == "class" else "entity_types"
            raise ConfigError(f"[model] {key} lacks labels of the data: {', '.join(missing[:10])}")
        if known is not None and list(given) == list(known) and task not in settings.new_heads:
            return None
        return list(given)
    if not labels:
        if any(one.task == task and one.train for one in sets):
            unnamed = sorted({kind for one in sets if one.task == task for kind in one.problems.unnamed})
            hint = f"; types does not name {', '.join(unnamed[:10])}" if unnamed else ""
            raise ConfigError(f"the data for {task} hold no label at all{hint}")
        if task in settings.new_heads:
            raise ConfigError(f"[model] new_heads = ['{task}']: there is no [[data]] for {task} to train it on")
        return None
    if known is not None and set(labels) <= set(known) and task not in settings.new_heads:
        return None
    if task == "class" and len(labels) < 2:
        raise ConfigError(f"the data for class hold one label, '{labels[0]}': there is nothing to tell apart")
    return labels


def _words(labels: Sequence[str], known: Sequence[str] | None) -> str:
    replaced = f", in place of the base's {len(known)}" if known is not None else ""
    return f"new, {len(labels)} labels{replaced}"
