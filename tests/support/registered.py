"""Untrained networks on the toy dataset, registered in an MLflow of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow

from pipeline.store.dataset import Dataset
from tests.support.toys import make_settings
from training.evaluation.calibration import choose_threshold
from training.learning.state import build_autoencoder
from training.networks.vgg_weights import load_vgg
from training.registry.versions import VersionInfo, log_and_register
from training.scoring.detector import Detector, DetectorDescription
from training.scoring.loaded_model import IngestRecord
from training.train import score_validation

NAME = "toys-anomaly"


@contextmanager
def own_mlflow(folder: Path) -> Iterator[str]:
    """An MLflow database and experiment in a folder, for as long as the block runs."""
    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("toys", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("toys")
    try:
        yield uri
    finally:
        mlflow.set_tracking_uri(before)


def make_detector(image_shape: tuple[int, int, int], *, seed: int = 3, **changes: Any) -> Detector:
    """A network as its seed draws it, with random features."""
    settings = make_settings(seed=seed, **changes)
    layers = settings.loss.layer_names()
    return Detector.make(
        DetectorDescription(image_shape=image_shape, settings=settings),
        network=build_autoencoder(settings, image_channels=image_shape[2]).state_dict(),
        features=load_vgg("random", layers=layers, width=8).state_dict(),
        device="cpu",
    )


def register(dataset: Dataset, *, seed: int = 3, name: str = NAME) -> VersionInfo:
    """Calibrate a network by a dataset and register it as challenger.

    Its ledger lies beside the database of `own_mlflow`.
    """
    folder = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent
    detector = make_detector(dataset.image_shape, seed=seed)
    normals, _, calibration = score_validation(detector, dataset)
    with mlflow.start_run() as run:
        return log_and_register(
            detector,
            name=name,
            run_id=run.info.run_id,
            ingest=IngestRecord.of(dataset),
            calibration=calibration,
            threshold=choose_threshold(normals),
            ledgers_url=str(folder / "ledgers"),
        )
