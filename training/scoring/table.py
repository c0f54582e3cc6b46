"""Scores as a ranked table: what is written to `scores.parquet`, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from numpy.typing import NDArray

from pipeline.records import Label
from training.evaluation.intervals import Interval, bootstrap_auroc
from training.evaluation.metrics import measure_average_precision
from training.scoring.kept_scores import RowScores
from training.scoring.loaded_model import Prediction, ScoringModel

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
        ("source_digest", pa.string()),
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
        source_digest: object (n,), SHA-256 of the bytes that each came from.
        scored_at: datetime64[us] (n,), UTC.
        prediction: Of these images, without heatmaps.
    """

    rows: NDArray[np.int64]
    image_id: NDArray[np.object_]
    group_id: NDArray[np.object_]
    label: NDArray[np.int8]
    source_digest: NDArray[np.object_]
    scored_at: NDArray[np.datetime64]
    prediction: Prediction


def rank_scores(
    rows: NDArray[np.int64],
    found: RowScores,
    *,
    image_id: NDArray[Any],
    group_id: NDArray[Any],
    label: NDArray[np.int8],
    source_digest: NDArray[Any],
) -> RankedScores:
    """Rank images, those without a finite score left out.

    Args:
        rows: int64 (n,), rows of the dataset.
        found: Scores of these rows.
        image_id: (n,), of these rows, and so are the others.
        group_id: (n,).
        label: (n,).
        source_digest: (n,).
    """
    prediction = found.prediction
    scores = prediction.anomaly_score
    order = np.lexsort((image_id.astype(str), -scores.astype(np.float64)))
    order = order[np.isfinite(scores[order])]
    embedding = None if prediction.embedding is None else prediction.embedding[order]
    ranked = Prediction(
        scores[order], prediction.percentile[order], prediction.is_anomalous[order], None, embedding
    )
    return RankedScores(
        rows[order],
        image_id[order],
        group_id[order],
        label[order],
        source_digest[order],
        found.scored_at[order],
        ranked,
    )


def tabulate(scores: RankedScores, model: ScoringModel, *, source: str) -> pa.Table:
    """The table of `scores.parquet`, ranked.

    Args:
        scores: Ranked.
        model: That gave them.
        source: Of the dataset.
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
        "scored_at": pa.array(scores.scored_at.astype(np.int64), pa.timestamp("us", tz="UTC")),
        "label": pa.array(scores.label, pa.int8(), mask=scores.label == Label.UNKNOWN),
        "source_digest": scores.source_digest,
    }
    return pa.table(columns, schema=_COLUMNS)


def encode_csv(table: pa.Table) -> bytes:
    """A table as CSV for spreadsheets.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; the Parquet
    file has it as it is.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            tame = pc.replace_substring_regex(table[field.name], r"\A([=+\-@\t\r])", r"'\1")
            table = table.set_column(place, field, tame)
    file = BytesIO()
    pv.write_csv(table, file)
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
