"""The scoring benchmark: what it reads is what it says, and its figures have their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.harness import Comparison
from benchmarks.scoring import JpegFolder, _conclude, write_jpegs


def test_the_reference_reads_files_as_tensors(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "jpegs", 3)
    folder = JpegFolder(tmp_path / "jpegs")
    assert len(folder) == 3
    assert folder[2].shape == (3, 64, 64)
    assert folder[2].dtype == torch.float32
    assert -1 <= folder[2].min() < folder[2].max() <= 1


def test_figures_are_ratios_of_medians() -> None:
    rates = {
        "reference": [10.0, 9.0, 11.0],
        "ours": [13.0, 30.0, 12.0],
        "ours, reduced": [24.0] * 3,
        "bare forward pass": [20.0] * 3,
    }
    speed = Comparison("scoring", "images/s", rates, "reference")
    twice = Comparison("", "", {**rates, "reference": [20.0]}, "reference")
    metrics = _conclude(speed, twice, (1e-7, 2e-3), {1_000: 500.0, 100_000: 510.0}).metrics
    assert metrics["vs_reference"] == pytest.approx(1.3)
    assert metrics["vs_reference_reduced"] == pytest.approx(2.4)
    assert metrics["share_of_limit"] == pytest.approx(0.65)
    assert metrics["vs_reference_by_processor"] == pytest.approx(0.65)
    assert metrics["peak_memory_mib_1000"] == 500
    assert metrics["peak_memory_mib_100000"] == metrics["peak_memory_mib"] == 510
