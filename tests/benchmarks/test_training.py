"""The training benchmark: what it compares learns alike, and its figures have their names."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Comparison
from benchmarks.training import (
    OFF,
    OURS,
    REDUCED,
    REFERENCE,
    Case,
    conclude,
    count_flops,
    make_reference,
    make_step,
)

CASE = Case(resolution=16, batch=3, device=torch.device("cpu"))


def test_the_published_step_and_ours_learn_alike() -> None:
    published, images = make_reference(CASE), CASE.draw_images()
    expected = torch.tensor([published(images) for _ in range(4)])
    assert expected[3] < 0.99 * expected[0]
    for changes in (OFF, {}):
        step = make_step(CASE, changes)
        losses = torch.stack([step() for _ in range(4)])
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0.0)


def test_kept_targets_save_a_third_of_the_features() -> None:
    """Forward for the target; forward and backward for the reconstruction."""
    whole, kept = make_step(CASE, OFF), make_step(CASE, {})
    kept()
    assert 0.6 < count_flops(kept) / count_flops(whole) < 0.75


def test_figures_are_ratios_of_medians() -> None:
    rates = {
        REFERENCE: [10.0, 9.0, 11.0],
        OURS: [15.0, 30.0, 14.0],
        REDUCED: [40.0] * 3,
        f"limit of {OURS}": [20.0] * 3,
        f"limit of {REDUCED}": [50.0] * 3,
    }
    speed = Comparison("training", "images/s", rates, REFERENCE)
    metrics = conclude(
        speed, {REFERENCE: 0.0, REDUCED: 2e-3}, {OURS: 3e9, REDUCED: 2e9}, suffix="_64px"
    )
    assert metrics == pytest.approx(
        {
            "vs_reference_64px": 1.5,
            "vs_reference_reduced_64px": 4.0,
            "share_of_peak_64px": 0.75,
            "share_of_peak_reduced_64px": 0.8,
            "peak_gflops_fp32_64px": 60.0,
            "peak_gflops_bf16_64px": 100.0,
            "images_per_s_64px": 15.0,
            "gain_ours_all_in_bf16_64px": 4.0,
            "difference_ours_all_in_bf16_64px": 2e-3,
        }
    )
