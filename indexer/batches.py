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


def plan_even_batches(
    lengths: Sequence[int], *, max_tokens: int, workers: int, padding: bool = True
) -> list[list[int]]:
    """As `plan_batches`, with smaller batches where that gives all workers the same number of them.

    Seven batches of two workers take as long as eight, so eight smaller ones are made. Where windows are too long to be
    divided so, the plan is that of `plan_batches`.

    >>> [len(batch) for batch in plan_batches([1] * 10, max_tokens=4)]
    [4, 4, 2]
    >>> [len(batch) for batch in plan_even_batches([1] * 10, max_tokens=4, workers=2)]
    [3, 3, 3, 1]
    """
    plan = plan_batches(lengths, max_tokens=max_tokens, padding=padding)
    if len(plan) < 2 or len(plan) % workers == 0:
        return plan
    wanted = -(-len(plan) // workers) * workers
    smallest, largest = -(-sum(lengths) // wanted), max_tokens
    best = plan
    while smallest <= largest:  # the more tokens, the fewer batches
        budget = (smallest + largest) // 2
        found = plan_batches(lengths, max_tokens=budget, padding=padding)
        if len(found) > wanted:
            smallest = budget + 1
        else:
            largest = budget - 1
            if len(found) == wanted:
                best = found
    return best
