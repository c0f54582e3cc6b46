"""Metrics of how well scores separate anomalous from normal images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.records import Label


def measure_auroc(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Measure the area under the ROC curve; ties count half.

    Args:
        scores: float (n,), higher is more anomalous.
        labels: int (n,), 0 normal or 1 anomalous.

    Raises:
        ValueError: A class is missing, a label is unknown or a score is not finite.

    Examples:
        >>> measure_auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
        0.875
    """
    check_scores(scores, labels)
    return float(roc_auc_score(labels, scores))


def measure_average_precision(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> float:
    """Measure the stepwise area under the precision-recall curve; chance is the anomalies' share.

    Args:
        scores: float (n,), higher is more anomalous.
        labels: int (n,), 0 normal or 1 anomalous.

    Raises:
        ValueError: A class is missing, a label is unknown or a score is not finite.
    """
    check_scores(scores, labels)
    return float(average_precision_score(labels, scores))


def check_scores(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> None:
    """Refuse scores and labels that have no ROC curve.

    Raises:
        ValueError: The lengths differ, a class is missing, a label is unknown or a score is not
            finite.
    """
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} differ in shape: give one of each "
            "for every image"
        )
    normals = int((labels == Label.NORMAL).sum())
    anomalies = int((labels == Label.ANOMALOUS).sum())
    if normals + anomalies != len(labels):
        raise ValueError(
            f"{len(labels) - normals - anomalies} of {len(labels)} labels are neither 0 nor 1: "
            "leave out images of unknown label"
        )
    if not normals or not anomalies:
        raise ValueError(
            f"{normals} normal and {anomalies} anomalous images: at least one of each is needed"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
