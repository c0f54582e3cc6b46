"""Scores as a ranked table: the files `scores.parquet` and `scores.csv`, and the table's AUROC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.data.part_columns import divide_by_part, read_column
from training.evaluation.intervals import Interval, bootstrap_auroc
from training.evaluation.metrics import measure_average_precision
from training.scoring.kept_scores import KeptScores, Rows
from training.scoring.loaded_model import Prediction, ScoringModel
from training.scoring.rank_buckets import PLACE, RankBuckets, cut_ranks

TABLE: Final = "scores.parquet"
SPREADSHEET: Final = "scores.csv"
_CSV_ROWS: Final = 8192  # that are copied at once
_BOOTSTRAP_DRAWS: Final = 1000
_READ: Final = ("image_id", "group_id", "label", "source_digest", "pixel_digest")
_NAMED: Final = ("image_id", "group_id", "pixel_digest")

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

    30 bytes a row; names are held of the first rows only.

    Args:
        rows: int64 (n,), rows of the dataset.
        label: int8 (n,), 0 normal, 1 anomalous, -1 unknown.
        scored_at: datetime64[us] (n,), UTC time at which each image was scored.
        prediction: Scores of these images, without heatmaps and embeddings: (n, 0).
        image_id: object (k,), names of the first k images.
        group_id: object (k,), patient or slide of each of these.
        pixel_digest: object (k,), BLAKE3 of the pixels of each of these.
    """

    rows: NDArray[np.int64]
    label: NDArray[np.int8]
    scored_at: NDArray[np.datetime64]
    prediction: Prediction
    image_id: NDArray[np.object_]
    group_id: NDArray[np.object_]
    pixel_digest: NDArray[np.object_]


def rank_scores(
    dataset: Dataset,
    model: ScoringModel,
    rows: Rows,
    found: KeptScores,
    folder: Path,
    *,
    named_count: int,
) -> RankedScores:
    """Rank images by their scores, and write the ranking; those without a finite score are out.

    Names and digests are read part by part and pass through temporary files
    (`training.scoring.rank_buckets`), a few hundred bytes a row on disk. Images of one score are
    sorted by name together, in memory.

    Args:
        dataset: Dataset that was scored.
        model: Version that scored it.
        rows: int64 (n,), rows of the dataset.
        found: Scores of these rows.
        folder: Empty local folder that gets `scores.parquet`, `scores.csv` and temporary files.
        named_count: Number of images, the most anomalous first, whose names are held.
    """
    places = np.flatnonzero(np.isfinite(found.anomaly_score))
    places = places[np.argsort(-found.anomaly_score[places], kind="stable")]
    scores, times, ranked = found.anomaly_score[places], found.scored_at[places], rows[places]
    del places
    labels = np.empty(len(ranked), np.int8)
    buckets = RankBuckets(folder, cut_ranks(scores))
    buckets.fill(dataset, ranked, _READ)
    named = [pa.table({name: pa.array([], pa.string()) for name in _NAMED})]
    with _open_writers(folder) as write:
        for span, table in buckets.read():
            ordered = _sort_ties(table, scores)
            order = ordered[PLACE].to_numpy()
            scores[span], times[span], ranked[span] = scores[order], times[order], ranked[order]
            labels[span] = ordered["label"].to_numpy()
            own = model.interpret(scores[span], np.empty((len(order), 0), np.float32))
            write(tabulate(ordered, own, times[span], model, str(dataset.attributes["source"])))
            if span.start < named_count:
                named.append(ordered.select(_NAMED).slice(0, named_count - span.start))
    prediction = model.interpret(scores, np.empty((len(scores), 0), np.float32))
    first = pa.concat_tables(named)
    names = {name: first[name].to_numpy() for name in _NAMED}
    return RankedScores(ranked, labels, times, prediction, **names)


def _sort_ties(table: pa.Table, scores: NDArray[np.float32]) -> pa.Table:
    """Order the rows of a bucket by rank, and those of one score by name."""
    scored = table.append_column("score", pa.array(scores[table[PLACE].to_numpy()]))
    by = [("score", "descending"), ("image_id", "ascending"), (PLACE, "ascending")]
    return table.take(pc.sort_indices(scored, sort_keys=by))


def tabulate(
    texts: pa.Table,
    prediction: Prediction,
    scored_at: NDArray[np.datetime64],
    model: ScoringModel,
    source: str,
) -> pa.Table:
    """Make some rows of the table of `scores.parquet`.

    Args:
        texts: Columns `image_id`, `group_id`, `label`, `source_digest` and `pixel_digest`, in the
            order of rank.
        prediction: Scores of these images.
        scored_at: datetime64[us] (n,), UTC time at which each image was scored.
        model: Version that scored them.
        source: Name of the dataset's source.
    """
    label = texts["label"].to_numpy()
    made = {
        "source": source,
        "anomaly_score": prediction.anomaly_score,
        "percentile": prediction.percentile,
        "is_anomalous": prediction.is_anomalous,
        "threshold": model.threshold.value,
        "model_name": model.name,
        "model_version": model.version,
        "run_id": model.run_id,
        "scored_at": pa.array(scored_at.astype(np.int64), pa.timestamp("us", tz="UTC")),
        "label": pa.array(label, pa.int8(), mask=label == Label.UNKNOWN),
    }
    columns: dict[str, Any] = {}
    for name in _COLUMNS.names:
        value = made[name] if name in made else texts[name].combine_chunks()
        is_one = isinstance(value, str | float)
        columns[name] = pa.repeat(value, len(texts)) if is_one else value
    return pa.table(columns, schema=_COLUMNS)


@contextmanager
def _open_writers(folder: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Open the two files of a ranking; the function that is yielded appends a bucket to both."""
    with (
        pq.ParquetWriter(folder / TABLE, _COLUMNS, compression="zstd") as whole,
        pv.CSVWriter(str(folder / SPREADSHEET), _COLUMNS) as spreadsheet,
    ):

        def write(table: pa.Table) -> None:
            whole.write_table(table)
            for start in range(0, len(table), _CSV_ROWS):
                spreadsheet.write_table(tame(table.slice(start, _CSV_ROWS)))

        yield write


def encode_csv(table: pa.Table) -> bytes:
    """Encode a small table as CSV for spreadsheets, its texts as `tame` makes them."""
    file = BytesIO()
    pv.write_csv(tame(table), file)
    return file.getvalue()


def tame(table: pa.Table) -> pa.Table:
    """Put an apostrophe in front of a text that a spreadsheet would take for a formula.

    The Parquet file keeps it unchanged.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            tamed = pc.replace_substring_regex(table[field.name], r"\A([=+\-@\t\r])", r"'\1")
            table = table.set_column(place, field, tamed)
    return table


def judge_scores(dataset: Dataset, scores: RankedScores) -> tuple[Interval | None, float | None]:
    """Measure AUROC and average precision on labelled images; None unless both labels occur."""
    is_known = scores.label != Label.UNKNOWN
    labels = scores.label[is_known]
    if not (labels == Label.NORMAL).any() or not (labels == Label.ANOMALOUS).any():
        return None, None
    found = scores.prediction.anomaly_score[is_known]
    groups = _number_groups(dataset, scores.rows[is_known])
    auroc = bootstrap_auroc(found, labels, groups=groups, draws=_BOOTSTRAP_DRAWS)
    return auroc, measure_average_precision(found, labels)


def _number_groups(dataset: Dataset, rows: Rows) -> NDArray[np.int32]:
    """Number the groups of rows in the order of their names, which are held once each."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    numbers, known = np.empty(len(rows), np.int32), dict[str, int]()
    for number, span in divide_by_part(dataset, ascending):
        within = ascending[span] - dataset.starts[number]
        groups = read_column(dataset.open_part(number), "group_id")[within].tolist()
        numbers[order[span]] = [known.setdefault(group, len(known)) for group in groups]
    sorted_numbers = np.empty(len(known), np.int32)
    sorted_numbers[[known[group] for group in sorted(known)]] = np.arange(len(known))
    return sorted_numbers[numbers]
