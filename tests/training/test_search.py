"""The search for hyperparameters."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.errors import SchemaError
from tests.support.toys import make_dataset, make_settings
from training.cluster.tune import Trial
from training.search import rank_trials, search

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_the_highest_auroc_comes_first_and_failures_last() -> None:
    settings = make_settings()
    aurocs = (0.4, None, 0.0, 0.9, 0.6)
    ranked = rank_trials([Trial(settings, {}, auroc) for auroc in aurocs])
    assert [trial.auroc for trial in ranked] == [0.9, 0.6, 0.4, 0.0, None]


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
    chosen = {tuple(trial.choice.values()) for trial in found.trials}
    assert len(chosen) == 3, "every trial tries something else"
    recorded = {
        child.data.metrics["validation_auroc"]: child.data.params["optimiser.learning_rate"]
        for child in children
    }
    assert len(children) == 3
    assert recorded == {
        trial.auroc: str(trial.settings.optimiser.learning_rate) for trial in found.trials
    }
    assert parent.data.metrics["best_validation_auroc"] == max(recorded)
    assert str(found.best.optimiser.learning_rate) == recorded[max(recorded)]
