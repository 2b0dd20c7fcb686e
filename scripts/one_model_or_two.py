"""One model for three tasks, or a model for each: what it costs in quality, and what it saves.

    python scripts/prepare_snips.py SNIPS snips.jsonl
    python scripts/one_model_or_two.py --snips snips.jsonl --stsb STSB --runs RUNS [--seeds 3] [--limit 3000]

Intents and slots of SNIPS and the similarities of the STS benchmark are trained on the same backbone, each alone and
all together, with the same number of epochs of each, for each seed. Prints the dev scores with their standard deviation
over the seeds, and what the finished models take: parameters, bytes, and milliseconds for 1,000 texts that get an
embedding, a class and entities, from one model's pass or from three. Runs that were stopped go on; finished ones are
not done again. The table in docs/TRAINING.md is what this printed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from indexer.model import TextModel
from indexer.training.data import read_jsonl
from indexer.training.loop import train
from indexer.training.settings import TrainConfig, build_config

TASKS = ("intents", "slots", "similarity")
ROUNDS = 5
TEXTS = 500


def configuration(
    tasks: Sequence[str], *, snips: Path, stsb: Path, output: Path, seed: int, limit: int, base: str
) -> TrainConfig:
    """All layers trained on some of the tasks; what one task sees does not depend on the others."""
    sets: dict[str, dict[str, Any]] = {
        "intents": {"task": "class", "path": str(snips), "label": "intent", "dev": 0.05, "limit": limit},
        "slots": {"task": "tags", "path": str(snips), "dev": 0.05, "limit": limit},
        "similarity": {
            "task": "similarity",
            "path": str(stsb / "sts-train.csv"),
            "dev": str(stsb / "sts-dev.csv"),
            "format": "tsv",
            "header": False,
            "quoting": False,
            "score": 4,
            "first": 5,
            "second": 6,
            "limit": limit,
        },
    }
    epochs = {"intents": 2, "slots": 4, "similarity": 2}
    return build_config(
        {
            "output": str(output),
            "seed": seed,
            "model": {"base": base, "class_head": "pooled", "tag_layers": [-1, -2, -3, -4]},
            "data": [{"name": name, **sets[name]} for name in tasks],
            "phase": [{"train": "all", "learning_rate": 1e-4, "epochs": {name: epochs[name] for name in tasks}}],
            "early_stopping": {"keep": "last"},
        }
    )


def parameters(model: TextModel) -> tuple[int, int]:
    """Number of parameters, and their bytes."""
    tensors = list(model.model.parameters())
    return sum(tensor.numel() for tensor in tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def seconds_for(models: Sequence[tuple[TextModel, bool]], texts: Sequence[str]) -> float:
    """Seconds that the models together take for the texts: with tags, or for an embedding alone."""
    started = time.perf_counter()
    for model, tags in models:
        model.analyse(list(texts), tags=tags)
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


@click.command()
@click.option("--snips", type=click.Path(exists=True, path_type=Path), required=True, help="By prepare_snips.py.")
@click.option("--stsb", type=click.Path(exists=True, path_type=Path), required=True, help="With sts-train.csv.")
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Where the runs are kept.")
@click.option("--base", default="default", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--limit", default=3000, show_default=True, help="Examples of each task.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(snips: Path, stsb: Path, runs: Path, base: str, seeds: int, limit: int, json_file: Path | None) -> None:
    """Train, measure, print."""
    variants: dict[str, Sequence[str]] = {**{name: (name,) for name in TASKS}, "joint": TASKS}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    folders: dict[str, Path] = {}
    for seed in range(seeds):
        for name, tasks in variants.items():
            output = (runs / f"{name}-{seed}").resolve()
            config = configuration(
                tasks, snips=snips.resolve(), stsb=stsb.resolve(), output=output, seed=seed, limit=limit, base=base
            )
            result = train(config)
            folders[name] = result.folder
            for task, score in result.scores.items():
                scores[name].setdefault(task, []).append(score)
            click.echo(f"{name}, seed {seed}: {json.dumps(result.scores)}", err=True)
    texts = [row["text"] for row in read_jsonl(snips)][:: max(1, limit // TEXTS)][:TEXTS]
    joint = TextModel.load(folders["joint"])
    separate = [TextModel.load(folders[name]) for name in TASKS]
    # The similarity model has the base's heads as well, which nobody would ask there.
    three = [(separate[0], True), (separate[1], True), (separate[2], False)]
    times: dict[str, list[float]] = {"joint": [], "separate": []}
    for turn in range(ROUNDS + 1):
        for kind, models in (("joint", [(joint, True)]), ("separate", three)):
            taken = seconds_for(models, texts)
            if turn:
                times[kind].append(1000 * 1000 * taken / len(texts))
    sizes = {"joint": parameters(joint), "separate": tuple(map(sum, zip(*map(parameters, separate), strict=True)))}
    click.echo("| | three models | one model |\n|---|---|---|")
    for task, what in (("intents", "accuracy"), ("slots", "strict F1"), ("similarity", "Spearman")):
        click.echo(f"| {task}, {what} | {spread(scores[task][task])} | {spread(scores['joint'][task])} |")
    click.echo(f"| parameters | {sizes['separate'][0]:,} | {sizes['joint'][0]:,} |")
    click.echo(f"| weights in memory | {sizes['separate'][1] / 2**20:.0f} MiB | {sizes['joint'][1] / 2**20:.0f} MiB |")
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    click.echo(f"| ms for 1,000 texts, all three answers | {medians['separate']:.0f} | {medians['joint']:.0f} |")
    if json_file is not None:
        report = {"scores": scores, "sizes": sizes, "ms_per_1000_texts": medians}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
