"""The training loop on one process: it learns, and stops when it diverges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.toy_training import CPU, Bench, steady
from training.learning.loop import DivergenceError, train_step
from training.learning.perceptual_features import keep_features, read_features
from training.learning.state import Recipe, TrainingState, Workers, begin_training, growth_at
from training.learning.validation import score_images, summarise
from training.networks.inputs import to_tensor
from training.networks.reconstruction import reconstruct


def test_the_loss_falls() -> None:
    bench = Bench(**steady(16, 60))
    reports = bench.run(begin_training(bench.recipe))
    losses = [report.metrics["train_loss"] for report in reports]
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_training_passes_three_resolutions_and_reports_each_stage() -> None:
    bench = Bench()
    reports = bench.run(begin_training(bench.recipe))
    seen = [(report.metrics["resolution"], report.metrics["alpha"]) for report in reports]
    assert (16.0, 0.5) in seen
    assert seen[-1] == (32.0, 1.0)
    galleries = [report.gallery for report in reports if report.gallery is not None]
    assert [gallery.resolution for gallery in galleries] == [8, 8, 16, 16, 16, 32, 32, 32]
    assert galleries[-1].originals.shape == (8, 32, 32, 1)
    assert galleries[-1].heatmaps.shape == (8, 32, 32)
    assert reports[-1].step == reports[-1].total_steps == 26


def test_a_step_changes_the_parameters_of_its_stage_alone() -> None:
    bench = Bench()
    state = begin_training(bench.recipe)
    before = {name: value.clone() for name, value in state.autoencoder.state_dict().items()}
    train_step(bench.recipe, state, to_tensor(bench.images.read_batch(0, 12), resolution=32))
    changed = {
        name
        for name, value in state.autoencoder.state_dict().items()
        if not torch.equal(value, before[name])
    }
    used = {id(p) for p in state.autoencoder.parameters_at(8, is_fading=False)}
    assert changed == {n for n, p in state.autoencoder.named_parameters() if id(p) in used}


def test_shares_of_a_batch_average_to_its_loss() -> None:
    """Unequal shares: 5 and 2 of 7 images weigh as they should."""
    bench = Bench(**(steady(16, 5) | {"growth": steady(16, 5)["growth"] | {"batch_sizes": 7}}))
    images = to_tensor(bench.images.read_batch(0, 7), resolution=16)
    whole = train_step(bench.recipe, begin_training(bench.recipe), images)["train_loss"]
    losses = []
    for share in (images[:5], images[5:]):
        recipe = Recipe(bench.settings, bench.recipe.features, 1, CPU, Workers(size=2))
        losses.append(train_step(recipe, begin_training(recipe), share)["train_loss"])
    assert torch.allclose(torch.stack(losses).mean(), whole, atol=1e-6)


def test_pixels_can_count_in_training_beside_the_score() -> None:
    bench, without = Bench(l1_weight=0.5), Bench()
    images = to_tensor(bench.images.read_batch(0, 12), resolution=32)
    terms = train_step(bench.recipe, begin_training(bench.recipe), images)
    state = begin_training(without.recipe)
    made = reconstruct(state.autoencoder, images, growth_at(bench.recipe, 0))
    distance = (made.target - made.images).abs().mean().item()
    assert terms["pixel_loss"].item() == pytest.approx(0.5 * distance)
    alone = train_step(without.recipe, state, images)
    assert alone == {"train_loss": terms["train_loss"]}


def test_pixels_alone_need_no_features() -> None:
    changes = steady(16, 6)
    changes["loss"]["layers"] = {16: {"image": 1.0}}
    bench = Bench(**changes, log_every=1)
    losses = [report.metrics["train_loss"] for report in bench.run(begin_training(bench.recipe))]
    assert losses[-1] < losses[0]


def test_a_diverging_loss_names_the_last_good_checkpoint() -> None:
    bench = Bench(**steady(16, 40), optimiser={"learning_rate": 1e12})
    state = begin_training(bench.recipe)
    state.checkpoint = "runs/a/step-00000000"
    with pytest.raises(DivergenceError, match="last good checkpoint is runs/a/step-00000000"):
        bench.run(state)


def test_the_last_good_checkpoint_is_good() -> None:
    """Ten good steps, then one that ruins the weights though its own loss was still good."""
    bench = Bench(**{**steady(16, 40), "checkpoint_every": 1})
    state = begin_training(bench.recipe)
    saved: list[str] = []

    def save(state: TrainingState, metrics: Mapping[str, float]) -> str:
        assert metrics["train_loss"] < 10
        assert all(
            bool(value.isfinite().all()) for value in state.autoencoder.state_dict().values()
        )
        saved.append(f"step-{state.step}")
        if state.step == 10:
            state.optimiser.param_groups[0]["lr"] = 1e12
        return saved[-1]

    with pytest.raises(DivergenceError, match="last good checkpoint is step-10;"):
        bench.run(state, save)
    assert saved == [f"step-{step}" for step in range(1, 11)]


def team_of(rank: int, shares: Callable[[], list[Any]]) -> Workers:
    return Workers(rank=rank, size=3, gather=lambda _: shares())


def test_scores_of_three_workers_come_back_in_order() -> None:
    bench = Bench()
    state = begin_training(bench.recipe)
    growth = growth_at(bench.recipe, 25)
    images = bench.validation.images
    alone = score_images(bench.recipe, state.autoencoder, images, growth=growth)
    shares = [alone[rank::3] for rank in range(3)]
    recipe = Recipe(bench.settings, bench.recipe.features, 1, CPU, team_of(1, lambda: shares))
    assert np.array_equal(score_images(recipe, state.autoencoder, images, growth=growth), alone)


def test_validation_figures_leave_out_what_is_missing() -> None:
    scores, labels = np.array([1.0, 3.0, 2.0, 5.0]), np.array([0, 0, 1, 1])
    assert summarise(scores, labels) == {
        "validation_loss": 2.0,
        "validation_p05": pytest.approx(1.1),
        "validation_p50": 2.0,
        "validation_p95": pytest.approx(2.9),
        "validation_anomaly_loss": 3.5,
        "validation_anomaly_p05": pytest.approx(2.15),
        "validation_anomaly_p50": 3.5,
        "validation_anomaly_p95": pytest.approx(4.85),
        "validation_auroc": 0.75,
    }
    found = summarise(scores[:2], labels[:2])
    assert sorted(found) == ["validation_loss", *(f"validation_p{p}" for p in ("05", "50", "95"))]


def test_features_are_measured_once_and_kept(tmp_path: Path) -> None:
    bench = Bench()
    url = str(tmp_path / "features.safetensors")
    keep_features(url, bench.recipe.features)
    read = read_features(url, bench.settings)
    images = to_tensor(bench.validation.images, resolution=32)
    expected = bench.recipe.features(images)["relu2_1"]
    assert torch.equal(read(images)["relu2_1"], expected)
    training = to_tensor(bench.images.read_batch(0, 54), resolution=32)
    assert bench.recipe.features(training)["relu1_1"].std() == pytest.approx(1.0, abs=0.2)


def test_mixed_precision_trains(tmp_path: Path) -> None:
    bench = Bench(**steady(16, 4), precision="bf16")
    reports = bench.run(begin_training(bench.recipe))
    assert np.isfinite(reports[-1].metrics["train_loss"])
