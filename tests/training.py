"""Small data and models to train on, shared by the tests of training."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import multi_task, tiny

from indexer.checkpoint import Loaded, save_checkpoint
from indexer.training.settings import TrainConfig, build_config

WORDS = {"greeting": ("hello", "there"), "place": ("london", "paris", "zurich")}
ENTITIES = {"ada": "PER", "london": "LOC", "paris": "LOC"}


def write_data(folder: Path, *, count: int = 40, seed: int = 0) -> None:
    """classes.csv, spans.jsonl, scores.tsv (without header) and pairs.jsonl, which a tiny model can learn."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    classes, spans, scores, pairs = ["text,label"], [], [], []
    for _ in range(count):
        label = generator.choice(list(WORDS))
        classes.append(f"{' '.join(generator.choice(WORDS[label]) for _ in range(generator.randint(2, 6)))},{label}")
        words = [
            generator.choice(("ada", "met", "london", "in", "the", "paris")) for _ in range(generator.randint(3, 6))
        ]
        text, entities = "", []
        for word in words:
            start = len(text)
            text += word + " "
            if word in ENTITIES:
                entities.append({"start": start, "end": start + len(word), "type": ENTITIES[word]})
        spans.append(json.dumps({"text": text.strip(), "entities": entities}))
        first, second = (generator.choice(("hello there", "the london", "ada met paris")) for _ in range(2))
        scores.append(f"{first}\t{second}\t{5 if first == second else generator.randint(0, 4)}")
        pairs.append(json.dumps({"first": first, "second": f"{words[0]} {words[1]}", "negative": "acme"}))
    for name, lines in (
        ("classes.csv", classes),
        ("spans.jsonl", spans),
        ("scores.tsv", scores),
        ("pairs.jsonl", pairs),
    ):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


CLASSES = {"task": "class", "path": "classes.csv", "dev": 0.2}
SPANS = {"task": "tags", "path": "spans.jsonl", "dev": 0.2}
SCORES = {
    "task": "similarity",
    "path": "scores.tsv",
    "dev": 0.2,
    "header": False,
    "first": 0,
    "second": 1,
    "score": 2,
}
PAIRS = {"task": "similarity", "path": "pairs.jsonl", "form": "triples"}


def configure(
    folder: Path, output: str, data: list[Mapping[str, Any]], *phases: Mapping[str, Any], **tables: Any
) -> TrainConfig:
    """A run on the data in `folder`, with small batches."""
    from dataclasses import replace

    table = {
        "output": str(folder / output),
        "data": [dict(one) for one in data],
        "phase": [{"batch_size": 8, "learning_rate": 1e-3, **phase} for phase in phases],
        **tables,
    }
    return replace(build_config(table), root=folder)


def raw() -> Loaded:
    """A tiny encoder without heads."""
    return tiny()


def with_both_heads() -> Loaded:
    """A tiny model with heads for both tasks of the data, random ones."""
    return multi_task(class_labels=sorted(WORDS), entity_types=["LOC", "PER"])


def save(loaded: Loaded, folder: Path) -> str:
    """The model in a folder."""
    save_checkpoint(loaded, folder)
    return str(folder)
