"""What of a hit's text answers the query: its best passages, those next to them, and the best sentence of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from indexer.errors import CorruptIndexError
from indexer.keywords import count_within
from indexer.records import FloatArray
from indexer.snapshot import Snapshot
from search.hits import FoundPassage, Highlight, Hit, Stretch
from search.keywords import expression_of
from search.query import Query
from search.ranking import Ranked
from search.sentences import split_sentences

if TYPE_CHECKING:
    from indexer.model import TextModel

Words = Mapping[int, Sequence[tuple[int, int]]]
"""Offsets of the words of a query in the text of each document."""


def with_passages(
    snapshot: Snapshot,
    hits: Sequence[Hit],
    ranked: Sequence[Ranked],
    vector: FloatArray | None,
    text: str,
    query: Query,
) -> list[Hit]:
    """Hits with their `query.passages` best passages, each with `query.neighbours` on either side.

    By cosine with the vector, or without one by the number of words of the text that match; equal ones in the order of
    the text, but the one that the hit was ranked by first. A passage is as long as the model's window was.
    """
    docs = [document.doc for document in ranked]
    passages = snapshot.passages_of(docs)
    if vector is not None:
        scores = snapshot.scores_of(vector, [vid for own in passages.values() for vid, _, _ in own])
    else:
        words = words_in(snapshot, text, docs)
        scores = {
            vid: float(count_within(words.get(doc, ()), start, end))
            for doc, own in passages.items()
            for vid, start, end in own
        }
    found = []
    for hit, document in zip(hits, ranked, strict=True):
        own = passages[document.doc]
        if missing := [vid for vid, _, _ in own if vid not in scores]:
            raise CorruptIndexError(f"vector {missing[0]} of document '{hit.id}' is not there; run 'indexer verify'")
        order = sorted(range(len(own)), key=lambda at: (-scores[own[at][0]], own[at][0] != document.vid, at))
        spans = [(start, end) for _, start, end in own]
        best = [_passage(hit, spans, at, scores[own[at][0]], query.neighbours) for at in order[: query.passages]]
        found.append(replace(hit, passages=tuple(best)))
    return found


def highlighted_by_words(snapshot: Snapshot, hits: Sequence[Hit], ranked: Sequence[Ranked], text: str) -> list[Hit]:
    """Hits with the sentence of their passage in which most words of the text match, the first of several."""
    words = words_in(snapshot, text, [document.doc for document in ranked])
    return [
        _highlighted(hit, [count_within(words.get(document.doc, ()), start, end) for start, end in sentences_of(hit)])
        for hit, document in zip(hits, ranked, strict=True)
    ]


def highlighted_by_meaning(hits: Sequence[Hit], vector: FloatArray, model: TextModel) -> list[Hit]:
    """Hits with the sentence of their passage whose cosine with the vector is highest, the first of several.

    A sentence is embedded by the states of its own tokens in one pass over the whole passage, so that it is understood
    in its context. A passage of one sentence needs no pass.
    """
    sentences = [sentences_of(hit) for hit in hits]
    several = [at for at, own in enumerate(sentences) if len(own) > 1]
    if not several:
        return [_highlighted(hit, [0.0] * len(own)) for hit, own in zip(hits, sentences, strict=True)]
    parts = model.part_vectors(
        [hits[at].text[hits[at].passage.start : hits[at].passage.end] for at in several],
        [[(a - hits[at].passage.start, b - hits[at].passage.start) for a, b in sentences[at]] for at in several],
    )
    cosines: dict[int, Sequence[float]] = {at: _cosines(own, vector) for at, own in zip(several, parts, strict=True)}
    return [_highlighted(hit, cosines.get(at, [0.0] * len(sentences[at]))) for at, hit in enumerate(hits)]


def sentences_of(hit: Hit) -> list[tuple[int, int]]:
    """The sentences of a hit's best passage, as offsets into the hit's text."""
    start = hit.passage.start
    return [(start + a, start + b) for a, b in split_sentences(hit.text[start : hit.passage.end])]


def words_in(snapshot: Snapshot, text: str, docs: Sequence[int]) -> Words:
    """Where the words of a query stand in documents."""
    expression = expression_of(text)
    return {} if expression is None else snapshot.matched_words(expression, docs)


def _passage(hit: Hit, spans: Sequence[tuple[int, int]], at: int, score: float, neighbours: int) -> FoundPassage:
    def stretches(some: Sequence[tuple[int, int]]) -> tuple[Stretch, ...] | None:
        return tuple(Stretch(a, b, hit.text[a:b]) for a, b in some) if neighbours else None

    start, end = spans[at]
    return FoundPassage(
        start=start,
        end=end,
        score=score,
        text=hit.text[start:end],
        before=stretches(spans[max(0, at - neighbours) : at]),
        after=stretches(spans[at + 1 : at + 1 + neighbours]),
    )


def _highlighted(hit: Hit, scores: Sequence[float]) -> Hit:
    sentences = sentences_of(hit)
    if not sentences:  # a document without a text
        return hit
    start, end = sentences[max(range(len(scores)), key=lambda at: (scores[at], -at))]
    return replace(hit, highlight=Highlight(start, end))


def _cosines(parts: FloatArray, vector: FloatArray) -> list[float]:
    """The cosine of each row with the vector; −1, the lowest there is, for one of zeros."""
    rows, exact = parts.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(exact)
    cosines: list[float] = np.where(lengths > 0, rows @ exact / np.where(lengths > 0, lengths, 1.0), -1.0).tolist()
    return cosines
