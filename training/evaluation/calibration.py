"""What a raw score means: percentile against normals, threshold, and the heatmaps' scale.

The raw score, its calibration and the threshold are kept apart, so that each can be looked at,
and a threshold moved, without the others.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import roc_curve

from pipeline.errors import SettingsError

_REFERENCE_SIZE: Final = 1001
_SAMPLE_SIZE: Final = 500
_SCALE_QUANTILES: Final = (0.5, 0.999)

ThresholdRule = Literal["normal_quantile", "balanced_accuracy"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddedNormals(_Frozen):
    """A sample of the normal images: how strange each is, and where the network places it.

    Args:
        scores: (n,).
        embeddings: (n, D), as `Detection.embedding`.
    """

    scores: tuple[float, ...]
    embeddings: tuple[tuple[float, ...], ...]


class Calibration(_Frozen):
    """Normal scores of the validation split, and how strange their pixels are.

    Args:
        reference: Ascending scores of normal images: all of them, or 1001 quantiles from the
            least to the greatest.
        normal_count: How many normal images they stand for.
        heatmap_low: Heatmap value that is drawn transparent: the median of normal pixels.
        heatmap_high: Heatmap value that is drawn brightest: 999 of 1000 normal pixels lie below.
        normals: Some of them, or all, with their embeddings; None of versions that had none.
    """

    reference: tuple[float, ...]
    normal_count: int
    heatmap_low: float
    heatmap_high: float
    normals: EmbeddedNormals | None = None

    def percentile(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Share of normals that score lower, in percent.

        Args:
            scores: float (n,).

        Returns:
            float64 (n,), 0 to 100; 100 is stranger than every normal image.
        """
        below = np.searchsorted(np.asarray(self.reference), scores, side="left")
        return 100.0 * below / len(self.reference)


class Threshold(_Frozen):
    """Above which score an image is called anomalous, and why there.

    Args:
        value: Scores greater than this are anomalous.
        rule: `normal_quantile`, or `balanced_accuracy` on labelled anomalies.
        quantile: Share of normals at or below it, for `normal_quantile`.
        normal_count: Normal images that it rests on.
        anomaly_count: Anomalous images that it rests on; 0 for `normal_quantile`.
    """

    value: float
    rule: ThresholdRule
    quantile: float | None
    normal_count: int
    anomaly_count: int


def calibrate(
    normal_scores: NDArray[np.floating[Any]],
    normal_pixels: NDArray[np.floating[Any]],
    normal_embeddings: NDArray[np.floating[Any]] | None = None,
) -> Calibration:
    """Calibrate by normal images.

    Args:
        normal_scores: float (n,), scores of normal images of the validation split.
        normal_pixels: float, any shape: values of their heatmaps, or a sample of them. NaN, where
            nothing was looked at, is left out.
        normal_embeddings: float (n, D), theirs, where drift is to be told by them too.

    Raises:
        SettingsError: There is no normal image, a score is not finite or every pixel is alike.
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
    return Calibration(
        reference=tuple(scores.tolist()),
        normal_count=len(normal_scores),
        heatmap_low=float(low),
        heatmap_high=float(high),
        normals=None if normal_embeddings is None else _sample(normal_scores, normal_embeddings),
    )


def _sample(
    scores: NDArray[np.floating[Any]], embeddings: NDArray[np.floating[Any]]
) -> EmbeddedNormals:
    """Some of the normals, from the first to the last: images of one patient lie together."""
    chosen = np.linspace(0, len(scores) - 1, min(len(scores), _SAMPLE_SIZE)).astype(int)
    return EmbeddedNormals(
        scores=tuple(scores[chosen].tolist()),
        embeddings=tuple(tuple(row) for row in embeddings[chosen].tolist()),
    )


def choose_threshold(
    normal_scores: NDArray[np.floating[Any]],
    anomalous_scores: NDArray[np.floating[Any]] | None = None,
    *,
    rule: ThresholdRule = "normal_quantile",
    quantile: float = 0.95,
) -> Threshold:
    """Choose the threshold.

    Args:
        normal_scores: float (n,), of normal images of the validation split.
        anomalous_scores: float (m,), of its labelled anomalies; needed by `balanced_accuracy`.
        rule: `normal_quantile`: so many normals stay at or below. `balanced_accuracy`: the mean
            of sensitivity and specificity is greatest (Youden's index).
        quantile: Of `normal_quantile`.

    Raises:
        SettingsError: The images that the rule needs are missing.
    """
    _check_finite(normal_scores)
    if rule == "normal_quantile":
        # A score that was seen, not one between two: the share at or below is then exact.
        value = float(np.quantile(normal_scores, quantile, method="inverted_cdf"))
        return Threshold(
            value=value,
            rule=rule,
            quantile=quantile,
            normal_count=len(normal_scores),
            anomaly_count=0,
        )
    if anomalous_scores is None or not len(anomalous_scores):
        raise SettingsError(
            "threshold rule balanced_accuracy",
            "the validation split has no labelled anomaly",
            "Use normal_quantile, or ingest with labels",
        )
    return Threshold(
        value=_most_balanced(normal_scores, anomalous_scores),
        rule=rule,
        quantile=None,
        normal_count=len(normal_scores),
        anomaly_count=len(anomalous_scores),
    )


def _most_balanced(
    normal_scores: NDArray[np.floating[Any]], anomalous_scores: NDArray[np.floating[Any]]
) -> float:
    scores = np.concatenate([normal_scores, anomalous_scores]).astype(np.float64)
    labels = np.repeat([0, 1], [len(normal_scores), len(anomalous_scores)])
    false_rate, true_rate, cuts = roc_curve(labels, scores)
    best = cuts[int(np.argmax(true_rate - false_rate))]
    if not np.isfinite(best):  # no cut is better than calling nothing anomalous
        return float(scores.max())
    # roc_curve calls scores at or above a cut positive; ours must lie above the threshold.
    below = scores[scores < best]
    return float((best + below.max()) / 2) if len(below) else float(np.nextafter(best, -np.inf))


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
