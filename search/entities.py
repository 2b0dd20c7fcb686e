"""The named entities of a query, which its forward pass gives beside its vector, and the documents that share them.

A document shares an entity where it has one of the same type and the same text in the form of
`indexer.fields.normalise_entity`: what the filter `entity TYPE:TEXT` asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyroaring import BitMap

from indexer.command import counted
from indexer.fields import normalise_entity
from indexer.filters import HasEntity
from indexer.records import Span
from indexer.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class QueryEntity:
    """An entity that a query names: `text` as it stands there, `norm` as it is compared."""

    type: str
    text: str
    norm: str


@dataclass(frozen=True, slots=True)
class SharedEntities:
    """Which documents, of those that a filter allows, share the entities of a query.

    `documents`: for each of `entities` how many have it. `levels`: (share of the query's entities, the documents that
    have so many of them), ascending, without those that have none.
    """

    entities: tuple[QueryEntity, ...]
    documents: tuple[int, ...]
    levels: tuple[tuple[float, BitMap], ...]

    @property
    def docs(self) -> BitMap:
        """Those that share any."""
        return BitMap.union(BitMap(), *(docs for _, docs in self.levels))


@dataclass(frozen=True, slots=True)
class EntityUse:
    """What was done with the entities of a query, for an explanation.

    `asked`: "filter" or "boost"; `sharing`: how many of the documents under the filter share any; where there are none,
    neither was done. `weight`: of the boost.
    """

    asked: str
    entities: tuple[QueryEntity, ...]
    documents: tuple[int, ...]
    sharing: int
    weight: float

    @property
    def done(self) -> str:
        """ "filter", "boost" or "nothing"."""
        return self.asked if self.sharing else "nothing"

    @property
    def note(self) -> str | None:
        """Why nothing was done, `None` where something was."""
        if self.sharing:
            return None
        if not self.entities:
            return "the query names no entity that the model finds: searched without"
        names = ", ".join(f"{entity.type}:{entity.text}" for entity in self.entities)
        return f"no document under the filter shares an entity of the query ({names}): searched without"

    def line(self) -> str:
        """For reading."""
        if self.note is not None:
            return f"entities: {self.note}"
        found = ", ".join(
            f"{entity.type}:{entity.text} ({count:,})"
            for entity, count in zip(self.entities, self.documents, strict=True)
        )
        what = (
            f"searched only what shares any: {counted(self.sharing, 'document')}"
            if self.asked == "filter"
            else f"raised what shares any by up to {self.weight:g}: {counted(self.sharing, 'document')}"
        )
        return f"entities: {found}; {what}"

    def to_json(self) -> dict[str, Any]:
        """{"asked", "done", "sharing", "found": [{"type", "text", "form", "documents"}]}, "weight" of a boost."""
        return {
            "asked": self.asked,
            "done": self.done,
            "sharing": self.sharing,
            **({"weight": self.weight} if self.asked == "boost" else {}),
            "found": [
                {"type": entity.type, "text": entity.text, "form": entity.norm, "documents": count}
                for entity, count in zip(self.entities, self.documents, strict=True)
            ],
        }


@dataclass(frozen=True, slots=True)
class Boost:
    """How much is added to the score of a document: `weight` · its share of the query's entities · the mode's scale."""

    weight: float
    shared: SharedEntities

    def of(self, doc: int) -> float:
        """In [0, weight]; 0 for a document that shares none."""
        return next((self.weight * share for share, docs in self.shared.levels if doc in docs), 0.0)


def entities_of(text: str, spans: Sequence[Span]) -> tuple[QueryEntity, ...]:
    """The entities of a query, each type and form once, in the order of the text."""
    found: dict[tuple[str, str], QueryEntity] = {}
    for span in spans:
        surface = " ".join(text[span.start : span.end].split())
        norm = normalise_entity(surface)
        if norm:
            found.setdefault((span.type, norm), QueryEntity(span.type, surface, norm))
    return tuple(found.values())


def shared_entities(snapshot: Snapshot, entities: Sequence[QueryEntity], chosen: BitMap | None) -> SharedEntities:
    """The documents among the chosen (`None`: all) that share the entities. Of several, any number counts."""
    having = [snapshot.allowed(HasEntity(entity.type, entity.norm, "exact")) for entity in entities]
    having = having if chosen is None else [docs & chosen for docs in having]
    highest = max((docs.max() for docs in having if docs), default=-1)
    counts = np.zeros(highest + 1, dtype=np.int64)
    for docs in having:
        counts[np.frombuffer(docs.to_array(), dtype=np.uint32)] += 1
    levels = tuple(
        (count / len(entities), BitMap(np.flatnonzero(counts == count).astype(np.uint32)))
        for count in np.unique(counts[counts > 0]).tolist()
    )
    return SharedEntities(tuple(entities), tuple(map(len, having)), levels)
