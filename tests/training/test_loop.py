"""The training loop on one process: it learns, resumes bit for bit, and stops when it diverges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import SettingsError
from tests.training.toys import make_dataset, make_settings
from training.checkpoint import load_checkpoint, save_checkpoint
from training.data import TrainingImages, to_tensor
from training.features import keep_features, prepare_features, read_features
from training.loop import DivergenceError, Report, Save, train, train_step
from training.state import Recipe, Team, TrainingState, begin_training, growth_at, make_recipe
from training.validation import read_validation, score_images, summarise

CPU = torch.device("cpu")


class Bench:
    """A toy dataset and a recipe for it."""

    def __init__(self, **changes: Any) -> None:
        self.settings = make_settings(**changes)
        self.dataset = make_dataset("memory://loop/toys", normals=60)
        features = prepare_features(self.settings, self.dataset)
        self.recipe = make_recipe(self.settings, features, image_channels=1, device=CPU)
        self.images = TrainingImages(self.dataset, self.settings)
        self.validation = read_validation(self.dataset, self.settings.images)

    def run(self, state: TrainingState, save: Save | None = None) -> list[Report]:
        reports: list[Report] = []
        train(
            self.recipe,
            state,
            self.images,
            self.validation,
            save=save or (lambda state, _: f"step-{state.step}"),
            publish=reports.append,
        )
        return reports


def steady(resolution: int, steps: int) -> dict[str, Any]:
    """Growth and loss of one resolution alone."""
    growth = {
        "initial_resolution": resolution, "final_resolution": resolution,
        "fade_in_iterations": 0, "stabilize_iterations": steps, "batch_sizes": 12,
    }  # fmt: skip
    loss = {"layers": {resolution: {"relu1_2": 1}}, "vgg_weights": "random", "vgg_width": 8}
    return {"growth": growth, "loss": loss, "validate_every": 1000, "checkpoint_every": 1000}


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
    assert [gallery.resolution for gallery in galleries] == [8, 16, 16, 32, 32]
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


@pytest.mark.parametrize("stop", [5, 8, 10, 16])
def test_a_resumed_training_ends_bit_for_bit_the_same(stop: int, tmp_path: Path) -> None:
    bench = Bench(checkpoint_every=1, images={"crop_px": 32, "flips_at_random": True})
    whole = begin_training(bench.recipe)
    bench.run(whole)

    class KilledError(Exception):
        pass

    def save_and_die(state: TrainingState, metrics: Mapping[str, float]) -> str:
        if state.step == stop:
            save_checkpoint(tmp_path, bench.recipe, state)
            raise KilledError
        return ""

    with pytest.raises(KilledError):
        bench.run(begin_training(bench.recipe), save_and_die)
    torch.rand(3)  # what others draw meanwhile must not matter
    resumed = load_checkpoint(tmp_path, bench.recipe)
    assert resumed.step == stop
    bench.run(resumed)
    for name, value in whole.autoencoder.state_dict().items():
        assert torch.equal(resumed.autoencoder.state_dict()[name], value), name
    assert resumed.sample == whole.sample


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    bench = Bench()
    save_checkpoint(tmp_path, bench.recipe, begin_training(bench.recipe))
    other = Bench(seed=99)
    with pytest.raises(SettingsError, match=r"other settings \(seed\)"):
        load_checkpoint(tmp_path, other.recipe)


def test_shares_of_a_batch_average_to_its_loss() -> None:
    """Unequal shares: 5 and 2 of 7 images weigh as they should."""
    bench = Bench(**(steady(16, 5) | {"growth": steady(16, 5)["growth"] | {"batch_sizes": 7}}))
    images = to_tensor(bench.images.read_batch(0, 7), resolution=16)
    whole = train_step(bench.recipe, begin_training(bench.recipe), images)
    losses = []
    for share in (images[:5], images[5:]):
        recipe = Recipe(bench.settings, bench.recipe.features, 1, CPU, Team(size=2))
        losses.append(train_step(recipe, begin_training(recipe), share))
    assert torch.allclose(torch.stack(losses).mean(), whole, atol=1e-6)


def test_a_diverging_loss_names_the_last_good_checkpoint() -> None:
    bench = Bench(**steady(16, 40), optimiser={"learning_rate": 1e12})
    state = begin_training(bench.recipe)
    state.checkpoint = "runs/a/step-00000000"
    with pytest.raises(DivergenceError, match="last good checkpoint is runs/a/step-00000000"):
        bench.run(state)


def team_of(rank: int, shares: Callable[[], list[Any]]) -> Team:
    return Team(rank=rank, size=3, gather=lambda _: shares())


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
        "validation_loss": 2.0, "validation_anomaly_loss": 3.5, "validation_auroc": 0.75,
    }  # fmt: skip
    assert summarise(scores[:2], labels[:2]) == {"validation_loss": 2.0}


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
