"""Trainings and searches as MLflow runs: parameters, input dataset, metrics and pictures."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Metric, Run
from mlflow.entities.param import Param
from pydantic import BaseModel

from pipeline.store.dataset import Dataset
from training.learning.figures import CURVES, draw_curves, draw_distribution, draw_gallery
from training.learning.loop import Report
from training.names import check_run_name
from training.registry.mlflow_errors import require_same_version, translated
from training.settings import flatten

RUN_NAME: Final = "normscope.run_name"
FINGERPRINT: Final = "normscope.dataset_fingerprint"
_TRAINING: Final = Path(__file__).parents[1]
_COMPUTING: Final = ("networks", "data", "learning")
_DIGEST_CHARACTERS: Final = 36  # all that MLflow keeps of a dataset's digest


@dataclass
class TrackedRun:
    """An MLflow run that is being written.

    Attributes:
        run_id: MLflow's identifier of the run.
        last_step: The last step whose metrics the run has; a resumed training repeats some.
    """

    run_id: str
    last_step: int = 0

    def log_report(self, report: Report) -> None:
        """Log metrics, reconstructions and score distributions of a training step."""
        if report.step > self.last_step:
            self.log_metrics(report.metrics, step=report.step)
            self.last_step = report.step
        if report.gallery is not None:
            path = f"reconstructions/step-{report.step:08d}-{report.gallery.resolution}px.png"
            self.log_png(path, draw_gallery(report.gallery))
        if report.scores is not None:
            path = f"score-distributions/step-{report.step:08d}.png"
            self.log_png(path, draw_distribution(report.scores))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics in one request."""
        now = int(time.time() * 1000)
        entities = [Metric(name, value, now, step) for name, value in metrics.items()]
        MlflowClient().log_batch(self.run_id, metrics=entities)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags that runs are found by."""
        for name, value in tags.items():
            MlflowClient().set_tag(self.run_id, name, value)

    def read_record(self) -> tuple[dict[str, float], dict[str, str]]:
        """Read the latest value of every metric, and the tags."""
        data = MlflowClient().get_run(self.run_id).data
        return data.metrics, data.tags

    def log_json(self, path: str, content: Mapping[str, object]) -> None:
        """Log a record as an artifact."""
        MlflowClient().log_text(self.run_id, json.dumps(content, indent=1) + "\n", path)

    def log_png(self, path: str, png: bytes) -> None:
        """Log a picture as an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, Path(path).name)
            local.write_bytes(png)
            parent = str(Path(path).parent)
            MlflowClient().log_artifact(self.run_id, str(local), None if parent == "." else parent)

    def log_curves(self) -> None:
        """Log a plot of the run's metrics since its first step."""
        client = MlflowClient()
        curves = {
            name: [(m.step, m.value) for m in client.get_metric_history(self.run_id, name)]
            for name in CURVES
        }
        self.log_png("curves.png", draw_curves(curves))


@contextmanager
def tracked_run(
    *,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    settings: BaseModel,
    dataset: Dataset,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """Start a run, or resume the one of this name.

    Args:
        tracking_uri: URL of an MLflow server, or `sqlite:///file`.
        experiment: Name of the experiment, which is made if there is none.
        run_name: Name of the run, unique in its experiment.
        settings: Settings to log, flattened as parameters and whole as an artifact.
        dataset: Sealed dataset to log as the run's input.
        tags: Further tags of the run.

    Raises:
        RegistryError: The server does not answer, refuses, or is of another major version.
    """
    mlflow.set_tracking_uri(tracking_uri)
    require_same_version(tracking_uri)
    with translated(experiment):
        mlflow.set_experiment(experiment)
        before = find_run(experiment=experiment, run_name=run_name)
    facts = {RUN_NAME: run_name, FINGERPRINT: dataset.fingerprint}
    made_by = str(dataset.attributes["code_version"])
    versions = {"code_version": training_version(), "dataset_code_version": made_by}
    with (
        translated(experiment),
        mlflow.start_run(
            run_id=before.info.run_id if before else None,
            run_name=None if before else run_name,
            nested=mlflow.active_run() is not None,
            # Set on creation, so that no kill leaves a run that cannot be found by its name.
            tags={**facts, **versions, **(tags or {})},
            log_system_metrics=True,
        ) as active,
    ):
        run = TrackedRun(active.info.run_id, _last_step(before))
        _log_inputs(run, settings, dataset)
        yield run


def find_run(*, experiment: str, run_name: str) -> Run | None:
    """Find the latest run of this name in an experiment, at the tracking URI in use."""
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    check_run_name(run_name)  # such a name needs no quoting
    runs = client.search_runs(
        [found.experiment_id], filter_string=f"tags.`{RUN_NAME}` = '{run_name}'", max_results=1
    )
    return runs[0] if runs else None


@lru_cache(maxsize=1)
def training_version(package: Path = _TRAINING) -> str:
    """Digest the source that decides what a training computes.

    An edit elsewhere, as in the worklist, changes no run's name.

    Args:
        package: Folder of the package `training`.
    """
    digest = sha256()
    files = (file for name in _COMPUTING for file in (package / name).rglob("*.py"))
    for path in (*sorted(files), package / "settings.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _last_step(run: Run | None) -> int:
    if run is None:
        return 0
    history = MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    return max((metric.step for metric in history), default=0)


def _log_inputs(run: TrackedRun, settings: BaseModel, dataset: Dataset) -> None:
    client = MlflowClient()
    params = [Param(name, value) for name, value in flatten(settings).items()]
    client.log_batch(run.run_id, params=params)
    run.log_json("settings.json", settings.model_dump(mode="json"))
    entity = DatasetEntity(
        name=str(dataset.attributes["source"]),
        digest=dataset.fingerprint[:_DIGEST_CHARACTERS],
        source_type="zarr",
        source=json.dumps({"url": dataset.url}),
        profile=json.dumps({"images": dataset.image_count, "shape": dataset.image_shape}),
    )
    client.log_inputs(run.run_id, [DatasetInput(entity)])
