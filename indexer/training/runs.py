"""The folder of a run: what it is, how far it has come, its log. Only JSON and safetensors.

run.json            digests of the configuration, the data and the base: a folder belongs to one run
log.jsonl           one object for each step and each scoring, and for a note
state.safetensors   weights, optimizer and position, replaced as a whole
best.safetensors    the best weights of the phase, or the last where not all that is trained is measured
cache/              states of a frozen backbone
model/              the finished model; report.json, scores.json and curves.svg beside it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from indexer.durable import sync, write_file
from indexer.errors import TagdexError
from indexer.lock import WriterLock
from indexer.training.adapt import Group
from indexer.training.keys import ConfigError

STATE, BEST, LOG, RUN, LOCK = "state.safetensors", "best.safetensors", "log.jsonl", "run.json", "LOCK"
_BEGUN = (LOCK, f"{RUN}.tmp")  # what there may be before run.json is
_OTHER = {
    "config": "with another configuration",
    "data": "with other data",
    "base": "that began from another base model, by the fingerprint of its embeddings",
    "heads": "that began from a base model with other heads, by their fingerprint",
}


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come: `step` optimizer steps of phase number `phase`, both counted from 0.

    `best` is the weighted mean of dev scores of the weights kept so far in this phase, None before the first scoring,
    and `stale` how many scorings since. `floor` is the starting model's dev score in similarity; `stopped` ends the
    phase early. `log` is the log's length in bytes.
    """

    phase: int = 0
    step: int = 0
    best: float | None = None
    stale: int = 0
    floor: float | None = None
    stopped: bool = False
    log: int = 0


class RunFolder:
    """Reads and writes one folder, held by one process until it is closed.

    Raises `ConfigError` where the folder holds another run, and `LockedError` where another process holds it. Nothing
    but the lock is written before `claim`.
    """

    def __init__(self, folder: Path, *, config: str, data: str) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output = '{folder}' cannot be a folder: {error.strerror}: choose another") from error
        if not (folder / RUN).is_file() and any(path.name not in _BEGUN for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty, and holds no run: choose another output")
        self._lock = WriterLock(folder / LOCK)
        self._facts = {"config": config, "data": data}
        try:
            self._check(self._facts)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def claim(self, *, base: str, heads: str | None) -> None:
        """Say whose folder it is, or check that the base is still the one that this run began from.

        `base` and `heads` are the fingerprints of the base's embeddings and of its heads. Raises `ConfigError`.
        """
        facts = {**self._facts, "base": base, "heads": heads}
        if (self.folder / RUN).is_file():
            self._check(facts)
        else:
            self.write_json(RUN, facts)

    def _check(self, facts: Mapping[str, str | None]) -> None:
        """Compare what run.json says, if it is there."""
        path = self.folder / RUN
        if not path.is_file():
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        for name, value in facts.items():
            if name in known and known[name] != value:  # the first versions did not write the base down
                raise ConfigError(
                    f"{self.folder} holds a run {_OTHER[name]} ({str(known[name])[:12]}, now {str(value)[:12]}): "
                    "choose another output, or delete the folder"
                )

    @property
    def model(self) -> Path:
        """The finished model's folder."""
        return self.folder / "model"

    def write_json(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all; a number that is not finite becomes null."""
        write_bytes(self.folder / name, orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one object to the log; a number that is not finite becomes null."""
        with (self.folder / LOG).open("ab") as file:
            file.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))

    def events(self) -> list[dict[str, Any]]:
        """All objects of the log, but for one at its end that a power cut has left in parts."""
        path = self.folder / LOG
        content = path.read_bytes() if path.is_file() else b""
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def save_best(self, groups: list[Group]) -> None:
        """Keep the trained weights as those that the phase may end with."""
        tensors = {
            name: p.detach().cpu().contiguous() for g in groups for name, p in zip(g.names, g.parameters, strict=True)
        }
        _write(self.folder / BEST, tensors, {})

    def load_best(self, groups: list[Group]) -> None:
        """Put the weights back that were kept."""
        tensors, _ = _read(self.folder / BEST)
        with torch.no_grad():
            for group in groups:
                for name, parameter in zip(group.names, group.parameters, strict=True):
                    parameter.copy_(tensors[name])

    def save_state(
        self, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, backbone: bool
    ) -> Position:
        """Write where the run stands; without `backbone` its weights, which never change, are left out."""
        log = self.folder / LOG
        if log.is_file():
            sync(log)  # the state notes how long it is
        position = replace(position, log=log.stat().st_size if log.is_file() else 0)
        tensors = {
            f"model.{name}": tensor.detach().cpu().contiguous().clone()
            for name, tensor in model.state_dict().items()
            if backbone or not name.startswith("backbone.")
        }
        if optimizer is not None:
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": tensor.detach().cpu() for name, tensor in values.items()}
        _write(self.folder / STATE, tensors, asdict(position))
        return position

    def position(self) -> Position | None:
        """Where the run stands, None before the first step."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        with _opened(path) as file:
            return Position(**json.loads((file.metadata() or {})["facts"]))

    def load_state(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Put weights and optimizer back as they were, and cut off what the log says beyond."""
        tensors, facts = _read(self.folder / STATE)
        weights = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        kept = {name: tensor for name, tensor in model.state_dict().items() if name not in weights}
        model.load_state_dict({**kept, **weights})
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                if part == "optimizer":
                    index, _, key = rest.partition(".")
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.cut_log(Position(**facts).log)

    def cut_log(self, length: int) -> None:
        """Drop what was logged after the state was written: those steps come again."""
        path = self.folder / LOG
        if path.is_file() and path.stat().st_size > length:
            os.truncate(path, length)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_file(path, write)


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    content = save(dict(tensors), metadata={"facts": json.dumps(facts)})
    write_bytes(path, content)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TagdexError(f"{path} is damaged: {error}; delete the run's folder and start again") from error
