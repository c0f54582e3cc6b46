"""Scores pieces of a dataset in whatever process it is sent to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Self

import numpy as np
from torch import Tensor

from pipeline.store.dataset import Dataset, open_dataset
from training.networks.precision import ReducedFeatures
from training.scoring.bfloat16 import is_reduced, reduce_detector
from training.scoring.detector import Detection, Detector, DetectorDescription
from training.scoring.kept_scores import Rows, keep_piece, read_batches
from training.scoring.loaded_model import ScoringModel


@dataclass(frozen=True)
class PieceScorer:
    """What a worker needs: weights on their way, a network only where it has arrived.

    Args:
        description: Of the detector.
        network: Its weights, in memory of the CPU.
        features: Likewise.
        is_reduced: Whether features are computed in reduced precision.
        dataset_url: Whose rows are scored.
        kept_url: Where scores are kept.
        scored_at: Time to put down, with a time zone.
        batch_images: Images at once.
    """

    description: DetectorDescription
    network: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    is_reduced: bool
    dataset_url: str
    kept_url: str
    scored_at: datetime
    batch_images: int

    @classmethod
    def of(
        cls,
        model: ScoringModel,
        dataset_url: str,
        kept_url: str,
        scored_at: datetime,
        batch_images: int,
    ) -> Self:
        """Take the weights out of a loaded version; the other arguments as of the class."""
        detector: Detector = model.pyfunc.unwrap_python_model().detector
        whole = detector.features
        if isinstance(whole, ReducedFeatures):
            whole = whole.features
        modules = (detector.autoencoder, whole)
        network, features = (
            {name: value.cpu() for name, value in module.state_dict().items()} for module in modules
        )
        return cls(
            detector.description,
            network,
            features,
            is_reduced(model),
            dataset_url,
            kept_url,
            scored_at,
            batch_images,
        )

    def __call__(self, rows: Rows) -> int:
        """Score a piece and keep it.

        Args:
            rows: Ascending.

        Returns:
            How many.
        """
        batches = read_batches(self._dataset, rows, self.batch_images)
        parts = [self._detector.detect(images) for _, images in batches]
        found = Detection(
            np.concatenate([part.anomaly_score for part in parts]),
            np.concatenate([part.embedding for part in parts]),
            None,
        )
        keep_piece(self._dataset, rows, found, self.kept_url, self.scored_at)
        return len(rows)

    @cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self.dataset_url)

    @cached_property
    def _detector(self) -> Detector:
        made = Detector.make(self.description, network=self.network, features=self.features)
        return reduce_detector(made) if self.is_reduced else made
