"""What a search gives back: hits with text, class and entities; no torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indexer.records import Label


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
class Hit:
    """One document that was found. `score` is the cosine of its best passage with the query, in [−1, 1].

    `hidden`: the ids of near-duplicates that this hit stands for, where a query asks for distinct hits.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    label: Label | None
    entities: tuple[Entity, ...]
    passage: BestPassage
    hidden: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The hit as a JSON object, as `search query --json` prints it; "hidden" only where there are such."""
        return {
            "id": self.id,
            "score": self.score,
            "text": self.text,
            "metadata": self.metadata,
            "label": label_json(self.label),
            "entities": [entity_json(entity) for entity in self.entities],
            "passage": {"start": self.passage.start, "end": self.passage.end},
            **({"hidden": list(self.hidden)} if self.hidden else {}),
        }


def label_json(label: Label | None) -> dict[str, Any] | None:
    """{"name", "score"}, or null where the class head abstains."""
    return None if label is None else {"name": label.name, "score": label.score}


def entity_json(entity: Entity) -> dict[str, Any]:
    """{"type", "text", "start", "end", "score"}."""
    return {
        "type": entity.type,
        "text": entity.text,
        "start": entity.start,
        "end": entity.end,
        "score": entity.score,
    }
