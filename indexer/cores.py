"""How torch uses the cores of a machine: all for one batch, or one for each of many."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

from indexer import products

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from sharing out work among threads: a setting of the caller's, and of threads that begin now."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Workers:
    """As many threads as torch has, each of which computes a batch with one core.

    Threads that share a batch wait for each other after every layer, and leave all cores but one idle in what only one
    can do: so many batches of their own take a sixth less time on two cores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._made_for = (0, 0)  # process and threads

    @property
    def count(self) -> int:
        """How many there are for the calling thread."""
        return torch.get_num_threads()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """The results of all items in their order; in the caller's thread, with all cores, where they are too few."""
        threads = self.count
        if threads == 1:
            return _with_one_core_each(map, function, items)
        if 2 * len(items) < threads or len(items) < 2:
            return map(function, items)
        try:
            pool = self._threads(threads)
        except RuntimeError:  # the system gives no more threads
            return map(function, items)
        return _with_one_core_each(pool.map, function, items)

    def __reduce__(self) -> tuple[type[Workers], tuple[()]]:
        return Workers, ()  # a copy has threads of its own

    def _threads(self, count: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._made_for != (os.getpid(), count):
                started = threading.Barrier(count)
                pool = ThreadPoolExecutor(count, "tagdex-batch", initializer=_keep_to_one_core)
                try:
                    list(pool.map(lambda _: started.wait(), range(count)))  # so that all of them are there
                except BaseException:
                    started.abort()
                    pool.shutdown()
                    raise
                finally:
                    torch.set_num_threads(count)  # what they set for themselves was also meant for threads to come
                self._pool, self._made_for = pool, (os.getpid(), count)
            return self._pool


def _with_one_core_each(
    mapped: Callable[[Callable[[T], R], Sequence[T]], Iterator[R]], function: Callable[[T], R], items: Sequence[T]
) -> Iterator[R]:
    with products.numpy_in_one_thread() if products.openblas_is_faster() else nullcontext():
        yield from mapped(function, items)


def _keep_to_one_core() -> None:
    torch.get_num_threads()  # sets up what is this thread's own, which the first use of torch does otherwise
    torch.set_num_threads(1)
