"""Work that takes time, off the event loop: a fixed number of threads, and nothing queued inside them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from indexer.errors import TagdexError

T = TypeVar("T")


class Threads:
    """Threads that calls wait for in order. A waiting call whose request has gone is forgotten at once."""

    def __init__(self, count: int, *, name: str) -> None:
        self.count = count
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)
        self.busy = 0

    def start(self) -> None:
        """Start all threads now: later the system may have none to give, and a call that waits for one would be queued.

        One that meets torch while another keeps it to one core would keep to one for good. Raises `TagdexError`.
        """
        torch = sys.modules.get("torch")
        together = Barrier(self.count)

        def first() -> None:
            together.wait()
            if torch is not None:
                torch.get_num_threads()  # sets up what is this thread's own

        try:
            for begun in [self._executor.submit(first) for _ in range(self.count)]:
                begun.result()
        except RuntimeError as error:
            together.abort()
            self.close()
            raise TagdexError(f"the system gives this process too few threads ({error}): raise its limit") from error

    async def run(self, call: Callable[[], T]) -> T:
        """The result of a call in one of the threads; when cancelled, a call that has begun keeps its thread."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = self._executor.submit(call)
        except BaseException:
            self._free.release()
            raise
        self.busy += 1

        def done(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._done)

        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self.busy -= 1
        self._free.release()

    def close(self) -> None:
        """Take no more calls; does not wait for one that has begun."""
        self._executor.shutdown(wait=False)
