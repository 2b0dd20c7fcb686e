"""How windows are put together into batches."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Indices of the batches, longest windows first, each with at most `max_tokens` tokens, padding included.

    Sorting by length keeps the padding small; the index tells where each result belongs. A window longer than
    `max_tokens` is a batch by itself. The plan depends on the lengths alone.

    >>> plan_batches([3, 9, 4], max_tokens=10)
    [[1], [2, 0]]
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
