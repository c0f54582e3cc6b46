"""A loaded model version: its detector, and what its raw scores mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isclose
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.errors import SchemaError
from pipeline.store.dataset import Dataset
from training.evaluation.calibration import Calibration, Threshold
from training.scoring.detector import Detector, DetectorDescription

# Parameters that choose, divide or store images without changing what one looks like.
_NOT_OF_IMAGES: Final = frozenset(
    {
        "stride_px",
        "max_tiles_per_slide",
        "lesion_threshold",
        "lesion_groups",
        "excluded_groups",
        "ignored_groups",
        "annotation_origin",
        "mpp_override_um",
        "mpp_fallback_um",
        "validation_fraction",
        "test_fraction",
        "seed",
        "shard_images",
        "chunk_images",
    }
)
_RANDOM_FEATURES: Final = (
    "This model compares images by a random feature extractor, without learned meaning. It shows "
    "that the chain works; its ranking is not worth a reader's time."
)
_REDUCED_PRECISION: Final = (
    "Scored in reduced precision: features in bfloat16. Scores differ from the version's own by "
    "some thousandths; images near the threshold may lie on its other side."
)


class IngestRecord(BaseModel):
    """How the images of a training were prepared, so that images to score are prepared alike.

    Args:
        modality: Modality of the dataset, e.g. `slide`.
        source: Name of the dataset's source.
        mpp_um: Micrometres per pixel; None where unknown.
        parameters: Parameters of the dataset's ingest, by name.
        fingerprint: Fingerprint of the dataset.
        code_version: Version of the code that ingested it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str
    source: str
    mpp_um: float | None
    parameters: dict[str, Any]
    fingerprint: str
    code_version: str

    @classmethod
    def of(cls, dataset: Dataset) -> IngestRecord:
        """Read the record of a sealed dataset."""
        known = {name: dataset.attributes[name] for name in cls.model_fields}
        return cls.model_validate(known)

    def require_alike(self, dataset: Dataset, *, image_shape: tuple[int, int, int]) -> None:
        """Refuse a dataset whose images were prepared otherwise.

        Args:
            dataset: Sealed dataset to score.
            image_shape: Height, width and channels of the images that the model takes.

        Raises:
            SchemaError: Names what differs, with both values.
        """
        other = IngestRecord.of(dataset)
        differing: dict[str, tuple[object, object]] = {
            "image shape": (image_shape, dataset.image_shape),
            "modality": (self.modality, other.modality),
        }
        if not _is_same_mpp(self.mpp_um, other.mpp_um):
            differing["mpp_um"] = (self.mpp_um, other.mpp_um)
        for name in sorted(self.parameters.keys() & other.parameters.keys()):
            if name not in _NOT_OF_IMAGES:
                differing[f"parameter {name}"] = (self.parameters[name], other.parameters[name])
        problems = [
            f"{name} is {theirs}, the model has {ours}"
            for name, (ours, theirs) in differing.items()
            if ours != theirs
        ]
        if problems:
            raise SchemaError(
                dataset.url, "; ".join(problems), "Ingest the images with the model's parameters"
            )


def _is_same_mpp(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours == theirs
    return isclose(ours, theirs, rel_tol=1e-6)


@dataclass(frozen=True)
class Prediction:
    """Scores of images and their meaning.

    Args:
        anomaly_score: float32 (N,), higher is more anomalous.
        percentile: float64 (N,), percentage of normal validation images that score lower.
        is_anomalous: bool (N,), whether the score exceeds the version's threshold.
        embedding: float32 (N, D), position of each image in the network's latent space.
        heatmap: float32 (N, H, W), anomaly of each pixel, NaN outside the crop that the network
            sees; None unless asked for.
    """

    anomaly_score: NDArray[np.float32]
    percentile: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    embedding: NDArray[np.float32]
    heatmap: NDArray[np.float32] | None = None

    def choose(self, places: NDArray[np.intp]) -> Prediction:
        """Choose some of the images, in this order, without heatmaps."""
        scores, percentiles = self.anomaly_score[places], self.percentile[places]
        return Prediction(scores, percentiles, self.is_anomalous[places], self.embedding[places])


@dataclass(frozen=True)
class ScoringModel:
    """A loaded version of a registered model.

    Args:
        name: Registered name, e.g. `pcam-anomaly`.
        version: Number of the version.
        run_id: MLflow run that trained it.
        detector: Network and loss that score images.
        ingest: Record of how its training images were prepared.
        calibration: Scores of normal validation images.
        threshold: Score above which an image is called anomalous.
    """

    name: str
    version: str
    run_id: str
    detector: Detector
    ingest: IngestRecord
    calibration: Calibration
    threshold: Threshold

    @property
    def description(self) -> DetectorDescription:
        """Image shape and training settings."""
        return self.detector.description

    def predict(self, images: NDArray[np.uint8], *, heatmaps: bool = False) -> Prediction:
        """Score images.

        Args:
            images: uint8 (N, H, W, C).
            heatmaps: Whether to make a heatmap of each image too.

        Raises:
            ValueError: The images have another shape or dtype than the network was trained on.
        """
        found = self.detector.detect(images, heatmaps=heatmaps)
        return self.interpret(found.anomaly_score, found.embedding, found.heatmap)

    def interpret(
        self,
        scores: NDArray[np.float32],
        embeddings: NDArray[np.float32],
        heatmaps: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Compare raw scores with the version's normal images and threshold.

        Args:
            scores: float32 (N,), higher is more anomalous.
            embeddings: float32 (N, D), position of each image in the latent space.
            heatmaps: float32 (N, H, W), anomaly of each pixel, where known.
        """
        percentiles = self.calibration.percentile(scores)
        return Prediction(scores, percentiles, scores > self.threshold.value, embeddings, heatmaps)

    def reduce_precision(self) -> ScoringModel:
        """The same version with its feature extractor in bfloat16: faster, scores differ a bit."""
        return replace(self, detector=self.detector.reduce_precision())

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats for readers of its scores."""
        is_random = self.description.settings.loss.vgg_weights == "random"
        notes = ((is_random, _RANDOM_FEATURES), (self.detector.is_reduced, _REDUCED_PRECISION))
        return tuple(note for holds, note in notes if holds)
