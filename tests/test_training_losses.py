"""Losses against their formulas, and what of a model an adaptation trains."""

from __future__ import annotations

import math

import pytest
import torch
from models import multi_task, tiny
from torch.nn import functional

from indexer.iob import IGNORED
from indexer.training.adapt import adapt, groups, restore, set_dropout, set_train_mode
from indexer.training.keys import ConfigError
from indexer.training.losses import (
    class_loss,
    cosent_loss,
    cosine_loss,
    distillation_loss,
    infonce_loss,
    matryoshka_loss,
    tag_loss,
)
from indexer.training.settings import LoraSettings, PhaseSettings


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)


def test_class_and_tag_losses_are_the_mean_of_minus_log_p() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert class_loss(logits, torch.tensor([1])).item() == pytest.approx(-math.log(0.75))
    tags = torch.stack([logits, torch.zeros(1, 2)], dim=1)
    assert tag_loss(tags, torch.tensor([[1, IGNORED]])).item() == pytest.approx(-math.log(0.75))


def test_a_text_without_a_word_costs_nothing() -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = tag_loss(logits, torch.full((1, 2), IGNORED))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_cosine_loss_is_zero_where_cosines_are_the_scores(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    cosines = functional.cosine_similarity(*vectors)
    assert cosine_loss(*vectors, cosines).item() == pytest.approx(0.0, abs=1e-12)
    assert cosine_loss(*vectors, cosines + 0.5).item() == pytest.approx(0.25)


def test_cosent_is_its_formula(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores = torch.tensor([0.0, 3.0, 3.0, 1.0, 5.0])
    cosines = functional.cosine_similarity(*vectors).tolist()
    total = 1.0
    for i in range(5):
        for j in range(5):
            if scores[i] > scores[j]:
                total += math.exp(20 * (cosines[j] - cosines[i]))
    assert cosent_loss(*vectors, scores).item() == pytest.approx(math.log(total), rel=1e-4)
    assert cosent_loss(*vectors, torch.ones(5)).item() == 0.0


def test_infonce_is_its_formula(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = (functional.normalize(part, dim=1) for part in vectors)
    negatives = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    table = first @ second.T / 0.1
    hard = first @ functional.normalize(negatives, dim=1).T / 0.1
    ahead = -(table.diag() - torch.cat([table, hard], dim=1).logsumexp(1)).mean()
    back = -(table.diag() - table.logsumexp(0)).mean()
    loss = infonce_loss(*vectors, temperature=0.1, negatives=negatives)
    assert loss.item() == pytest.approx(((ahead + back) / 2).item(), rel=1e-5)


def test_equal_texts_are_no_wrong_answers(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = vectors
    doubled = torch.cat([first, first[:1]]), torch.cat([second, second[:1]])
    keys = torch.tensor([0, 1, 2, 3, 4, 0])
    same = keys[:, None] == keys[None, :]
    rows = infonce_loss(*doubled, temperature=0.1, same=same) * 6
    once = infonce_loss(*vectors, temperature=0.1) * 5
    extra = infonce_loss(*doubled, temperature=0.1) * 6
    assert rows < extra
    assert torch.isfinite(rows)
    assert rows > once * 0.9


def test_distillation_is_one_minus_cosine_by_layer() -> None:
    means = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert distillation_loss(means, 3 * means).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(means, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])).item() == pytest.approx(0.5)


def test_matryoshka_is_the_mean_over_the_sizes(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    def loss(parts: object) -> torch.Tensor:
        first, second = parts  # type: ignore[misc]
        return cosine_loss(first, second, torch.zeros(5))

    expected = (loss(vectors) + loss([v[:, :4] for v in vectors]) + loss([v[:, :2] for v in vectors])) / 3
    assert torch.equal(matryoshka_loss(loss, vectors, dimensions=(4, 2)), expected)


def test_rates_by_layer_and_for_heads() -> None:
    model = multi_task().model
    phase = PhaseSettings(train="all", learning_rate=1e-3, head_learning_rate=1e-2, layer_decay=0.5)
    rates = {name: group.rate for group in adapt(model, phase) for name in group.names}
    assert rates["class_head.linear.weight"] == 1e-2
    assert rates["backbone.encoder.layer.3.output.dense.weight"] == 1e-3
    assert rates["backbone.encoder.layer.0.output.dense.weight"] == pytest.approx(1e-3 / 8)
    assert rates["backbone.embeddings.word_embeddings.weight"] == pytest.approx(1e-3 / 16)
    decays = {name: group.weight_decay for group in groups(model, phase) for name in group.names}
    assert decays["class_head.linear.bias"] == 0.0
    assert decays["class_head.linear.weight"] == phase.weight_decay


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "electra", "deberta-v2", "modernbert"])
def test_top_layers_of_every_family(family: str) -> None:
    model = tiny(family=family, class_labels=["a", "b"]).model
    names = {name for group in adapt(model, PhaseSettings(train="top:1")) for name in group.names}
    backbone = {name for name in names if name.startswith("backbone.")}
    assert backbone
    assert all(".3." in name or "final_norm" in name for name in backbone)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "mpnet", "distilbert", "electra", "albert", "deberta-v2", "modernbert"]
)
def test_low_rank_updates_of_every_family_change_the_backbone_and_are_merged(family: str) -> None:
    pytest.importorskip("peft")
    model = tiny(family=family, class_labels=["a", "b"]).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    phase = PhaseSettings(train="lora")
    trained = adapt(model, phase)
    names = {name for group in trained for name in group.names}
    assert {name for name in names if "lora_" not in name} == {"class_head.linear.weight", "class_head.linear.bias"}
    with torch.no_grad():
        for group in trained:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                if "lora_" in name:
                    parameter.normal_()
    ids, mask = torch.tensor([[2, 40, 41, 3]]), torch.ones(1, 4, dtype=torch.int64)
    model.eval()
    with torch.inference_mode():
        wrapped = model(ids, mask).layer_means
    restore(model, phase)
    with torch.inference_mode():
        assert torch.allclose(model(ids, mask).layer_means, wrapped, atol=1e-4)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_targets_that_are_not_there_are_named() -> None:
    pytest.importorskip("peft")
    model = tiny(class_labels=["a", "b"]).model
    with pytest.raises(ConfigError, match="the backbone has no linear layer 'q_proj', only dense, key, "):
        adapt(model, PhaseSettings(train="lora", lora=LoraSettings(targets=("q_proj",))))


def test_a_frozen_backbone_is_in_eval_mode_and_dropout_can_be_set() -> None:
    model = multi_task().model
    set_train_mode(model, PhaseSettings(train="heads", freeze_heads=("tags",)))
    assert (model.backbone.training, model.class_head.training, model.tag_head.training) == (False, True, False)
    before = set_dropout(model, 0.4)
    assert model.class_head.dropout.p == 0.4
    assert {share for _, share in before} == {0.1}
    assert set_dropout(model, None) == []
