"""Rows of a dataset to scores: in order, a batch at a time, and never twice by one version.

What a version has scored is kept in pieces below a folder of its own, one Parquet file each, named
by what it holds and written whole. Whoever is killed loses the piece at hand; a rerun cuts what is
left into the same pieces. An image is known by its id and the digest of the bytes that it came
from, so that a file which was rewritten is scored anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.io import storage
from pipeline.records import Progress, ignore_progress
from pipeline.store.dataset import Dataset
from training.data.image_cache import StreamedImages
from training.scoring.detector import Detection
from training.scoring.loaded_model import Prediction, ScoringModel

PIECE_IMAGES = 2048  # scores that are kept together, and lost together by a kill
Rows: TypeAlias = NDArray[np.int64]
_Embedding: TypeAlias = NDArray[np.float32]
_Known: TypeAlias = dict[tuple[str, str], tuple[float, int, _Embedding]]
MapPieces: TypeAlias = Callable[[Sequence[Rows]], Iterable[int]]
"""Scores and keeps every piece, in any order, and gives the number of images of each."""

_COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("source_digest", pa.string()),
        ("anomaly_score", pa.float32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("embedding", pa.list_(pa.float32())),  # null in pieces that were kept without
    ]
)


@dataclass(frozen=True)
class RowScores:
    """Scores of rows of a dataset, some of them from earlier runs.

    Args:
        prediction: Of the rows, in their order; no heatmaps.
        scored_at: datetime64[us] (n,), UTC.
        new_count: How many were scored now.
    """

    prediction: Prediction
    scored_at: NDArray[np.datetime64]
    new_count: int


def score_rows(
    model: ScoringModel,
    dataset: Dataset,
    rows: Rows,
    batch_images: int = 256,
    *,
    on_progress: Progress = ignore_progress,
) -> Prediction:
    """Score rows of a dataset in order, a batch at a time, reading ahead.

    Args:
        model: Any version.
        dataset: Prepared as the model's.
        rows: Ascending.
        batch_images: Images at once.
        on_progress: Called with images done and in all.

    Returns:
        As many scores as rows; no heatmaps.
    """
    parts = []
    done = 0
    for _, images in read_batches(dataset, rows, batch_images):
        parts.append(model.predict(images))
        done += len(images)
        on_progress(done, len(rows))
    return Prediction(
        np.concatenate([part.anomaly_score for part in parts] or [np.empty(0, np.float32)]),
        np.concatenate([part.percentile for part in parts] or [np.empty(0)]),
        np.concatenate([part.is_anomalous for part in parts] or [np.empty(0, bool)]),
        None,
        _join([part.embedding for part in parts]),
    )


def read_batches(
    dataset: Dataset, rows: Rows, batch_images: int
) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Rows and their images, a batch at a time; the next batch is read meanwhile.

    Args:
        dataset: Where they lie.
        rows: Ascending.
        batch_images: Images at once.

    Yields:
        int64 (n,) and uint8 (n, H, W, C).
    """
    cut = range(0, len(rows), batch_images)
    batches = [rows[first : first + batch_images] for first in cut]
    # Room for two batches; rows far apart lie in as many chunks as there are rows.
    spans = max((len(np.unique(batch // dataset.chunk_images)) for batch in batches), default=1)
    images = StreamedImages(dataset, cached_chunks=2 * spans + 1)
    for number, batch in enumerate(batches):
        found = images.read_rows(batch)
        if number + 1 < len(batches):
            images.expect(batches[number + 1])
        yield batch, found


def score_new_rows(
    model: ScoringModel,
    dataset: Dataset,
    rows: Rows,
    kept_url: str,
    *,
    scored_at: datetime,
    batch_images: int = 256,
    map_pieces: MapPieces | None = None,
    on_progress: Progress = ignore_progress,
) -> RowScores:
    """Score the rows that this version has not scored yet, and recall the others.

    Args:
        model: Any version.
        dataset: Prepared as the model's.
        rows: Ascending.
        kept_url: Folder of this version's scores; made if absent.
        scored_at: Time to put down, with a time zone.
        batch_images: Images at once.
        map_pieces: Scores and keeps pieces elsewhere, e.g. on several machines; here if None.
        on_progress: Called with images done and in all.

    Raises:
        StorageError: The folder cannot be read or written.
    """
    ids, digests = (dataset.column(name)[rows] for name in ("image_id", "source_digest"))
    names = list(zip(ids.tolist(), digests.tolist(), strict=True))
    known = _recall(kept_url)
    pending = np.array([place for place, name in enumerate(names) if name not in known], np.int64)
    done = len(rows) - len(pending)
    on_progress(done, len(rows))
    cut = range(0, len(pending), PIECE_IMAGES)
    pieces = [rows[pending[first : first + PIECE_IMAGES]] for first in cut]
    if map_pieces is not None:
        for count in map_pieces(pieces):
            done += count
            on_progress(done, len(rows))
        known = _recall(kept_url)
    else:
        for piece in pieces:

            def advance(count: int, _: int, before: int = done) -> None:
                on_progress(before + count, len(rows))

            found = score_rows(model, dataset, piece, batch_images, on_progress=advance)
            known.update(keep_piece(dataset, piece, found, kept_url, scored_at))
            done += len(piece)
    scores = np.array([known[name][0] for name in names], np.float32)
    times = np.array([known[name][1] for name in names], "datetime64[us]")
    prediction = Prediction(
        scores,
        model.calibration.percentile(scores),
        scores > model.threshold.value,
        None,
        _stack([known[name][2] for name in names]),
    )
    return RowScores(prediction, times, len(pending))


def keep_piece(
    dataset: Dataset,
    rows: Rows,
    found: Detection | Prediction,
    kept_url: str,
    scored_at: datetime,
) -> _Known:
    """Keep the scores of one piece, unless somebody has kept it meanwhile.

    Args:
        dataset: Where the rows lie.
        rows: Of the piece, ascending.
        found: Of these rows.
        kept_url: Folder of the version's scores.
        scored_at: Time to put down, with a time zone.

    Returns:
        What is kept now, by image id and digest.
    """
    table = {
        "image_id": dataset.column("image_id")[rows],
        "source_digest": dataset.column("source_digest")[rows],
        "anomaly_score": found.anomaly_score,
        "scored_at": [scored_at] * len(rows),
        "embedding": [None] * len(rows) if found.embedding is None else list(found.embedding),
    }
    return _keep(kept_url, pa.table(table, schema=_COLUMNS))


def encode_parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes."""
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _keep(url: str, table: pa.Table) -> _Known:
    """Write one piece, and give what it holds."""
    named = "\n".join(
        f"{image_id}\t{digest}"
        for image_id, digest in zip(
            table["image_id"].to_pylist(), table["source_digest"].to_pylist(), strict=True
        )
    )
    name = f"{sha256(named.encode()).hexdigest()[:32]}.parquet"
    # Whoever scored the same meanwhile was first: its scores stand, so that none is seen twice.
    if storage.create_bytes(storage.join(url, name), encode_parquet(table)):
        return _to_known(table)
    return _to_known(_read(storage.join(url, name)))


def _recall(url: str) -> _Known:
    """All that was kept; of two pieces that hold the same image the first by name counts."""
    known: _Known = {}
    for info in storage.list_objects(url.rstrip("/") + "/"):
        if info.url.endswith(".parquet"):
            known = {**_to_known(_read(info.url)), **known}
    return known


def _read(url: str) -> pa.Table:
    return pq.read_table(BytesIO(storage.read_bytes(url)), schema=_COLUMNS)


def _to_known(table: pa.Table) -> _Known:
    columns: list[list[Any]] = [table[name].to_pylist() for name in _COLUMNS.names[:3]]
    times = table["scored_at"].cast(pa.int64()).to_pylist()
    kept = table["embedding"].combine_chunks()
    starts = kept.offsets.to_numpy()
    embeddings = np.split(kept.values.to_numpy(), starts[1:-1])
    return {
        (image_id, digest): (score, time, embedding)
        for image_id, digest, score, time, embedding in zip(
            *columns, times, embeddings, strict=True
        )
    }


def _join(parts: Sequence[_Embedding | None]) -> _Embedding | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known and len(known) == len(parts) else None


def _stack(rows: Sequence[_Embedding]) -> _Embedding | None:
    """Rows as one array, NaN where one is empty; None where all are."""
    size = max(map(len, rows), default=0)
    if not size:
        return None
    nothing = np.full(size, np.nan, np.float32)
    return np.stack([row if len(row) else nothing for row in rows])
