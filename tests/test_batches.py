"""Batches: each window once, within the budget, and the same results in any order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import multi_task

from indexer.batches import plan_batches, plan_even_batches
from indexer.model import TextModel

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 200))
def test_every_index_stands_in_one_batch(lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200))
def test_a_padded_batch_keeps_the_budget_unless_it_is_one_window(lengths: list[int], max_tokens: int) -> None:
    for batch in plan_batches(lengths, max_tokens=max_tokens):
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= max_tokens


@given(LENGTHS, st.integers(1, 200))
def test_longest_windows_come_first(lengths: list[int], max_tokens: int) -> None:
    planned = [lengths[index] for batch in plan_batches(lengths, max_tokens=max_tokens) for index in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 200))
def test_no_batch_could_have_taken_the_next_window(lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens)
    for batch in batches[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > max_tokens


@given(LENGTHS, st.integers(1, 200), st.integers(1, 5), st.booleans())
def test_even_batches_hold_the_same_windows_in_as_many_batches_as_all_workers_take_turns_for(
    lengths: list[int], max_tokens: int, workers: int, padding: bool
) -> None:
    plain = plan_batches(lengths, max_tokens=max_tokens, padding=padding)
    even = plan_even_batches(lengths, max_tokens=max_tokens, workers=workers, padding=padding)
    assert [index for batch in even for index in batch] == [index for batch in plain for index in batch]
    assert all(len(batch) == 1 or lengths[batch[0]] * len(batch) <= max_tokens for batch in even)
    assert even == plain or (len(even) % workers == 0 and len(even) - len(plain) < workers)


def test_even_batches_leave_no_worker_idle_where_windows_are_short() -> None:
    lengths = [random.Random(seed).randint(5, 30) for seed in range(256)]
    assert len(plan_batches(lengths, max_tokens=512)) % 4 != 0
    assert len(plan_even_batches(lengths, max_tokens=512, workers=4)) % 4 == 0


def test_plans_of_a_few_windows() -> None:
    assert plan_batches([], max_tokens=8) == []
    assert plan_batches([3, 9, 4], max_tokens=10) == [[1], [2, 0]]
    assert plan_batches([5, 5, 5, 5], max_tokens=10) == [[0, 1], [2, 3]]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        plan_batches([1], max_tokens=0)


def some_texts() -> list[str]:
    generator = random.Random(5)
    words = ["ada", "lovelace", "met", "the", "acme", "people", "in", "london", ",", "quickly", "!", "1843"]
    return [" ".join(generator.choices(words, k=generator.randint(0, 90))) for _ in range(40)]


def test_analyse_in_any_order_equals_each_text_alone() -> None:
    texts = some_texts()
    model = TextModel(multi_task(max_length=40), device="cpu", batch_tokens=150)
    alone = [model.analyse([text])[0] for text in texts]
    order = list(range(len(texts)))
    random.Random(7).shuffle(order)
    for place, analysis in zip(order, model.analyse([texts[index] for index in order]), strict=True):
        expected = alone[place]
        assert analysis.passages == expected.passages
        np.testing.assert_allclose(analysis.vectors, expected.vectors, rtol=0, atol=1e-5)
        np.testing.assert_allclose(analysis.pooled, expected.pooled, rtol=0, atol=1e-5)
        assert (analysis.label is None) == (expected.label is None)
        if analysis.label is not None and expected.label is not None:
            assert analysis.label.name == expected.label.name
            assert analysis.label.score == pytest.approx(expected.label.score, abs=1e-5)
        assert [(s.type, s.start, s.end) for s in analysis.spans] == [(s.type, s.start, s.end) for s in expected.spans]
        assert [s.score for s in analysis.spans] == pytest.approx([s.score for s in expected.spans], abs=1e-5)


def test_analyse_repeated_gives_the_same_bits() -> None:
    texts = some_texts()
    model = TextModel(multi_task(max_length=40), device="cpu", batch_tokens=150)
    for one, other in zip(model.analyse(texts), model.analyse(texts), strict=True):
        assert one.vectors.tobytes() == other.vectors.tobytes()
        assert one.pooled.tobytes() == other.pooled.tobytes()
        assert (one.passages, one.label, one.spans) == (other.passages, other.label, other.spans)


def test_a_budget_smaller_than_a_window_gives_the_same_results() -> None:
    texts = some_texts()[:8]
    loaded = multi_task(max_length=40)
    one_by_one = TextModel(loaded, device="cpu", batch_tokens=1).encode(texts)
    np.testing.assert_allclose(TextModel(loaded, device="cpu").encode(texts), one_by_one, rtol=0, atol=1e-5)


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 60))
def test_without_padding_a_batch_is_of_one_length(lengths: list[int], budget: int) -> None:
    plan = plan_batches(lengths, max_tokens=budget, padding=False)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len({lengths[index] for index in batch}) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget
