"""Scores as a ranked table: the content of `scores.parquet`, and its AUROC."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from numpy.typing import NDArray

from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.data.part_columns import read_rows
from training.evaluation.intervals import Interval, bootstrap_auroc
from training.evaluation.metrics import measure_average_precision
from training.scoring.kept_scores import KeptScores, Rows
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
        ("pixel_digest", pa.string()),
    ]
)


@dataclass(frozen=True)
class RankedScores:
    """Images with finite scores, the most anomalous first, ties by name.

    Args:
        rows: int64 (n,), rows of the dataset.
        image_id: object (n,), names of the images.
        group_id: object (n,), patient or slide of each image.
        label: int8 (n,), 0 normal, 1 anomalous, -1 unknown.
        source_digest: object (n,), BLAKE3 of all bytes of the file that each image came from.
        pixel_digest: object (n,), BLAKE3 of each image's pixels.
        scored_at: datetime64[us] (n,), UTC time at which each image was scored.
        prediction: Scores of these images, without heatmaps and embeddings: (n, 0).
    """

    rows: NDArray[np.int64]
    image_id: NDArray[np.object_]
    group_id: NDArray[np.object_]
    label: NDArray[np.int8]
    source_digest: NDArray[np.object_]
    pixel_digest: NDArray[np.object_]
    scored_at: NDArray[np.datetime64]
    prediction: Prediction


def rank_scores(
    dataset: Dataset, model: ScoringModel, rows: Rows, found: KeptScores
) -> RankedScores:
    """Rank images by their scores; those without a finite score are left out.

    Args:
        dataset: Dataset that was scored.
        model: Version that scored it.
        rows: int64 (n,), rows of the dataset.
        found: Scores of these rows.
    """
    names = ("image_id", "group_id", "label", "source_digest", "pixel_digest")
    columns = read_rows(dataset, names, rows)
    scores = found.anomaly_score
    order = np.lexsort((columns["image_id"].astype(str), -scores.astype(np.float64)))
    order = order[np.isfinite(scores[order])]
    return RankedScores(
        rows[order],
        **{name: values[order] for name, values in columns.items()},
        scored_at=found.scored_at[order],
        prediction=model.interpret(scores[order], np.empty((len(order), 0), np.float32)),
    )


def tabulate(scores: RankedScores, model: ScoringModel, *, source: str) -> pa.Table:
    """Make the table of `scores.parquet`, one row per image in the order of rank.

    Args:
        scores: Ranked scores of the dataset's images.
        model: Version that scored them.
        source: Name of the dataset's source.
    """

    def repeat(value: object) -> list[object]:
        return [value] * len(scores.rows)

    columns = {
        "image_id": scores.image_id,
        "group_id": scores.group_id,
        "source": repeat(source),
        "anomaly_score": scores.prediction.anomaly_score,
        "percentile": scores.prediction.percentile,
        "is_anomalous": scores.prediction.is_anomalous,
        "threshold": repeat(model.threshold.value),
        "model_name": repeat(model.name),
        "model_version": repeat(model.version),
        "run_id": repeat(model.run_id),
        "scored_at": pa.array(scores.scored_at.astype(np.int64), pa.timestamp("us", tz="UTC")),
        "label": pa.array(scores.label, pa.int8(), mask=scores.label == Label.UNKNOWN),
        "source_digest": scores.source_digest,
        "pixel_digest": scores.pixel_digest,
    }
    return pa.table(columns, schema=_COLUMNS)


def encode_csv(table: pa.Table) -> bytes:
    """Encode a table as CSV for spreadsheets.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; the Parquet
    file keeps it unchanged.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            tame = pc.replace_substring_regex(table[field.name], r"\A([=+\-@\t\r])", r"'\1")
            table = table.set_column(place, field, tame)
    file = BytesIO()
    pv.write_csv(table, file)
    return file.getvalue()


def judge_scores(scores: RankedScores) -> tuple[Interval | None, float | None]:
    """Measure AUROC and average precision on labelled images; None unless both labels occur."""
    is_known = scores.label != Label.UNKNOWN
    labels = scores.label[is_known]
    if not (labels == Label.NORMAL).any() or not (labels == Label.ANOMALOUS).any():
        return None, None
    found = scores.prediction.anomaly_score[is_known]
    groups = scores.group_id[is_known].astype(str)
    auroc = bootstrap_auroc(found, labels, groups=groups, draws=_BOOTSTRAP_DRAWS)
    return auroc, measure_average_precision(found, labels)
