"""Checkpoints: nothing of a training is lost in one, and no kill leaves half of one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import SettingsError
from pipeline.io import storage
from tests.support.toy_training import Bench
from training.learning.checkpoint import Checkpoints, choose_best
from training.learning.loop import Report
from training.learning.state import TrainingState, begin_training
from training.networks.growth import plan_stages


class KilledError(Exception):
    """Stands for a kill."""


def run_until(bench: Bench, stop: int, checkpoints: Checkpoints) -> None:
    """Train from the beginning and die after the checkpoint of a step."""

    def save(state: TrainingState, metrics: Mapping[str, float]) -> str:
        url = checkpoints.save(bench.recipe, state, [Report(state.step, 26, metrics)])
        if state.step == stop:
            raise KilledError
        return url

    with pytest.raises(KilledError):
        bench.run(begin_training(bench.recipe), save)


@pytest.mark.parametrize(
    ("stop", "weight"),
    [
        (5, 0),
        (8, 0),
        (10, 0),
        (16, 0),
        pytest.param(8, 0.1, marks=pytest.mark.slow),
        pytest.param(13, 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_ends_bit_for_bit_the_same(
    stop: int, weight: float, tmp_path: Path
) -> None:
    views = {"crop_px": 32, "flips_at_random": True}
    bench = Bench(checkpoint_every=1, images=views, adversarial={"weight": weight})
    whole = begin_training(bench.recipe)
    bench.run(whole)
    checkpoints = Checkpoints(str(tmp_path), kept=2)
    run_until(bench, stop, checkpoints)
    torch.rand(3)  # what others draw meanwhile must not matter
    latest = checkpoints.read_latest()
    assert latest is not None
    assert not latest.is_last
    resumed = latest.restore(bench.recipe)
    assert resumed.step == stop
    assert resumed.checkpoint == checkpoints.url_at(stop)
    bench.run(resumed)
    pairs: list[tuple[nn.Module, nn.Module]] = [(whole.autoencoder, resumed.autoencoder)]
    if whole.discriminator is not None and resumed.discriminator is not None:
        pairs.append((whole.discriminator, resumed.discriminator))
    assert len(pairs) == (2 if weight else 1)
    for ours, theirs in pairs:
        for name, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], value), name
    assert resumed.sample == whole.sample


def test_adams_state_and_random_numbers_come_back(tmp_path: Path) -> None:
    bench = Bench(checkpoint_every=1)
    state = begin_training(bench.recipe)
    checkpoints = Checkpoints(str(tmp_path), kept=1)
    run_until(bench, 5, checkpoints)
    drawn = torch.rand(3)
    latest = checkpoints.read_latest()
    assert latest is not None
    state = latest.restore(bench.recipe)
    assert torch.equal(torch.rand(3), drawn)
    moments = state.optimiser.state_dict()["state"]
    used = state.optimiser.param_groups[0]["params"]
    assert sorted(moments) == list(range(len(used)))
    for parameter, own in zip(used, moments.values(), strict=True):
        assert own["step"].item() == 5
        assert own["exp_avg_sq"].sum() > 0
        assert own["exp_avg"].stride() == parameter.stride()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    bench = Bench()
    checkpoints = Checkpoints(str(tmp_path), kept=1)
    checkpoints.save(bench.recipe, begin_training(bench.recipe), [])
    latest = checkpoints.read_latest()
    assert latest is not None
    with pytest.raises(SettingsError, match=r"other settings \(seed\)"):
        latest.restore(Bench(seed=99).recipe)


def save_steps(checkpoints: Checkpoints, losses: Mapping[int, float | None]) -> Bench:
    """Checkpoints of an untrained network at given steps, with given validation losses."""
    bench = Bench()
    state, reports = begin_training(bench.recipe), []
    for step, loss in losses.items():
        state.step = step
        metrics = {} if loss is None else {"validation_loss": loss}
        reports.append(Report(step, 26, {"train_loss": 0.5, **metrics}))
        checkpoints.save(bench.recipe, state, reports)
    return bench


def test_the_last_and_the_best_are_kept(store_url: str) -> None:
    checkpoints = Checkpoints(store_url, kept=2)
    losses = {17: 0.9, 18: 0.3, 19: None, 21: 0.7, 22: 0.8, 23: None}
    save_steps(checkpoints, losses)
    assert checkpoints.find_steps() == [21, 22, 23]  # 18 belongs to the stage before
    latest = checkpoints.read_latest()
    assert latest is not None
    assert latest.step == 23
    assert [report.step for report in latest.reports] == list(losses)
    assert latest.reports[1].metrics == {"train_loss": 0.5, "validation_loss": 0.3}


def test_the_best_is_of_the_latest_stage() -> None:
    stages = plan_stages(
        initial_resolution=8,
        final_resolution=16,
        fade_in_iterations=4,
        stabilize_iterations=6,
        batch_sizes=1,
    )
    losses = {3: 0.1, 6: 0.2, 8: 0.7, 10: 0.6, 12: 0.8, 13: 0.5}
    reports = [Report(step, 16, {"validation_loss": loss}) for step, loss in losses.items()]
    reports += [Report(14, 16, {"validation_loss": float("nan")}), Report(15, 16, {})]
    assert choose_best([3, 6], reports, stages) == 3
    assert choose_best([3, 6, 8], reports, stages) == 8
    assert choose_best([8, 10, 12, 14, 15], reports, stages) == 12
    assert choose_best([12, 13, 15], reports, stages) == 13
    assert choose_best([15], reports, stages) is None


def test_a_damaged_checkpoint_falls_back_on_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(str(tmp_path), kept=3)
    bench = save_steps(checkpoints, {5: None, 10: None, 15: None})
    (tmp_path / "step-00000015.safetensors").write_bytes(b"")
    whole = storage.read_bytes(checkpoints.url_at(10))
    with caplog.at_level(logging.WARNING):
        storage.write_bytes(checkpoints.url_at(10), whole[: len(whole) // 2])
        latest = checkpoints.read_latest()
    assert latest is not None
    assert latest.step == 5
    assert "step-00000010.safetensors is damaged" in caplog.text
    (tmp_path / ".step-00000006.safetensors.x7").write_bytes(b"half of a write")
    state = latest.restore(bench.recipe)
    state.step = 10
    checkpoints.save(bench.recipe, state, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.safetensors" for step in (5, 10, 15)
    ]
    assert checkpoints.read_latest() is not None


def test_no_checkpoint_is_none(store_url: str) -> None:
    assert Checkpoints(store_url, kept=1).read_latest() is None
