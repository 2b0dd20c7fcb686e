"""How windows are put together into batches."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], *, max_tokens: int, padding: bool = True) -> list[list[int]]:
    """Indices of the batches, longest windows first, each with at most `max_tokens` tokens, padding included.

    Sorting by length keeps the padding small; the index tells where each result belongs. A window longer than
    `max_tokens` is a batch by itself. Without `padding` all windows of a batch are of one length. The plan depends
    on the lengths alone.

    >>> plan_batches([3, 9, 4], max_tokens=10)
    [[1], [2, 0]]
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        fits = longest * (len(batches[-1]) + 1) <= max_tokens if batches else False
        if fits and (padding or lengths[index] == longest):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
