"""Threads that take a share of the caller's work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from indexer.helpers import Helpers


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    helpers = Helpers(2)
    yield helpers
    helpers.shutdown()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_results_are_in_the_order_of_the_items(helpers: Helpers, count: int) -> None:
    assert helpers.map(lambda item: item * item, range(count)) == [item * item for item in range(count)]


def test_the_work_is_shared_with_the_caller(helpers: Helpers) -> None:
    together = threading.Barrier(3, timeout=30)

    def work(_: int) -> str:
        together.wait()  # passes only where three threads are here at once
        return threading.current_thread().name

    names = helpers.map(work, range(3))
    assert threading.current_thread().name in names
    assert len(set(names)) == 3


def test_a_caller_whose_helpers_are_busy_goes_on_alone(helpers: Helpers) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)

    def hold(_: int) -> None:
        begun.release()
        release.wait(30)

    holder = threading.Thread(target=helpers.map, args=(hold, range(3)))
    holder.start()
    for _ in range(3):
        assert begun.acquire(timeout=30)
    assert helpers.map(lambda _: threading.current_thread().name, range(5)) == ["MainThread"] * 5
    release.set()
    holder.join()


@pytest.mark.parametrize("bad", [0, 1, 5])
def test_an_error_of_any_thread_is_raised_when_all_have_ended(helpers: Helpers, bad: int) -> None:
    working = set()

    def work(item: int) -> int:
        working.add(item)
        time.sleep(0.01)
        if item == bad:
            raise ValueError(f"item {item}")
        working.discard(item)
        return item

    with pytest.raises(ValueError, match=f"item {bad}"):
        helpers.map(work, range(6))
    assert working == {bad}


def test_nothing_more_is_begun_once_a_thread_has_failed(helpers: Helpers) -> None:
    done, failed = [], threading.Event()

    def work(item: int) -> None:
        if item == 0:
            failed.set()
            raise KeyboardInterrupt
        assert failed.wait(30)
        done.append(item)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        helpers.map(work, range(200))
    assert len(done) < 20


def test_a_caller_goes_on_alone_where_the_system_gives_no_thread(
    helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert helpers.map(str, range(5)) == list("01234")
    seen: list[int] = []
    helpers.map(seen.append, [7, 8])  # what was left in the queue does nothing
    assert sorted(seen) == [7, 8]


def test_work_may_ask_for_help_itself(helpers: Helpers) -> None:
    def row(item: int) -> int:
        return sum(helpers.map(lambda other: item * other, range(4)))

    assert helpers.map(row, range(8)) == [6 * item for item in range(8)]
