"""Metrics: exact values by hand, and seqeval as the reference for span F1."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest

from indexer.training.data import spans_of_tags
from indexer.training.metrics import (
    SpanScore,
    accuracy,
    expected_calibration_error,
    ndcg,
    span_scores,
    spearman,
)


def test_span_scores_need_type_start_and_end() -> None:
    gold = [[("PER", 0, 3), ("LOC", 5, 9)], [("PER", 0, 3)]]
    found = [[("PER", 0, 3), ("ORG", 5, 9)], [("PER", 0, 4)]]
    scores = span_scores(gold, found)
    assert scores["micro"] == SpanScore(precision=1 / 3, recall=1 / 3, f1=1 / 3, support=3)
    assert scores["PER"] == SpanScore(precision=0.5, recall=0.5, f1=0.5, support=2)
    assert scores["LOC"] == SpanScore(precision=0.0, recall=0.0, f1=0.0, support=1)
    assert scores["ORG"] == SpanScore(precision=0.0, recall=0.0, f1=0.0, support=0)


def test_span_scores_tell_texts_apart() -> None:
    assert span_scores([[("PER", 0, 3)], []], [[], [("PER", 0, 3)]])["micro"].f1 == 0.0


def test_span_scores_without_spans_are_zero() -> None:
    assert span_scores([[]], [[]]) == {"micro": SpanScore(0.0, 0.0, 0.0, 0)}


def test_span_scores_refuse_different_lengths() -> None:
    with pytest.raises(ValueError, match="2 texts in the gold standard, but 1 predicted"):
        span_scores([[], []], [[]])


def test_span_scores_agree_with_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme")
    generator = random.Random(3)
    gold, found = _random_tags(generator), _random_tags(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = seqeval.classification_report(gold, found, scheme=scheme.IOB2, mode="strict", output_dict=True)
    scores = span_scores([spans_of_tags(tags) for tags in gold], [spans_of_tags(tags) for tags in found])
    assert 0 < scores["micro"].f1 < 1
    for ours, theirs in (("micro", "micro avg"), ("PER", "PER"), ("LOC", "LOC")):
        expected = reference[theirs]
        assert scores[ours].precision == pytest.approx(expected["precision"])
        assert scores[ours].recall == pytest.approx(expected["recall"])
        assert scores[ours].f1 == pytest.approx(expected["f1-score"])
        assert scores[ours].support == expected["support"]


def _random_tags(generator: random.Random) -> list[list[str]]:
    """Valid IOB2 sequences."""
    sequences = []
    for _ in range(60):
        tags = ["O"]
        for _ in range(10):
            choices = ["O", "B-PER", "B-LOC"]
            if tags[-1] != "O":
                choices.append("I-" + tags[-1][2:])
            tags.append(generator.choice(choices))
        sequences.append(tags)
    return sequences


def test_accuracy_is_the_share_of_equal_entries() -> None:
    assert accuracy(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


def test_spearman_without_ties() -> None:
    # 1 - 6 Σ d² / (n (n² - 1)) with d = (0, 1, -1, 0)
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 99.0])) == pytest.approx(0.8)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # ranks (1.5, 1.5, 3) and (1, 2, 3): covariance 1.5, variances 1.5 and 2
    value = spearman(np.array([5.0, 5.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    assert value == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_spearman_of_a_constant_is_undefined() -> None:
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


def test_ndcg_of_one_query() -> None:
    # gains 0, 2, 1 at ranks 1, 2, 3; ideal 2, 1
    value = ndcg(["x", "a", "b"], {"a": 2.0, "b": 1.0})
    assert value == pytest.approx((2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3)))


def test_ndcg_is_cut_at_k() -> None:
    assert ndcg(["x", "y", "a"], {"a": 1.0}, k=2) == 0.0
    assert ndcg(["a", "x"], {"a": 1.0, "b": 1.0, "c": 1.0}, k=1) == 1.0


def test_ndcg_without_relevant_documents_is_zero() -> None:
    assert ndcg(["a"], {}) == 0.0


def test_expected_calibration_error() -> None:
    confidence = np.array([0.95, 0.85, 0.15, 0.05])
    correct = np.array([True, False, False, False])
    # two bins: (0, 0.5] holds two with confidence 0.1 and accuracy 0, (0.5, 1] two with 0.9 and 0.5
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)


def test_expected_calibration_error_puts_edges_into_the_lower_bin() -> None:
    confidence = np.array([0.0, 0.5, 1.0])
    correct = np.array([False, True, True])
    # (0, 0.5] with 0 in it: confidence 0.25, accuracy 0.5; (0.5, 1]: exact
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(2 / 3 * 0.25)
