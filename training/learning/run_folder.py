"""The folder of a run: its settings, checkpoints and result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.io import storage
from pipeline.store.dataset import Dataset
from training.learning.checkpoint import Checkpoint, Checkpoints, choose_best
from training.learning.loop import Report
from training.learning.perceptual_features import FEATURES
from training.names import check_run_name
from training.settings import TrainSettings

RUN: Final = "run.json"
CHECKPOINTS: Final = "checkpoints"


@dataclass(frozen=True)
class Resumption:
    """Workers that continued from a checkpoint after an interruption.

    Attributes:
        checkpoint_url: Checkpoint that they loaded.
        step: Number of steps made up to that checkpoint.
        workers: Number of workers that continued.
    """

    checkpoint_url: str
    step: int
    workers: int


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        checkpoint_url: URL of the last checkpoint.
        best_checkpoint_url: URL of the checkpoint of lowest validation loss in the last stage.
        features_url: URL of the feature extractor, as safetensors.
        networks: Weights of the autoencoder in the last checkpoint, by name.
        reports: All reports from the first step on, without images and scores.
        resumptions: Continuations from a checkpoint during this call.
    """

    checkpoint_url: str
    best_checkpoint_url: str
    features_url: str
    networks: Mapping[str, Tensor]
    reports: tuple[Report, ...]
    resumptions: tuple[Resumption, ...]


def claim_run(storage_url: str, run_name: str, settings: TrainSettings, dataset: Dataset) -> str:
    """Record settings and dataset of a run, or check that they are those recorded.

    Returns:
        Folder or prefix of the run.

    Raises:
        SettingsError: The name belongs to other settings or another dataset.
    """
    check_run_name(run_name)
    run_url = storage.join(make_absolute(storage_url), run_name)
    content = {"settings": settings.model_dump(mode="json"), "dataset": dataset.fingerprint}
    url = storage.join(run_url, RUN)
    if not storage.create_bytes(url, json.dumps(content, indent=1).encode()):
        before = json.loads(storage.read_bytes(url))
        if before != json.loads(json.dumps(content)):
            same_data = before["dataset"] == dataset.fingerprint
            what = "with other settings" if same_data else "on another dataset"
            raise SettingsError(
                run_url, f"a run of this name was started {what}", "Choose another run name"
            )
    return run_url


def open_checkpoints(run_url: str, settings: TrainSettings) -> Checkpoints:
    """Open the checkpoints of a run."""
    return Checkpoints(storage.join(run_url, CHECKPOINTS), kept=settings.checkpoints_kept)


def conclude(
    run_url: str, settings: TrainSettings, latest: Checkpoint, resumptions: Sequence[Resumption]
) -> FitResult:
    """Collect the result of a finished run.

    Args:
        run_url: Folder or prefix of the run.
        settings: Settings of the training.
        latest: Last checkpoint of the run.
        resumptions: Continuations from a checkpoint during this call.
    """
    checkpoints = open_checkpoints(run_url, settings)
    best = choose_best(checkpoints.find_steps(), latest.reports, settings.growth.plan())
    return FitResult(
        checkpoint_url=latest.url,
        best_checkpoint_url=latest.url if best is None else checkpoints.url_at(best),
        features_url=storage.join(run_url, FEATURES),
        networks=latest.networks,
        reports=latest.reports,
        resumptions=tuple(resumptions),
    )


def make_absolute(url: str) -> str:
    """Make a plain path absolute, for processes in other working directories."""
    return url if "://" in url else str(Path(url).absolute())
