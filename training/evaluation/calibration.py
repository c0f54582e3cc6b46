"""The meaning of a raw score: percentile among normals, threshold, and scale of the heatmaps.

Raw score, calibration and threshold are kept apart, so that each can be looked at, and a threshold
moved, without the others.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.errors import SettingsError

_REFERENCE_SIZE: Final = 1001
_SAMPLE_SIZE: Final = 500
_SCALE_QUANTILES: Final = (0.5, 0.999)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddedNormals(_Frozen):
    """A sample of the normal images, by score and embedding.

    Args:
        scores: Anomaly score of each image.
        embeddings: Embedding of each image, as in `Detection.embedding`.
    """

    scores: tuple[float, ...]
    embeddings: tuple[tuple[float, ...], ...]


class Calibration(_Frozen):
    """Scores and heatmap values of normal validation images.

    Args:
        reference: Ascending scores of the normal images: all of them, or 1001 quantiles from the
            lowest to the highest.
        normal_count: Number of normal images that the reference stands for.
        heatmap_low: Heatmap value drawn transparent: the median of normal pixels.
        heatmap_high: Heatmap value drawn brightest: 999 of 1000 normal pixels lie below.
        normals: Sample of at most 500 of the images with their embeddings.
    """

    reference: tuple[float, ...]
    normal_count: int
    heatmap_low: float
    heatmap_high: float
    normals: EmbeddedNormals

    def percentile(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Compute the percentage of normal images that score lower.

        Args:
            scores: float (n,), anomaly scores of any images.

        Returns:
            float64 (n,), 0 to 100; 100 is more anomalous than every normal image.
        """
        below = np.searchsorted(np.asarray(self.reference), scores, side="left")
        return 100.0 * below / len(self.reference)


class Threshold(_Frozen):
    """The score above which an image is called anomalous, and how it was chosen.

    Args:
        value: Scores greater than this are anomalous.
        quantile: Share of normal validation images that score at or below it.
        normal_count: Number of normal images that it was chosen by.
    """

    value: float
    quantile: float
    normal_count: int


def calibrate(
    normal_scores: NDArray[np.floating[Any]],
    normal_pixels: NDArray[np.floating[Any]],
    normal_embeddings: NDArray[np.floating[Any]],
) -> Calibration:
    """Calibrate by normal images.

    Args:
        normal_scores: float (n,), scores of normal images of the validation split.
        normal_pixels: float of any shape, values of their heatmaps or a sample of them; NaN is
            left out.
        normal_embeddings: float (n, D), embeddings of the images, by which drift is measured.

    Raises:
        SettingsError: There is no normal image, a score is not finite or all pixels are equal.

    Examples:
        >>> scores = np.array([1.0, 2.0, 2.0, 3.0])
        >>> calibration = calibrate(scores, np.linspace(0, 1, 9), np.zeros((4, 2)))
        >>> calibration.percentile(np.array([0.5, 2.5, 9.0])).tolist()
        [0.0, 75.0, 100.0]
    """
    _check_finite(normal_scores)
    scores = np.sort(normal_scores.astype(np.float64))
    if len(scores) > _REFERENCE_SIZE:
        scores = np.quantile(scores, np.linspace(0, 1, _REFERENCE_SIZE))
    low, high = np.nanquantile(normal_pixels, _SCALE_QUANTILES)
    if not high > low:
        raise SettingsError(
            "calibration", f"every pixel of the normal heatmaps is {low}", "Train again"
        )
    # Evenly spaced, as images of one patient lie together.
    count = len(normal_scores)
    chosen = np.linspace(0, count - 1, min(count, _SAMPLE_SIZE)).astype(int)
    return Calibration(
        reference=tuple(scores.tolist()),
        normal_count=count,
        heatmap_low=float(low),
        heatmap_high=float(high),
        normals=EmbeddedNormals(
            scores=tuple(normal_scores[chosen].tolist()),
            embeddings=tuple(tuple(row) for row in normal_embeddings[chosen].tolist()),
        ),
    )


def choose_threshold(
    normal_scores: NDArray[np.floating[Any]], *, quantile: float = 0.95
) -> Threshold:
    """Choose the threshold as a quantile of normal scores.

    Args:
        normal_scores: float (n,), scores of normal images of the validation split.
        quantile: Share of the normal images that stay at or below the threshold.

    Raises:
        SettingsError: There is no normal image, or a score is not finite.
    """
    _check_finite(normal_scores)
    # A score that occurs, not one between two: the share at or below is then exact.
    value = float(np.quantile(normal_scores, quantile, method="inverted_cdf"))
    return Threshold(value=value, quantile=quantile, normal_count=len(normal_scores))


def _check_finite(normal_scores: NDArray[np.floating[Any]]) -> None:
    if not len(normal_scores):
        raise SettingsError(
            "calibration",
            "the validation split has no readable normal image",
            "Ingest with a larger validation share",
        )
    if not np.isfinite(normal_scores).all():
        count = int((~np.isfinite(normal_scores)).sum())
        raise SettingsError(
            "calibration", f"{count} scores of normal images are not finite", "Train again"
        )
