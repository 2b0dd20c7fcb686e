"""What a frozen backbone says about a set, computed once: an epoch of the heads then takes seconds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indexer.batches import plan_batches
from indexer.durable import write_file
from indexer.encoder import pool_layers
from indexer.heads import Outputs, PooledClassHead
from indexer.model import UNMASKED, TextModel
from indexer.training.encoded import Encoded
from indexer.words import word_means


@dataclass(frozen=True, slots=True)
class States:
    """The head's input for each window: `values` (windows, …) for class, (words, width) for tags.

    `starts` (windows + 1,) is where each window's words begin; a class head has one row for each window.
    """

    values: npt.NDArray[np.floating]
    starts: npt.NDArray[np.int64]


def cached_states(
    model: TextModel, encoded: Encoded, folder: Path, *, on_batch: Callable[[int, int], None] | None = None
) -> States:
    """The states of a set, from a file in `folder` or computed and written there.

    For class fp32: the first token's last state (windows, width), or for a pooled head the layers' means (windows, L,
    width). For tags fp16, or fp32 where fp16 cannot hold one: what stands for each word in the tagged layers,
    concatenated (words, width · layers). The file's name is a hash of the model's fingerprint, the layers, the
    tokens and the words. `on_batch` is called with the batches that are done and their number.
    """
    layers = _layers(model, encoded.task)
    words = [cut.tokens for cut in encoded.words or ()]
    facts = [model.fingerprint, encoded.task, layers, [window.ids for window in encoded.windows], words]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    tags = encoded.task == "tags"
    lengths = list(map(len, words)) if tags else [1] * len(encoded.windows)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    path = folder / f"states-{name}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: _write(model, encoded, layers, starts, file, on_batch))
    return States(np.load(path, mmap_mode="r"), starts)


def head_outputs(model: TextModel, encoded: Encoded, states: States, windows: Sequence[int]) -> Outputs:
    """A head's logits from cached states; as `MultiTaskModel.forward`, without the backbone."""
    parts = [np.asarray(states.values[states.starts[w] : states.starts[w + 1]], dtype=np.float32) for w in windows]
    if encoded.task == "class":
        rows = torch.from_numpy(np.concatenate(parts)).to(model.device)
        head: Any = model.model.class_head
        logits: Tensor = head(rows if isinstance(head, PooledClassHead) else rows[:, None, :])
        return Outputs(layer_means=None, class_logits=logits, tag_logits=None)
    words = model.pad_words([encoded.words[window] for window in windows] if encoded.words else [])
    padded = np.zeros((*words.mask.shape, states.values.shape[1]), dtype=np.float32)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    head = model.model.tag_head
    layers = torch.from_numpy(padded).to(model.device).chunk(len(model.config.tagged_layers), dim=2)
    logits = head(head.project(layers), words.mask, words.shapes)
    return Outputs(layer_means=None, class_logits=None, tag_logits=logits)


def _layers(model: TextModel, task: str) -> list[int]:
    """The layers that the task's head reads; empty for the first token of the last."""
    if task == "tags":
        return list(model.config.tagged_layers)
    return list(model.config.pooled_layers) if isinstance(model.model.class_head, PooledClassHead) else []


def _write(
    model: TextModel,
    encoded: Encoded,
    layers: Sequence[int],
    starts: npt.NDArray[np.int64],
    file: BinaryIO,
    on_batch: Callable[[int, int], None] | None,
) -> None:
    dtype: type[np.floating] = np.float16 if encoded.task == "tags" else np.float32
    if not _compute(model, encoded, layers, starts, file, dtype, on_batch):
        file.seek(0)
        file.truncate()
        _compute(model, encoded, layers, starts, file, np.float32, on_batch)


def _compute(
    model: TextModel,
    encoded: Encoded,
    layers: Sequence[int],
    starts: npt.NDArray[np.int64],
    file: BinaryIO,
    dtype: type[np.floating],
    on_batch: Callable[[int, int], None] | None,
) -> bool:
    """Write the states as numpy would. False, and nothing that could be used, where one is too large for `dtype`.

    They are not written through a mapping of the file: where the disk is full, that ends the process without a word.
    """
    width, tags = model.model.width, encoded.task == "tags"
    shape = (
        max(1, int(starts[-1])),
        *(  # an empty file cannot be mapped
            (width * len(layers),) if tags else _shape(layers, width)
        ),
    )
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    begin, row_bytes = file.tell(), math.prod(shape[1:]) * np.dtype(dtype).itemsize
    file.truncate(begin + shape[0] * row_bytes)
    lengths = [len(window.ids) for window in encoded.windows]
    padding = model.model.backbone.config.model_type not in UNMASKED
    plan = plan_batches(lengths, max_tokens=model.batch_tokens, padding=padding)
    model.model.eval()
    for done, batch in enumerate(plan, start=1):
        ids, mask = model.pad([encoded.windows[index] for index in batch])
        with torch.inference_mode():
            result = model.model.backbone(
                input_ids=ids, attention_mask=mask, output_hidden_states=sorted(set(layers)) or None
            )
            if not layers:
                found = result.last_hidden_state[:, 0]
            elif encoded.words:
                words = model.pad_words([encoded.words[index] for index in batch])
                found = word_means([result.hidden_states[layer] for layer in layers], words)
            else:
                found = pool_layers([result.hidden_states[layer] for layer in layers], mask)
        rows = found.float().cpu().numpy()
        if dtype == np.float16 and np.abs(rows).max() > np.finfo(np.float16).max:
            return False
        for row, index in enumerate(batch):
            own = rows[row, : starts[index + 1] - starts[index]] if tags else rows[row]
            file.seek(begin + int(starts[index]) * row_bytes)
            file.write(own.astype(dtype).tobytes())
        if on_batch is not None:
            on_batch(done, len(plan))
    return True


def _shape(layers: Sequence[int], width: int) -> tuple[int, ...]:
    return (len(layers), width) if layers else (width,)
