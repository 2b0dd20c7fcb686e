"""The frozen backbone, once over everything: layer means, and the states of words with labels and shapes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding
from torch import nn

from default_model.common import (
    ENTITY_TYPES,
    LAYERS,
    MAX_LENGTH,
    TAG_LAYERS,
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
from indexer.shapes import Shapes
from indexer.training.data import TaggedText
from indexer.words import Words, cut_words, pad_words, word_means


@dataclass(frozen=True, slots=True)
class WordStates:
    """What the tag head reads: `states` fp16 (words, 2 · 384), the means of each word's tokens, of all texts one
    behind the other, `labels` and `shapes` (words,), `starts` (texts + 1,) where each text begins. `soft` fp16 (words,
    labels): what teachers think of each word, a row of zeros where they are not asked; `None` where there are none."""

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

    def word_states(self, name: str, texts: Sequence[TaggedText], *, exact: bool) -> WordStates:
        """States, labels and shapes of words; texts longer than a window are left out.

        `exact`: in fp32; otherwise in bfloat16, where the machine has it.
        """
        exact = exact or not native_bf16(torch.device("cpu"))
        encodings = self.tokenizer.encode_batch([text.text for text in texts])
        kept = [pair for pair in zip(texts, encodings, strict=True) if len(pair[1].ids) <= MAX_LENGTH]
        words = [words_of(text.text, encoding) for text, encoding in kept]
        starts = np.concatenate([[0], np.cumsum([len(cut.tokens) for cut in words])]).astype(np.int64)
        facts = [asdict(text) for text in texts], [cut.tokens for cut in words], TAG_LAYERS
        key = key_of(facts, self.loaded.fingerprint, exact)
        path = self.cache / f"words-{name}-{key}.npy"
        if not path.is_file():
            self._compute_states(name, [encoding.ids for _, encoding in kept], words, starts, path, exact=exact)
        return WordStates(
            states=np.load(path, mmap_mode="r"),
            labels=np.concatenate([word_labels(text, cut) for (text, _), cut in zip(kept, words, strict=True)]),
            shapes=np.array([shape for cut in words for shape in cut.shapes or ()], dtype=np.int64),
            starts=starts,
        )

    def _compute_states(
        self,
        name: str,
        encoded: Sequence[Sequence[int]],
        words: Sequence[Words],
        starts: npt.NDArray[np.int64],
        path: Path,
        *,
        exact: bool,
    ) -> None:
        if not exact and self.half is None:
            self.half = copy.deepcopy(self.backbone).to(torch.bfloat16)
        backbone = self.backbone if exact else self.half
        temporary = path.with_suffix(".tmp")
        states = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=(int(starts[-1]), len(TAG_LAYERS) * self.width)
        )
        for batch in progress(name, plan_batches([len(ids) for ids in encoded], max_tokens=1024 if exact else 4096)):
            ids, mask = pad([encoded[row] for row in batch])
            with torch.inference_mode():
                hidden = backbone(  # type: ignore[misc]
                    input_ids=ids, attention_mask=mask, output_hidden_states=sorted(TAG_LAYERS)
                ).hidden_states
                means = word_means(
                    [hidden[layer] for layer in TAG_LAYERS], pad_words([words[row] for row in batch], ids.device)
                )
            for row, index in enumerate(batch):
                states[starts[index] : starts[index + 1]] = means[row, : len(words[index].tokens)]
        states.flush()
        temporary.rename(path)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def words_of(text: str, encoding: Encoding) -> Words:
    """The words of a text that fits into one window."""
    return cut_words(text, encoding.offsets, whole=True, shapes=True)


def word_labels(text: TaggedText, words: Words) -> npt.NDArray[np.int64]:
    """The label of each word, `iob.IGNORED` for one without a token."""
    spans = [(ENTITY_TYPES.index(kind), start, end) for kind, start, end in text.spans]
    return np.where(words.known, iob.labels_of_spans(spans, words.offsets), iob.IGNORED)
