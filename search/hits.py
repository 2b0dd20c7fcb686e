"""What a search gives back: hits with text, class and entities; no torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indexer.records import Label, label_json


@dataclass(frozen=True, slots=True)
class Entity:
    """A named entity of a hit; `text` is `hit.text[start:end]`."""

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class BestPassage:
    """Offsets of the passage that matched best: `hit.text[start:end]`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a hit's text: `text` is `hit.text[start:end]`."""

    start: int
    end: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """{"start", "end", "text"}."""
        return {"start": self.start, "end": self.end, "text": self.text}


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """One of the passages of a hit that match best.

    `score`: its cosine with the query; in keyword mode the number of words in it that match. `before` and `after`: the
    passages next to it, in the order of the text; `None` where they were not asked for.
    """

    start: int
    end: int
    score: float
    text: str
    before: tuple[Stretch, ...] | None = None
    after: tuple[Stretch, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """{"start", "end", "score", "text"}, with "before" and "after" where they were asked for."""
        return {
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "text": self.text,
            **({"before": [part.to_json() for part in self.before]} if self.before is not None else {}),
            **({"after": [part.to_json() for part in self.after]} if self.after is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class Highlight:
    """The sentence of the best passage that matches best: `hit.text[start:end]`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One document that was found. `score` is the cosine of its best passage with the query, in [−1, 1].

    `hidden`: the ids of near-duplicates that this hit stands for, where a query asks for distinct hits. `passages`:
    the best ones, best first, `highlight`: a sentence of `passage`, and `rerank_score`: a cross-encoder's for the
    passage, in [0, 1], by which hits are then in order; all `None` unless a query asks for them.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    label: Label | None
    entities: tuple[Entity, ...]
    passage: BestPassage
    hidden: tuple[str, ...] = ()
    passages: tuple[FoundPassage, ...] | None = None
    highlight: Highlight | None = None
    rerank_score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The hit as a JSON object, as `search query --json` prints it; what has to be asked for only where it was."""
        return {
            "id": self.id,
            "score": self.score,
            "text": self.text,
            "metadata": self.metadata,
            "label": label_json(self.label),
            "entities": [entity_json(entity) for entity in self.entities],
            "passage": {"start": self.passage.start, "end": self.passage.end},
            **({} if self.rerank_score is None else {"rerank_score": self.rerank_score}),
            **({"hidden": list(self.hidden)} if self.hidden else {}),
            **({} if self.passages is None else {"passages": [passage.to_json() for passage in self.passages]}),
            **(
                {}
                if self.highlight is None
                else {"highlight": {"start": self.highlight.start, "end": self.highlight.end}}
            ),
        }


def entity_json(entity: Entity) -> dict[str, Any]:
    """{"type", "text", "start", "end", "score"}."""
    return {
        "type": entity.type,
        "text": entity.text,
        "start": entity.start,
        "end": entity.end,
        "score": entity.score,
    }
