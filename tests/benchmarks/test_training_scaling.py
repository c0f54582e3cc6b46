"""The scaling and precision benchmarks: the formula, and figures with their names."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.precision import Trained
from benchmarks.precision import conclude as conclude_precision
from benchmarks.scaling import GPUS, Timing, conclude, predict_efficiency, predict_exchange


def test_a_ring_moves_the_gradients_twice() -> None:
    """Large ones: 2 (n - 1) / n times their bytes; small ones: 2 (n - 1) latencies."""
    many = predict_exchange(4, 8e9, bytes_s=1e9, latency_s=0.0)
    assert many == pytest.approx(2 * 3 / 4 * 8)
    assert predict_exchange(4, 0, bytes_s=1e9, latency_s=0.5) == pytest.approx(3.0)
    assert predict_exchange(1, 8e9, bytes_s=1e9, latency_s=0.5) == 0


def test_efficiency_falls_with_workers_and_rises_with_work() -> None:
    few, many = (predict_efficiency(workers, 0.01, 1e6) for workers in (8, 64))
    assert 0 < many < few < 1
    assert predict_efficiency(64, 0.1, 1e6) > many


def test_scaling_is_told_by_the_cores_in_use() -> None:
    timings = {
        1: Timing([1.0], [1.0], [0.0], [0.0], 2048),
        2: Timing([1.25], [1.0], [0.2], [0.7], 2048),
        4: Timing([2.5], [2.0], [0.2], [0.7], 2048),
    }
    metrics = conclude(timings, 16, 0.9, cores=2).metrics
    assert metrics["efficiency_2"] == pytest.approx(0.8)
    assert metrics["efficiency_4"] == pytest.approx(0.8)
    assert metrics["communication_share_2"] == pytest.approx(0.2)
    assert metrics["exchange_s_4"] == pytest.approx(0.5)
    # Two exchanges at half of 0.2 s each, and 2 KiB at 16 MiB in half a second.
    assert metrics["predicted_exchange_s_2"] == pytest.approx(0.2 + 2048 / (4 * 4 * 2**20 / 0.5))
    assert metrics[f"predicted_efficiency_{GPUS}_gpus"] == 0.9


def test_the_difference_of_precisions_has_its_sign() -> None:
    labels = np.repeat(np.array([0, 1], np.int8), 20)
    right = (labels + np.linspace(0, 0.9, 40)).astype(np.float32)
    wrong = right.copy()
    wrong[[0, 39]] = wrong[[39, 0]]
    found = {"fp32": Trained(right, 100.0), "bf16": Trained(wrong, 250.0)}
    metrics = conclude_precision(found, labels).metrics
    assert metrics["auroc_fp32"] == 1
    assert metrics["auroc_difference"] == pytest.approx(metrics["auroc_bf16"] - 1)
    assert metrics["auroc_difference_low"] < metrics["auroc_difference"] < 0
