"""The frozen backbone, once over everything: layer means, and token states with labels and shapes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from default_model.common import (
    ENTITY_TYPES,
    LAYERS,
    MAX_LENGTH,
    Floats,
    key_of,
    pad,
    progress,
    write_whole,
)
from indexer import iob
from indexer.batches import plan_batches
from indexer.checkpoint import Loaded
from indexer.encoder import pool_layers
from indexer.passages import split_passages
from indexer.precision import native_bf16
from indexer.shapes import Shapes, token_shapes, word_shapes
from indexer.training.data import TaggedText


@dataclass(frozen=True, slots=True)
class TokenStates:
    """Token states for the tag head: `states` fp16 (tokens, 4 · 384) of all texts one behind the other,
    `labels` and `shapes` (tokens,), `starts` (texts + 1,) where each text begins. `soft` fp16 (tokens, labels): what
    teachers think of each token, a row of zeros where they are not asked; `None` where there are none."""

    states: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    shapes: Shapes
    starts: npt.NDArray[np.int64]
    soft: npt.NDArray[np.float16] | None = None

    def lengths(self) -> list[int]:
        return [int(length) for length in np.diff(self.starts)]

    def digest(self) -> str:
        """SHA-256 of what training reads beside the states."""
        soft = b"" if self.soft is None else self.soft.tobytes()
        return hashlib.sha256(self.labels.tobytes() + self.shapes.tobytes() + soft).hexdigest()


class Encoder:
    """The frozen backbone with a cache."""

    def __init__(self, loaded: Loaded, cache: Path) -> None:
        self.loaded = loaded
        self.cache = cache
        self.backbone = loaded.model.backbone
        self.tokenizer = loaded.tokenizer
        self.width = loaded.model.width
        self.half: nn.Module | None = None

    def features(self, name: str, texts: Sequence[str]) -> Floats:
        """Layer means, fp32 (texts, 4, 384), over all tokens of all windows, as the product pools them."""
        path = self.cache / f"features-{name}-{key_of(list(texts), self.loaded.fingerprint)}.npz"
        if path.is_file():
            with np.load(path) as saved:
                return np.asarray(saved["means"], dtype=np.float32)
        windows: list[tuple[int, list[int]]] = []
        for number, encoding in enumerate(self.tokenizer.encode_batch(list(texts))):
            if len(encoding.ids) <= MAX_LENGTH:
                windows.append((number, encoding.ids))
                continue
            pieces = split_passages(
                texts[number], tokens=len(encoding.ids), max_tokens=MAX_LENGTH - 2, count=self._count
            )
            windows += [(number, self.tokenizer.encode(texts[number][a:b]).ids) for a, b in pieces]
        sums = np.zeros((len(texts), len(LAYERS), self.width), dtype=np.float64)
        tokens = np.zeros(len(texts))
        for batch in progress(name, plan_batches([len(ids) for _, ids in windows], max_tokens=1024)):
            ids, mask = pad([windows[index][1] for index in batch])
            with torch.inference_mode():
                states = self.backbone(
                    input_ids=ids, attention_mask=mask, output_hidden_states=sorted(LAYERS)
                ).hidden_states
                pooled = pool_layers([states[layer] for layer in LAYERS], mask).numpy()
            for row, index in enumerate(batch):
                number, own = windows[index]
                sums[number] += len(own) * pooled[row]
                tokens[number] += len(own)
        means: Floats = (sums / tokens[:, None, None]).astype(np.float32)
        write_whole(path, lambda temporary: np.savez(temporary, means=means))
        return means

    def token_states(self, name: str, texts: Sequence[TaggedText], *, exact: bool) -> TokenStates:
        """Token states, labels and shapes; texts longer than a window are left out.

        `exact`: in fp32; otherwise in bfloat16, where the machine has it.
        """
        exact = exact or not native_bf16(torch.device("cpu"))
        precision = "fp32" if exact else "bf16"
        stem = f"states-{name}-{key_of([asdict(text) for text in texts], self.loaded.fingerprint, precision)}"
        paths = [self.cache / f"{stem}-{part}.npy" for part in ("starts", "states")]
        if not paths[1].is_file():
            self._compute_states(name, texts, paths, exact=exact)
        labels, shapes = self._labels_and_shapes(texts)
        return TokenStates(np.load(paths[1], mmap_mode="r"), labels, shapes, np.load(paths[0]))

    def _labels_and_shapes(self, texts: Sequence[TaggedText]) -> tuple[npt.NDArray[np.int64], Shapes]:
        """Of the tokens of all texts that fit into a window. Not cached, so that the rules for words can change."""
        labels, shapes = [], []
        for text, encoding in zip(texts, self.tokenizer.encode_batch([text.text for text in texts]), strict=True):
            if len(encoding.ids) <= MAX_LENGTH:
                words, tokens = iob.split_words(text.text), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                labels.append(token_labels(text, encoding.offsets))
                shapes.append(token_shapes(word_shapes(text.text, words), iob.first_tokens(words, tokens), tokens))
        return np.concatenate(labels), np.concatenate(shapes)

    def _compute_states(self, name: str, texts: Sequence[TaggedText], paths: Sequence[Path], *, exact: bool) -> None:
        if not exact and self.half is None:
            self.half = copy.deepcopy(self.backbone).to(torch.bfloat16)
        backbone = self.backbone if exact else self.half
        encodings = self.tokenizer.encode_batch([text.text for text in texts])
        encoded = [encoding.ids for encoding in encodings]
        kept = [index for index, ids in enumerate(encoded) if len(ids) <= MAX_LENGTH]
        starts = np.concatenate([[0], np.cumsum([len(encoded[index]) for index in kept])]).astype(np.int64)
        temporary = paths[1].with_suffix(".tmp")
        states = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=(int(starts[-1]), len(LAYERS) * self.width)
        )
        lengths = [len(encoded[index]) for index in kept]
        for batch in progress(name, plan_batches(lengths, max_tokens=1024 if exact else 4096)):
            ids, mask = pad([encoded[kept[row]] for row in batch])
            with torch.inference_mode():
                hidden = backbone(  # type: ignore[misc]
                    input_ids=ids, attention_mask=mask, output_hidden_states=sorted(LAYERS)
                ).hidden_states
                joined = torch.cat([hidden[layer] for layer in LAYERS], dim=2).to(torch.float16).numpy()
            for row, index in enumerate(batch):
                states[starts[index] : starts[index + 1]] = joined[row, : lengths[index]]
        states.flush()
        np.save(paths[0], starts)
        temporary.rename(paths[1])

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def token_labels(text: TaggedText, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The label of each token: that of the word it begins, `iob.IGNORED` for the others."""
    words = iob.split_words(text.text)
    spans = [(ENTITY_TYPES.index(kind), start, end) for kind, start, end in text.spans]
    first = iob.first_tokens(words, np.array(offsets, dtype=np.int64).reshape(-1, 2))
    labels = np.full(len(offsets), iob.IGNORED, dtype=np.int64)
    known = np.flatnonzero(first >= 0)
    labels[first[known]] = iob.labels_of_spans(spans, words)[known]
    return labels
