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
version, images, scores = sys.argv[1:]
found = mlflow.pyfunc.load_model(version).predict(numpy.load(images, allow_pickle=False))
numpy.save(scores, found["anomaly_score"])
"""


def score_in_fresh_process(version: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Load a version in a fresh process, with the code that it carries, and score images.

    Args:
        version: Folder of the version's files, which were verified: their code runs.
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
                [sys.executable, "-P", "-c", _SCRIPT, version, given, answer],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            raise RegistryError(
                str(version),
                f"does not load or score in a fresh process ({said})",
                "Train and register it again",
            ) from error
        scores: NDArray[np.float32] = np.load(answer, allow_pickle=False)
    return scores
