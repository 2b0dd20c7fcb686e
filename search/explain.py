"""What a search did, and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from indexer.command import counted
from indexer.planner import SearchPlan
from search.entities import EntityUse
from search.hit_parts import HitParts
from search.hits import Hit
from search.ranking import Ranked


@dataclass(frozen=True, slots=True)
class Reranking:
    """A cross-encoder read so many passages, and cut some of them to `max_tokens` of query and passage together."""

    model: str
    passages: int
    truncated: int
    max_tokens: int

    @property
    def note(self) -> str | None:
        """What was cut, `None` where nothing was."""
        if not self.truncated:
            return None
        return f"rerank: {self.truncated:,} of {self.passages:,} passages were cut to {self.max_tokens} tokens of both"

    def line(self) -> str:
        """For reading."""
        return f"rerank: {self.model} read {counted(self.passages, 'passage')}" + (
            f", {self.truncated:,} of them cut to {self.max_tokens} tokens of query and passage"
            if self.truncated
            else ""
        )

    def to_json(self) -> dict[str, Any]:
        """{"model", "passages", "truncated", "max_tokens"}."""
        return asdict(self)


@dataclass(slots=True)
class Explanation:
    """For one query: `allowed` of `documents` under the filter, each round of the vector search, seconds by step.

    `ranked`: the hits in their order, with what fused scores are made of; `hits`: all parts, where they were asked for.
    `entities`: what those of the query did, `reranking`: what a cross-encoder did.
    """

    documents: int = 0
    allowed: int = 0
    plans: list[SearchPlan] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ranked: Sequence[Ranked] = ()
    hits: Sequence[HitParts] = ()
    entities: EntityUse | None = None
    reranking: Reranking | None = None

    @property
    def notes(self) -> list[str]:
        """What was not done as it was asked for."""
        done = (self.entities, self.reranking)
        return [part.note for part in done if part is not None and part.note is not None]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that a block takes to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the parts of scores where they were asked for, or where a score is made of several."""
        parts: list[dict[str, Any]] = [hit.to_json() for hit in self.hits] or [
            {"score": hit.score, "cosine": hit.cosine, "bm25": hit.bm25}
            | ({} if hit.boost is None else {"boost": hit.boost})
            for hit in self.ranked
            if _is_made_up(hit)
        ]
        return {
            "documents": self.documents,
            "allowed": self.allowed,
            **({"entities": self.entities.to_json()} if self.entities is not None else {}),
            "rounds": [
                {
                    "plan": plan.path,
                    "vectors": plan.rows,
                    "allowed": plan.allowed,
                    "scanned_codes": plan.scanned_codes,
                    "scanned_vectors": plan.scanned_vectors,
                }
                for plan in self.plans
            ],
            **({"reranking": self.reranking.to_json()} if self.reranking is not None else {}),
            "milliseconds": {step: round(1000 * seconds, 3) for step, seconds in self.seconds.items()},
            **({"hits": parts} if parts else {}),
        }

    def lines(self) -> list[str]:
        """For reading."""
        steps = ", ".join(f"{step} {1000 * seconds:.1f} ms" for step, seconds in self.seconds.items())
        return [
            f"allowed: {self.allowed:,} of {self.documents:,} documents",
            *([self.entities.line()] if self.entities is not None else []),
            *(
                f"plan: {plan.path}; of {plan.allowed:,} allowed vectors (of {plan.rows:,}) scanned "
                f"{plan.scanned_codes:,} codes and {plan.scanned_vectors:,} vectors"
                for plan in self.plans
            ),
            *(line for number, hit in enumerate(self._parts(), start=1) for line in hit.lines(number)),
            *([self.reranking.line()] if self.reranking is not None else []),
            f"time: {steps}",
        ]

    def _parts(self) -> Sequence[HitParts]:
        """The parts that are known."""
        return self.hits or [
            HitParts("", hit.score, cosine=hit.cosine, bm25=hit.bm25, boost=hit.boost)
            for hit in self.ranked
            if _is_made_up(hit)
        ]


def _is_made_up(hit: Ranked) -> bool:
    """True where the score has parts to show."""
    return hit.cosine is not None or hit.bm25 is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits, best first, with what was done to find them."""

    hits: tuple[Hit, ...]
    explanation: Explanation
