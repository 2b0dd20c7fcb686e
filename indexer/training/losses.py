"""Losses: small pure functions on tensors, each the mean over what it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from indexer.iob import IGNORED

COSENT_SCALE = 20.0


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy. *Shapes:* (batch, classes), int64 (batch,)."""
    return functional.cross_entropy(logits.float(), labels)


def tag_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the words that carry a label. *Shapes:* (batch, words, labels), int64 (batch, words).

    0 where no word does: a text of nothing that is a word.
    """
    flat, targets = logits.float().flatten(end_dim=1), labels.flatten()
    if not bool((targets != IGNORED).any()):
        return flat.sum() * 0.0
    return functional.cross_entropy(flat, targets, ignore_index=IGNORED)


def cosine_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of cosine and score. *Shapes:* (n, d), (n, d), scores in [−1, 1] (n,)."""
    return functional.mse_loss(functional.cosine_similarity(first, second), scores)


def cosent_loss(first: Tensor, second: Tensor, scores: Tensor, *, scale: float = COSENT_SCALE) -> Tensor:
    """log(1 + Σ exp(scale · (cosⱼ − cosᵢ))) over all i, j with scoreᵢ > scoreⱼ (Su 2022): only the order counts.

    *Shapes:* (n, d), (n, d), (n,).
    """
    cosines = scale * functional.cosine_similarity(first, second)
    differences = cosines[None, :] - cosines[:, None]  # [i, j] = cosⱼ − cosᵢ
    wrong = differences[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)


def infonce_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
    same: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of finding each one's partner among all of the batch, both ways (van den Oord et al. 2018).

    *Shapes:* `first`, `second` (n, d); `negatives` (m, d) are further wrong answers to `first`; `same` bool
    (n, n) marks pairs [i, j] whose texts are equal, so that second j is no wrong answer to first i. The
    diagonal is always right.
    """
    a, b = functional.normalize(first, dim=1), functional.normalize(second, dim=1)
    ahead = a @ b.T / temperature
    if same is not None:
        hidden = same & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        ahead = ahead.masked_fill(hidden, -torch.inf)
    back = ahead.T
    if negatives is not None:
        ahead = torch.cat([ahead, a @ functional.normalize(negatives, dim=1).T / temperature], dim=1)
    targets = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(ahead, targets) + functional.cross_entropy(back, targets)) / 2


def distillation_loss(means: Tensor, start: Tensor) -> Tensor:
    """1 − cosine of each pooled layer's mean and that of the starting backbone. *Shapes:* (n, L, width) both."""
    return (1.0 - functional.cosine_similarity(means, start, dim=2)).mean()


def matryoshka_loss(
    loss: Callable[[Sequence[Tensor]], Tensor], embeddings: Sequence[Tensor], *, dimensions: Sequence[int]
) -> Tensor:
    """Mean of a loss on whole embeddings and on their first dimensions alone. *Shapes:* each (n, d)."""
    total = loss(embeddings)
    for size in dimensions:
        total = total + loss([embedding[:, :size] for embedding in embeddings])
    return total / (1 + len(dimensions))
