"""In which order a run sees its examples: the whole schedule, computed beforehand from sizes and a seed. Only numpy.

A step number says everything about where a run stands, so that a stopped one goes on exactly where it was.

With sets of n₁ … nₖ batches in all their epochs, N together, the strategies are:

- balanced: each set its own number of epochs, spread evenly over the run. Batch j of set i is due at (j + ½) / nᵢ of
  the run, and batches come in the order in which they are due, so that the mix is the same from start to end.
- proportional: N batches, each of a set drawn with a probability proportional to the set's size.
- temperature: the same with sizes^(1/T): T = 1 is proportional, a large T draws all sets alike (Devlin et al. 2019).
- round_robin: one batch of each set in turn. With stop = "first" until the set with the fewest batches has gone
  through its epochs, with "last" until the one with the most has; the others then start again.
- sequential: set after set, in the order given, each with all its epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from indexer.batches import plan_batches

Ints = npt.NDArray[np.int64]

CHUNK = 64  # batches' worth of examples that are sorted by length together: little padding, still a random order


@dataclass(frozen=True, slots=True)
class SetSize:
    """What the schedule must know of a set: the tokens of each example, and how often it is gone through."""

    lengths: tuple[int, ...]
    epochs: int


@dataclass(frozen=True, slots=True)
class BatchSize:
    """At most `tokens` padded tokens and `examples` examples."""

    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class Step:
    """One batch: `rows` are the examples of set number `set`, in its `epoch` from 0."""

    set: int
    epoch: int
    rows: tuple[int, ...]


def schedule(
    sets: Sequence[SetSize],
    size: BatchSize,
    *,
    seed: int,
    strategy: str = "balanced",
    stop: str = "last",
    temperature: float = 1.0,
) -> list[Step]:
    """All batches of a run, in order. Sets with 0 epochs or without examples give none.

    In every epoch of a set each of its examples stands in exactly one batch; the last epoch may end early where the
    strategy does not count in epochs. Raises `ValueError` for an unknown strategy.
    """

    @cache
    def batches(number: int, epoch: int) -> list[tuple[int, ...]]:
        return epoch_batches(sets[number].lengths, size, seed=(seed, number, epoch))

    # An epoch's examples are cut anew each time, so that its number of batches differs a little from the next one's.
    totals = [
        sum(len(batches(number, epoch)) for epoch in range(one.epochs)) if one.lengths else 0
        for number, one in enumerate(sets)
    ]
    order = mix(totals, strategy=strategy, stop=stop, temperature=temperature, seed=seed)
    place = [(0, 0)] * len(sets)  # the epoch and the batch in it that a set is at
    steps = []
    for number in order:
        epoch, index = place[number]
        found = batches(number, epoch)
        steps.append(Step(int(number), epoch, found[index]))
        place[number] = (epoch, index + 1) if index + 1 < len(found) else (epoch + 1, 0)
    return steps


def epoch_batches(lengths: Sequence[int], size: BatchSize, *, seed: Sequence[int]) -> list[tuple[int, ...]]:
    """Every example once, in batches of similar lengths, in random order."""
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(lengths))
    batches: list[tuple[int, ...]] = []
    for part in np.array_split(order, max(1, len(order) // (CHUNK * size.examples))):
        plan = plan_batches([lengths[row] for row in part], max_tokens=size.tokens)
        for batch in plan:
            rows = [int(part[index]) for index in batch]
            batches += [tuple(rows[at : at + size.examples]) for at in range(0, len(rows), size.examples)]
    return [batches[index] for index in random.permutation(len(batches))]


def mix(totals: Sequence[int], *, strategy: str, stop: str, temperature: float, seed: int) -> Ints:
    """Which set each step takes its batch from, int64 (steps,), for sets of `totals` batches each."""
    sizes = np.array(totals, dtype=np.int64)
    if not sizes.any():
        return np.zeros(0, dtype=np.int64)
    strategies: dict[str, Callable[[], Ints]] = {
        "balanced": lambda: balanced(sizes),
        "proportional": lambda: drawn(sizes, temperature=1.0, seed=seed),
        "temperature": lambda: drawn(sizes, temperature=temperature, seed=seed),
        "round_robin": lambda: round_robin(sizes, stop=stop),
        "sequential": lambda: np.repeat(np.arange(len(sizes)), sizes),
    }
    if strategy not in strategies:
        raise ValueError(f"unknown strategy '{strategy}'; there are {', '.join(strategies)}")
    return strategies[strategy]()


def balanced(sizes: Ints) -> Ints:
    """Each set's batches spread evenly: two of set i are at most N / nᵢ + k steps apart, with k sets.

    Of two that are due at the same time, the one of the smaller set comes first.
    """
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    due = (2 * index + 1) / (2 * sizes[numbers])
    return numbers[np.lexsort((numbers, sizes[numbers], due))]


def drawn(sizes: Ints, *, temperature: float, seed: int) -> Ints:
    """As many draws as there are batches, each of set i with a probability proportional to nᵢ^(1/T)."""
    shares = np.where(sizes > 0, sizes.astype(np.float64) ** (1 / temperature), 0.0)
    random = np.random.default_rng([seed, len(sizes)])
    return random.choice(len(sizes), size=int(sizes.sum()), p=shares / shares.sum()).astype(np.int64)


def round_robin(sizes: Ints, *, stop: str) -> Ints:
    """One batch of each set that has any, in turn, up to the smallest or the largest set's number of batches."""
    present = np.flatnonzero(sizes)
    rounds = sizes[present].min() if stop == "first" else sizes[present].max()
    return np.tile(present, int(rounds))
