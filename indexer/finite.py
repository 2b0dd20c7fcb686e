"""Whether a tensor holds NaN or infinity."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """True where no element is NaN or infinite.

    A sum that is finite says so at a tenth of the cost of looking at each; one that is not may only have overflowed.

    >>> all_finite(torch.tensor([3e38, 3e38])), all_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
