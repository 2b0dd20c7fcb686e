"""The matrix products of linear layers on a CPU, by whichever of two libraries is faster on its processor.

torch computes them with Intel's MKL, whose best kernels are for Intel's processors alone; numpy brings OpenBLAS, which
has kernels for all. On an AMD EPYC (Zen 2) OpenBLAS does 88 to 95 GFLOP/s on one core where MKL does 70 to 75.

OpenBLAS shares out every product among all cores, for the whole process, unless it is told not to, and then products of
several threads wait for each other. So it is used where each core has a batch of its own, and kept to one thread then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# A query's rows are too few for MKL to share out among cores; its weights in blocks of so many outputs are not.
FEW_ROWS = 64
BLOCK = 96


class Linear(nn.Linear):
    """A linear layer that is computed in the faster way where only the result in fp32 is wanted of it."""

    def forward(self, states: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        weight, bias = self.weight, self.bias
        plain = states.dtype is weight.dtype is torch.float32 and states.is_cpu and weight.is_cpu
        if torch.is_grad_enabled() or not plain:
            return functional.linear(states, weight, bias)
        rows = states.reshape(-1, self.in_features)
        if torch.get_num_threads() == 1:
            if numpy_threads() != 1:
                return functional.linear(states, weight, bias)
            product = _by_openblas(rows, weight, bias)
        elif len(rows) <= FEW_ROWS and self.out_features % BLOCK == 0 and bias is not None:
            product = _by_blocks(rows, weight, bias)
        else:
            return functional.linear(states, weight, bias)
        return product.view(*states.shape[:-1], self.out_features)


def _by_openblas(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.empty(len(rows), len(weight))
    with np.errstate(all="ignore"):  # what is not finite is found in the end, as with torch
        np.matmul(rows.numpy(), weight.detach().numpy().T, out=product.numpy())
    return product if bias is None else product.add_(bias)


def _by_blocks(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """By MKL, a product for each block of outputs, which are shared out among the cores."""
    blocks = weight.view(-1, BLOCK, weight.shape[1]).transpose(1, 2)
    product = torch.baddbmm(bias.view(-1, 1, BLOCK), rows.expand(len(blocks), -1, -1), blocks)
    return product.transpose(0, 1).reshape(len(rows), len(weight))


def use_the_faster(model: nn.Module) -> None:
    """Compute the linear layers of a model as `Linear` does, where that is faster. Weights, names and training stay."""
    if openblas_is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


@cache
def openblas_is_faster() -> bool:
    """Whether torch has MKL, numpy OpenBLAS, and the processor is AMD's: known, not timed, so that results stay."""
    return bool(torch.backends.mkl.is_available()) and _openblas() is not None and _maker() == "AuthenticAMD"  # type: ignore[no-untyped-call]


def _maker() -> str:
    """What the processor says of who made it; empty where that cannot be read."""
    if (windows := os.environ.get("PROCESSOR_IDENTIFIER")) is not None:
        return windows.rpartition(" ")[2]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


class _Limit:
    """How many threads are in `numpy_in_one_thread`, and how many threads OpenBLAS had before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before = 1


_limit = _Limit()  # of the process, as OpenBLAS's own is


@contextmanager
def numpy_in_one_thread() -> Iterator[None]:
    """Keep numpy's OpenBLAS to the thread that calls it, in the whole process, until the last has left."""
    with _limit.lock:
        if _limit.inside == 0:
            _limit.before = numpy_threads()
            _set_numpy_threads(1)
        _limit.inside += 1
    try:
        yield
    finally:
        with _limit.lock:
            _limit.inside -= 1
            if _limit.inside == 0:
                _set_numpy_threads(_limit.before)


def _set_numpy_threads(count: int) -> None:
    if (library := _openblas()) is not None:
        library.clear_controlling_thread(force=True)  # without which it would hear one of our threads only
        library.set_num_threads(count)
        library.clear_controlling_thread(force=True)


def numpy_threads() -> int:
    """How many threads numpy's OpenBLAS shares out a product to; 0 where numpy computes with something else."""
    library = _openblas()
    return 0 if library is None else int(library.num_threads)


@cache
def _openblas() -> Any:
    """threadpoolctl's handle of the OpenBLAS that numpy brings, `None` where it brings none."""
    from threadpoolctl import ThreadpoolController

    found = [lib for lib in ThreadpoolController().lib_controllers if lib.internal_api == "openblas"]
    return next((lib for lib in found if Path(lib.filepath).parent.name.startswith("numpy")), None)
