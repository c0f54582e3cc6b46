"""Scores of a dataset's rows: read ahead, a batch at a time, and no image twice by one version.

The scores of a version are kept in a folder of its own, in pieces: Parquet files named by what
they hold, each written whole. A kill loses the piece at hand; a rerun cuts the remaining rows into
the same pieces. An image is identified by its id and the digest of the bytes that it came from, so
that a rewritten file is scored anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.io import storage
from pipeline.records import Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset
from training.data.image_cache import StreamedImages
from training.scoring.loaded_model import Prediction, ScoringModel

PIECE_IMAGES = 2048  # scores that are kept together, and lost together by a kill
Rows: TypeAlias = NDArray[np.int64]
_Known: TypeAlias = dict[tuple[str, str], tuple[float, int, NDArray[np.float32]]]

_COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("source_digest", pa.string()),
        ("anomaly_score", pa.float32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("embedding", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class KeptScores:
    """Scores of rows of a dataset, some of them from earlier runs.

    Args:
        prediction: Scores in the order of the rows, without heatmaps.
        scored_at: datetime64[us] (n,), UTC time at which each row was scored.
        new_count: Number of rows scored by this run.
    """

    prediction: Prediction
    scored_at: NDArray[np.datetime64]
    new_count: int


@dataclass(frozen=True)
class PieceScorer:
    """Scores pieces of a dataset and keeps the scores, in this process or in a worker's.

    Args:
        model: Version that scores; pickled, its weights travel in CPU memory.
        dataset: Dataset that holds the rows.
        kept_url: Folder of the version's scores; created if absent.
        scored_at: Time to record, with a time zone.
        batch_images: Number of images read and scored at once.
    """

    model: ScoringModel
    dataset: Dataset
    kept_url: str
    scored_at: datetime
    batch_images: int = 256

    def __call__(self, rows: Rows, *, on_progress: Progress = ignore_progress) -> int:
        """Score and keep a piece, unless another process has kept it meanwhile.

        Args:
            rows: int64 (n,), ascending rows of the dataset.
            on_progress: Called with images done and in all.

        Returns:
            Number of rows scored.
        """
        found = score_rows(
            self.model, self.dataset, rows, self.batch_images, on_progress=on_progress
        )
        names = {name: self.dataset.column(name)[rows] for name in _COLUMNS.names[:2]}
        table = {
            **names,
            "anomaly_score": found.anomaly_score,
            "scored_at": [self.scored_at] * len(rows),
            "embedding": list(found.embedding),
        }
        named = "\n".join("\t".join(pair) for pair in zip(*names.values(), strict=True))
        url = storage.join(self.kept_url, f"{sha256(named.encode()).hexdigest()[:32]}.parquet")
        storage.create_bytes(url, encode_parquet(pa.table(table, schema=_COLUMNS)))
        return len(rows)


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
        model: Version that scores.
        dataset: Dataset prepared as the model's.
        rows: int64 (n,), ascending rows of the dataset.
        batch_images: Number of images read and scored at once.
        on_progress: Called with images done and in all.

    Returns:
        Scores of the rows, without heatmaps.
    """
    parts = [model.predict(np.empty((0, *dataset.image_shape), np.uint8))]
    done = 0
    for _, images in read_batches(dataset, rows, batch_images):
        parts.append(model.predict(images))
        done += len(images)
        on_progress(done, len(rows))
    return model.interpret(
        np.concatenate([part.anomaly_score for part in parts]),
        np.concatenate([part.embedding for part in parts]),
    )


def read_batches(
    dataset: Dataset, rows: Rows, batch_images: int
) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Read rows and their images a batch at a time; the next batch is read meanwhile.

    Args:
        dataset: Dataset that holds the images.
        rows: int64 (n,), ascending rows of the dataset.
        batch_images: Number of images in a batch.

    Yields:
        int64 (n,) rows and uint8 (n, H, W, C) images.
    """
    cut = range(0, len(rows), batch_images)
    batches = [rows[first : first + batch_images] for first in cut]
    # Enough for two batches; rows far apart lie in as many chunks as there are rows.
    spans = max((len(np.unique(batch // dataset.chunk_images)) for batch in batches), default=1)
    images = StreamedImages(dataset, cached_chunks=2 * spans + 1)
    for number, batch in enumerate(batches):
        found = images.read_rows(batch)
        if number + 1 < len(batches):
            images.expect(batches[number + 1])
        yield batch, found


def score_new_rows(
    scorer: PieceScorer,
    rows: Rows,
    *,
    map_work: MapWork | None = None,
    on_progress: Progress = ignore_progress,
) -> KeptScores:
    """Score the rows that the version has not scored yet, and read the scores of all of them.

    Args:
        scorer: Version, dataset and the folder of its scores.
        rows: int64 (n,), ascending rows of the dataset, at least one.
        map_work: Engine whose workers score the pieces; this process if None.
        on_progress: Called with images done and in all.

    Raises:
        StorageError: The folder cannot be read or written.
    """
    ids, digests = (scorer.dataset.column(name)[rows].tolist() for name in _COLUMNS.names[:2])
    names = list(zip(ids, digests, strict=True))
    known = _read_kept(scorer.kept_url)
    pending = np.array([place for place, name in enumerate(names) if name not in known], np.int64)
    done = len(rows) - len(pending)

    def report(before: int, count: int, _: int = 0) -> None:
        on_progress(before + count, len(rows))

    report(done, 0)
    cut = range(0, len(pending), PIECE_IMAGES)
    pieces = [rows[pending[first : first + PIECE_IMAGES]] for first in cut]
    if map_work is None:
        for piece in pieces:
            done += scorer(piece, on_progress=partial(report, done))
    else:
        for count in map_work(scorer, pieces):
            report(done, count)
            done += count
    if pieces:
        known = _read_kept(scorer.kept_url)
    scores, times, embeddings = zip(*(known[name] for name in names), strict=True)
    prediction = scorer.model.interpret(np.array(scores, np.float32), np.stack(embeddings))
    return KeptScores(prediction, np.array(times, "datetime64[us]"), len(pending))


def encode_parquet(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file; the same table gives the same bytes."""
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _read_kept(url: str) -> _Known:
    """Read all kept scores; of two pieces with the same image the first by name counts."""
    known: _Known = {}
    for info in storage.list_objects(url.rstrip("/") + "/"):
        if info.url.endswith(".parquet"):
            table = pq.read_table(BytesIO(storage.read_bytes(info.url)), schema=_COLUMNS)
            for name, score in _list_scores(table):
                known.setdefault(name, score)
    return known


def _list_scores(
    table: pa.Table,
) -> Iterator[tuple[tuple[str, str], tuple[float, int, NDArray[np.float32]]]]:
    ids, digests, scores = (table[name].to_pylist() for name in _COLUMNS.names[:3])
    times = table["scored_at"].cast(pa.int64()).to_pylist()
    kept = table["embedding"].combine_chunks()
    embeddings = np.split(kept.values.to_numpy(), kept.offsets.to_numpy()[1:-1])
    names = zip(ids, digests, strict=True)
    return zip(names, zip(scores, times, embeddings, strict=True), strict=True)
