"""A training run: configuration in, model out. `train` tells the story, `run_phase` holds the step.

Which batch a step sees and which numbers its dropout draws follow from the seed and the step's number alone, so that a
run that was killed goes on bit for bit as if it had not been (on the same machine, with as many threads).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexer.checkpoint import Loaded, attach, load_checkpoint, save_checkpoint
from indexer.encoder import concatenate_layers, pool_layers
from indexer.iob import IGNORED
from indexer.model import TextModel
from indexer.training import losses
from indexer.training.adapt import Group, adapt, heads_of, restore, set_dropout, set_train_mode
from indexer.training.calibration import fit_temperature
from indexer.training.encoded import UNKNOWN, Encoded, encode
from indexer.training.keys import ConfigError
from indexer.training.plots import curves
from indexer.training.report import Report, data_report
from indexer.training.runs import Position, RunFolder
from indexer.training.sampling import BatchSize, SetSize, Step, schedule
from indexer.training.scoring import DevSet, Scores, class_logits, forward, score_sets, text_classes
from indexer.training.sets import DataSet, read_set
from indexer.training.settings import PhaseSettings, TrainConfig
from indexer.training.start import start_model
from indexer.training.states import States, cached_states

Watcher = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: the model's folder, and its dev scores by set."""

    folder: Path
    scores: dict[str, float]
    report: Report | None


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of a run share. `start` is the starting backbone, for distillation."""

    config: TrainConfig
    folder: RunFolder
    model: TextModel
    train: list[Encoded]
    dev: list[DevSet]
    start: nn.Module | None
    watch: Watcher


def train(config: TrainConfig, *, base: Loaded | None = None, watch: Watcher | None = None) -> Result:
    """Train a model as configured, or go on with a run that was stopped; `output`/model holds the result.

    `base` takes the place of `[model] base`; it is not changed. `watch` is called with every event of the log, and with
    the data report before anything is trained. Raises `ConfigError`, `InputError` and `ModelError`.
    """
    watch = watch or _unwatched
    sets = [read_set(data, root=config.root, seed=config.seed) for data in config.data]
    folder = RunFolder(Path(config.output), config=config.digest(), data=digest_of(sets))
    if folder.model.is_dir():
        return Result(folder.model, _finished(folder), None)
    loaded = load_checkpoint(config.model.base) if base is None else copy.deepcopy(base)
    begun = start_model(loaded, config.model, sets, seed=config.seed)
    model = TextModel(begun.loaded, device=config.device)
    check_dimensions(config, model)
    encoded = [encode(data.settings, data.train, model) for data in sets]
    report = data_report(sets, encoded, begun.heads)
    folder.write_json("report.json", asdict(report))
    watch({"event": "report", "report": report})
    run = Run(
        config=config,
        folder=folder,
        model=model,
        train=encoded,
        dev=[DevSet(data, encode(data.settings, data.dev, model)) for data in sets if data.dev],
        start=copy.deepcopy(model.model.backbone).eval() if config.distill.weight else None,
        watch=watch,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        position = folder.position()
        if position is None:
            position = Position()
            folder.cut_log(0)
        for number in range(position.phase, len(config.phase)):
            position = run_phase(run, number, position)
        if position.phase == len(config.phase) and folder.position() == position:
            folder.load_state(model.model, None)
    return finish(run, report)


def look(config: TrainConfig) -> Report:
    """The data report of a run, without training and without its folder. Raises as `train` does."""
    sets = [read_set(data, root=config.root, seed=config.seed) for data in config.data]
    begun = start_model(load_checkpoint(config.model.base), config.model, sets, seed=config.seed)
    model = TextModel(begun.loaded, device=config.device)
    check_dimensions(config, model)
    return data_report(sets, [encode(data.settings, data.train, model) for data in sets], begun.heads)


def run_phase(run: Run, number: int, position: Position) -> Position:
    """One phase from where the run stands to its end; returns the start of the next."""
    phase, config, model = run.config.phase[number], run.config, run.model
    begun = position.step > 0 or position.best is not None
    if run.folder.position() is not None and not begun:
        run.folder.load_state(model.model, None)  # a plain model, as the phase before has left it
    frozen = phase.kind == "heads"
    torch.manual_seed(seed_of(config.seed, number, -1))  # low-rank updates begin at random
    dropouts = set_dropout(model.model, phase.dropout)
    trained = adapt(model.model, phase)
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters), "lr": group.rate, "weight_decay": group.weight_decay} for group in trained]
    )
    if begun:
        run.folder.load_state(model.model, optimizer)
    states, dev = phase_states(run, phase)
    plan = phase_schedule(run, phase, number)
    total = math.ceil(len(plan) / phase.accumulate)
    every = config.early_stopping.every or math.ceil(total / max(1, *(phase.epochs_of(d) for d in config.data)))
    if position.best is None and dev:
        position = score(run, number, position, trained, dev, total)
        position = save_state(run, position, optimizer)
    set_train_mode(model.model, phase)
    while position.step < total and not position.stopped:
        step = position.step
        torch.manual_seed(seed_of(config.seed, number, step))
        factor = rate_factor(step, total, warmup=phase.warmup, decay=phase.decay)
        for group, settings in zip(trained, optimizer.param_groups, strict=True):
            settings["lr"] = group.rate * factor
        batches = plan[step * phase.accumulate : (step + 1) * phase.accumulate]
        found: dict[str, list[float]] = {}
        for batch in batches:
            encoded = run.train[batch.set]
            with precision(phase, model.device):
                loss, parts = batch_loss(run, encoded, batch, states.get(batch.set), distill=not frozen)
            (loss * encoded.settings.weight / len(batches)).backward()  # type: ignore[no-untyped-call]
            for name, value in parts.items():
                found.setdefault(name, []).append(value)
        weights = [parameter for group in trained for parameter in group.parameters]
        norm = nn.utils.clip_grad_norm_(weights, phase.clip if phase.clip is not None else math.inf)
        if not torch.isfinite(norm):
            raise ConfigError(
                f"phase {number + 1}, step {step + 1}: the gradient is not finite; lower learning_rate "
                f"({phase.rate:g}) or set precision = 'fp32'"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        position = replace(position, step=step + 1)
        event = {"event": "step", "phase": number, "step": step + 1, "of": total, "rate": phase.rate * factor}
        tell(run, {**event, "norm": float(norm), "losses": {k: sum(v) / len(v) for k, v in found.items()}})
        if dev and (position.step % every == 0 or position.step == total):
            position = score(run, number, position, trained, dev, total)
            set_train_mode(model.model, phase)
            position = save_state(run, position, optimizer)
        elif position.step % config.checkpoint_every == 0:
            position = save_state(run, position, optimizer)
    if dev and (config.early_stopping.keep == "best" or rejected(run, model, dev, position)):
        run.folder.load_best(trained)
    for module, share in dropouts:
        module.p = share
    apart = phase.kind == "lora" and phase.lora.save == "apart"
    restore(model.model, phase, adapter=run.folder.folder / f"adapter-{number + 1}" if apart else None)
    return save_state(run, Position(phase=number + 1, floor=position.floor), None)


# The step's parts


def batch_loss(
    run: Run, encoded: Encoded, batch: Step, states: States | None, *, distill: bool
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and its parts by name for the log."""
    config, model = run.config, run.model
    rows = [encoded.rows[row] for row in batch.rows]
    windows = [row[side] for side in range(len(rows[0])) for row in rows]  # all first texts, then all second ones
    distill = distill and run.start is not None and states is None
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


# Around the steps


def phase_schedule(run: Run, phase: PhaseSettings, number: int) -> list[Step]:
    """All batches of a phase."""
    config = run.config
    return schedule(
        [SetSize(one.lengths, phase.epochs_of(one.settings)) for one in run.train],
        BatchSize(tokens=phase.batch_tokens, examples=phase.batch_size),
        seed=config.seed * 1000 + number,
        strategy=config.mix.strategy,
        stop=config.mix.stop,
        temperature=config.mix.temperature,
    )


def phase_states(run: Run, phase: PhaseSettings) -> tuple[dict[int, States], list[DevSet]]:
    """With a frozen backbone the states of all sets, computed once; otherwise none, and the dev sets as they are."""
    if phase.kind != "heads":
        return {}, [replace(dev, states=None) for dev in run.dev]
    model, cache = run.model, run.folder.folder / "cache"
    now = attach(model.model, model.tokenizer, name=model.name)  # the fingerprint as earlier phases have left it
    model.fingerprint = now.fingerprint

    def states(encoded: Encoded) -> States:
        def told(done: int, of: int) -> None:
            run.watch({"event": "states", "set": encoded.title, "step": done, "of": of})

        return cached_states(model, encoded, cache, on_batch=told)

    heads = heads_of(model.model)
    found = {i: states(one) for i, one in enumerate(run.train) if one.rows and phase.epochs_of(one.settings)}
    dev = [
        replace(one, states=states(one.encoded) if one.data.task in heads else None)
        for one in run.dev
        if one.data.task in heads
    ]
    return found, dev


def score(
    run: Run, number: int, position: Position, trained: list[Group], dev: Sequence[DevSet], total: int
) -> Position:
    """Score the dev sets; keep the weights if they are the best so far, and stop after too many worse ones."""
    stopping = run.config.early_stopping
    scores = score_sets(run.model, dev, weights=stopping.weights)
    similarity = scores.tasks.get("similarity")
    floor = similarity if position.floor is None else position.floor
    refused = below_floor(run.config, similarity, floor)
    better = not refused and (position.best is None or scores.mean > position.best)
    first = position.best is None
    if better or first:
        run.folder.save_best(trained)
    tell(
        run,
        {
            "event": "scores",
            "phase": number,
            "step": position.step,
            "of": total,
            "sets": scores.sets,
            "mean": scores.mean,
            "best": better or first,
            "refused": refused,
        },
    )
    stale = 0 if better or first else position.stale + 1
    return replace(
        position,
        best=scores.mean if better or first else position.best,
        stale=stale,
        floor=floor,
        stopped=stopping.patience is not None and stale >= stopping.patience,
    )


def below_floor(config: TrainConfig, similarity: float | None, floor: float | None) -> bool:
    """Whether the guard refuses weights with this dev score in similarity."""
    drop = config.guard.max_drop
    return drop is not None and similarity is not None and floor is not None and similarity < floor - drop


def rejected(run: Run, model: TextModel, dev: Sequence[DevSet], position: Position) -> bool:
    """Whether the guard refuses the last weights, where they would be kept."""
    if run.config.guard.max_drop is None:
        return False
    return below_floor(run.config, score_sets(model, dev).tasks.get("similarity"), position.floor)


def save_state(run: Run, position: Position, optimizer: torch.optim.Optimizer | None) -> Position:
    """Write where the run stands."""
    backbone = any(phase.kind != "heads" for phase in run.config.phase)
    return run.folder.save_state(position, run.model.model, optimizer, backbone=backbone)


def tell(run: Run, event: Mapping[str, Any]) -> None:
    """Log an event and show it."""
    run.folder.log(event)
    run.watch(event)


def finish(run: Run, report: Report) -> Result:
    """Fit the class temperature, score once more through the finished model, and write it."""
    model = run.model
    if run.config.model.calibrate:
        calibrate(run)
    scores: Scores = score_sets(model, run.dev, weights=run.config.early_stopping.weights)
    finished = attach(model.model, model.tokenizer, name=model.name)
    run.folder.write_json("scores.json", {"sets": scores.sets, "tasks": scores.tasks, "mean": scores.mean})
    picture = curves(run.folder.events())
    (run.folder.folder / "curves.svg").write_text(picture, encoding="utf-8")
    temporary = run.folder.folder / "model.unfinished"
    if temporary.is_dir():
        for file in temporary.iterdir():
            file.unlink()
    save_checkpoint(finished, temporary)
    temporary.rename(run.folder.model)
    return Result(run.folder.model, scores.sets, report)


def calibrate(run: Run) -> None:
    """Divide the class logits by the temperature with the smallest cross-entropy on the dev sets (Guo et al. 2017)."""
    trained = [one for one in run.dev if one.data.task == "class" and one.data.train]
    if not trained or all(p.epochs_of(d.data.settings) == 0 for p in run.config.phase for d in trained):
        return
    logits, gold = [], []
    for one in trained:
        classes = text_classes(one.encoded)
        known = classes != UNKNOWN
        logits.append(torch.from_numpy(class_logits(run.model, one.encoded)[known]))
        gold.append(torch.from_numpy(classes[known]))
    if sum(map(len, gold)):
        run.model.config.class_temperature = fit_temperature(torch.cat(logits).numpy(), torch.cat(gold).numpy())


def check_dimensions(config: TrainConfig, model: TextModel) -> None:
    """Raise `ConfigError` for a Matryoshka size that the embedding does not have."""
    for size in config.matryoshka.dimensions:
        if size >= model.dimension:
            raise ConfigError(f"[matryoshka] dimensions = [{size}]: the embedding has {model.dimension} dimensions")


def _unwatched(_: Mapping[str, Any]) -> None:
    """Nobody looks."""


def digest_of(sets: Sequence[DataSet]) -> str:
    """SHA-256 over all examples."""
    digest = hashlib.sha256()
    for one in sets:
        for example in (*one.train, None, *one.dev, None):
            digest.update(repr(example).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _finished(folder: RunFolder) -> dict[str, float]:
    import json

    scores: dict[str, float] = json.loads((folder.folder / "scores.json").read_text(encoding="utf-8"))["sets"]
    return scores
