"""Scores as a ranked table: what is written to `scores.parquet`, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.records import Label
from training.metrics import measure_average_precision
from training.scoring_model import Prediction, ScoringModel
from training.statistics import Interval, bootstrap_auroc

_BOOTSTRAP_DRAWS: Final = 1000

_COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("group_id", pa.string()),
        ("source", pa.string()),
        ("anomaly_score", pa.float32()),
        ("percentile", pa.float64()),
        ("is_anomalous", pa.bool_()),
        ("threshold", pa.float64()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("run_id", pa.string()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("label", pa.int8()),
    ]
)


@dataclass(frozen=True)
class RankedScores:
    """Images with finite scores, the strangest first, ties by name.

    Args:
        rows: int64 (n,), rows of the dataset.
        image_id: object (n,).
        group_id: object (n,).
        label: int8 (n,), -1 where unknown.
        prediction: Of these images, without heatmaps.
    """

    rows: NDArray[np.int64]
    image_id: NDArray[np.object_]
    group_id: NDArray[np.object_]
    label: NDArray[np.int8]
    prediction: Prediction


def rank_scores(
    rows: NDArray[np.int64],
    prediction: Prediction,
    *,
    image_id: NDArray[Any],
    group_id: NDArray[Any],
    label: NDArray[np.int8],
) -> RankedScores:
    """Rank images, those without a finite score left out.

    Args:
        rows: int64 (n,), rows of the dataset.
        prediction: Of these rows.
        image_id: (n,), of these rows, and so are the others.
        group_id: (n,).
        label: (n,).
    """
    scores = prediction.anomaly_score
    order = np.lexsort((image_id.astype(str), -scores.astype(np.float64)))
    order = order[np.isfinite(scores[order])]
    ranked = Prediction(
        scores[order], prediction.percentile[order], prediction.is_anomalous[order], None
    )
    return RankedScores(rows[order], image_id[order], group_id[order], label[order], ranked)


def tabulate(
    scores: RankedScores, model: ScoringModel, *, source: str, scored_at: datetime
) -> pa.Table:
    """The table of `scores.parquet`, ranked.

    Args:
        scores: Ranked.
        model: That gave them.
        source: Of the dataset.
        scored_at: With a time zone.
    """

    def all_the_same(value: object) -> list[object]:
        return [value] * len(scores.rows)

    columns = {
        "image_id": scores.image_id,
        "group_id": scores.group_id,
        "source": all_the_same(source),
        "anomaly_score": scores.prediction.anomaly_score,
        "percentile": scores.prediction.percentile,
        "is_anomalous": scores.prediction.is_anomalous,
        "threshold": all_the_same(model.threshold.value),
        "model_name": all_the_same(model.name),
        "model_version": all_the_same(model.version),
        "run_id": all_the_same(model.run_id),
        "scored_at": all_the_same(scored_at),
        "label": pa.array(scores.label, pa.int8(), mask=scores.label == Label.UNKNOWN),
    }
    return pa.table(columns, schema=_COLUMNS)


def encode_parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes."""
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def judge_scores(scores: RankedScores) -> tuple[Interval | None, float | None]:
    """AUROC and average precision over images of known label; None unless both labels occur."""
    is_known = scores.label != Label.UNKNOWN
    labels = scores.label[is_known]
    if not (labels == Label.NORMAL).any() or not (labels == Label.ANOMALOUS).any():
        return None, None
    found = scores.prediction.anomaly_score[is_known]
    groups = scores.group_id[is_known].astype(str)
    auroc = bootstrap_auroc(found, labels, groups=groups, draws=_BOOTSTRAP_DRAWS)
    return auroc, measure_average_precision(found, labels)
