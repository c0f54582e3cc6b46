"""The training under Ray: any number of workers, interruptions, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import SettingsError
from pipeline.schema import open_dataset
from tests.training.toys import make_dataset, make_settings
from training.data import TrainingImages
from training.distributed import FitResult, claim_run, fit, running_ray
from training.features import read_features
from training.loop import DivergenceError, Report, train
from training.state import begin_training, make_recipe
from training.validation import read_validation

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


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
    with running_ray(None, 2):
        yield


@pytest.fixture(scope="module")
def alone(dataset_url: str, runs: str, ray_here: None) -> FitResult:
    return fit(
        make_settings(cpu_threads=1), dataset_url=dataset_url, storage_url=runs, run_name="alone"
    )


@pytest.mark.slow
def test_one_worker_trains_what_the_loop_trains(alone: FitResult, dataset_url: str) -> None:
    dataset, settings = open_dataset(dataset_url), make_settings(cpu_threads=1)
    features = read_features(alone.features_url, settings)
    recipe = make_recipe(settings, features, image_channels=1, device=torch.device("cpu"))
    state = begin_training(recipe)
    train(
        recipe,
        state,
        TrainingImages(dataset, settings),
        read_validation(dataset, settings.images),
        save=lambda _state, _metrics: "",
        publish=lambda _report: None,
    )
    for name, value in state.autoencoder.state_dict().items():
        assert torch.equal(alone.networks[name], value), name
    assert alone.checkpoint_url.endswith("step-00000026")


@pytest.mark.slow
def test_two_workers_reach_the_same_losses(alone: FitResult, dataset_url: str, runs: str) -> None:
    heard: list[Report] = []
    two = fit(
        make_settings(cpu_threads=1),
        dataset_url=dataset_url,
        storage_url=runs,
        run_name="two",
        workers=2,
        on_report=heard.append,
    )
    assert [report.step for report in two.reports] == [report.step for report in alone.reports]
    for name in ("train_loss", "validation_loss", "validation_auroc"):
        ours = [report.metrics.get(name, 0.0) for report in two.reports]
        theirs = [report.metrics.get(name, 0.0) for report in alone.reports]
        assert np.allclose(ours, theirs, atol=1e-4), name
    assert {report.metrics["resolution"] for report in heard} == {8.0, 16.0, 32.0}
    assert sum(report.gallery is not None for report in heard) == 5


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(alone: FitResult, dataset_url: str, runs: str) -> None:
    again = fit(
        make_settings(cpu_threads=1), dataset_url=dataset_url, storage_url=runs, run_name="alone"
    )
    assert again.reports == ()
    assert all(torch.equal(again.networks[name], alone.networks[name]) for name in alone.networks)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_divergence_reaches_the_driver(dataset_url: str, runs: str) -> None:
    settings = make_settings(cpu_threads=1, optimiser={"learning_rate": 1e12})
    with pytest.raises(DivergenceError, match=r"No checkpoint was made|last good checkpoint is"):
        fit(settings, dataset_url=dataset_url, storage_url=runs, run_name="diverging")


def test_a_run_name_belongs_to_one_training(tmp_path: Path) -> None:
    dataset, other = make_dataset("memory://claim/a"), make_dataset("memory://claim/b", normals=20)
    settings = make_settings()
    with pytest.raises(SettingsError, match="cannot name a folder"):
        claim_run(str(tmp_path), "../mine", settings, dataset)
    url = claim_run(str(tmp_path), "mine", settings, dataset)
    assert claim_run(str(tmp_path), "mine", settings, dataset) == url
    with pytest.raises(SettingsError, match="begun with other settings"):
        claim_run(str(tmp_path), "mine", make_settings(seed=8), dataset)
    with pytest.raises(SettingsError, match="begun on another dataset"):
        claim_run(str(tmp_path), "mine", settings, other)
