"""From a dataset to a registered challenger: train, score the validation split, register."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.records import Label, Progress, ignore_progress
from pipeline.store.dataset import Dataset, open_dataset
from training.cluster.connection import ONE_CORE, Share
from training.cluster.train import fit
from training.data.batches import check_trainable, choose_rows
from training.data.image_cache import open_images
from training.evaluation.calibration import Calibration, calibrate, choose_threshold
from training.learning.loop import Report
from training.learning.perceptual_features import read_features
from training.learning.run_folder import FitResult, claim_run
from training.learning.validation import summarise
from training.registry.runs import RUN_NAME, TrackedRun, tracked_run, training_version
from training.registry.versions import VersionInfo, log_and_register, recover_version
from training.scoring.detector import Detector, DetectorDescription
from training.scoring.loaded_model import IngestRecord
from training.settings import TrainSettings

# Heatmaps of so many normals say how strange a normal pixel can be.
_HEATMAPS: Final = 256
CHECKPOINT: Final = "normscope.checkpoint_url"
BEST_CHECKPOINT: Final = "normscope.best_checkpoint_url"
RESUMED_FROM: Final = "normscope.resumed_from"


@dataclass(frozen=True)
class TrainedModel:
    """What a training has registered.

    Attributes:
        name: Of the registered model.
        version: Its new version, which is the challenger.
        run_id: MLflow's.
        run_name: Under which the training goes on if interrupted.
        validation_auroc: On the validation split; None if that has no anomalies.
        threshold: Above which score an image is called anomalous.
        checkpoint_url: The last checkpoint.
    """

    name: str
    version: str
    run_id: str
    run_name: str
    validation_auroc: float | None
    threshold: float
    checkpoint_url: str


def train_and_register(
    settings: TrainSettings,
    *,
    dataset_url: str,
    storage_url: str,
    tracking_uri: str,
    run_name: str | None = None,
    model_name: str | None = None,
    workers: int = 1,
    min_workers: int | None = None,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
    on_progress: Progress = ignore_progress,
) -> TrainedModel:
    """Train on a dataset's normal images and register the result as challenger.

    Started again by its run's name after an interruption, it goes on from the last checkpoint
    and in the same MLflow run; a run that has registered its version gives that one.

    Args:
        settings: Of the training.
        dataset_url: Sealed dataset.
        storage_url: Where checkpoints are kept: a path, `file://` or `s3://`.
        tracking_uri: MLflow's server, or `sqlite:///file`.
        run_name: Of the run, in storage and in MLflow; made from model, settings, data and code
            by default.
        model_name: To register under; `<source of the dataset>-anomaly` by default.
        workers: How many processes train together; a run may go on with another number.
        min_workers: With how many to go on while there is no room for more.
        share: What each takes of the cluster.
        ray_address: Of a cluster; None starts Ray on this machine and stops it again.
        on_progress: Called from another thread with steps made and in all.

    Raises:
        SchemaError: The dataset cannot be trained on, or has no normals to calibrate by.
        SettingsError: The settings do not fit the dataset, or the run's earlier settings.
        WeightsError: The weights of VGG19 cannot be had.
        DivergenceError: The loss has left all bounds.
        StorageError: Checkpoints cannot be written.
        WorkersError: The workers failed again and again without getting further.
    """
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    _require_calibration(dataset)
    name = model_name or f"{dataset.attributes['source']}-anomaly"
    run_name = run_name or name_run(name, settings, dataset)
    claim_run(storage_url, run_name, settings, dataset)
    with tracked_run(
        tracking_uri=tracking_uri,
        experiment=name,
        run_name=run_name,
        settings=settings,
        dataset=dataset,
        tags={"vgg_weights": settings.loss.vgg_weights},
    ) as run:

        def take(report: Report) -> None:
            run.log_report(report)
            on_progress(report.step, report.total_steps)

        made = recover_version(name, run.run_id)
        if made is None:
            fitted = fit(
                settings,
                dataset_url=dataset_url,
                storage_url=storage_url,
                run_name=run_name,
                workers=workers,
                min_workers=min_workers,
                share=share,
                ray_address=ray_address,
                on_report=take,
            )
            made = _register(run, name, settings, dataset, fitted)
        return _recall(run, made)


def name_run(model_name: str, settings: TrainSettings, dataset: Dataset) -> str:
    """A name that says what a run trains: the same for equal settings, data and code."""
    facts = [settings.model_dump(mode="json"), dataset.fingerprint, training_version()]
    digest = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{model_name}-{digest[:12]}"


def _register(
    run: TrackedRun,
    name: str,
    settings: TrainSettings,
    dataset: Dataset,
    fitted: FitResult,
) -> VersionInfo:
    """Calibrate what was trained, and make it the challenger."""
    run.log_curves()
    run.set_tags({CHECKPOINT: fitted.checkpoint_url, BEST_CHECKPOINT: fitted.best_checkpoint_url})
    if fitted.resumptions:
        taken = [
            f"{each.checkpoint_url} with {each.workers} workers" for each in fitted.resumptions
        ]
        run.set_tags({RESUMED_FROM: ", ".join(taken)})
    detector = _assemble(settings, dataset, fitted)
    with _using_threads(settings.cpu_threads):
        normals, anomalies, calibration = score_validation(detector, dataset)
    threshold = choose_threshold(normals)
    labels = np.repeat([Label.NORMAL, Label.ANOMALOUS], [len(normals), len(anomalies)])
    figures = summarise(np.concatenate([normals, anomalies]), labels)
    final = {f"final_{name}": value for name, value in figures.items()}
    run.log_metrics({**final, "threshold": threshold.value})
    return log_and_register(
        detector,
        name=name,
        run_id=run.run_id,
        ingest=IngestRecord.of(dataset),
        calibration=calibration,
        threshold=threshold,
    )


def _recall(run: TrackedRun, made: VersionInfo) -> TrainedModel:
    """What an earlier call of this run has registered."""
    metrics, tags = run.read_record()
    return TrainedModel(
        name=made.name,
        version=made.version,
        run_id=run.run_id,
        run_name=tags[RUN_NAME],
        validation_auroc=metrics.get("final_validation_auroc"),
        threshold=metrics["threshold"],
        checkpoint_url=tags[CHECKPOINT],
    )


def score_validation(
    detector: Detector, dataset: Dataset
) -> tuple[NDArray[np.float32], NDArray[np.float32], Calibration]:
    """Score the whole validation split with the very detector that is to be registered.

    Returns:
        Scores of the normals, scores of the anomalies, and the calibration by the normals.
    """
    normals, anomalies = (
        detector.detect(_read(dataset, choose_rows(dataset, "validation", label)))
        for label in (Label.NORMAL, Label.ANOMALOUS)
    )
    shown = choose_rows(dataset, "validation", Label.NORMAL, _HEATMAPS)
    heatmaps = detector.detect(_read(dataset, shown), heatmaps=True).heatmap
    if heatmaps is None:
        raise RuntimeError("the detector made no heatmaps though asked to")
    calibration = calibrate(normals.anomaly_score, heatmaps, normals.embedding)
    return normals.anomaly_score, anomalies.anomaly_score, calibration


@contextmanager
def _using_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_calibration(dataset: Dataset) -> None:
    if not len(choose_rows(dataset, "validation", Label.NORMAL)):
        raise SchemaError(
            dataset.url,
            "no readable normal image (label 0) in split `validation` to calibrate by",
            "Ingest with a larger validation share",
        )


def _read(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    return open_images(dataset, rows, cache_bytes=2**63, cached_chunks=1).read_rows(rows)


def _assemble(settings: TrainSettings, dataset: Dataset, fitted: FitResult) -> Detector:
    return Detector.make(
        DetectorDescription(image_shape=dataset.image_shape, settings=settings),
        network=fitted.networks,
        features=read_features(fitted.features_url, settings).state_dict(),
    )
