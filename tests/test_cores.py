"""How batches are shared out among cores."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pytest
import torch
from models import multi_task

from indexer.cores import Workers, one_thread
from indexer.model import TextModel

T = TypeVar("T")
R = TypeVar("R")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_many_items_are_shared_out_and_come_back_in_their_order() -> None:
    together = threading.Barrier(2)

    def work(number: int) -> tuple[int, int, int]:
        together.wait(timeout=60)  # there are two threads, and both are at work
        return number, torch.get_num_threads(), threading.get_ident()

    found = list(Workers().map(work, range(8)))
    assert [number for number, _, _ in found] == list(range(8))
    assert {threads for _, threads, _ in found} == {1}
    assert threading.get_ident() not in {ident for _, _, ident in found}
    assert torch.get_num_threads() == 2
    begun_later: list[int] = []
    later = threading.Thread(target=lambda: begun_later.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert begun_later == [2]


@pytest.mark.usefixtures("two_threads")
def test_a_single_item_has_all_cores() -> None:
    found = list(Workers().map(lambda _: (torch.get_num_threads(), threading.get_ident()), [0]))
    assert found == [(2, threading.get_ident())]


def test_in_one_thread_there_are_no_others() -> None:
    with one_thread():
        assert list(Workers().map(lambda _: threading.get_ident(), range(3))) == [threading.get_ident()] * 3


@pytest.mark.usefixtures("two_threads")
def test_the_error_of_an_item_is_the_callers() -> None:
    def work(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        list(Workers().map(work, [3, 0, 1]))


@pytest.mark.usefixtures("two_threads")
def test_analyses_are_those_of_one_thread_bit_by_bit() -> None:
    model = TextModel(multi_task(tag_head="contextual"), batch_tokens=16)
    texts = ["hello there london", "ada met paris in the zurich", "acme", ""] * 6
    shared = model.analyse(texts)

    class OneAfterTheOther(Workers):
        def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
            with one_thread():
                yield from map(function, items)

    model._workers = OneAfterTheOther()
    alone = model.analyse(texts)
    assert [(one.label, one.spans, one.passages) for one in shared] == [
        (one.label, one.spans, one.passages) for one in alone
    ]
    np.testing.assert_array_equal([one.pooled for one in shared], [one.pooled for one in alone])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("family", "shared"), [("bert", True), ("big_bird", False)])
def test_batches_are_shared_out_only_where_the_backbone_stays_as_it_is(family: str, shared: bool) -> None:
    model = TextModel(multi_task(family=family), batch_tokens=16)
    threads: set[int] = set()
    run = model._run

    def noted(*arguments: object, **options: object) -> object:
        threads.add(threading.get_ident())
        return run(*arguments, **options)  # type: ignore[arg-type]

    model._run = noted  # type: ignore[method-assign, assignment]
    model.analyse(["hello there london", "ada met paris in the zurich"] * 8)
    assert (threading.get_ident() not in threads) == shared


@pytest.mark.usefixtures("two_threads")
def test_where_the_system_gives_no_more_threads_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert list(Workers().map(lambda _: threading.get_ident(), range(4))) == [threading.get_ident()] * 4
    monkeypatch.undo()
    started[0].join(timeout=60)
    assert not started[0].is_alive()
    begun_later: list[int] = []
    later = threading.Thread(target=lambda: begun_later.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert begun_later == [2]


def test_a_model_can_be_copied() -> None:
    model = TextModel(multi_task())
    model.analyse(["hello there"] * 40)
    np.testing.assert_array_equal(copy.deepcopy(model).encode(["hello there"]), model.encode(["hello there"]))
