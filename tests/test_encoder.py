"""Pooled layers: against the plain formula on every backbone family, alone and in padded batches."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from models import byte_bpe, metaspace, tiny, wordpiece
from transformers import AutoConfig

from indexer.checkpoint import Loaded, attach
from indexer.config import TagdexConfig
from indexer.encoder import concatenate_layers, pool_layers
from indexer.errors import InputError, ModelError
from indexer.heads import MultiTaskModel
from indexer.model import TextModel
from indexer.records import FloatArray

FAMILIES = {
    "distilbert": wordpiece,
    "bert": wordpiece,
    "electra": wordpiece,
    "ernie": wordpiece,
    "mpnet": byte_bpe,
    "roberta": byte_bpe,
    "modernbert": byte_bpe,
    "albert": metaspace,
    "xlm-roberta": metaspace,
    "camembert": metaspace,
    "deberta-v2": metaspace,
    "fnet": metaspace,  # these three mix in what stands at padding, mask or not
    "convbert": wordpiece,
    "nystromformer": metaspace,
}
TEXTS = ["Hello there", "Ada Lovelace met Mr. Acme in London, then they went to Paris.", "Hi!", "", "the the the"]


def plain_formula(loaded: Loaded, text: str, layers: Sequence[int] = (-1, -2, -3, -4)) -> FloatArray:
    """The notebook's way: all hidden states of one text, each layer averaged over all tokens, joined end to end."""
    ids = torch.tensor([loaded.tokenizer.encode(text).ids])
    with torch.no_grad():
        states = loaded.model.backbone(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
        ).hidden_states
    result: FloatArray = torch.cat([states[layer][0].mean(dim=0) for layer in layers]).numpy()
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_is_the_plain_formula(family: str) -> None:
    loaded = tiny(FAMILIES[family](), family=family)
    model = TextModel(loaded, device="cpu")
    for text in TEXTS:
        np.testing.assert_allclose(model.encode([text])[0], plain_formula(loaded, text), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_a_batch_changes_nothing(family: str) -> None:
    loaded = tiny(FAMILIES[family](), family=family)
    model = TextModel(loaded, device="cpu", batch_tokens=10_000)
    batch = model.encode(TEXTS)
    np.testing.assert_allclose(
        batch, np.stack([plain_formula(loaded, text) for text in TEXTS]), rtol=0, atol=1e-5, err_msg=family
    )
    assert np.ptp(batch, axis=0).max() > 0.1  # the texts do differ


def test_distilbert_gives_3072_raw_fp32_values() -> None:
    tokenizer = wordpiece()
    config = AutoConfig.for_model("distilbert", vocab_size=tokenizer.get_vocab_size(), n_layers=4)
    torch.manual_seed(0)
    loaded = attach(MultiTaskModel(TagdexConfig(encoder_config=config.to_dict())), tokenizer, name="distilbert")
    model = TextModel(loaded, device="cpu")
    vectors = model.encode(["Well, hello there"])
    assert model.dimension == 3072
    assert vectors.shape == (1, 3072)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], plain_formula(loaded, "Well, hello there"), rtol=0, atol=1e-5)
    assert np.linalg.norm(vectors[0]) > 10  # layer normalisation makes each layer's length about √768


def test_layers_stand_in_the_order_asked_for() -> None:
    loaded = tiny(pool_layers=[0, 2, -1])
    expected = plain_formula(loaded, "hello there", layers=(0, 2, 4))
    np.testing.assert_allclose(TextModel(loaded, device="cpu").encode(["hello there"])[0], expected, rtol=0, atol=1e-5)


def test_layers_are_normalised_before_they_are_weighted() -> None:
    loaded = tiny(layer_weights=[1.0, 0.6, 0.0, 0.3], normalize_layers=True)
    parts = plain_formula(loaded, "hello there").reshape(4, 32)
    unit = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    expected = (unit * np.array([[1.0], [0.6], [0.0], [0.3]])).ravel()
    np.testing.assert_allclose(TextModel(loaded, device="cpu").encode(["hello there"])[0], expected, rtol=0, atol=1e-5)


def test_pool_layers_leaves_padding_out() -> None:
    layer = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = torch.tensor([[[2.0, 4.0], [-2.0, -4.0]], [[3.0, 1.0], [-3.0, -1.0]]])
    torch.testing.assert_close(pool_layers([layer, -layer], mask), expected)


def test_pool_layers_computes_in_fp32_from_half_precision() -> None:
    layer = torch.full((1, 3000, 1), 30.0, dtype=torch.float16)  # the sum, 90,000, is beyond fp16
    pooled = pool_layers([layer], torch.ones(1, 3000, dtype=torch.int64))
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(30.0, rel=1e-6)


def test_pool_layers_of_nothing_is_zero() -> None:
    assert pool_layers([torch.ones(1, 2, 3)], torch.zeros(1, 2, dtype=torch.int64)).tolist() == [[[0.0, 0.0, 0.0]]]


def test_concatenate_layers_keeps_the_order_and_the_weights() -> None:
    means = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    assert concatenate_layers(means, weights=[1.0, 1.0], normalize=False).tolist() == [[3.0, 4.0, 0.0, 2.0]]
    assert concatenate_layers(means, weights=[2.0, 0.5], normalize=False).tolist() == [[6.0, 8.0, 0.0, 1.0]]
    weighted = concatenate_layers(means, weights=[2.0, 0.5], normalize=True)
    np.testing.assert_allclose(weighted.numpy(), [[1.2, 1.6, 0.0, 0.5]], rtol=1e-6)


def test_similarity_is_the_cosine() -> None:
    model = TextModel(tiny(), device="cpu")
    a, b = model.encode(["hello there", "the acme in london"]).astype(np.float64)
    expected = sum(a * b) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5)
    assert model.similarity("hello there", "the acme in london") == pytest.approx(expected, abs=1e-9)
    assert model.similarity("hello there", "hello there") == pytest.approx(1.0, abs=1e-6)
    assert -1.0 <= expected < 0.999


def test_encode_takes_any_iterable_of_texts_and_nothing_else() -> None:
    model = TextModel(tiny(), device="cpu")
    expected = model.encode(["hello", "there"])
    for texts in (("hello", "there"), iter(["hello", "there"]), np.array(["hello", "there"])):
        assert np.array_equal(model.encode(texts), expected)
    assert model.encode(iter([])).shape == (0, model.dimension)
    with pytest.raises(InputError, match="texts must be several strings, got one: 'hello' of type str; put it"):
        model.encode("hello")
    with pytest.raises(InputError, match="texts must be strings, got None of type NoneType"):
        model.analyse(["hello", None])
    with pytest.raises(InputError, match="texts must be strings, got 3 of type int"):
        model.similarity("hello", 3)


def test_a_batch_has_room_for_a_token() -> None:
    with pytest.raises(ModelError, match="batch_tokens must be at least 1, got -5"):
        TextModel(tiny(), device="cpu", batch_tokens=-5)


def test_encode_of_no_texts_has_the_right_width() -> None:
    vectors = TextModel(tiny(), device="cpu").encode([])
    assert vectors.shape == (0, 128)
    assert vectors.dtype == np.float32


def test_weights_that_give_nan_are_refused() -> None:
    loaded = tiny()
    with torch.no_grad():
        loaded.model.backbone.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="the model tiny gave an embedding that is not finite"):
        TextModel(loaded, device="cpu").encode(["hello"])


@pytest.mark.parametrize("device", ["tpu9", "meta", "mps", ""])
def test_devices_that_cannot_be_used_are_refused(device: str) -> None:
    with pytest.raises(ModelError, match="device"):
        TextModel(tiny(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(ModelError, match="sees no GPU: use cpu"):
        TextModel(tiny(), device="cuda")
    assert TextModel(tiny(), device="auto").device == torch.device("cpu")


def _distilbert_is_at_hand() -> str | None:
    """Why distilbert-base-uncased cannot be loaded; `None` if it can."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache("distilbert-base-uncased", "model.safetensors"), str):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "distilbert-base-uncased is not in the cache, and HF_HUB_OFFLINE is set"
    reached = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(("huggingface.co", 443), timeout=2.0):
            reached.set()

    attempt = threading.Thread(target=connect, daemon=True)  # resolving a name has no timeout of its own
    attempt.start()
    attempt.join(timeout=3.0)
    return None if reached.is_set() else "distilbert-base-uncased is not in the cache, and the hub cannot be reached"


def test_the_notebooks_two_similarities() -> None:
    if (reason := _distilbert_is_at_hand()) is not None:
        pytest.skip(reason)
    try:
        model = TextModel.load("distilbert-base-uncased", device="cpu")
    except ModelError as error:
        pytest.skip(f"distilbert-base-uncased cannot be loaded: {error}")
    assert model.encode(["Hi!"]).shape == (1, 3072)
    assert model.similarity("Well, hello there", "Hi!") == pytest.approx(0.87508154, abs=1e-5)
    assert model.similarity("Well, hello there", "I love pancakes") == pytest.approx(0.81927824, abs=1e-5)
