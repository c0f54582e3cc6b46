"""The search for hyperparameters."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.errors import SchemaError
from tests.support.toys import make_dataset, make_settings
from training.search import SearchSpace, apply_choice, search

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_the_space_lies_around_the_settings() -> None:
    space = SearchSpace.around(make_settings())
    assert space.learning_rates == pytest.approx((1e-3 / 3, 1e-3, 3e-3))
    assert space.latent_channels == (3, 6, 12)
    assert space.final_layers == ("relu1_2", "relu2_1")


def test_a_choice_changes_three_settings_alone() -> None:
    before = make_settings()
    choice = {"learning_rate": 0.01, "latent_channels": 9, "final_layer": "relu1_2"}
    after = apply_choice(before, choice)
    assert after.optimiser.learning_rate == 0.01
    assert after.network.latent_channels == 9
    assert after.loss.layers == {**before.loss.layers, 32: {"relu1_2": 1.0}}
    unchanged = {"learning_rate": 1e-3, "latent_channels": 6, "final_layer": "relu2_1"}
    assert apply_choice(before, unchanged) == before


def test_a_dataset_without_labelled_anomalies_is_refused(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "toys.zarr"), validation=0)
    with pytest.raises(SchemaError, match="label 0 in split `validation` to choose by"):
        search(
            make_settings(),
            dataset_url=str(tmp_path / "toys.zarr"),
            storage_url=str(tmp_path / "tune"),
            tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
            run_name="refused",
        )


@pytest.mark.slow
def test_the_best_trial_is_chosen_and_all_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(str(tmp_path / "toys.zarr"))
    before = mlflow.get_tracking_uri()
    found = search(
        make_settings(cpu_threads=1),
        dataset_url=str(tmp_path / "toys.zarr"),
        storage_url=str(tmp_path / "tune"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
        run_name="search",
        trials=3,
    )
    client = MlflowClient()
    parent = client.get_run(found.run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.run_id}'"
    )
    mlflow.set_tracking_uri(before)
    aurocs = [trial.auroc for trial in found.trials]
    assert len(aurocs) == 3
    assert aurocs == sorted(aurocs, key=lambda auroc: -(auroc or 0.0))
    assert parent.data.metrics["best_validation_auroc"] == aurocs[0]
    assert sorted(child.data.metrics["validation_auroc"] for child in children) == sorted(
        auroc for auroc in aurocs if auroc is not None
    )
    assert found.best == found.trials[0].settings
