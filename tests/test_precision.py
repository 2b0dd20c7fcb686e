"""bf16 where it was asked for or does no harm; fp32 everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import multi_task, tiny

from indexer import precision
from indexer.errors import ModelError
from indexer.model import TextModel

TEXTS = ["hello there london", "ada met paris in the zurich", "acme", ""]


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_bf16_changes_embeddings_a_little_and_neither_their_form_nor_the_fp32_model() -> None:
    loaded = multi_task()
    exact, half = TextModel(loaded), TextModel(loaded, precision="bf16")
    before, found = exact.encode(TEXTS), half.encode(TEXTS)
    assert half.precision == "bf16"
    assert found.dtype == np.float32
    assert not np.array_equal(before, found)
    assert cosines(before, found).min() > 0.999
    assert half.fingerprint == exact.fingerprint
    np.testing.assert_array_equal(TextModel(loaded).encode(TEXTS), before)
    assert next(half.model.backbone.parameters()).dtype == torch.bfloat16
    heads = [parameter for name, parameter in half.model.named_parameters() if not name.startswith("backbone.")]
    assert heads
    assert {parameter.dtype for parameter in heads} == {torch.float32}


@pytest.mark.parametrize("tag_head", ["linear", "contextual"])
def test_heads_work_on_a_bf16_backbone(tag_head: str) -> None:
    loaded = multi_task(tag_head=tag_head)
    for exact, half in zip(
        TextModel(loaded).analyse(TEXTS), TextModel(loaded, precision="bf16").analyse(TEXTS), strict=True
    ):
        assert half.label is not None
        assert exact.label is not None
        assert half.label.score == pytest.approx(exact.label.score, abs=0.02)


def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny()
    native = precision.native_bf16(torch.device("cpu"))
    assert TextModel(loaded, precision="auto").precision == ("bf16" if native else "fp32")
    monkeypatch.setattr(precision, "native_bf16", lambda _: True)  # this machine may not have it
    assert TextModel(loaded, precision="auto").precision == "bf16"


def test_auto_stays_with_fp32_where_bf16_would_change_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda _: True)
    loaded = tiny()
    with torch.no_grad():  # a common height that the norm takes away, but in which bf16 loses all that differs
        loaded.model.backbone.embeddings.word_embeddings.weight.add_(1000.0)
    assert TextModel(loaded, precision="auto").precision == "fp32"
    assert TextModel(loaded, precision="bf16").precision == "bf16"  # who asks for it gets it


def test_values_that_are_not_finite_are_no_reason_for_bf16() -> None:
    model = tiny().model
    half = precision.with_bf16_backbone(model)
    with torch.no_grad():
        half.backbone.embeddings.word_embeddings.weight.fill_(torch.inf)
    ids = torch.ones((1, 3), dtype=torch.int64)
    assert precision.smallest_cosine(model, half, (ids, torch.ones_like(ids))) == -1.0


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown precision 'fp16': use auto, fp32, bf16"):
        TextModel(tiny(), precision="fp16")
