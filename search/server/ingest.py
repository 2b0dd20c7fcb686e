"""Changing an index: its writer in a thread of its own, whose lock is taken for a batch and let go when idle."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from indexer import pipeline
from indexer.errors import FilterError, FingerprintError, InputError
from indexer.filters import Filter, check_names
from indexer.pipeline import Report
from indexer.records import Document
from indexer.settings import IndexSettings
from indexer.store import IndexWriter
from search.server import log
from search.server.threads import Threads

if TYPE_CHECKING:
    from indexer.model import TextModel

T = TypeVar("T")

_REFUSED = (InputError, FilterError, FingerprintError)  # nothing is wrong with the writer


class Ingest:
    """Writes to one index. What a method returns is durable.

    The writer stays open for `linger` seconds after the last call, because opening and closing takes longer than a
    small batch; then another process can have the lock. Raises `LockedError` while another process has it.
    """

    def __init__(self, path: Path, settings: IndexSettings, *, linger: float) -> None:
        """`settings`: those of the index that is searched; one of another model in its place is refused."""
        self._path = path
        self._settings = settings
        self._linger = linger
        self._threads = Threads(1, name="writer")
        self._threads.start()
        self._writer: IndexWriter | None = None
        self._calls = 0
        self._timer: asyncio.TimerHandle | None = None

    async def add(
        self, documents: Sequence[Document], model: TextModel | None, *, on_commit: Callable[[Report], None]
    ) -> Report:
        """Add or replace documents, as `indexer add` does, in several commits where they are long.

        `on_commit` is called in the writer's thread with the report so far; also what it was called with before an
        error is durable.
        """
        return await self._run(lambda writer: pipeline.index(documents, model, writer, on_commit=on_commit))

    async def remove(self, ids: Sequence[str]) -> int:
        """Remove documents; returns how many were there."""
        wanted = set(ids)
        return await self._run(lambda writer: len(wanted) - len(writer.remove(wanted)))

    async def remove_matching(self, where: Filter) -> int:
        """Remove what a filter matches; returns how many documents."""

        def remove(writer: IndexWriter) -> int:
            check_names(where, labels=writer.settings.class_labels, entity_types=writer.settings.entity_types)
            return writer.remove_matching(where)

        return await self._run(remove)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._threads.busy > 0

    async def close(self, *, seconds: float) -> None:
        """Let the lock go, if the thread is done within so long; what was acknowledged is kept in any case."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(seconds):
                await self._threads.run(self._abandon)
        except TimeoutError:
            pass
        finally:
            self._threads.close()

    async def _run(self, action: Callable[[IndexWriter], T]) -> T:
        self._calls += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            return await self._threads.run(lambda: self._with_writer(action))
        finally:
            self._calls -= 1
            if not self._calls:
                self._timer = asyncio.get_running_loop().call_later(self._linger, self._idle)

    def _with_writer(self, action: Callable[[IndexWriter], T]) -> T:
        if self._writer is not None and not self._writer.in_place:
            self._abandon()
        if self._writer is None:
            self._writer = IndexWriter(self._path)
        try:
            self._settings.check_replaced(self._writer.settings, place=str(self._path))
            return action(self._writer)
        except _REFUSED:
            raise
        except BaseException:
            writer, self._writer = self._writer, None
            writer.__exit__(*sys.exc_info())
            raise

    def _idle(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._close_idle())

    async def _close_idle(self) -> None:
        """What was acknowledged is kept also where this fails; the next writer does what is left to do."""
        try:
            await self._threads.run(self._close)
        except Exception as error:
            fields = {"index": self._path.name}
            log.ERRORS.error("an index could not be put in order when idle", exc_info=error, extra={"fields": fields})

    def _close(self) -> None:
        """Close the writer, unless something has come to be written."""
        if self._writer is not None and not self._calls:
            writer, self._writer = self._writer, None
            writer.close()

    def _abandon(self) -> None:
        """Let go at once: without sealing and putting segments together, which the next writer does."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.__exit__(SystemExit, SystemExit(), None)
