"""Linear layers by the faster library: the numbers of torch, training as before, and threads as they were."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from models import multi_task
from torch import nn

from indexer import products
from indexer.cores import Workers, one_thread
from indexer.model import TextModel
from indexer.products import BLOCK, FEW_ROWS

ROWS = [0, 1, 7, FEW_ROWS, FEW_ROWS + 1, 300]


def pair(inside: int, outside: int, *, bias: bool = True) -> tuple[nn.Linear, products.Linear]:
    """A layer of torch's, and ours with the same weights."""
    plain = nn.Linear(inside, outside, bias=bias)
    ours = copy.deepcopy(plain)
    ours.__class__ = products.Linear
    assert isinstance(ours, products.Linear)
    return plain, ours


@pytest.fixture(params=["openblas", "blocks"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways: with one core for each thread, and with all for one."""
    before = torch.get_num_threads()
    if request.param == "blocks":
        torch.set_num_threads(2)
        yield request.param
    elif not products.numpy_threads():
        pytest.skip("this numpy computes without OpenBLAS")
    else:
        torch.set_num_threads(1)
        with products.numpy_in_one_thread():
            yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outside", [2 * BLOCK, 20])
def test_it_gives_what_torch_gives(rows: int, outside: int, *, bias: bool) -> None:
    torch.manual_seed(rows)
    plain, ours = pair(48, outside, bias=bias)
    states = torch.randn(rows, 48)
    with torch.inference_mode():
        found = ours(states)
        torch.testing.assert_close(found, plain(states), rtol=0, atol=1e-5)
    assert found.shape == (rows, outside)
    assert found.is_contiguous()


@pytest.mark.usefixtures("way")
def test_what_is_not_finite_is_given_without_a_warning() -> None:
    _, ours = pair(16, BLOCK)
    states = torch.ones(3, 16)
    states[0], states[1, 0] = 3e38, torch.nan
    with torch.no_grad():
        found = ours(10 * states)
    assert [bool(row.isfinite().all()) for row in found] == [False, False, True]


@pytest.mark.usefixtures("way")
def test_states_of_any_form() -> None:
    plain, ours = pair(16, BLOCK)
    states = torch.randn(3, 5, 16)
    with torch.no_grad():
        for view in (states, states.transpose(0, 1), states[:, ::2], states[0, 0]):
            torch.testing.assert_close(ours(view), plain(view), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("way")
def test_gradients_and_other_precisions_are_torchs() -> None:
    plain, ours = pair(16, BLOCK)
    states = torch.randn(4, 16)
    for layer in (plain, ours):
        layer(states).sum().backward()
    assert plain.weight.grad is not None
    assert ours.weight.grad is not None
    assert torch.equal(plain.weight.grad, ours.weight.grad)
    with torch.no_grad():
        half = states.bfloat16()
        assert torch.equal(ours.bfloat16()(half), plain.bfloat16()(half))


@pytest.fixture
def two_numpy_threads() -> Iterator[None]:
    if not products.numpy_threads():
        pytest.skip("this numpy computes without OpenBLAS")
    before = products.numpy_threads()
    products._set_numpy_threads(2)
    yield
    products._set_numpy_threads(before)


@pytest.mark.usefixtures("two_numpy_threads")
def test_openblas_is_left_alone_where_it_would_take_all_cores() -> None:
    plain, ours = pair(384, 384)
    states = torch.randn(100, 384)
    with torch.inference_mode(), one_thread():
        assert torch.equal(ours(states), plain(states))


def test_a_model_computes_by_it_where_it_is_faster_and_by_torch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Ada met the ACME people in London", "a"] * 3
    vectors = []
    for faster in (False, True):
        monkeypatch.setattr(products, "openblas_is_faster", lambda faster=faster: faster)
        model = TextModel(multi_task(), device="cpu", batch_tokens=16)
        layers = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
        assert {type(layer) for layer in layers} == {products.Linear if faster else nn.Linear}
        vectors.append(model.encode(texts))
    assert np.allclose(*vectors, atol=1e-5)


@pytest.mark.usefixtures("two_numpy_threads")
def test_each_core_has_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's threads are one while batches are shared out, and what they were afterwards, also after an error."""
    monkeypatch.setattr(products, "openblas_is_faster", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(Workers().map(lambda _: products.numpy_threads(), range(4))) == {1}
        assert products.numpy_threads() == 2
        with pytest.raises(ZeroDivisionError):
            list(Workers().map(lambda number: 1 // number, range(4)))
        assert products.numpy_threads() == 2
        torch.set_num_threads(1)
        assert set(Workers().map(lambda _: products.numpy_threads(), range(4))) == {1}
    finally:
        torch.set_num_threads(threads)
    assert products.numpy_threads() == 2


@pytest.mark.usefixtures("two_numpy_threads")
@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_numpy_has_one_thread_until_the_last_has_left(*, first_leaves_first: bool) -> None:
    inside, leave = threading.Event(), threading.Event()

    def enter() -> None:
        with products.numpy_in_one_thread():
            inside.set()
            leave.wait(timeout=60)

    other = threading.Thread(target=enter)
    with products.numpy_in_one_thread():
        other.start()
        assert inside.wait(timeout=60)
        if not first_leaves_first:
            leave.set()
            other.join()
        assert products.numpy_threads() == 1
    if first_leaves_first:
        assert products.numpy_threads() == 1
        leave.set()
        other.join()
    assert products.numpy_threads() == 2
