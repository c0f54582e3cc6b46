"""Train on a dataset, score its validation split and register the result as challenger."""

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
from pipeline.io.storage import join
from pipeline.records import Label, Progress, ignore_progress
from pipeline.store.dataset import Dataset, open_dataset
from training.cluster.connection import ONE_CORE, Share
from training.cluster.train import WatchNode, fit
from training.data.batches import check_trainable, choose_rows
from training.evaluation.calibration import Calibration, calibrate, choose_threshold
from training.learning.loop import Report
from training.learning.perceptual_features import read_features
from training.learning.run_folder import FitResult, claim_run
from training.learning.validation import summarise
from training.names import check_run_name, choose_model_name
from training.registry.node_metrics import NodeMonitor
from training.registry.runs import RUN_NAME, TrackedRun, tracked_run, training_version
from training.registry.versions import VersionInfo, log_and_register, recover_version
from training.scoring.detector import Detector, DetectorDescription
from training.scoring.kept_scores import read_batches
from training.scoring.loaded_model import IngestRecord
from training.settings import TrainSettings

_HEATMAPS: Final = 256  # of normal images, to calibrate the scale of heatmaps
_BATCH_IMAGES: Final = 1024
CHECKPOINT: Final = "normscope.checkpoint_url"
BEST_CHECKPOINT: Final = "normscope.best_checkpoint_url"
RESUMED_FROM: Final = "normscope.resumed_from"


@dataclass(frozen=True)
class TrainedModel:
    """The model version that a training has registered.

    Attributes:
        name: Name of the registered model.
        version: New version, which is the challenger.
        run_id: MLflow's identifier of the run.
        run_name: Name by which an interrupted training is continued.
        validation_auroc: AUROC on the validation split; None if that has no anomalies.
        threshold: Score above which an image is called anomalous.
        checkpoint_url: URL of the last checkpoint.
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
    ledgers_url: str | None = None,
    run_name: str | None = None,
    model_name: str | None = None,
    workers: int = 1,
    min_workers: int | None = None,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
    on_progress: Progress = ignore_progress,
) -> TrainedModel:
    """Train on a dataset's normal images and register the result as challenger.

    Started again under the same run name after an interruption, it continues from the last
    checkpoint and in the same MLflow run. A run that has registered a version returns that one.

    Args:
        settings: Settings of the training.
        dataset_url: Path or URL of a sealed dataset.
        storage_url: Storage of checkpoints: a path, `file://` or `s3://`.
        tracking_uri: MLflow server, or `sqlite:///file`.
        ledgers_url: Folder in which the model's ledger is made if it has none yet; `ledgers/` in
            the storage by default.
        run_name: Name of the run in storage and in MLflow; made from model, settings, data and
            code by default.
        model_name: Name to register the model under; `<source of the dataset>-anomaly` by default.
        workers: Number of processes that train together; a run may continue with another number.
        min_workers: Smallest number of workers to continue with while there is no room for more.
        share: Cores and GPUs that each worker takes of the cluster.
        ray_address: Address of a Ray cluster; None starts Ray on this machine and stops it again.
        on_progress: Function that gets steps made and steps in all, called from another thread.

    Raises:
        SchemaError: The dataset cannot be trained on, or has no normals to calibrate by.
        SettingsError: The settings do not fit the dataset, or the run's earlier settings.
        WeightsError: The weights of VGG19 are missing or unusable.
        DivergenceError: The loss has become NaN, infinite or very large.
        StorageError: Checkpoints cannot be written.
        WorkersError: The workers failed repeatedly without progress.
    """
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    _require_calibration(dataset)
    ledgers_url = ledgers_url or join(storage_url, "ledgers")
    name, run_name = _choose_names(settings, dataset, model_name, run_name)
    claim_run(storage_url, run_name, settings, dataset)
    with tracked_run(
        tracking_uri=tracking_uri,
        experiment=name,
        run_name=run_name,
        settings=settings,
        dataset=dataset,
        tags={"vgg_weights": settings.loss.vgg_weights},
    ) as run:

        def track(report: Report) -> None:
            run.log_report(report)
            on_progress(report.step, report.total_steps)

        made = recover_version(name, run.run_id, ledgers_url=ledgers_url)
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
                on_report=track,
                watch_node=_choose_monitor(run, tracking_uri, ray_address),
            )
            made = _register(run, name, settings, dataset, fitted, ledgers_url, share)
        return _recall(run, made)


def _choose_monitor(
    run: TrackedRun, tracking_uri: str, ray_address: str | None
) -> WatchNode | None:
    """Watch the nodes of a cluster; this machine is watched by the run itself."""
    if ray_address is None or not tracking_uri.startswith(("http://", "https://")):
        return None
    return NodeMonitor(run.run_id, tracking_uri).watch


def name_training(
    settings: TrainSettings,
    dataset_url: str,
    model_name: str | None = None,
    run_name: str | None = None,
) -> tuple[str, str]:
    """Choose the names of a training's model and run, as `train_and_register` does.

    Args:
        settings: Settings of the training.
        dataset_url: Path or URL of a sealed dataset.
        model_name: Name of the model; None for the default.
        run_name: Name of the run; None for the default.

    Raises:
        SettingsError: One of the names cannot be used.
    """
    return _choose_names(settings, open_dataset(dataset_url), model_name, run_name)


def _choose_names(
    settings: TrainSettings, dataset: Dataset, model_name: str | None, run_name: str | None
) -> tuple[str, str]:
    name = choose_model_name(str(dataset.attributes["source"]), model_name)
    run_name = run_name or name_run(name, settings, dataset)
    check_run_name(run_name)
    return name, run_name


def name_run(model_name: str, settings: TrainSettings, dataset: Dataset) -> str:
    """Name a run by what it trains: equal settings, data and code give the same name."""
    facts = [settings.model_dump(mode="json"), dataset.fingerprint, training_version()]
    digest = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{model_name.replace(' ', '-')}-{digest[:12]}"


def _register(
    run: TrackedRun,
    name: str,
    settings: TrainSettings,
    dataset: Dataset,
    fitted: FitResult,
    ledgers_url: str,
    share: Share,
) -> VersionInfo:
    """Calibrate what was trained, and make it the challenger."""
    run.log_curves()
    run.set_tags({CHECKPOINT: fitted.checkpoint_url, BEST_CHECKPOINT: fitted.best_checkpoint_url})
    if fitted.resumptions:
        resumed = [
            f"{each.checkpoint_url} with {each.workers} workers" for each in fitted.resumptions
        ]
        run.set_tags({RESUMED_FROM: ", ".join(resumed)})
    device = None if share.gpus else "cpu"  # a training without GPUs takes none afterwards
    detector = _assemble(settings, dataset, fitted, device)
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
        ledgers_url=ledgers_url,
    )


def _recall(run: TrackedRun, made: VersionInfo) -> TrainedModel:
    """Read what a call of this run has registered."""
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
    """Score the whole validation split with the detector that is to be registered.

    Returns:
        Scores of the normals, scores of the anomalies, and the calibration by the normals.
    """
    normals, embeddings = _detect(detector, dataset, Label.NORMAL)
    anomalies, _ = _detect(detector, dataset, Label.ANOMALOUS)
    shown = choose_rows(dataset, "validation", Label.NORMAL, _HEATMAPS)
    _, images = next(read_batches(dataset, shown, _HEATMAPS))
    heatmaps = detector.detect(images, heatmaps=True).heatmap
    if heatmaps is None:
        raise RuntimeError("the detector made no heatmaps though asked to")
    return normals, anomalies, calibrate(normals, heatmaps, embeddings)


def _detect(
    detector: Detector, dataset: Dataset, label: Label
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score the validation images of a label, of which two batches are in memory at a time."""
    batches = read_batches(dataset, choose_rows(dataset, "validation", label), _BATCH_IMAGES)
    found = [detector.detect(images) for _, images in batches]
    found = found or [detector.detect(np.empty((0, *dataset.image_shape), np.uint8))]
    scores, embeddings = zip(*((part.anomaly_score, part.embedding) for part in found), strict=True)
    return np.concatenate(scores), np.concatenate(embeddings)


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


def _assemble(
    settings: TrainSettings, dataset: Dataset, fitted: FitResult, device: str | None
) -> Detector:
    return Detector.make(
        DetectorDescription(image_shape=dataset.image_shape, settings=settings),
        network=fitted.networks,
        features=read_features(fitted.features_url, settings).state_dict(),
        device=device,
    )
