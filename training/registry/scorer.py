"""The MLflow model as code, which a registered version runs when it is loaded.

MLflow keeps this file and the modules that it imports next to the weights, and runs it on
loading. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from training.evaluation.calibration import Calibration, Threshold
from training.scoring.detector import Detector


class AnomalyScorer(PythonModel):
    """Scores images: raw score, percentile among normals, decision by threshold."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read weights, calibration and threshold."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.detector = Detector.load(files["model"].parent)
        self.calibration = Calibration.model_validate_json(files["calibration"].read_text())
        self.threshold = Threshold.model_validate_json(files["threshold"].read_text())

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 -- MLflow's signature
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Score images.

        Args:
            context: Not used; the files are read once.
            model_input: uint8 (N, H, W, C).
            params: `heatmaps`: whether to make them.

        Returns:
            `anomaly_score` float32 (N,), higher = stranger; `percentile` float64 (N,), 0 to 100;
            `is_anomalous` bool (N,); `embedding` float32 (N, D), where the network places each;
            with `heatmaps` also `heatmap` float32 (N, H, W).
        """
        wants_heatmaps = bool((params or {}).get("heatmaps", False))
        found = self.detector.detect(model_input, heatmaps=wants_heatmaps)
        scores = found.anomaly_score
        answer = {
            "anomaly_score": scores,
            "percentile": self.calibration.percentile(scores),
            "is_anomalous": scores > self.threshold.value,
            "embedding": found.embedding,
        }
        return answer if found.heatmap is None else {**answer, "heatmap": found.heatmap}


mlflow.models.set_model(AnomalyScorer())
