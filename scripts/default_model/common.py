"""What all stages share: constants, the cache's keys and files, batches."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

ENTITY_TYPES = ["PER", "ORG", "LOC"]
LAYERS = [-1, -2, -3, -4]  # that are pooled
TAG_LAYERS = [-1, -2]  # that the tag head reads
MAX_LENGTH = 256
WARMUP = 0.05  # share of a head's steps in which the learning rate rises

Floats = npt.NDArray[np.float32]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 (rows, longest)."""
    ids = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def key_of(*facts: Any) -> str:
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """A file of this name is always complete."""
    temporary = path.with_name("unfinished-" + path.name)
    write(temporary)
    temporary.rename(path)


def progress(name: str, batches: Sequence[Any]) -> Any:
    return tqdm(batches, desc=name, disable=not sys.stderr.isatty(), leave=False)


def log(message: str) -> None:
    click.echo(message, err=True)
