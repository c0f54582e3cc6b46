"""Scores of a registered version in a fresh process, by the code that the version carries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RegistryError

_TIMEOUT_S: Final = 300
# Imports none of our packages, so that the version's own code is what loads.
_SCRIPT: Final = """
import sys, mlflow, numpy
uri, tracking_uri, images, scores = sys.argv[1:]
mlflow.set_tracking_uri(tracking_uri)
found = mlflow.pyfunc.load_model(uri).predict(numpy.load(images, allow_pickle=False))
numpy.save(scores, found["anomaly_score"])
"""


def score_in_fresh_process(
    model_uri: str, tracking_uri: str, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Load a version in a fresh process, with the code that it carries, and score images.

    Args:
        model_uri: MLflow's URI of the version, `models:/NAME/VERSION`.
        tracking_uri: URL of the MLflow server, or `sqlite:///file`.
        images: uint8 (N, H, W, C), a few.

    Returns:
        float32 (N,), its scores.

    Raises:
        RegistryError: It does not load there, or takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "images.npy"), Path(folder, "scores.npy")
        np.save(given, images)
        try:
            subprocess.run(  # noqa: S603 -- this interpreter and our script
                [sys.executable, "-P", "-c", _SCRIPT, model_uri, tracking_uri, given, answer],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            raise RegistryError(
                model_uri,
                f"does not load or score in a fresh process ({said})",
                "Train and register it again",
            ) from error
        scores: NDArray[np.float32] = np.load(answer, allow_pickle=False)
    return scores
