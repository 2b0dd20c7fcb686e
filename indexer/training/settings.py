"""What a training run does, as a TOML file says it: one frozen dataclass a table. docs/TRAINING.md is the reference."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from indexer.training.keys import (
    SWITCH,
    TEXT,
    ConfigError,
    Kind,
    build,
    choice,
    either,
    key,
    list_of,
    number,
    read_toml,
    table_of,
    whole,
)

TASKS = ("class", "tags", "similarity")
HEADS = ("class", "tags")
FORMATS = ("csv", "tsv", "jsonl", "conll")
STRATEGIES = ("balanced", "proportional", "round_robin", "temperature", "sequential")
LOSSES = ("cosine", "cosent", "infonce")
FORMS = ("scores", "pairs", "triples")
ON_MISALIGNED = ("error", "expand", "drop")

_EPOCHS = {"all": 3, "top": 3, "lora": 3, "heads": 20}
_RATES = {"all": 5e-5, "top": 5e-5, "lora": 5e-4, "heads": 1e-3}


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - what `Kind.convert` raises
    return value


def _trained(value: Any) -> str:
    if value in ("all", "heads", "lora") or (isinstance(value, str) and re.fullmatch(r"top:[1-9]\d*", value)):
        return str(value)
    raise ValueError


COLUMN = either(TEXT, whole(0))
TRAIN = Kind('"all", "heads", "lora" or "top:N", as "top:2"', _trained)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """[model]: where the run starts, and the heads that it gets.

    A head is new where the data have labels that the base's head does not know, or where it is forced by
    `new_heads`; otherwise the base's own is trained on. What stands under `pool_layers` and below changes every
    embedding; `None` keeps what the base has.
    """

    base: str = key(TEXT, "default")
    new_heads: tuple[str, ...] = key(list_of(choice(*HEADS), filled=False), ())
    class_labels: tuple[str, ...] | None = key(list_of(TEXT, distinct=True), None)
    entity_types: tuple[str, ...] | None = key(list_of(TEXT, distinct=True), None)
    class_head: str = key(choice("linear", "pooled"), "linear")
    class_head_width: int = key(whole(1, 8192), 128)
    tag_head: str = key(choice("linear", "contextual"), "linear")
    tag_head_width: int = key(whole(2, 8192), 256)
    tag_layers: tuple[int, ...] = key(list_of(whole(-1000, 1000), distinct=True), (-1,))
    tag_shapes: bool = key(SWITCH, False)
    head_dropout: float = key(number(0, 0.99), 0.1)
    calibrate: bool = key(SWITCH, True)
    pool_layers: tuple[int, ...] | None = key(list_of(whole(-1000, 1000), distinct=True), None)
    layer_weights: tuple[float, ...] | None = key(list_of(number(-1000, 1000)), None)
    normalize_layers: bool | None = key(SWITCH, None)
    max_length: int | None = key(whole(8, 1_000_000), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[[data]]: one data set for one task. Columns are names, or numbers from 0 in files without a header."""

    task: str = key(choice(*TASKS))
    path: str | tuple[str, ...] | None = key(either(TEXT, list_of(TEXT)), None)
    dev: str | float | None = key(either(number(0, 0.9, above=True), TEXT), None)
    name: str | None = key(TEXT, None)
    format: str | None = key(choice(*FORMATS), None)
    encoding: str = key(TEXT, "utf-8")
    header: bool = key(SWITCH, True)
    quoting: bool = key(SWITCH, True)
    text: str | int = key(COLUMN, "text")
    label: str | int = key(COLUMN, "label")
    entities: str = key(TEXT, "entities")
    tokens: str | int = key(COLUMN, "tokens")
    tags: str | int = key(COLUMN, "ner_tags")
    separator: str = key(choice("tab", "space"), "tab")
    types: Mapping[str, str] | None = key(table_of(TEXT), None)
    tag_names: tuple[str, ...] | None = key(list_of(TEXT), None)
    on_misaligned: str = key(choice(*ON_MISALIGNED), "error")
    form: str = key(choice(*FORMS), "scores")
    first: str | int = key(COLUMN, "first")
    second: str | int = key(COLUMN, "second")
    score: str | int = key(COLUMN, "score")
    negative: str | int = key(COLUMN, "negative")
    score_range: tuple[float, ...] | None = key(list_of(number(-1e9, 1e9)), None)
    loss: str | None = key(choice(*LOSSES), None)
    temperature: float = key(number(0, 10, above=True), 0.05)
    weight: float = key(number(0, above=True), 1.0)
    limit: int | None = key(whole(1), None)

    @property
    def title(self) -> str:
        """`name`, or the name of the first file without its suffix, with the task."""
        if self.name is not None:
            return self.name
        first = self.path if isinstance(self.path, str) else self.path[0] if self.path else self.dev
        return f"{Path(str(first)).stem} ({self.task})"

    @property
    def paths(self) -> tuple[str, ...]:
        """The files to train on."""
        return () if self.path is None else (self.path,) if isinstance(self.path, str) else self.path

    @property
    def pair_loss(self) -> str:
        """`loss`, by default "cosent" for scores and "infonce" for pairs and triples."""
        return self.loss or ("cosent" if self.form == "scores" else "infonce")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """[phase.lora]: low-rank updates (Hu et al. 2021) of the backbone's linear layers named in `targets`."""

    rank: int = key(whole(1, 1024), 8)
    alpha: float = key(number(0, above=True), 16.0)
    dropout: float = key(number(0, 0.9), 0.05)
    targets: tuple[str, ...] | None = key(list_of(TEXT, distinct=True), None)
    save: str = key(choice("merged", "apart"), "merged")


def _lora(value: Any) -> LoraSettings:
    table = _table(value)
    try:
        return build(LoraSettings, table, file="lora")
    except ConfigError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSettings:
    """[[phase]]: what is trained, how long and how. `epochs` is one number for all, or a table by task or set name."""

    train: str = key(TRAIN, "all")
    freeze_heads: tuple[str, ...] = key(list_of(choice(*HEADS), filled=False, distinct=True), ())
    epochs: int | Mapping[str, int] | None = key(either(whole(1), table_of(whole(0))), None)
    learning_rate: float | None = key(number(0, 1, above=True), None)
    head_learning_rate: float = key(number(0, 1, above=True), 1e-3)
    layer_decay: float = key(number(0, 1, above=True), 1.0)
    weight_decay: float = key(number(0, 1), 0.01)
    warmup: float = key(number(0, 1), 0.1)
    decay: str = key(choice("cosine", "linear", "constant"), "cosine")
    dropout: float | None = key(number(0, 0.99), None)
    batch_tokens: int = key(whole(1), 2048)
    batch_size: int = key(whole(1), 64)
    accumulate: int = key(whole(1), 1)
    clip: float | None = key(number(0, above=True), 1.0)
    precision: str = key(choice("auto", "fp32", "bf16"), "auto")
    lora: LoraSettings = key(Kind("a table with rank, alpha, dropout, targets, save", _lora), LoraSettings())

    @property
    def kind(self) -> str:
        """`train` without the number of layers."""
        return self.train.partition(":")[0]

    @property
    def top(self) -> int:
        """N of "top:N", else 0."""
        return int(self.train.partition(":")[2] or 0)

    @property
    def rate(self) -> float:
        """The learning rate of the backbone, or in "heads" of the heads."""
        return _RATES[self.kind] if self.learning_rate is None else self.learning_rate

    def epochs_of(self, data: DataSettings) -> int:
        """How often this phase goes through a data set; 0 leaves it out.

        The data of a frozen head are left out, and in "heads" so are similarity data, which have no head.
        """
        if data.task in self.freeze_heads or (self.kind == "heads" and data.task == "similarity"):
            return 0
        if self.epochs is None or isinstance(self.epochs, int):
            return self.epochs or _EPOCHS[self.kind]
        return self.epochs.get(data.title, self.epochs.get(data.task, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class MixSettings:
    """[mix]: the order in which the batches of several sets come; see `sampling.py`."""

    strategy: str = key(choice(*STRATEGIES), "balanced")
    stop: str = key(choice("first", "last"), "last")
    temperature: float = key(number(1, 1e6), 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """[distill]: stay near the starting backbone's pooled layers in the batches of `tasks`; `weight` 0 is off."""

    weight: float = key(number(0), 0.0)
    tasks: tuple[str, ...] = key(list_of(choice(*TASKS), distinct=True), TASKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """[guard]: weights whose dev score in `similarity` is more than `max_drop` below the start's are not kept."""

    max_drop: float | None = key(number(0, 2), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingSettings:
    """[early_stopping]: keep the best weights by the weighted mean of the dev scores, stop after `patience` worse ones.

    `every` counts steps; by default the dev sets are scored once in each epoch of the set with the most epochs.
    """

    patience: int | None = key(whole(1), None)
    weights: Mapping[str, float] | None = key(table_of(number(0), keys=TASKS), None)
    every: int | None = key(whole(1), None)
    keep: str = key(choice("best", "last"), "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatryoshkaSettings:
    """[matryoshka]: the similarity losses also hold for the first dimensions alone (Kusupati et al. 2022)."""

    dimensions: tuple[int, ...] = key(list_of(whole(1), distinct=True), ())


def _tables(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise ValueError
    return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole run. `root` is the folder that relative paths of data start from."""

    output: str = key(TEXT)
    data: tuple[DataSettings, ...] = key(Kind("tables [[data]], at least one", _tables))
    seed: int = key(whole(0, 2**31), 0)
    device: str = key(TEXT, "auto")
    checkpoint_every: int = key(whole(1), 200)
    model: ModelSettings = key(Kind("a table [model]", _table), ModelSettings())
    phase: tuple[PhaseSettings, ...] = key(Kind("tables [[phase]], at least one", _tables), (PhaseSettings(),))
    mix: MixSettings = key(Kind("a table [mix]", _table), MixSettings())
    distill: DistillSettings = key(Kind("a table [distill]", _table), DistillSettings())
    guard: GuardSettings = key(Kind("a table [guard]", _table), GuardSettings())
    early_stopping: StoppingSettings = key(Kind("a table [early_stopping]", _table), StoppingSettings())
    matryoshka: MatryoshkaSettings = key(Kind("a table [matryoshka]", _table), MatryoshkaSettings())
    root: Path = key(Kind("set by --data, not in the file", lambda _: _tables(None)), Path())

    def digest(self) -> str:
        """SHA-256 over everything that a run depends on but the bytes of the data, and where it is written."""
        facts = asdict(self)
        for name in ("output", "root", "checkpoint_every"):
            del facts[name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


_SINGLE = {
    "model": ModelSettings,
    "mix": MixSettings,
    "distill": DistillSettings,
    "guard": GuardSettings,
    "early_stopping": StoppingSettings,
    "matryoshka": MatryoshkaSettings,
}


def read_config(path: str | Path, *, root: str | Path | None = None, output: str | Path | None = None) -> TrainConfig:
    """Read a run from a TOML file. Relative paths of data start from `root`, by default the file's own folder.

    A relative `output` starts from the working directory. Raises `ConfigError`.
    """
    path = Path(path)
    table = read_toml(path)
    if output is not None:
        table["output"] = str(output)
    config = build_config(table, file=str(path))
    return replace(config, root=path.parent if root is None else Path(root))


_NOT_KEYS = {
    "task": "use --task",
    "path": "use --data",
    "dev": "all of --data is measured on",
    "limit": "all of --data is measured on; give a smaller file",
}


def data_settings(task: str, path: Path, keys: Sequence[str]) -> DataSettings:
    """How a file is read: `keys` are NAME=VALUE as in [[data]], in TOML or as plain text. Raises `ConfigError`."""
    table: dict[str, Any] = {"task": task, "path": str(path)}
    for given in keys:
        name, equals, value = given.partition("=")
        if not equals:
            raise ConfigError(f"--key {given}: it must be NAME=VALUE")
        if name in _NOT_KEYS:
            raise ConfigError(f"--key {given}: {name} is no part of how a file is read: {_NOT_KEYS[name]}")
        try:
            table[name] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            table[name] = value
    settings = build(DataSettings, table, file="--key")
    if task == "similarity":
        _check_pairs(settings, place="--key")
    return settings


def build_config(table: Mapping[str, Any], *, file: str = "configuration") -> TrainConfig:
    """A run from the tables of a TOML file; `file` is named in errors. Raises `ConfigError`."""
    config = build(TrainConfig, table, file=file)
    parts: dict[str, Any] = {}
    for name, cls in _SINGLE.items():
        if name in table:
            parts[name] = build(cls, table[name], file=file, name=name)
    for name, cls in (("data", DataSettings), ("phase", PhaseSettings)):
        if name in table:
            parts[name] = tuple(
                build(cls, entry, file=file, name=f"{name} {number}") for number, entry in enumerate(table[name], 1)
            )
    config = replace(config, **parts)
    _check(config, file=file)
    return config


def _check(config: TrainConfig, *, file: str) -> None:
    """What keys must hold together."""
    if config.model.tag_shapes and config.model.tag_head != "contextual":
        raise ConfigError(
            f"{file}, [model]: tag_shapes = true needs tag_head = 'contextual', got '{config.model.tag_head}'"
        )
    for index, data in enumerate(config.data, start=1):
        place = f"{file}, [data {index}]"
        if data.path is None and not isinstance(data.dev, str):
            raise ConfigError(f"{place}: the key 'path' is missing: give files to train on, or a file as dev")
        if data.task == "similarity":
            _check_pairs(data, place=place)
    titles = [data.title for data in config.data]
    for title in titles:
        if titles.count(title) > 1:
            raise ConfigError(f"{file}: two [[data]] are called '{title}': give each a name of its own")
    for index, phase in enumerate(config.phase, start=1):
        place = f"{file}, [phase {index}]"
        if isinstance(phase.epochs, Mapping):
            for name in phase.epochs:
                if name not in TASKS and name not in titles:
                    raise ConfigError(f"{place}: epochs = {{{name} = …}}: allowed are {', '.join((*TASKS, *titles))}")
            if config.mix.strategy in ("proportional", "temperature"):
                raise ConfigError(
                    f"{place}: epochs by task need [mix] strategy = 'balanced', 'round_robin' or 'sequential', "
                    f"not '{config.mix.strategy}', which draws by the sizes of the sets"
                )
        _check_weights(config, phase, place=place, file=file)
        if not any(data.paths and phase.epochs_of(data) for data in config.data):
            raise ConfigError(
                f"{place}: train = '{phase.train}' with these epochs and freeze_heads leaves no data to train on"
                + ("; similarity has no head: it needs 'all', 'lora' or 'top:N'" if phase.kind == "heads" else "")
            )
    if config.guard.max_drop is not None and not any(d.task == "similarity" and d.dev is not None for d in config.data):
        raise ConfigError(f"{file}, [guard]: max_drop needs a [[data]] of the task similarity with dev")


def _check_weights(config: TrainConfig, phase: PhaseSettings, *, place: str, file: str) -> None:
    """The mean of a phase's dev scores must say something; "heads" scores no similarity, which has no head."""
    weights = config.early_stopping.weights or {}
    scored = {d.task for d in config.data if d.dev is not None and not (phase.kind == "heads" and d.task not in HEADS)}
    if scored and not any(weights.get(task, 1.0) for task in scored):
        shown = ", ".join(f"{task} = {weight:g}" for task, weight in weights.items())
        raise ConfigError(
            f"{file}, [early_stopping]: weights = {{{shown}}} are 0 for all that {place.rpartition(', ')[2]} scores "
            f"({', '.join(sorted(scored))}): give one of them a weight above 0"
        )


def _check_pairs(data: DataSettings, *, place: str) -> None:
    wanted = ("cosine", "cosent") if data.form == "scores" else ("infonce",)
    if data.pair_loss not in wanted:
        raise ConfigError(f"{place}: loss = '{data.loss}': for form = '{data.form}' allowed are {', '.join(wanted)}")
    if data.score_range is not None and (len(data.score_range) != 2 or data.score_range[0] >= data.score_range[1]):
        raise ConfigError(f"{place}: score_range = {list(data.score_range)}: it must be [lowest, highest]")
    if data.pair_loss == "cosine" and data.score_range is None:
        raise ConfigError(f"{place}: the key 'score_range' is missing: loss = 'cosine' needs [lowest, highest]")
