"""The heads: shapes of their logits, what they read, and that padding and switches change nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import LABELS, TYPES, multi_task, tiny, wordpiece
from torch import Tensor
from torch.nn import functional

from indexer.config import TagdexConfig, check_config
from indexer.errors import ModelError
from indexer.heads import ClassHead, ContextualTagHead, LinearTagHead, MultiTaskModel, Outputs
from indexer.model import TextModel
from indexer.words import word_means

TEXTS = ["hello there", "ada lovelace met the acme people in london, of all places", "hi"]


def batch_of(*texts: str) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded by [PAD]; (texts, longest)."""
    encodings = [wordpiece().encode(text) for text in texts]
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = 1
    return ids, mask


def outputs_of(model: MultiTaskModel, *texts: str, **switches: bool) -> Outputs:
    with torch.no_grad():
        outputs: Outputs = model(*batch_of(*texts), **switches)
    return outputs


def test_hello_there_with_3_classes_and_5_types() -> None:
    outputs = outputs_of(multi_task().model, "hello there")
    assert outputs.class_logits is not None
    assert outputs.class_logits.shape == (1, 3)
    assert outputs.tag_logits is not None
    assert outputs.tag_logits.shape == (1, 4, 11)
    assert outputs.layer_means is not None
    assert outputs.layer_means.shape == (1, 4, 32)


@pytest.mark.parametrize("family", ["distilbert", "bert", "roberta", "electra", "modernbert"])
def test_linear_heads_read_the_last_layer_of_any_family(family: str) -> None:
    model = multi_task(family=family).model
    ids, mask = batch_of("hello there")
    with torch.no_grad():
        last = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        outputs = model(ids, mask)
    classes, tags = model.class_head.linear, model.tag_head.projection.of_layer[0]
    torch.testing.assert_close(outputs.class_logits, last[:, 0] @ classes.weight.T + classes.bias)
    torch.testing.assert_close(outputs.tag_logits, last @ tags.weight.T + tags.bias)


def test_pooled_class_head_reads_the_means_of_the_pooled_layers() -> None:
    model = multi_task(class_head="pooled", class_head_width=16, pool_layers=[-1, 1]).model
    outputs = outputs_of(model, "hello there")
    head = model.class_head
    with torch.no_grad():
        hidden = outputs.layer_means.reshape(1, 64) @ head.hidden.weight.T + head.hidden.bias
        activated = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        expected = activated @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(outputs.class_logits, expected)


def test_pooled_class_head_needs_no_embedding_to_be_asked_for() -> None:
    model = multi_task(class_head="pooled", class_head_width=16).model
    alone = outputs_of(model, *TEXTS, embedding=False, tags=False)
    assert alone.layer_means is None
    assert torch.equal(alone.class_logits, outputs_of(model, *TEXTS).class_logits)


def test_tag_head_reads_the_layers_asked_for() -> None:
    model = multi_task(tag_layers=[-4, 0, -1]).model
    ids, mask = batch_of("hello there")
    with torch.no_grad():
        states = model.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        logits = model(ids, mask).tag_logits
    linear = model.tag_head.projection.of_layer
    expected = states[1] @ linear[0].weight.T + states[0] @ linear[1].weight.T + states[4] @ linear[2].weight.T
    torch.testing.assert_close(logits, expected + linear[0].bias)


@pytest.mark.parametrize("class_head", ["linear", "pooled"])
@pytest.mark.parametrize("tag_head", ["linear", "contextual"])
def test_padding_does_not_change_the_logits(tag_head: str, class_head: str) -> None:
    model = multi_task(tag_head=tag_head, tag_head_width=16, tag_layers=[-1, -2], class_head=class_head).model
    together = outputs_of(model, *TEXTS)
    assert together.tag_logits is not None
    assert together.class_logits is not None
    for row, text in enumerate(TEXTS):
        alone = outputs_of(model, text)
        assert alone.tag_logits is not None
        tokens = alone.tag_logits.shape[1]
        torch.testing.assert_close(together.tag_logits[row, :tokens], alone.tag_logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.class_logits[row], alone.class_logits[0], rtol=1e-5, atol=1e-5)


def logits_of(head: LinearTagHead | ContextualTagHead, states: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = head(head.project(states.chunk(2, dim=2)), mask)
    return found


def test_contextual_head_is_three_convolutions_of_the_projection() -> None:
    torch.manual_seed(0)
    head = ContextualTagHead(2, 8, 5, inner=4, dropout=0.1).eval()
    states = torch.randn(1, 6, 16)
    with torch.no_grad():
        weight = torch.cat([linear.weight for linear in head.projection.of_layer], dim=1)
        words = functional.relu(head.norm(states @ weight.T))
        for convolution, by in zip(head.convolutions, (1, 2, 4), strict=True):
            kernel = convolution.linear.weight.view(4, 3, 4).transpose(1, 2)
            found = functional.conv1d(words.mT, kernel, convolution.linear.bias, padding=by, dilation=by)
            words = functional.relu(found.mT) + (words if by > 1 else 0)
        expected = words @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(logits_of(head, states, torch.ones(1, 6)), expected)


@pytest.mark.parametrize("kind", ["linear", "contextual"])
def test_projecting_tokens_or_the_means_of_words_is_the_same(kind: str) -> None:
    torch.manual_seed(0)
    model = TextModel(multi_task(tag_head=kind, tag_head_width=16, tag_layers=[-1, -2]), device="cpu")
    words, head = model.word_batch(TEXTS), model.model.tag_head
    assert head is not None
    states = [torch.randn(len(TEXTS), model.tensors(TEXTS)[0].shape[1], 32) for _ in range(2)]
    with torch.no_grad():
        tokens = word_means([head.project(states)], words)
        means = head.project(word_means(states, words).chunk(2, dim=2))
    known = word_means([torch.ones_like(states[0])], words)[:, :, :1] > 0
    assert known.any()
    torch.testing.assert_close(torch.where(known, tokens, 0), torch.where(known, means, 0))


def test_contextual_head_ignores_what_stands_at_padding() -> None:
    torch.manual_seed(0)
    head = ContextualTagHead(2, 4, 5, inner=4, dropout=0.1).eval()
    states, mask = torch.randn(2, 6, 8), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    changed = states.clone()
    changed[0, 3:] = 1e4
    before, after = logits_of(head, states, mask), logits_of(head, changed, mask)
    assert before.shape == (2, 6, 5)
    assert torch.equal(before[0, :3], after[0, :3])
    assert torch.equal(before[1], after[1])


def test_contextual_head_sees_seven_words_on_either_side() -> None:
    torch.manual_seed(0)
    head = ContextualTagHead(2, 4, 5, inner=4, dropout=0.1).eval()
    states, mask = torch.randn(1, 17, 8), torch.ones(1, 17, dtype=torch.int64)
    for changed_word in range(17):
        changed = states.clone()
        changed[0, changed_word] += torch.arange(8.0)
        same = torch.equal(logits_of(head, states, mask)[0, 8], logits_of(head, changed, mask)[0, 8])
        assert same == (changed_word in (0, 16))


def test_heads_drop_out_in_training_only() -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.int64)
    for head in (ContextualTagHead(2, 4, 5, inner=4, dropout=0.5), LinearTagHead(2, 4, 5, dropout=0.5)):
        head.train()
        assert not torch.equal(logits_of(head, states, mask), logits_of(head, states, mask))
        head.eval()
        assert torch.equal(logits_of(head, states, mask), logits_of(head, states, mask))
    classes = ClassHead(8, 3, dropout=0.5)
    assert not torch.equal(classes.train()(states), classes(states))
    assert torch.equal(classes.eval()(states), classes(states))


def test_parts_not_asked_for_are_left_out() -> None:
    model = multi_task().model
    assert outputs_of(model, "hello", embedding=False, classes=False, tags=False) == Outputs(None, None, None)
    only_tags = outputs_of(model, "hello", embedding=False, classes=False)
    assert (only_tags.layer_means, only_tags.class_logits) == (None, None)
    assert only_tags.tag_logits is not None


def test_a_model_without_heads_has_no_logits() -> None:
    outputs = outputs_of(tiny().model, "hello there")
    assert outputs.layer_means is not None
    assert (outputs.class_logits, outputs.tag_logits) == (None, None)


@pytest.mark.parametrize("tag_head", ["linear", "contextual"])
def test_embeddings_are_the_same_bits_with_and_without_tags(tag_head: str) -> None:
    model = TextModel(multi_task(tag_head=tag_head, tag_head_width=16, tag_layers=[1, 0]), device="cpu")
    with_tags, without = model.analyse(TEXTS), model.analyse(TEXTS, tags=False)
    for one, other in zip(with_tags, without, strict=True):
        assert one.vectors.tobytes() == other.vectors.tobytes()
        assert one.pooled.tobytes() == other.pooled.tobytes()
    assert all(analysis.label is not None for analysis in with_tags)
    assert all(analysis.label is None and analysis.spans == () for analysis in without)


def test_a_replaced_head_leaves_every_other_output_bit_identical() -> None:
    first, second = multi_task(), multi_task()
    with torch.no_grad():
        second.model.tag_head.projection.of_layer[0].weight.normal_()
    before, after = outputs_of(first.model, *TEXTS), outputs_of(second.model, *TEXTS)
    assert torch.equal(before.layer_means, after.layer_means)
    assert torch.equal(before.class_logits, after.class_logits)
    assert not torch.equal(before.tag_logits, after.tag_logits)


def test_class_score_is_the_softmax_at_the_temperature() -> None:
    model = TextModel(multi_task(class_temperature=2.5), device="cpu")
    logits = outputs_of(model.model, "hello there").class_logits.double().numpy()[0] / 2.5
    probabilities = np.exp(logits) / np.exp(logits).sum()
    label = model.analyse(["hello there"])[0].label
    assert label is not None
    assert label.name == LABELS[int(probabilities.argmax())]
    assert label.score == pytest.approx(probabilities.max(), abs=1e-6)


def test_class_abstains_below_the_threshold_alone() -> None:
    label = TextModel(multi_task(), device="cpu").analyse(["hello there"])[0].label
    assert label is not None
    below = TextModel(multi_task(class_threshold=label.score - 1e-6), device="cpu").analyse(["hello there"])[0]
    above = TextModel(multi_task(class_threshold=label.score + 1e-6), device="cpu").analyse(["hello there"])[0]
    assert below.label == label
    assert above.label is None


def test_a_tag_head_of_the_first_versions_which_cut_words_otherwise_is_refused() -> None:
    content = multi_task().model.config.to_dict()
    check_config(TagdexConfig.from_dict(content), layers=4)
    assert content.pop("word_splitter") == "unicode-handles"
    with pytest.raises(ModelError, match=r"unknown word_splitter 'unicode'.* has to be trained anew"):
        check_config(TagdexConfig.from_dict(content), layers=4)
    del content["entity_types"]
    check_config(TagdexConfig.from_dict(content), layers=4)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"pool_layers": []}, "pool_layers is empty"),
        ({"pool_layers": [-1, -6]}, "pool_layers asks for hidden state -6, but the backbone has 5"),
        ({"tag_layers": [5]}, "tag_layers asks for hidden state 5, but the backbone has 5"),
        ({"layer_weights": [1.0]}, "layer_weights has 1 values for 4 pool_layers"),
        ({"layer_weights": [0.0] * 4}, "layer_weights are all zero"),
        ({"tag_head": "magic"}, "unknown tag_head 'magic'; there are linear, contextual"),
        ({"class_head": "magic"}, "unknown class_head 'magic'; there are linear, pooled"),
        ({"word_splitter": "magic"}, "unknown word_splitter 'magic'"),
        ({"class_temperature": 0.0}, "class_temperature must be above 0, got 0.0"),
        ({"class_labels": []}, "class_labels must be distinct and at least one"),
        ({"entity_types": ["PER", "PER"]}, "entity_types must be distinct and at least one"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        tiny(**fields)


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        (None, "no encoder_config.model_type"),
        ({"hidden_size": 32}, "no encoder_config.model_type"),
        ({"model_type": "nonesuch"}, "unknown backbone type 'nonesuch'"),
        ({"model_type": "t5"}, "backbone 't5' is an encoder-decoder"),
    ],
)
def test_backbones_that_cannot_be_used_are_refused(encoder: dict[str, object] | None, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        MultiTaskModel(TagdexConfig(encoder_config=encoder))


def test_dimension_is_layers_times_width() -> None:
    assert tiny(pool_layers=[-1, -2]).model.dimension == 64
    assert multi_task().model.tag_head.projection.of_layer[0].out_features == 2 * len(TYPES) + 1
