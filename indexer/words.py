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
from indexer.shapes import Shape, Shapes, word_shapes

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text: `offsets`, the `tokens` that are read one behind the other, how many of each, `shapes`.

    All int64: `offsets` (words, 2), `tokens` (n,), `counts` (words,), `shapes` (words,), NONE where nobody reads them.
    """

    offsets: iob.Offsets
    tokens: Ints
    counts: Ints
    shapes: Shapes

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which have a token, bool (words,): one without is never part of an entity."""
        known: npt.NDArray[np.bool_] = self.counts > 0
        return known


def cut_words(text: str, tokens: iob.Offsets, *, whole: bool, shapes: bool) -> Words:
    """The words of a text whose tokens have these offsets; see `iob.split_words` and `iob.tokens_of_words`.

    `whole`: all tokens of a word are read, not its first alone. `shapes`: so is what it looks like.
    """
    offsets = iob.split_words(text)
    own, counts = iob.tokens_of_words(offsets, tokens)
    if not whole:
        own, counts = own[(counts.cumsum() - counts)[counts > 0]], np.minimum(counts, 1)
    return Words(offsets, own, counts, word_shapes(text, offsets) if shapes else np.full_like(counts, int(Shape.NONE)))


@dataclass(frozen=True, slots=True)
class WordBatch:
    """The words of a batch of texts, padded.

    - `tokens`: int64 (2, n), text and token of each token that is read, in the order of the words.
    - `starts`: int64 (batch · words,), where each word's begin in `tokens`.
    - `mask`, `shapes`: int64 (batch, words), 1 for a word and its `Shape`.
    """

    tokens: Tensor
    starts: Tensor
    mask: Tensor
    shapes: Tensor


def pad_words(words: Sequence[Words], device: torch.device) -> WordBatch:
    """The words of each text, padded to the longest, and to one where there is none."""
    size = len(words), max([1, *(len(cut.counts) for cut in words)])
    counts, mask = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    shapes = np.full(size, int(Shape.NONE), dtype=np.int64)
    for row, cut in enumerate(words):
        end = len(cut.counts)
        counts[row, :end], mask[row, :end], shapes[row, :end] = cut.counts, 1, cut.shapes
    texts = np.repeat(np.arange(len(words)), counts.sum(axis=1))
    tokens = np.stack([texts, np.concatenate([cut.tokens for cut in words])]) if words else np.zeros((2, 0), np.int64)
    starts = counts.cumsum() - counts.ravel()
    return WordBatch(*(torch.from_numpy(array).to(device) for array in (tokens, starts, mask, shapes)))


def word_means(states: Sequence[Tensor], words: WordBatch) -> Tensor:
    """The mean state of each word's tokens that are read, of several layers behind each other; zeros without a token.

    *Shapes:* `states` L × (batch, seq, width) in any float type; returns fp32 (batch, words, L · width).
    """
    rows = words.tokens[0] * states[0].shape[1] + words.tokens[1]
    means = [
        functional.embedding_bag(rows, layer.float().flatten(end_dim=1), words.starts, mode="mean") for layer in states
    ]
    return torch.cat(means, dim=1).view(*words.mask.shape, -1)
