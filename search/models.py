"""The models of a searcher: loaded with the first query that needs them, and what they make of a query's text."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import ModelError, QueryError
from indexer.reader import IndexReader
from indexer.records import Analysis
from indexer.settings import check_model
from search.entities import entities_of
from search.explain import Explanation
from search.query import Query
from search.steps import Asked

if TYPE_CHECKING:
    from indexer.model import TextModel
    from search.rerank import CrossEncoder


class Models:
    """The model that built an index, and a cross-encoder. Safe to use from several threads."""

    def __init__(self, reader: IndexReader, *, model: TextModel | str | Path | None, device: str) -> None:
        self._reader = reader
        self._given = model
        self._device = device
        self._text: TextModel | None = None
        self._name: str | None = None  # by which it was loaded
        self._reranker: CrossEncoder | None = None
        self._mutex = threading.Lock()

    @property
    def known(self) -> bool:
        """Whether there is a model for texts: the index names its own, or one was given."""
        return self._given is not None or self._reader.settings.model is not None

    @property
    def text(self) -> TextModel:
        """The model that embeds queries. Raises `ModelError`, `FingerprintError`."""
        from indexer.model import TextModel, choose_device

        with self._mutex:
            settings = self._reader.settings
            name = settings.model if self._given is None else str(self._given)
            if self._text is None or name != self._name:  # re-tagging an index names another model
                model = self._given if isinstance(self._given, TextModel) else None
                if model is None:
                    choose_device(self._device)  # a wrong device is not the fault of the model's place
                    if name is None:
                        raise ModelError(
                            f"{self._reader.path} holds vectors that were made elsewhere: pass the --model that made "
                            "them, or search by vector"
                        )
                    try:
                        model = TextModel.load(name, device=self._device)
                    except ModelError as error:
                        if self._given is not None:
                            raise
                        raise ModelError(
                            f"{self._reader.path} was built with model {name}, which cannot be loaded: {error}; "
                            "pass its new place with --model"
                        ) from error
                check_model(settings, model, place=str(self._reader.path), heads=False)
                self._text, self._name = model, name
            return self._text

    @property
    def tagger(self) -> TextModel:
        """The same, where the entities that it finds in a query can be compared with those of the documents."""
        settings, place = self._reader.newest_settings(), self._reader.path
        if settings.entity_types is None:
            raise QueryError(
                "the index was built without entities, so its documents share none with a query; 'indexer retag' with "
                "a model that finds some adds them"
            )
        if self.text.entity_types is None:
            raise ModelError(
                f"{self.text.name} has no tag head, so it finds no entities in a query: pass --model with the model "
                f"that tagged {place}, {settings.model}"
            )
        check_model(settings, self.text, place=str(place), heads=True)
        return self.text

    def reranker(self, name: str) -> CrossEncoder:
        """A cross-encoder by name or folder; the last one stays loaded. Raises `ModelError`."""
        from search.rerank import CrossEncoder

        with self._mutex:
            if self._reranker is None or self._reranker.name != name:
                self._reranker = CrossEncoder.load(name, device=self._device)
            return self._reranker

    def asked(self, text: str, query: Query, explanation: Explanation, *, analysis: Analysis | None = None) -> Asked:
        """The query with what the model makes of its text: one pass for its vector and its entities.

        `analysis`: what it made of it already.
        """
        asked = Asked(query=query, text=text)
        if query.rerank is not None:
            asked = replace(asked, reranker=self.reranker(query.rerank))
        if query.mode == "keyword" and query.entities is None:
            return asked
        model = self.text if query.entities is None else self.tagger
        with explanation.timed("model"):
            if analysis is None:
                (analysis,) = model.analyse([text], tags=query.entities is not None)
        vector = None if query.mode == "keyword" else analysis.pooled
        if query.entities is None:
            return replace(asked, vector=vector)
        return replace(asked, vector=vector, entities=entities_of(text, analysis.spans))
