"""Threads that take a share of the caller's work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import faiss

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Helpers:
    """A thread for each core but the caller's own, in which FAISS stays single-threaded.

    The caller works, too, and waits for no thread that has not begun: a thread takes some 0.1 ms to wake, and where all
    of them are busy with other callers, each goes on alone.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = (os.cpu_count() or 1) - 1 if count is None else count
        self._pool = ThreadPoolExecutor(
            max_workers=max(1, self._count),
            thread_name_prefix="search",
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )

    def map(self, function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
        """The results for all items, in their order. Raises what `function` does."""
        results: dict[int, _Out] = {}
        numbers = iter(range(len(items)))

        def work() -> None:
            try:
                for number in numbers:  # threads that share it get each number once
                    results[number] = function(items[number])
            except BaseException:
                for _ in numbers:  # the others have no more to do
                    pass
                raise

        helping: list[Future[None]] = []
        try:
            for _ in range(min(self._count, len(items) - 1)):
                helping.append(self._pool.submit(work))
        except RuntimeError:
            pass  # the system gives no more threads; one that was to run it finds no number left
        try:
            work()
        finally:
            begun = [future for future in helping if not future.cancel()]
            failed = [error for future in begun if (error := future.exception()) is not None]
        if failed:
            raise failed[0]
        return [results[number] for number in range(len(items))]

    def shutdown(self) -> None:
        """Wait for the threads, and end them."""
        self._pool.shutdown()
