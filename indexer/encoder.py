"""From the backbone's hidden states to an embedding: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool_layers(hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean of each layer's token states over the tokens that are not padding, computed in fp32.

    *Shapes:* `hidden_states` L × (batch, seq, width) in any float type, `mask` (batch, seq) with 1 for a token and
    0 for padding; returns fp32 (batch, L, width). Special tokens count as tokens.
    """
    weights = mask.to(torch.float32)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    means = [torch.bmm(weights.unsqueeze(1), layer.float()) for layer in hidden_states]  # each (batch, 1, width)
    return torch.cat(means, dim=1)


def concatenate_layers(means: Tensor, *, weights: Sequence[float], normalize: bool) -> Tensor:
    """One embedding from the means of the pooled layers, in their order.

    *Shapes:* `means` fp32 (batch, L, width), `weights` L; returns fp32 (batch, L · width). With all weights 1 and no
    normalisation this is the plain concatenation; with `normalize`, each layer's mean has length 1 before it is
    weighted, so that the dot product of two embeddings is Σ wₗ² · cosₗ.
    """
    if normalize:
        means = torch.nn.functional.normalize(means, dim=2)
    factors = torch.tensor(list(weights), dtype=means.dtype, device=means.device)
    return (means * factors[:, None]).flatten(start_dim=1)
