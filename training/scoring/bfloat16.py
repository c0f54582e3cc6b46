"""Scoring in reduced precision: the feature network in bfloat16, everything else as it was.

The frozen VGG19 does nearly all the work. Its features come back in single precision before they
are compared, so that only their own rounding enters the scores.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.networks.precision import ReducedFeatures
from training.scoring.detector import Detector
from training.scoring.loaded_model import ScoringModel

NOTE: Final = (
    "Scored in reduced precision: features in bfloat16. Scores differ from the version's own by "
    "some thousandths; images near the threshold may lie on its other side."
)


@dataclass(frozen=True)
class ReducedScorer:
    """Answers as a loaded MLflow model does.

    Args:
        scorer: The model's own code, with a reduced detector.
    """

    scorer: Any

    def predict(self, images: NDArray[np.uint8], params: dict[str, Any]) -> dict[str, Any]:
        """As the loaded model's `predict`."""
        found: dict[str, Any] = self.scorer.predict(None, images, params)
        return found

    def unwrap_python_model(self) -> Any:
        """As the loaded model's."""
        return self.scorer


def reduce_precision(model: ScoringModel) -> ScoringModel:
    """The same version, faster and slightly otherwise."""
    scorer = copy(model.pyfunc.unwrap_python_model())
    scorer.detector = reduce_detector(scorer.detector)
    return replace(model, pyfunc=ReducedScorer(scorer))


def reduce_detector(detector: Detector) -> Detector:
    """The same detector with reduced features."""
    if isinstance(detector.features, ReducedFeatures):
        return detector
    return replace(detector, features=ReducedFeatures(detector.features))


def is_reduced(model: ScoringModel) -> bool:
    """Whether a model is one of `reduce_precision`."""
    return isinstance(model.pyfunc, ReducedScorer)
