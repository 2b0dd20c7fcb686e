"""The words of texts as the tag head reads them: the mean state of their tokens, or the first's, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from indexer import iob
from indexer.shapes import Shape, word_shapes


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text: their `offsets`, the `tokens` of each that are read, and their `shapes`, if these are."""

    offsets: iob.Offsets
    tokens: list[list[int]]
    shapes: list[int] | None

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which have a token, bool (words,): one without is never part of an entity."""
        return np.array([len(own) > 0 for own in self.tokens], dtype=np.bool_)


def cut_words(text: str, tokens: iob.Offsets, *, whole: bool, shapes: bool) -> Words:
    """The words of a text whose tokens have these offsets; see `iob.split_words` and `iob.tokens_of_words`.

    `whole`: all tokens of a word are read, not its first alone. `shapes`: so is what it looks like.
    """
    offsets = iob.split_words(text)
    own = iob.tokens_of_words(offsets, tokens)
    if not whole:
        own = [tokens[:1] for tokens in own]
    return Words(offsets, own, word_shapes(text, offsets) if shapes else None)


@dataclass(frozen=True, slots=True)
class WordBatch:
    """The words of a batch of texts, padded.

    - `tokens`: int64 (2, n), text and token of each token that is read, in the order of the words.
    - `starts`: int64 (batch · words,), where each word's begin in `tokens`.
    - `mask`, `shapes`: int64 (batch, words), 1 for a word, and its `Shape`, `Shape.NONE` where nobody reads it.
    """

    tokens: Tensor
    starts: Tensor
    mask: Tensor
    shapes: Tensor


def pad_words(words: Sequence[Words], device: torch.device) -> WordBatch:
    """The words of each text, padded to the longest, and to one where there is none."""
    size = len(words), max([1, *(len(cut.tokens) for cut in words)])
    counts, mask = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    shapes = np.full(size, int(Shape.NONE), dtype=np.int64)
    for row, cut in enumerate(words):
        end = len(cut.tokens)
        counts[row, :end], mask[row, :end] = [len(own) for own in cut.tokens], 1
        if cut.shapes is not None:
            shapes[row, :end] = cut.shapes
    texts = np.repeat(np.arange(len(words)), counts.sum(axis=1))
    tokens = np.array([token for cut in words for own in cut.tokens for token in own], dtype=np.int64)
    starts = counts.cumsum() - counts.ravel()
    arrays = np.stack([texts, tokens]), starts, mask, shapes
    return WordBatch(*(torch.from_numpy(array).to(device) for array in arrays))


def word_means(states: Sequence[Tensor], words: WordBatch) -> Tensor:
    """The mean state of each word's tokens that are read, of several layers behind each other; zeros without a token.

    *Shapes:* `states` L × (batch, seq, width) in any float type; returns fp32 (batch, words, L · width).
    """
    rows = words.tokens[0] * states[0].shape[1] + words.tokens[1]
    means = [
        functional.embedding_bag(rows, layer.float().flatten(end_dim=1), words.starts, mode="mean") for layer in states
    ]
    return torch.cat(means, dim=1).view(*words.mask.shape, -1)
