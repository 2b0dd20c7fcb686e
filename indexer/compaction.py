"""Which segments are put together, and when: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

# A segment grows through these sizes; so many of one size make one of the next.
TIERS = (8_192, 32_768, 131_072)
FAN_IN = 4
DEAD_SHARE = 0.3  # of a segment's rows, from which it is worth writing it again


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """A segment's name, rows and dead rows."""

    name: str
    rows: int
    dead: int


def tier_of(rows: int) -> int:
    """Index of the size class of a segment with so many rows; the last one is open upwards."""
    return next((tier for tier, size in enumerate(TIERS[1:]) if rows < size), len(TIERS) - 1)


def next_merge(segments: Sequence[SegmentSize]) -> list[str]:
    """Names of neighbouring segments that should become one now, none where all is well.

    Four neighbours of one size class become one of the next, so that n vectors are in O(log n) small segments and
    n / 131,072 large ones, and each vector is written about three times. Where sizes alternate, so that no four of
    a class are neighbours, all of a longer run that are not large become one. A segment with many dead rows is
    written again by itself. `segments` in the order of their vectors.
    """
    for tier in range(len(TIERS) - 1):
        run: list[str] = []
        for segment in segments:
            run = [*run, segment.name] if tier_of(segment.rows) == tier else []
            if len(run) == FAN_IN:
                return run
    for small, group in groupby(segments, key=lambda segment: tier_of(segment.rows) < len(TIERS) - 1):
        names = [segment.name for segment in group]
        if small and len(names) > (FAN_IN - 1) * (len(TIERS) - 1):
            return names
    return next(([s.name] for s in segments if s.dead >= DEAD_SHARE * s.rows and s.dead), [])


def full_merges(segments: Sequence[SegmentSize]) -> list[list[str]]:
    """Groups of neighbours that leave no dead row and as few segments as the largest size allows.

    A segment that is full and has no dead row stays as it is.
    """
    groups: list[list[str]] = []
    current: list[SegmentSize] = []

    def close() -> None:
        if len(current) > 1 or any(segment.dead for segment in current):
            groups.append([segment.name for segment in current])
        current.clear()

    for segment in segments:
        if segment.rows >= TIERS[-1] and not segment.dead:
            close()
            continue
        live = sum(s.rows - s.dead for s in current)
        if current and live + segment.rows - segment.dead > TIERS[-1]:
            close()
        current.append(segment)
    close()
    return groups
