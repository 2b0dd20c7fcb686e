"""What comes together is worked on together: texts go through the model, and searches over the codes of vectors."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from indexer.records import Analysis
from indexer.settings import Analyser
from search.server.threads import Threads

Q = TypeVar("Q")
R = TypeVar("R")


class Steps(Analyser, Protocol):
    """A model that can give way while it is at work; `indexer.model.TextModel` is one."""

    def analyse_in_steps(self, texts: Sequence[str], *, tags: bool = True) -> Iterator[list[Analysis] | None]: ...


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

    A batch has `characters` at most, in turns one text of each request. A text of more goes through the model by itself
    and in steps, between which batches of others have their turn, so that nobody waits for long texts of somebody else.
    One whose request has gone is forgotten, also between its steps.

    While other requests are being searched, the model keeps to one core: it would spend the others waiting for them.
    """

    def __init__(
        self,
        model: Steps,
        *,
        size: int,
        characters: int,
        wait: float,
        threads: Threads,
        under_way: Callable[[], int],
        on_batch: Callable[[int], None],
    ) -> None:
        self.model = model
        self._size, self._characters, self._wait = size, characters, wait
        self._threads = threads
        self._under_way = under_way
        self._on_batch = on_batch
        self._short: deque[deque[Waiting]] = deque()  # by request, the next one first
        self._long: deque[deque[Waiting]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def analyse(self, texts: Sequence[str], *, tags: bool = False) -> list[Analysis]:
        """What the model says about each text, in order; without `tags` no class and entities."""
        if self._size == 1:
            return [await self._step_by_step(text, tags=tags) for text in texts]
        loop = asyncio.get_running_loop()
        entries = [Waiting(text, tags, loop.create_future()) for text in texts]
        for queue, fits in ((self._short, True), (self._long, False)):
            if own := deque(entry for entry in entries if (len(entry.text) <= self._characters) == fits):
                queue.append(own)
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        try:
            return await asyncio.gather(*(entry.result for entry in entries))
        finally:
            for entry in entries:  # of a request that has gone, or of which one text cannot be embedded
                entry.result.cancel()

    async def _work(self) -> None:
        while self._short or self._long:
            if not self._long:
                await self._gather()
            await self._run(self._next())
            if self._long:
                await self._run_long(self._next_long())

    async def _gather(self) -> None:
        """Wait until as many texts are there as requests are under way, the batch is full, or the time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait
        while self._too_few() and (left := end - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _too_few(self) -> bool:
        return sum(map(len, self._short)) < min(self._under_way(), self._size) and not self._long

    def _next(self) -> list[Waiting]:
        """The next texts that want the same of the model, in turns one of each request."""
        batch: list[Waiting] = []
        room = self._characters
        while self._short and len(batch) < self._size:
            request = self._short.popleft()
            while request and request[0].result.done():
                request.popleft()
            if not request:
                continue
            if batch and (request[0].tags != batch[0].tags or len(request[0].text) > room):
                self._short.appendleft(request)
                break
            batch.append(request.popleft())
            room -= len(batch[-1].text)
            if request:
                self._short.append(request)
        return batch

    def _next_long(self) -> Waiting:
        """The next text that is too long for a batch, in turns one of each request."""
        request = self._long.popleft()
        entry = request.popleft()
        if request:
            self._long.append(request)
        return entry

    def _analyse(self, texts: Sequence[str], *, tags: bool, alone: bool) -> list[Analysis]:
        with _cores(alone=alone), _exceptions():
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
            else:
                _fail(batch[0].result, error)
            return
        for entry, analysis in zip(batch, analyses, strict=True):
            _settle(entry.result, analysis)

    async def _run_long(self, entry: Waiting) -> None:
        """All steps of a text, with a batch of others between every two, for as long as somebody waits for it."""
        if entry.result.done():
            return
        self._on_batch(1)
        steps = self.model.analyse_in_steps([entry.text], tags=entry.tags)
        try:
            while not entry.result.done():
                found = await self._step(steps)
                if found is not None:
                    _settle(entry.result, found[0])
                else:
                    await self._run(self._next())
        except Exception as error:
            _fail(entry.result, error)

    async def _step_by_step(self, text: str, *, tags: bool) -> Analysis:
        steps = self.model.analyse_in_steps([text], tags=tags)
        while (found := await self._step(steps)) is None:
            pass
        return found[0]

    async def _step(self, steps: Iterator[list[Analysis] | None]) -> list[Analysis] | None:
        """One step of a text in a thread; its analysis after the last one."""
        alone = self._size == 1 or self._under_way() <= 1

        def step() -> list[Analysis] | None:
            with _cores(alone=alone), _exceptions():
                return next(steps)

        return await self._threads.run(step)


@contextmanager
def _cores(*, alone: bool) -> Iterator[None]:
    """All cores for who is alone, else one."""
    if alone:
        yield
        return
    from indexer.cores import one_thread

    with one_thread():
        yield


@contextmanager
def _exceptions() -> Iterator[None]:
    """What is no `Exception`, such as a panic of the tokenizers library, becomes one, so that it reaches who asked."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(type(error).__name__) from error


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
