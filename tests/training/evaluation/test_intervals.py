"""Bootstrap intervals: against a plain bootstrap, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.intervals import (
    Interval,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    bootstrap_relative_excess,
    draw_counts,
    shows_non_inferiority,
    shows_superiority,
)
from training.evaluation.metrics import measure_auroc


def make_scores(seed: int, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [70, 40]).astype(np.int8)
    return np.round(draw.normal(labels * gap, 1.0), 1), labels


def test_an_interval_is_that_of_resampling_images_one_by_one() -> None:
    scores, labels = make_scores(1)
    found = bootstrap_auroc(scores, labels, level=0.9, draws=300, seed=5)
    aurocs = [
        measure_auroc(np.repeat(scores, counts), np.repeat(labels, counts))
        for block in draw_counts(labels, None, draws=300, seed=5)
        for counts in block
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(aurocs, [0.05, 0.95])))
    assert found.estimate == measure_auroc(scores, labels)


def test_resamples_keep_both_classes_and_whole_groups() -> None:
    labels = np.array([0, 0, 0, 1, 0, 1, 1], np.int8)
    groups = np.array(["a", "a", "b", "c", "c", "d", "d"], object)
    for counts in np.concatenate(list(draw_counts(labels, groups, draws=50, seed=0))):
        assert counts[0] == counts[1]
        assert counts[3] == counts[4]
        assert counts[0] + counts[2] == 2  # groups without an anomaly: a, b
        assert counts[3] + counts[5] == 2  # groups with one: c, d


def test_groups_widen_an_interval_where_their_images_are_copies() -> None:
    scores, labels = make_scores(2)
    copied, copied_labels = np.repeat(scores, 5), np.repeat(labels, 5)
    groups = np.repeat(np.arange(len(scores)), 5)
    alone = bootstrap_auroc(copied, copied_labels, draws=400)
    grouped = bootstrap_auroc(copied, copied_labels, groups=groups, draws=400)
    once = bootstrap_auroc(scores, labels, draws=400)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low)
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)


def test_a_draw_without_normals_is_left_out() -> None:
    # Every group has an anomaly, few have a normal: drawn without those, there is no pair.
    groups = np.repeat(np.arange(40), 2)
    labels = np.where(np.arange(80) % 2, 1, np.arange(80) >= 12).astype(np.int8)
    found = bootstrap_auroc(np.linspace(0, 1, 80), labels, groups=groups, draws=3000)
    assert 0 <= found.low <= found.high <= 1


def test_few_groups_give_no_interval_and_say_why() -> None:
    scores, labels = make_scores(5)
    slides = np.where(labels == 1, "tumor_001", np.arange(len(labels)).astype(str))
    found = bootstrap_auroc(scores, labels, groups=slides, draws=100)
    assert found.estimate == measure_auroc(scores, labels)
    assert np.isnan([found.low, found.high]).all()
    assert str(found).endswith("(no interval: only 1 group holds an anomaly, and it takes 6)")
    paired = bootstrap_auroc_difference(scores, scores + 1, labels, groups=slides, draws=100)
    assert not shows_non_inferiority(paired, margin=0.5)
    assert not shows_superiority(paired, margin=-0.5)
    few = bootstrap_relative_excess(np.ones(5), np.ones(5), draws=100)
    assert few.missing == "only 5 images hold a normal image, and it takes 6"
    assert bootstrap_auroc(scores, labels, groups=np.arange(len(labels))).missing == ""


def test_coverage_of_the_interval_is_near_its_level() -> None:
    hits = 0
    for seed in range(100):
        scores, labels = make_scores(seed + 10)
        found = bootstrap_auroc(scores, labels, level=0.9, draws=200, seed=seed)
        hits += found.low <= 0.76025 <= found.high  # Phi(1 / sqrt 2)
    assert 82 <= hits <= 97


def test_a_paired_difference_is_narrower_than_two_intervals_and_signed() -> None:
    scores, labels = make_scores(7)
    worse = scores + np.random.default_rng(8).normal(0, 0.6, len(scores))
    found = bootstrap_auroc_difference(scores, worse, labels, draws=500)
    assert found.estimate == measure_auroc(scores, labels) - measure_auroc(worse, labels) > 0
    alone = bootstrap_auroc(scores, labels, draws=500)
    assert found.high - found.low < alone.high - alone.low
    back = bootstrap_auroc_difference(worse, scores, labels, draws=500)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_the_same_scores_differ_by_nothing() -> None:
    scores, labels = make_scores(9)
    found = bootstrap_auroc_difference(scores, 3 * scores + 1, labels, draws=100)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    assert shows_non_inferiority(found, margin=0.0)
    assert not shows_superiority(found)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = make_scores(4)
    whole = bootstrap_auroc(scores, labels, draws=50)
    monkeypatch.setattr("training.evaluation.intervals._BLOCK_VALUES", 110 * 7)
    assert len(list(draw_counts(labels, None, draws=50, seed=0))) == 8
    blocked = bootstrap_auroc(scores, labels, draws=50)
    assert whole.low - 0.05 < blocked.low < whole.low + 0.05


def test_excess_of_the_mean() -> None:
    scores, _ = make_scores(3)
    others = np.abs(scores) + 1
    found = bootstrap_relative_excess(1.1 * others, others, draws=100)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="must be positive"):
        bootstrap_relative_excess(others, -others)
    with pytest.raises(ValueError, match="3 scores against 110"):
        bootstrap_relative_excess(others[:3], others)


@pytest.mark.parametrize(
    ("low", "is_superior", "is_not_inferior"),
    [(0.01, True, True), (0.0, False, True), (-0.02, False, True), (-0.021, False, False)],
)
def test_conclusions(low: float, is_superior: bool, is_not_inferior: bool) -> None:
    difference = Interval(0.03, low, 0.1, 0.95)
    assert shows_superiority(difference) is is_superior
    assert shows_non_inferiority(difference, margin=0.02) is is_not_inferior


def test_an_impossible_level_is_refused() -> None:
    scores, labels = make_scores(4)
    with pytest.raises(ValueError, match="level 95"):
        bootstrap_auroc(scores, labels, level=95)
