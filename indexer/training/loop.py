"""A training run: configuration in, model out. `train` tells the story, `run_phase` holds the step.

Which batch a step sees and which numbers its dropout draws follow from the seed and the step's number alone, so that a
run that was killed goes on bit for bit as if it had not been (on the same machine, with as many threads).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from indexer.checkpoint import Loaded, attach, load_checkpoint, save_checkpoint
from indexer.durable import sync
from indexer.errors import StorageError
from indexer.model import TextModel
from indexer.training.adapt import Group, adapt, check_phase, heads_of, restore, set_dropout, set_train_mode
from indexer.training.calibration import fit_temperature
from indexer.training.encoded import UNKNOWN, Encoded, encode
from indexer.training.keys import ConfigError
from indexer.training.plots import curves
from indexer.training.report import Report, data_report
from indexer.training.runs import Position, RunFolder
from indexer.training.sampling import BatchSize, SetSize, Step, schedule
from indexer.training.scoring import DevSet, Scores, class_logits, score_sets, text_classes
from indexer.training.sets import DataSet, read_set
from indexer.training.settings import HEADS, PhaseSettings, TrainConfig
from indexer.training.start import start_model
from indexer.training.states import States, cached_states
from indexer.training.step import Run, Watcher, batch_loss, precision, rate_factor, seed_of


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: the model's folder, and its dev scores by set."""

    folder: Path
    scores: dict[str, float]
    report: Report | None


def train(config: TrainConfig, *, base: Loaded | None = None, watch: Watcher | None = None) -> Result:
    """Train a model as configured, or go on with a run that was stopped; `output`/model holds the result.

    `base` takes the place of `[model] base`; it is not changed. `watch` is called with every event of the log, and with
    the data report before anything is trained. Raises `ConfigError`, `InputError` and `ModelError`, `LockedError`
    where another process trains in the same folder, and `StorageError` where the disk refuses.
    """
    sets = [read_set(data, root=config.root, seed=config.seed) for data in config.data]
    with (
        RunFolder(Path(config.output), config=config.digest(), data=digest_of(sets)) as folder,
        what_disks_refuse(folder.folder),
    ):
        if folder.model.is_dir():
            return Result(folder.model, _finished(folder), None)
        loaded = load_checkpoint(config.model.base) if base is None else copy.deepcopy(base)
        run, report = prepare(config, folder, sets, loaded, watch or _unwatched)
        devices = [run.model.device] if run.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            position = folder.position()
            if position is None:
                position = Position()
                folder.cut_log(0)
            for number in range(position.phase, len(config.phase)):
                position = run_phase(run, number, position)
        folder.load_state(run.model.model, None)  # where the phases had ended before, and only the model is missing
        return finish(run, report)


@contextmanager
def what_disks_refuse(folder: Path) -> Iterator[None]:
    """An error of the disk → `StorageError`. What has been written of the run is whole, and it goes on from there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StorageError(
            f"{folder}: {reason}; see to it, and give the same command again: the run goes on from where it stands"
        ) from error


def prepare(
    config: TrainConfig, folder: RunFolder, sets: Sequence[DataSet], loaded: Loaded, watch: Watcher
) -> tuple[Run, Report]:
    """The model with its heads, the data as windows, and the report on them."""
    begun = start_model(loaded, config.model, sets, seed=config.seed)
    model = TextModel(begun.loaded, device=config.device)
    check_fit(config, sets, model)
    check_new_heads(config, begun.new)
    encoded = [encode(data.settings, data.train, model) for data in sets]
    report = data_report(sets, encoded, begun.heads, labels_of_heads(model))
    folder.claim(base=loaded.fingerprint, heads=loaded.heads_fingerprint)
    folder.write_json("report.json", asdict(report))
    watch({"event": "report", "report": report})
    run = Run(
        config=config,
        folder=folder,
        model=model,
        train=encoded,
        dev=[DevSet(data, encode(data.settings, data.dev, model)) for data in sets if data.dev],
        start=copy.deepcopy(model.model.backbone).eval() if config.distill.weight else None,
        new=begun.new,
        watch=watch,
    )
    return run, report


def look(config: TrainConfig) -> Report:
    """The data report of a run, without training and without its folder. Raises as `train` does."""
    sets = [read_set(data, root=config.root, seed=config.seed) for data in config.data]
    begun = start_model(load_checkpoint(config.model.base), config.model, sets, seed=config.seed)
    model = TextModel(begun.loaded, device=config.device)
    check_fit(config, sets, model)
    check_new_heads(config, begun.new)
    encoded = [encode(data.settings, data.train, model) for data in sets]
    return data_report(sets, encoded, begun.heads, labels_of_heads(model))


def labels_of_heads(model: TextModel) -> dict[str, tuple[str, ...]]:
    """What each head knows, by task."""
    return {"class": model.class_labels or (), "tags": model.entity_types or ()}


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
        warn_of_unmeasured(run, number, dev)
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
    """Score the dev sets; keep the weights if they are the best so far, and stop after too many worse ones.

    Where a task is trained that no dev set measures, the mean says nothing about it: then weights are kept because they
    are the last that the guard does not refuse, and the phase goes on to its end. Random weights of a new head are no
    candidate: any that the guard does not refuse take their place, also those of a head that finds nothing yet.
    """
    stopping = run.config.early_stopping
    scores = score_sets(run.model, dev, weights=stopping.weights)
    similarity = scores.tasks.get("similarity")
    floor = similarity if position.floor is None else position.floor
    refused = below_floor(run.config, similarity, floor)
    measured = not unmeasured_tasks(run, number, dev)
    first = position.best is None
    random = first and begins_at_random(run, number)
    kept = first or (not refused and (not measured or position.best is None or scores.mean > position.best))
    if kept:
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
            "best": kept and measured and not random,
            "refused": refused,
        },
    )
    stale = 0 if kept or not measured else position.stale + 1
    return replace(
        position,
        best=-math.inf if random else scores.mean if kept else position.best,
        stale=stale,
        floor=floor,
        stopped=stopping.patience is not None and stale >= stopping.patience,
    )


def begins_at_random(run: Run, number: int) -> bool:
    """Whether a phase is the first to train a head that is new."""
    before, phase = run.config.phase[:number], run.config.phase[number : number + 1]
    return any(is_trained(run.config, task, phase) and not is_trained(run.config, task, before) for task in run.new)


def is_trained(config: TrainConfig, task: str, phases: Sequence[PhaseSettings]) -> bool:
    """Whether one of the phases trains on data of a task."""
    data = [one for one in config.data if one.task == task and one.paths]
    return any(phase.epochs_of(one) for phase in phases for one in data)


def unmeasured_tasks(run: Run, number: int, dev: Sequence[DevSet]) -> list[str]:
    """The tasks that a phase trains and that none of its dev sets measures."""
    phase = run.config.phase[number]
    trained = {one.task for one in run.train if one.rows and phase.epochs_of(one.settings)}
    return sorted(trained - {one.data.task for one in dev})


def warn_of_unmeasured(run: Run, number: int, dev: Sequence[DevSet]) -> None:
    """Say which rule for the weights holds where the dev scores do not cover what is trained."""
    stopping = run.config.early_stopping
    missing = unmeasured_tasks(run, number, dev)
    if missing and (stopping.keep == "best" or stopping.patience is not None):
        tasks = " and ".join(missing)
        text = f"{tasks} is trained without a dev set: the last weights are kept, not the best, and nothing stops early"
        tell(run, {"event": "note", "phase": number, "text": text})


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
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    temporary.rename(run.folder.model)
    sync(run.folder.folder)
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


def check_fit(config: TrainConfig, sets: Sequence[DataSet], model: TextModel) -> None:
    """Raise `ConfigError` for what the model lacks: layers that a phase trains, dev sets' heads, Matryoshka's sizes."""
    for phase in config.phase:
        check_phase(model.model, phase)
    heads = heads_of(model.model)
    for one in sets:
        if one.task in HEADS and one.task not in heads:
            raise ConfigError(
                f"[[data]] '{one.title}' is only measured on, but the model has no head for {one.task}: give data "
                "of this task to train on, too, or leave it out"
            )
    for size in config.matryoshka.dimensions:
        if size >= model.dimension:
            raise ConfigError(f"[matryoshka] dimensions = [{size}]: the embedding has {model.dimension} dimensions")


def check_new_heads(config: TrainConfig, new: frozenset[str]) -> None:
    """Raise `ConfigError` for a new head that no phase trains: it would answer at random."""
    for task in sorted(new):
        if not is_trained(config, task, config.phase):
            raise ConfigError(
                f"the {task} head is new, and no phase trains it, so that it would answer at random: give [[data]] for "
                f"{task} with a path, and epochs for it in a [[phase]] that does not freeze it, or leave out what asks "
                "for it"
            )


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
    scores: dict[str, float | None] = json.loads((folder.folder / "scores.json").read_text(encoding="utf-8"))["sets"]
    return {name: math.nan if score is None else score for name, score in scores.items()}
