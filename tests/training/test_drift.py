"""Drift: a shift of everything is told from a rise of the strange, and quiet stays quiet."""

from __future__ import annotations

import numpy as np
import pytest

from training.drift import measure_drift

DRAW = np.random.default_rng(4)
REFERENCE = sorted(DRAW.lognormal(0, 0.3, 400).tolist())
THRESHOLD = float(np.quantile(REFERENCE, 0.95))


def draw_batch(seed: int, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 0.3, count)


def test_a_batch_like_the_reference_is_steady_and_alarms_are_rare() -> None:
    found = [measure_drift(draw_batch(seed), REFERENCE, THRESHOLD) for seed in range(200)]
    assert sum(report.has_drifted for report in found) <= 4
    assert found[0].notes == ()


@pytest.mark.parametrize("factor", [1.25, 2.5, 0.75])
def test_where_everything_moves_it_is_a_shift_and_the_threshold_is_in_doubt(factor: float) -> None:
    report = measure_drift(factor * draw_batch(1), REFERENCE, THRESHOLD)
    assert report.whole.state == "shifted"
    assert "everything has shifted" in report.notes[0]
    assert "threshold is still that of the validation split" in report.notes[-1]


@pytest.mark.parametrize("share", [0.15, 0.30, 0.60])
def test_where_more_is_strange_the_usual_stay(share: float) -> None:
    batch = draw_batch(2)
    batch[: int(share * len(batch))] = np.random.default_rng(3).lognormal(
        1.2, 0.3, int(share * 300)
    )
    report = measure_drift(batch, REFERENCE, THRESHOLD)
    assert report.whole.state == "stranger"
    assert report.whole.share_over > share
    assert len(report.notes) == 1


def test_one_site_that_shifts_is_named() -> None:
    batch = draw_batch(5, 400)
    site = np.where(np.arange(400) % 4 == 0, "north", "south")
    batch[site == "north"] *= 1.6
    columns = {"site": site, "sex": np.full(400, "")}
    report = measure_drift(batch, REFERENCE, THRESHOLD, columns)
    assert [(part.part, part.state) for part in report.parts] == [
        ("site=north", "shifted"), ("site=south", "steady"),
    ]  # fmt: skip
    assert report.has_drifted


def test_a_handful_tells_nothing() -> None:
    report = measure_drift(9 * draw_batch(6, 12), REFERENCE, THRESHOLD)
    assert (report.whole.state, report.has_drifted) == ("too_few", False)
    assert measure_drift(np.empty(0), REFERENCE, THRESHOLD).whole.image_count == 0
