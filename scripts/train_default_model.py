"""Train the default model: a low-rank update of all-MiniLM-L6-v2, then, on the result, tag head and class head.

    python scripts/train_default_model.py --data DATA --cache CACHE --output indexer/models/default

`DATA` holds the data sets that MODEL_CARD.md names, one folder each. Every stage leaves its result in `CACHE`,
under a name made from everything that it depends on, so that a run that was stopped goes on where it was.
The update is 1,264 steps of 2 seconds each on two cores without bfloat16; all else takes an hour.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parent))

from default_model.adapted import choose_strength, keep_update, train_adapter
from default_model.assemble import assemble, evaluate_product, print_table
from default_model.classes import ClassSettings, keep_class_head, train_class_head
from default_model.features import Encoder
from default_model.self_labels import SecondRound
from default_model.tag_head import TagSettings
from default_model.tags import train_tag_head

from indexer.checkpoint import load_checkpoint
from indexer.sources import MINILM


@click.command()
@click.option("--data", "data_folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--width", type=int, default=96, show_default=True, help="Width of the tag head.")
@click.option("--shapes/--no-shapes", default=True, show_default=True, help="Whether the tag head reads word shapes.")
@click.option("--teachers", type=click.IntRange(min=1), default=2, show_default=True, help="Heads of the first round.")
@click.option("--adapter", type=click.Path(exists=True, path_type=Path), help="One in peft's form, already trained.")
@click.option(
    "--keep", type=click.Path(exists=True, path_type=Path), help="A model whose tag head alone is trained anew."
)
@click.option("--scores", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for all scores.")
def main(
    data_folder: Path,
    cache: Path,
    output: Path,
    seed: int,
    width: int,
    shapes: bool,
    teachers: int,
    adapter: Path | None,
    keep: Path | None,
    scores: Path | None,
) -> None:
    """Train the default model."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    if keep is not None:
        found = keep_update(keep)
        encoder = Encoder(found.backbone, cache)
        classifier, class_scores = keep_class_head(found.backbone)
    else:
        backbone = load_checkpoint(MINILM.name)
        found = choose_strength(backbone, adapter or train_adapter(data_folder, cache), data_folder, cache)
        encoder = Encoder(found.backbone, cache)
        classifier, class_scores = train_class_head(encoder, data_folder, ClassSettings(seed=seed))
    tags = TagSettings(width=width, seed=seed, tag_shapes=shapes)
    tag_head, tag_scores = train_tag_head(encoder, data_folder, tags, SecondRound(teachers=teachers), classifier)
    assemble(found, tag_head, tags, classifier, output)
    report = {
        "embedding": found.report,
        "tags": tag_scores,
        "classes": class_scores,
        "product": evaluate_product(output, data_folder, encoder),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print_table(report)
    if scores is not None:
        scores.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
