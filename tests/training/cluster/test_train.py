"""The training under Ray: any number of workers, interruptions, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import SchemaError, SettingsError
from pipeline.store.dataset import open_dataset
from tests.support.toy_training import train_alone
from tests.support.toys import make_dataset, make_settings
from training.cluster.connection import running_ray
from training.cluster.train import fit
from training.learning.loop import DivergenceError, Report
from training.learning.run_folder import FitResult, claim_run, open_checkpoints

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

SETTINGS = make_settings(cpu_threads=1, log_every=1)


@pytest.fixture(scope="module")
def dataset_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("data") / "toys.zarr")
    make_dataset(url)
    return url


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with running_ray(None, 4):
        yield


@pytest.fixture(scope="module")
def alone(dataset_url: str, runs: str, ray_here: None) -> FitResult:
    return fit(SETTINGS, dataset_url=dataset_url, storage_url=runs, run_name="alone")


@pytest.mark.slow
def test_one_worker_trains_what_the_loop_trains(
    alone: FitResult, dataset_url: str, runs: str
) -> None:
    weights, _ = train_alone(SETTINGS, alone.features_url, open_dataset(dataset_url))
    for name, value in weights.items():
        assert torch.equal(alone.networks[name], value), name
    assert alone.checkpoint_url.endswith("step-00000026.safetensors")
    last_stage = [report for report in alone.reports if report.step > 20]
    best = min(last_stage, key=lambda report: report.metrics.get("validation_loss", np.inf))
    assert alone.best_checkpoint_url.endswith(f"step-{best.step:08d}.safetensors")
    assert open_checkpoints(f"{runs}/alone", SETTINGS).find_steps() == sorted({25, 26, best.step})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_more_workers_reach_the_same_losses(
    workers: int, alone: FitResult, dataset_url: str, runs: str
) -> None:
    heard: list[Report] = []
    together = fit(
        SETTINGS,
        dataset_url=dataset_url,
        storage_url=runs,
        run_name=f"of-{workers}",
        workers=workers,
        on_report=heard.append,
    )
    assert [report.step for report in together.reports] == list(range(1, 27))
    for name in ("train_loss", "validation_loss", "validation_auroc"):
        ours = [report.metrics.get(name, 0.0) for report in together.reports]
        theirs = [report.metrics.get(name, 0.0) for report in alone.reports]
        assert np.allclose(ours, theirs, rtol=0, atol=1e-4), name
    assert {report.metrics["resolution"] for report in heard} == {8.0, 16.0, 32.0}
    galleries = [report.gallery for report in heard if report.gallery is not None]
    assert {gallery.resolution for gallery in galleries} == {8, 16, 32}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_two_workers_play_against_one_adversary(dataset_url: str, runs: str) -> None:
    """At the ablation's rate; slopes jump where units switch, and at 1e-3 rounding shows sooner."""
    growth = SETTINGS.growth.model_dump() | {"fade_in_iterations": 2, "stabilize_iterations": 2}
    settings = make_settings(
        cpu_threads=1,
        log_every=1,
        growth=growth,
        adversarial={"weight": 0.1, "critic_steps": 1},
        optimiser={"learning_rate": 2e-4},
    )
    together = fit(
        settings, dataset_url=dataset_url, storage_url=runs, run_name="playing", workers=2
    )
    _, alone = train_alone(settings, together.features_url, open_dataset(dataset_url))
    for name in ("train_loss", "adversarial_loss", "discriminator_loss", "validation_loss"):
        ours, theirs = (
            [report.metrics.get(name, 0.0) for report in reports]
            for reports in (together.reports, alone)
        )
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)
        assert np.std(ours) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_tracking_function_that_fails_does_not_end_the_training(
    dataset_url: str, runs: str
) -> None:
    heard: list[Report] = []
    failures = iter([ConnectionError("no answer")] * 2)

    def fail_in_the_middle(report: Report) -> None:
        if report.step > 10 and (error := next(failures, None)):
            raise error
        heard.append(report)

    made = fit(
        SETTINGS,
        dataset_url=dataset_url,
        storage_url=runs,
        run_name="untracked",
        on_report=fail_in_the_middle,
    )
    assert next(failures, None) is None
    assert made.checkpoint_url.endswith("step-00000026.safetensors")
    assert [report.step for report in heard] == list(range(1, 27))
    assert [report.metrics for report in heard] == [report.metrics for report in made.reports]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(alone: FitResult, dataset_url: str, runs: str) -> None:
    heard: list[Report] = []
    again = fit(
        SETTINGS,
        dataset_url=dataset_url,
        storage_url=runs,
        run_name="alone",
        ray_address="127.0.0.1:1",  # where none answers
        on_report=heard.append,
    )
    assert tuple(heard) == again.reports == alone.reports
    assert again.resumptions == ()
    assert all(torch.equal(again.networks[name], alone.networks[name]) for name in alone.networks)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_divergence_reaches_the_driver(dataset_url: str, runs: str) -> None:
    settings = make_settings(cpu_threads=1, optimiser={"learning_rate": 1e12})
    with pytest.raises(DivergenceError, match=r"No checkpoint was made|last good checkpoint is"):
        fit(settings, dataset_url=dataset_url, storage_url=runs, run_name="diverging")


def test_fewer_workers_than_none_are_refused(dataset_url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="min_workers: 3, with 2 workers"):
        fit(
            SETTINGS,
            dataset_url=dataset_url,
            storage_url=str(tmp_path),
            run_name="odd",
            workers=2,
            min_workers=3,
        )


def test_more_workers_than_images_in_a_batch_are_refused(dataset_url: str, tmp_path: Path) -> None:
    smallest = min(stage.batch_size for stage in SETTINGS.growth.plan())
    with pytest.raises(SettingsError, match=f"workers: {smallest + 1}, but a batch has {smallest}"):
        fit(
            SETTINGS,
            dataset_url=dataset_url,
            storage_url=str(tmp_path),
            run_name="crowd",
            workers=smallest + 1,
        )
    assert list(tmp_path.iterdir()) == []


def test_an_unsealed_dataset_and_one_that_leaks_are_refused(tmp_path: Path) -> None:
    unsealed, leaking = str(tmp_path / "unsealed.zarr"), str(tmp_path / "leaking.zarr")
    make_dataset(unsealed)
    Path(unsealed, "zarr.json").unlink()
    make_dataset(leaking, leaks=True)
    for url, problem in ((unsealed, "not sealed"), (leaking, "in more than one split")):
        with pytest.raises(SchemaError, match=problem):
            fit(SETTINGS, dataset_url=url, storage_url=str(tmp_path / "runs"), run_name="refused")
    assert not (tmp_path / "runs").exists()


def test_a_run_name_belongs_to_one_training(tmp_path: Path) -> None:
    dataset, other = make_dataset("memory://claim/a"), make_dataset("memory://claim/b", normals=20)
    settings = make_settings()
    with pytest.raises(SettingsError, match="cannot name a folder"):
        claim_run(str(tmp_path), "../mine", settings, dataset)
    url = claim_run(str(tmp_path), "mine", settings, dataset)
    assert claim_run(str(tmp_path), "mine", settings, dataset) == url
    with pytest.raises(SettingsError, match="started with other settings"):
        claim_run(str(tmp_path), "mine", make_settings(seed=8), dataset)
    with pytest.raises(SettingsError, match="started on another dataset"):
        claim_run(str(tmp_path), "mine", settings, other)
