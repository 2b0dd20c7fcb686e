"""What a backbone computes in: fp32, or bf16 where the hardware has it and embeddings stay the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from indexer.errors import ModelError
from indexer.heads import MultiTaskModel

PRECISIONS = ("auto", "fp32", "bf16")

MIN_COSINE = 0.9995  # of each probe's embedding in bf16 with that in fp32, below which "auto" keeps fp32


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices by itself; where it does not, bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def with_bf16_backbone(model: MultiTaskModel) -> MultiTaskModel:
    """The model with a copy of its backbone in bf16; the heads are the same, in fp32."""
    half = copy.copy(model)
    half._modules = dict(model._modules)  # that of `model` keeps its own backbone
    half.backbone = copy.deepcopy(model.backbone).to(torch.bfloat16)
    return half


def choose(name: str, model: MultiTaskModel, probe: Callable[[], tuple[Tensor, Tensor]]) -> tuple[str, MultiTaskModel]:
    """The precision for a name, and the model that computes in it. Raises `ModelError` for an unknown name.

    "auto" is bf16 where the model's device has it and every probe's embedding keeps a cosine of `MIN_COSINE`; else
    fp32. `probe` gives token ids and mask of some texts, int64 (batch, seq).
    """
    if name not in PRECISIONS:
        raise ModelError(f"unknown precision '{name}': use {', '.join(PRECISIONS)}")
    if name == "fp32" or (name == "auto" and not native_bf16(model.device)):
        return "fp32", model
    half = with_bf16_backbone(model)
    if name == "auto" and smallest_cosine(model, half, probe()) < MIN_COSINE:
        return "fp32", model
    return "bf16", half


def smallest_cosine(model: MultiTaskModel, other: MultiTaskModel, probe: tuple[Tensor, Tensor]) -> float:
    """The smallest cosine of the two models' means, over layers and probes; −1 where one is not finite."""
    with torch.inference_mode():
        exact, found = (one(*probe, classes=False, tags=False).layer_means for one in (model, other))
    if exact is None or found is None or not bool(torch.isfinite(found).all()):
        return -1.0
    return float(torch.nn.functional.cosine_similarity(exact.float(), found.float(), dim=2).min())
