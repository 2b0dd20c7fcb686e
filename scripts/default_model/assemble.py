"""The heads put together into a model, and everything measured again through it, as a user gets it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from default_model.adapted import Adapted
from default_model.class_sets import TOPICS, class_sets
from default_model.classes import Classifier
from default_model.common import ENTITY_TYPES, LAYERS, MAX_LENGTH
from default_model.features import Encoder
from default_model.tag_head import TagSettings
from default_model.tag_sets import tag_sets
from indexer.checkpoint import Loaded, attach, save_checkpoint
from indexer.config import TagdexConfig
from indexer.encoder import concatenate_layers
from indexer.heads import ContextualTagHead, MultiTaskModel
from indexer.model import TextModel
from indexer.sources import MINILM
from indexer.training import data, metrics


def assemble(
    found: Adapted, tag_head: ContextualTagHead, tags: TagSettings, classifier: Classifier, output: Path
) -> None:
    """Write the heads, the backbone's update and the configuration; the published backbone is named, not copied."""
    config = TagdexConfig(
        encoder_config=portable(found.backbone.model.config.encoder_config),
        pool_layers=LAYERS,
        layer_weights=found.weights,
        normalize_layers=True,
        tag_layers=tags.layers,
        class_labels=TOPICS,
        class_head="pooled",
        class_head_width=classifier.head.hidden.out_features,
        entity_types=ENTITY_TYPES,
        tag_head="contextual",
        tag_head_width=tags.width,
        tag_shapes=tags.tag_shapes,
        max_length=MAX_LENGTH,
        class_temperature=classifier.temperature,
        class_threshold=classifier.threshold,
        backbone_source=MINILM.reference,
    )
    model = MultiTaskModel(config)
    model.backbone = found.backbone.model.backbone
    model.class_head, model.tag_head = classifier.head, tag_head
    temporary = output.with_name(output.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.adapter_scale = None if found.adapter is None else found.adapter.scale
    loaded = attach(model, found.backbone.tokenizer, name="default")
    save_checkpoint(loaded, temporary, backbone=False, adapter=found.adapter)
    output.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():  # a model card that stands there stays
        file.replace(output / file.name)
    temporary.rmdir()


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the path that it was loaded from, and what does not describe the architecture."""
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "architectures")}


def evaluate_product(output: Path, folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Everything again through `TextModel`, as a user gets it."""
    model = TextModel.load(output)
    report: dict[str, Any] = {"fingerprint": model.fingerprint, "tags": {}, "abstention": {}}
    for name, texts in tag_sets(folder).dev.items():
        analyses = model.analyse([text.text for text in texts])
        scores = metrics.span_scores(
            [text.spans for text in texts],
            [[(span.type, span.start, span.end) for span in analysis.spans] for analysis in analyses],
        )
        report["tags"][name] = {kind: asdict(score) for kind, score in scores.items()}
    sets = class_sets(folder)
    held_out = model.analyse([row.text for row in sets.held_out])
    answers = [TOPICS.index(found.label.name) if found.label else -1 for found in held_out]
    gold = [row.label for row in sets.held_out]
    answered = [(a, b) for a, b in zip(answers, gold, strict=True) if a >= 0]
    report["DBpedia held out"] = {
        "abstained": answers.count(-1) / len(answers),
        "right, of all": float(np.mean([a == b for a, b in zip(answers, gold, strict=True)])),
        "right, of those answered": float(np.mean([a == b for a, b in answered])),
    }
    for name, outliers in sets.measured.items():
        found = model.analyse(outliers)
        report["abstention"][name] = sum(analysis.label is None for analysis in found) / len(found)
    pairs = data.read_stsb(folder / "stsb" / "sts-dev.csv")
    first, second = (
        model.encode([pair.first for pair in pairs]),
        model.encode([pair.second for pair in pairs]),
    )
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    report["STS-B dev"] = metrics.spearman(cosines, np.array([pair.score for pair in pairs]))
    report["embeddings identical"] = embeddings_identical(model, encoder.loaded, [pair.first for pair in pairs])
    return report


def embeddings_identical(model: TextModel, raw: Loaded, texts: Sequence[str]) -> bool:
    """Whether the layer means are bit for bit those of the untouched backbone."""
    plain = MultiTaskModel(TagdexConfig(encoder_config=raw.model.config.encoder_config, max_length=MAX_LENGTH))
    plain.backbone = raw.model.backbone
    untouched = TextModel(attach(plain, raw.tokenizer, name=raw.name), device="cpu")
    means = torch.from_numpy(untouched.encode(texts).reshape(len(texts), len(LAYERS), -1))
    wanted = concatenate_layers(means, weights=model.config.weights, normalize=True).numpy()
    return bool(np.array_equal(model.encode(texts), wanted))


def print_table(report: Mapping[str, Any]) -> None:
    embedding = report["embedding"]
    if "kept" not in embedding:
        chosen = embedding["tried"][embedding["chosen"]]
        click.echo(f"strength {embedding['chosen']}, layer weights {chosen['layer_weights']}")
        for name, row in chosen["scores"].items():
            columns = "".join(f"  {column} {value:.4f}" for column, value in row.items())
            click.echo(f"{name:32}  floor {embedding['floors'][name]:.4f}{columns}")
    product = report["product"]
    for name, scores in product["tags"].items():
        columns = "".join(f"  {kind} {score['f1']:.4f}" for kind, score in scores.items())
        click.echo(f"{name:24}{columns}")
    classes = report["classes"]
    for name in (
        "temperature",
        "threshold",
        "held-out accuracy",
        "held-out abstention",
        "ECE before",
        "ECE after",
    ):
        if name in classes:
            click.echo(f"{name:24}  {classes[name]:.4f}")
    for name, value in product["DBpedia held out"].items():
        click.echo(f"DBpedia {name:26}  {value:.4f}")
    for name, share in product["abstention"].items():
        click.echo(f"abstains on {name:26}  {share:.4f}")
    click.echo(f"STS-B dev {product['STS-B dev']:.4f}; embeddings identical: {product['embeddings identical']}")
    click.echo(f"{report['minutes']} minutes")
