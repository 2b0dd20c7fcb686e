"""The parts of a training step: a batch's loss, its learning rate, its seed, its precision."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.encoder import concatenate_layers, pool_layers
from indexer.iob import IGNORED
from indexer.model import TextModel
from indexer.training import losses
from indexer.training.encoded import Encoded
from indexer.training.keys import ConfigError
from indexer.training.runs import RunFolder
from indexer.training.sampling import Step
from indexer.training.scoring import DevSet, forward
from indexer.training.settings import PhaseSettings, TrainConfig
from indexer.training.states import States

Watcher = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of a run share.

    `start` is the starting backbone, for distillation; `new` are the tasks whose heads began with random weights.
    """

    config: TrainConfig
    folder: RunFolder
    model: TextModel
    train: list[Encoded]
    dev: list[DevSet]
    start: nn.Module | None
    new: frozenset[str]
    watch: Watcher


def batch_loss(
    run: Run, encoded: Encoded, batch: Step, states: States | None, *, distill: bool
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and its parts by name for the log."""
    config, model = run.config, run.model
    rows = [encoded.rows[row] for row in batch.rows]
    windows = [row[side] for side in range(len(rows[0])) for row in rows]  # all first texts, then all second ones
    distill = distill and run.start is not None and states is None and encoded.task in config.distill.tasks
    outputs = forward(model, encoded, windows, states, embedding=distill)
    if outputs.class_logits is not None and encoded.classes is not None:
        loss = losses.class_loss(outputs.class_logits, torch.from_numpy(encoded.classes[windows]).to(model.device))
    elif outputs.tag_logits is not None and encoded.labels is not None:
        labels = torch.full(outputs.tag_logits.shape[:2], IGNORED)
        for index, window in enumerate(windows):
            labels[index, : len(encoded.labels[window])] = torch.from_numpy(encoded.labels[window])
        loss = losses.tag_loss(outputs.tag_logits, labels.to(model.device))
    elif outputs.layer_means is not None:
        loss = pair_loss(run, encoded, batch, embeddings(model, outputs.layer_means))
    else:
        raise ConfigError(f"'{encoded.title}': the model has no head for {encoded.task}")
    parts = {encoded.title: float(loss.detach())}
    if distill and run.start is not None and outputs.layer_means is not None:
        kept = losses.distillation_loss(outputs.layer_means, starting_means(run, encoded, windows))
        parts["distill"] = float(kept.detach())
        loss = loss + config.distill.weight * kept
    return loss, parts


def pair_loss(run: Run, encoded: Encoded, batch: Step, vectors: Tensor) -> Tensor:
    """The loss of pairs; `vectors` (k · n, d) are those of all first texts, then all second, then all negative ones."""
    settings, size = encoded.settings, len(batch.rows)
    sides = [vectors[at : at + size] for at in range(0, len(vectors), size)]
    if encoded.scores is not None:
        scores = torch.from_numpy(encoded.scores[list(batch.rows)]).to(vectors.device)
        if settings.pair_loss == "cosine" and settings.score_range is not None:
            low, high = settings.score_range
            scores = (scores - low) / (high - low)
        kind = losses.cosine_loss if settings.pair_loss == "cosine" else losses.cosent_loss

        def of(parts: Sequence[Tensor]) -> Tensor:
            return kind(parts[0], parts[1], scores)

    else:
        keys = torch.tensor([encoded.keys[row][:2] for row in batch.rows] if encoded.keys else [])
        first, second = keys[:, 0], keys[:, 1]
        same = (first[:, None] == first[None, :]) | (second[:, None] == second[None, :])
        same = same.to(vectors.device)

        def of(parts: Sequence[Tensor]) -> Tensor:
            negatives = parts[2] if len(parts) > 2 else None
            return losses.infonce_loss(
                parts[0], parts[1], temperature=settings.temperature, negatives=negatives, same=same
            )

    return losses.matryoshka_loss(of, sides, dimensions=run.config.matryoshka.dimensions)


def embeddings(model: TextModel, means: Tensor) -> Tensor:
    """Embeddings as the model gives them, from the pooled layers' means."""
    return concatenate_layers(means, weights=model.config.weights, normalize=model.config.normalize_layers)


def starting_means(run: Run, encoded: Encoded, windows: Sequence[int]) -> Tensor:
    """What the starting backbone's pooled layers say, (n, L, width)."""
    ids, mask = run.model.pad([encoded.windows[index] for index in windows])
    layers = run.model.config.pooled_layers
    with torch.no_grad():
        states = run.start(input_ids=ids, attention_mask=mask, output_hidden_states=sorted(set(layers))).hidden_states  # type: ignore[misc]
        return pool_layers([states[layer] for layer in layers], mask)


def rate_factor(step: int, total: int, *, warmup: float, decay: str) -> float:
    """Linear rise over the first `warmup` share of the steps, then down to 0 along half a cosine or a line.

    >>> [round(rate_factor(step, 10, warmup=0.2, decay="linear"), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]


def seed_of(seed: int, phase: int, step: int) -> int:
    """A seed for one step; −1 for the phase's start."""
    return int.from_bytes(hashlib.sha256(f"{seed} {phase} {step}".encode()).digest()[:7], "big")


@contextmanager
def precision(phase: PhaseSettings, device: torch.device) -> Iterator[None]:
    """bf16 where it was asked for, or with "auto" where a GPU has it; weights stay fp32."""
    half = phase.precision == "bf16" or (
        phase.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        yield
