"""Percentiles, thresholds and the heatmaps' scale."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SettingsError
from training.evaluation.calibration import Calibration, Threshold, calibrate, choose_threshold

PIXELS = np.linspace(0.0, 1.0, 1001)


def test_a_percentile_is_the_share_of_normals_below() -> None:
    calibration = calibrate(np.array([3.0, 1.0, 2.0, 2.0]), PIXELS, np.zeros((4, 2)))
    found = calibration.percentile(np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.1]))
    assert found.tolist() == [0, 0, 25, 25, 75, 75, 100]
    assert calibration.normal_count == 4
    assert (calibration.heatmap_low, calibration.heatmap_high) == pytest.approx((0.5, 0.999))


def test_many_normals_are_kept_as_quantiles_close_to_the_truth() -> None:
    scores = np.random.default_rng(0).gamma(2.0, 1.0, 20_000)
    calibration = calibrate(scores, PIXELS, np.zeros((len(scores), 2)))
    assert len(calibration.reference) == 1001
    asked = np.array([0.1, 0.7, 2.0, 5.0, 99.0])
    exact = [100 * (scores < value).mean() for value in asked]
    assert calibration.percentile(asked) == pytest.approx(exact, abs=0.11)


def test_of_many_normals_a_sample_keeps_its_embeddings_beside_its_scores() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1800.0))
    embeddings = np.stack([scores, -scores, scores + 0.5], axis=1)
    known = calibrate(scores, PIXELS, embeddings).normals
    assert np.array(known.embeddings).shape == (500, 3)
    assert [row[1] for row in known.embeddings] == [-score for score in known.scores]
    assert (known.scores[0], known.scores[-1]) == (scores[0], scores[-1])
    assert len(set(known.scores)) == 500


def test_it_survives_json_exactly_and_ignores_pixels_never_looked_at() -> None:
    pixels = np.where(PIXELS < 0.25, np.nan, PIXELS)
    embeddings = np.array([[0.1, 2 / 3], [1e-9, -7.0]], np.float32)
    calibration = calibrate(np.array([0.1, 1 / 3]), pixels, embeddings)
    assert calibration.heatmap_low == pytest.approx(0.625)
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_the_quantile_of_normals_that_were_seen() -> None:
    threshold = choose_threshold(np.arange(1.0, 101.0), quantile=0.95)
    assert threshold.value == 95.0
    assert (np.arange(1.0, 101.0) > threshold.value).sum() == 5
    assert (threshold.quantile, threshold.normal_count) == (0.95, 100)
    assert Threshold.model_validate_json(threshold.model_dump_json()) == threshold


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(SettingsError, match="no readable normal image"):
        calibrate(np.array([]), PIXELS, np.empty((0, 2)))
    with pytest.raises(SettingsError, match="1 scores of normal images are not finite"):
        choose_threshold(np.array([1.0, np.inf]))
    with pytest.raises(SettingsError, match=r"every pixel of the normal heatmaps is 0\.5"):
        calibrate(np.ones(3), np.full(9, 0.5), np.ones((3, 2)))
