"""What all routes share: the open indexes, their models, the threads, and the limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from indexer.errors import QueryError
from search.searcher import Searcher
from search.server.auth import Tokens
from search.server.batching import Batcher
from search.server.ingest import Ingest
from search.server.metrics import Metrics
from search.server.problems import Problem
from search.server.settings import Limits, Settings
from search.server.threads import Threads

if TYPE_CHECKING:
    from indexer.model import TextModel

GRACE = 2.0  # seconds that a stop waits for the writers
# Of a batch of texts, for each token of the model's own batches. On a CPU it then has 4,096, some 850 tokens of prose,
# which take 0.3 seconds on two cores that have nothing else to do.
CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An index under the name by which requests know it; `batcher` is `None` where it has no model."""

    name: str
    searcher: Searcher
    batcher: Batcher | None
    ingest: Ingest

    @property
    def model_name(self) -> str | None:
        """The model's name; of a folder's path only the last part, which says nothing about this machine."""
        return None if self.batcher is None else PurePath(self.batcher.model.name).name

    def model(self) -> Batcher:
        """The way to the index's model. Raises `Problem` where it has none."""
        if self.batcher is None:
            raise Problem(
                422,
                "no-model",
                f"index '{self.name}' holds vectors that were made elsewhere, and has no model for texts: search by "
                "vector, or by keyword",
            )
        return self.batcher


class Service:
    """Open indexes and what is needed to answer from them. Opening one loads its model."""

    def __init__(
        self,
        indexes: Mapping[str, str | Path],
        *,
        settings: Settings | None = None,
        tokens: Tokens | None = None,
        model: TextModel | str | Path | None = None,
        device: str = "auto",
    ) -> None:
        """`indexes`: folders by name. `model`: for all of them; by default each one's own.

        Raises `NotAnIndexError`, `ModelError` and what else keeps an index from being searched.
        """
        if not indexes:
            raise QueryError("nothing to serve: name at least one index")
        self.settings = settings or Settings()
        self.tokens = tokens or Tokens()
        self.metrics = Metrics()
        self.under_way = 0
        self.searching = Threads(self.settings.workers or os.cpu_count() or 1, name="searching")
        batched = self.settings.batch_texts > 1
        self._embedding = Threads(1, name="model") if batched else self.searching
        self._batchers: dict[tuple[str, str | None], Batcher] = {}
        self.indexes: dict[str, OpenIndex] = {}
        for name, path in indexes.items():
            searcher = Searcher(path, model=model, device=device)
            batcher = None
            if searcher.has_model:
                info = searcher.info
                same = self._batchers.get((info.fingerprint or "", info.heads_fingerprint))
                if same is not None:
                    searcher.close()
                    searcher = Searcher(path, model=same.model, device=device)  # type: ignore[arg-type]
                batcher = same or self._batcher(searcher.model)
                if info.fingerprint is not None:
                    self._batchers[info.fingerprint, info.heads_fingerprint] = batcher
            if self.settings.reranker is not None:
                searcher.load_reranker(self.settings.reranker)
            ingest = Ingest(Path(path), searcher.settings, linger=self.settings.linger)
            self.indexes[name] = OpenIndex(name, searcher, batcher, ingest)
        for threads in {self.searching, self._embedding}:
            threads.start()

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return self.settings.limits

    def index(self, name: str | None) -> OpenIndex:
        """The index of a name; without one the only index. Raises `Problem`."""
        if name is None:
            if len(self.indexes) == 1:
                return next(iter(self.indexes.values()))
            raise Problem(422, "invalid-request", "there are several indexes: name one with 'index'")
        found = self.indexes.get(name)
        if found is None:
            raise Problem(404, "not-found", f"there is no index '{name[:100]}'")
        return found

    async def close(self) -> None:
        """Let the indexes go; waits a little for what is being written."""
        for index in self.indexes.values():
            await index.ingest.close(seconds=GRACE / len(self.indexes))
        self.searching.close()
        self._embedding.close()
        if not self.searching.busy:
            for index in self.indexes.values():
                index.searcher.close()

    @property
    def busy(self) -> bool:
        """Whether a thread is still at work."""
        return bool(
            self.searching.busy or self._embedding.busy or any(index.ingest.busy for index in self.indexes.values())
        )

    def _batcher(self, model: TextModel) -> Batcher:
        return Batcher(
            model,
            size=self.settings.batch_texts,
            characters=CHARACTERS * model.batch_tokens,
            wait=self.settings.batch_wait,
            threads=self._embedding,
            under_way=lambda: self.under_way,
            on_batch=self.metrics.batches.observe,
        )
