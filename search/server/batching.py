"""Texts of requests that come together go through the model together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from indexer.records import Analysis
from indexer.settings import Analyser
from search.server.threads import Threads


@dataclass(frozen=True, slots=True)
class Waiting:
    """A text that waits for the model, and whether its class and entities are wanted."""

    text: str
    tags: bool
    result: asyncio.Future[Analysis]


class Batcher:
    """One model behind one thread, which takes what has come while it was busy as its next batch.

    A text that comes alone goes to the model at once. While other requests are under way, which may bring texts too, it
    waits for them, `wait` seconds at most. With `size` 1 there are no batches, and as many threads as searches have.
    """

    def __init__(
        self,
        model: Analyser,
        *,
        size: int,
        wait: float,
        threads: Threads,
        under_way: Callable[[], int],
        on_batch: Callable[[int], None],
    ) -> None:
        self.model = model
        self._size, self._wait = size, wait
        self._threads = threads
        self._under_way = under_way
        self._on_batch = on_batch
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def analyse(self, texts: Sequence[str], *, tags: bool = False) -> list[Analysis]:
        """What the model says about each text, in order; without `tags` no class and entities."""
        if self._size == 1:
            return [(await self._threads.run(partial(self.model.analyse, [text], tags=tags)))[0] for text in texts]
        loop = asyncio.get_running_loop()
        entries = [Waiting(text, tags, loop.create_future()) for text in texts]
        self._queue.extend(entries)
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        try:
            return await asyncio.gather(*(entry.result for entry in entries))
        finally:
            for entry in entries:  # of a request that has gone, or of which one text cannot be embedded
                entry.result.cancel()

    async def _work(self) -> None:
        while self._queue:
            await self._gather()
            await self._run(self._next())

    async def _gather(self) -> None:
        """Wait until as many texts are there as requests are under way, the batch is full, or the time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait
        while len(self._queue) < min(self._under_way(), self._size) and (left := end - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _next(self) -> list[Waiting]:
        """The first texts in the queue that want the same of the model."""
        batch: list[Waiting] = []
        while self._queue and len(batch) < self._size:
            if self._queue[0].result.done():
                self._queue.popleft()
            elif batch and self._queue[0].tags != batch[0].tags:
                break
            else:
                batch.append(self._queue.popleft())
        return batch

    async def _run(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        texts, tags = [entry.text for entry in batch], batch[0].tags
        self._on_batch(len(batch))
        try:
            analyses = await self._threads.run(partial(self.model.analyse, texts, tags=tags))
        except Exception as error:
            if len(batch) > 1:  # one text must not spoil the others
                for entry in batch:
                    await self._run([entry])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for entry, analysis in zip(batch, analyses, strict=True):
            if not entry.result.done():
                entry.result.set_result(analysis)
