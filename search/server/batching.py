"""What comes together is worked on together: texts go through the model, and searches over the codes of vectors."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from indexer.records import Analysis
from indexer.settings import Analyser
from search.server.threads import Threads

Q = TypeVar("Q")
R = TypeVar("R")


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

    While other requests are being searched, the model keeps to one core: it would spend the others waiting for them.
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

    def _analyse(self, texts: Sequence[str], *, tags: bool, alone: bool) -> list[Analysis]:
        if alone:
            return self.model.analyse(texts, tags=tags)
        from indexer.cores import one_thread

        with one_thread():
            return self.model.analyse(texts, tags=tags)

    async def _run(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        texts, tags = [entry.text for entry in batch], batch[0].tags
        self._on_batch(len(batch))
        try:
            alone = self._under_way() <= len(batch)
            analyses = await self._threads.run(partial(self._analyse, texts, tags=tags, alone=alone))
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


class Together(Generic[Q, R]):
    """Questions that come while all threads are busy are answered together, each thread taking its share of them.

    `answer_all` gives the answers in the order of the questions. It runs in one of the threads, with `size` questions
    at most; where it fails for several, it is asked for each alone, so that one question does not spoil the others.
    """

    def __init__(self, answer_all: Callable[[Sequence[Q]], Sequence[R]], *, size: int, threads: Threads) -> None:
        self._answer_all = answer_all
        self._size = size
        self._threads = threads
        self._queue: deque[tuple[Q, asyncio.Future[R]]] = deque()
        self._running = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def answer(self, question: Q) -> R:
        """The answer to a question. Raises what `answer_all` raises for it."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        self._queue.append((question, result))
        if self._running < self._threads.count:
            self._running += 1
            worker = loop.create_task(self._work(loop))
            self._workers.add(worker)  # the loop itself keeps no hold of it
            worker.add_done_callback(self._workers.discard)
        try:
            return await result
        finally:
            result.cancel()  # of a request that has gone

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._queue:
                await self._threads.run(partial(self._answer_next, loop))
        except Exception as error:  # there are no threads any more
            while self._queue:
                _fail(self._queue.popleft()[1], error)
        finally:  # in the same step as the last look at the queue: who asks from now on starts another
            self._running -= 1

    def _answer_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, once one is free: the first questions of the queue."""
        share = min(self._size, -(-len(self._queue) // self._threads.count))
        batch: list[tuple[Q, asyncio.Future[R]]] = []
        while len(batch) < share:
            try:
                entry = self._queue.popleft()
            except IndexError:  # another thread was faster
                break
            if not entry[1].done():
                batch.append(entry)
        self._answer(batch, loop)

    def _answer(self, batch: Sequence[tuple[Q, asyncio.Future[R]]], loop: asyncio.AbstractEventLoop) -> None:
        if not batch:
            return
        try:
            answers = self._answer_all([question for question, _ in batch])
            pairs = list(zip(batch, answers, strict=True))
        except BaseException as error:  # also a panic of the tokenizers library, which is no Exception
            if len(batch) > 1:
                for entry in batch:
                    self._answer([entry], loop)
            else:
                known = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
                loop.call_soon_threadsafe(_fail, batch[0][1], known)
            return
        for (_, result), answer in pairs:
            loop.call_soon_threadsafe(_settle, result, answer)


def _settle(result: asyncio.Future[R], answer: R) -> None:
    if not result.done():
        result.set_result(answer)


def _fail(result: asyncio.Future[R], error: Exception) -> None:
    if not result.done():
        result.set_exception(error)
