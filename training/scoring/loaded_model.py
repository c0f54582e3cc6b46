"""A loaded model version: what it answers, and what it knows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.calibration import Calibration, Threshold
from training.scoring.detector import DetectorDescription
from training.scoring.preparation import IngestRecord


@dataclass(frozen=True)
class Prediction:
    """What a model says of images.

    Args:
        anomaly_score: float32 (N,), higher = stranger.
        percentile: float64 (N,), share of validation normals that score lower, in percent.
        is_anomalous: bool (N,), whether the score exceeds the stored threshold.
        heatmap: float32 (N, H, W), NaN where nothing was looked at; None unless asked for.
        embedding: float32 (N, D), where the network places each, NaN where that was not kept;
            None of versions that do not say.
    """

    anomaly_score: NDArray[np.float32]
    percentile: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    heatmap: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ScoringModel:
    """A loaded version of a registered model.

    Args:
        name: Registered name.
        version: Its version.
        run_id: The run that made it.
        description: Image shape and training settings.
        ingest: How its images were prepared.
        calibration: Its normal scores.
        threshold: Above which score an image is called anomalous.
        pyfunc: The loaded MLflow model.
    """

    name: str
    version: str
    run_id: str
    description: DetectorDescription
    ingest: IngestRecord
    calibration: Calibration
    threshold: Threshold
    pyfunc: Any

    def predict(self, images: NDArray[np.uint8], *, heatmaps: bool = False) -> Prediction:
        """Score images.

        Args:
            images: uint8 (N, H, W, C).
            heatmaps: Whether to make them.
        """
        found = self.pyfunc.predict(images, params={"heatmaps": heatmaps})
        return Prediction(
            found["anomaly_score"],
            found["percentile"],
            found["is_anomalous"],
            found.get("heatmap"),
            found.get("embedding"),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads its scores must know first."""
        if self.description.settings.loss.vgg_weights != "random":
            return ()
        return (
            "This model compares images by a random feature network, without learned meaning. "
            "It shows that the chain works; its ranking is not worth a reader's time.",
        )
