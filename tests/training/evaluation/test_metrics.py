"""Metrics against counted pairs, and their refusals."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.metrics import measure_auroc, measure_average_precision


def count_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    wins = [(a > n) + 0.5 * (a == n) for a in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(wins))


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    draw = np.random.default_rng(3)
    labels = (np.arange(60) % 3 == 0).astype(np.int8)
    scores = np.round(draw.normal(labels * 0.8, 1.0), 1)
    assert len(np.unique(scores)) < 60
    assert measure_auroc(scores, labels) == pytest.approx(count_pairs(scores, labels))
    assert measure_auroc(-scores, labels) == pytest.approx(1 - count_pairs(scores, labels))


def test_average_precision_by_hand() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
    assert measure_average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("measure", [measure_auroc, measure_average_precision])
def test_what_no_curve_can_be_drawn_of_is_refused_with_counts(measure) -> None:  # type: ignore[no-untyped-def] # one of two functions
    with pytest.raises(ValueError, match="3 normal and 0 anomalous"):
        measure(np.arange(3.0), np.zeros(3, np.int8))
    with pytest.raises(ValueError, match="1 of 3 labels"):
        measure(np.arange(3.0), np.array([0, 1, -1]))
    with pytest.raises(ValueError, match="1 scores are not finite"):
        measure(np.array([0.0, np.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match="differ in shape"):
        measure(np.arange(3.0), np.array([0, 1]))
