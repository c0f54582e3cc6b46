"""Choosing hyperparameters by the few labelled anomalies of the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import SchemaError
from pipeline.records import Label
from pipeline.store.dataset import Dataset, open_dataset
from training.cluster.connection import ONE_CORE, Share
from training.cluster.tune import CHOSEN_BY, SearchSpace, Trial, run_trials
from training.data.batches import check_trainable, choose_rows
from training.names import check_run_name, choose_model_name
from training.registry.runs import tracked_run
from training.settings import TrainSettings


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        best: Settings of the trial with the highest AUROC.
        trials: All trials, the best first, the failed last.
        run_id: Identifier of the MLflow run whose child runs are the trials.
    """

    best: TrainSettings
    trials: tuple[Trial, ...]
    run_id: str


def search(
    settings: TrainSettings,
    *,
    dataset_url: str,
    storage_url: str,
    tracking_uri: str,
    run_name: str,
    trials: int = 6,
    space: SearchSpace | None = None,
    model_name: str | None = None,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
) -> SearchResult:
    """Try settings, and choose by the AUROC on the validation split.

    Args:
        settings: Settings that all trials share.
        dataset_url: Sealed dataset with labelled anomalies in its validation split.
        storage_url: Folder of Ray Tune's records: a path, `file://` or `s3://`.
        tracking_uri: MLflow's server, or `sqlite:///file`.
        run_name: Name of the search, in the storage and in MLflow.
        trials: Number of trials.
        space: Values that the trials draw from; neighbours of the settings by default.
        model_name: Name of the MLflow experiment; `<source of the dataset>-anomaly` by default.
        share: Cores and GPUs that each trial takes of the cluster.
        ray_address: Address of a Ray cluster; None starts Ray on this machine and stops it again.

    Raises:
        SchemaError: The dataset cannot be trained on, has no labelled anomaly in its validation
            split, or every trial failed.
        SettingsError: The name of the model or of the search cannot be used.
    """
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    _require_labels(dataset)
    name = choose_model_name(str(dataset.attributes["source"]), model_name)
    check_run_name(run_name)
    found = run_trials(
        settings,
        space or SearchSpace.around(settings),
        dataset_url=dataset_url,
        storage_url=storage_url,
        run_name=run_name,
        trials=trials,
        share=share,
        ray_address=ray_address,
    )
    ranked = rank_trials(found)
    if ranked[0].auroc is None:
        raise SchemaError(dataset_url, f"every trial failed ({ranked[0].problem})", "Mend that")
    run_id = _record(ranked, tracking_uri, name, run_name, dataset)
    return SearchResult(ranked[0].settings, ranked, run_id)


def rank_trials(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Sort trials by AUROC, the highest first and the failed last."""
    return tuple(sorted(trials, key=lambda trial: (trial.auroc is None, -(trial.auroc or 0.0))))


def _record(
    trials: tuple[Trial, ...], tracking_uri: str, name: str, run_name: str, dataset: Dataset
) -> str:
    """Write the search as one MLflow run with the trials as its child runs."""
    with tracked_run(
        tracking_uri=tracking_uri,
        experiment=name,
        run_name=run_name,
        settings=trials[0].settings,
        dataset=dataset,
    ) as parent:
        if trials[0].auroc is not None:
            parent.log_metrics({f"best_{CHOSEN_BY}": trials[0].auroc})
        for number, trial in enumerate(trials):
            with tracked_run(
                tracking_uri=tracking_uri,
                experiment=name,
                run_name=f"{run_name}-{number:02d}",
                settings=trial.settings,
                dataset=dataset,
                tags={"problem": trial.problem} if trial.problem else {},
            ) as run:
                if trial.auroc is not None:
                    run.log_metrics({CHOSEN_BY: trial.auroc})
        return parent.run_id


def _require_labels(dataset: Dataset) -> None:
    for label in (Label.NORMAL, Label.ANOMALOUS):
        if not len(choose_rows(dataset, "validation", label)):
            raise SchemaError(
                dataset.url,
                f"no readable image with label {int(label)} in split `validation` to choose by",
                "Ingest with labels, or train without a search",
            )
