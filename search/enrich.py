"""Ranked documents → hits with text, metadata, class and entities."""

from __future__ import annotations

from collections.abc import Sequence

from indexer.errors import CorruptIndexError
from indexer.snapshot import Snapshot
from indexer.stored import StoredDocument
from search.hits import BestPassage, Entity, Hit
from search.ranking import Ranked


def enrich(snapshot: Snapshot, ranked: Sequence[Ranked]) -> list[Hit]:
    """Hits in the order given. Raises `CorruptIndexError` for a document that does not match its digest."""
    documents = snapshot.documents([document.doc for document in ranked])
    return [_hit(documents[document.doc], document) for document in ranked]


def _hit(stored: StoredDocument, ranked: Ranked) -> Hit:
    passage = next((passage for passage in stored.passages if passage.vid == ranked.vid), None)
    if passage is None:
        raise CorruptIndexError(
            f"vector {ranked.vid} is not of document '{stored.id}': the index is damaged; run 'indexer verify'"
        )
    return Hit(
        id=stored.id,
        score=ranked.score,
        text=stored.text,
        metadata=stored.metadata,
        label=stored.label,
        entities=tuple(
            Entity(span.type, stored.text[span.start : span.end], span.start, span.end, span.score)
            for span in stored.spans
        ),
        passage=BestPassage(passage.start, passage.end),
        rerank_score=ranked.rerank,
    )
