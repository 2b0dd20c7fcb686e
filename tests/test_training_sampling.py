"""The schedule: what every strategy promises, on any sizes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.training.sampling import BatchSize, SetSize, Step, balanced, drawn, mix, round_robin, schedule

SIZE = BatchSize(tokens=40, examples=4)
STRATEGIES = ("balanced", "proportional", "round_robin", "temperature", "sequential")

SETS = st.lists(
    st.builds(
        SetSize, st.lists(st.integers(1, 60), min_size=1, max_size=40).map(tuple), st.integers(min_value=0, max_value=4)
    ),
    min_size=1,
    max_size=4,
)


def seen(steps: list[Step], number: int) -> Counter[int]:
    return Counter(row for step in steps if step.set == number for row in step.rows)


@given(sets=SETS, seed=st.integers(0, 1000), strategy=st.sampled_from(["balanced", "sequential"]))
@settings(max_examples=60, deadline=None)
def test_every_example_comes_exactly_as_often_as_its_set_has_epochs(
    sets: list[SetSize], seed: int, strategy: str
) -> None:
    steps = schedule(sets, SIZE, seed=seed, strategy=strategy)
    for number, one in enumerate(sets):
        expected = dict.fromkeys(range(len(one.lengths)), one.epochs) if one.epochs else {}
        assert seen(steps, number) == expected


@given(sets=SETS, seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_no_example_twice_and_is_whole_before_the_next(
    sets: list[SetSize], seed: int, strategy: str
) -> None:
    steps = schedule(sets, SIZE, seed=seed, strategy=strategy)
    for number, one in enumerate(sets):
        epochs = [step.epoch for step in steps if step.set == number]
        assert epochs == sorted(epochs)
        for epoch in set(epochs):
            rows = Counter(row for step in steps if (step.set, step.epoch) == (number, epoch) for row in step.rows)
            assert set(rows.values()) == {1}
            if epoch < max(epochs):
                assert len(rows) == len(one.lengths)


@given(sets=SETS, seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=40, deadline=None)
def test_batches_keep_to_their_size(sets: list[SetSize], seed: int, strategy: str) -> None:
    for step in schedule(sets, SIZE, seed=seed, strategy=strategy):
        lengths = [sets[step.set].lengths[row] for row in step.rows]
        assert 1 <= len(lengths) <= SIZE.examples
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= SIZE.tokens


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any))
@settings(max_examples=100, deadline=None)
def test_balanced_keeps_the_mix_the_same_from_start_to_end(sizes: list[int]) -> None:
    order = balanced(np.array(sizes))
    total, sets = len(order), len(sizes)
    assert Counter(order.tolist()) == {number: size for number, size in enumerate(sizes) if size}
    for number, size in enumerate(sizes):
        if not size:
            continue
        places = np.flatnonzero(order == number)
        gaps = np.diff(places)
        assert gaps.size == 0 or gaps.max() <= total / size + sets
        # After any number of steps, a set is at most one batch for each set away from its share.
        done = np.cumsum(order == number)
        assert np.abs(done - np.arange(1, total + 1) * size / total).max() <= sets


@given(sets=SETS, seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=30, deadline=None)
def test_the_seed_determines_everything(sets: list[SetSize], seed: int, strategy: str) -> None:
    assert schedule(sets, SIZE, seed=seed, strategy=strategy) == schedule(sets, SIZE, seed=seed, strategy=strategy)


def test_another_seed_gives_another_order() -> None:
    sets = [SetSize(tuple(range(1, 41)), 2)]
    assert schedule(sets, SIZE, seed=1) != schedule(sets, SIZE, seed=2)


def test_drawn_sets_come_by_their_sizes_and_alike_at_a_high_temperature() -> None:
    sizes = np.array([9000, 1000])
    assert np.mean(drawn(sizes, temperature=1.0, seed=0) == 0) == pytest.approx(0.9, abs=0.02)
    assert np.mean(drawn(sizes, temperature=2.0, seed=0) == 0) == pytest.approx(0.75, abs=0.02)
    assert np.mean(drawn(sizes, temperature=1e6, seed=0) == 0) == pytest.approx(0.5, abs=0.02)


def test_round_robin_stops_at_the_first_or_the_last_end() -> None:
    sizes = np.array([2, 0, 3])
    assert round_robin(sizes, stop="first").tolist() == [0, 2, 0, 2]
    assert round_robin(sizes, stop="last").tolist() == [0, 2, 0, 2, 0, 2]


def test_sequential_is_set_after_set() -> None:
    assert mix([2, 3], strategy="sequential", stop="last", temperature=1.0, seed=0).tolist() == [0, 0, 1, 1, 1]


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'random'; there are balanced"):
        mix([1], strategy="random", stop="last", temperature=1.0, seed=0)
