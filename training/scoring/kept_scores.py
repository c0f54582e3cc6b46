"""Scores of a dataset's rows: read ahead, a batch at a time, and no image twice by one version.

The scores of a version are kept in a folder of its own, which has a folder for each part, with
pieces: Parquet files named by what they hold, each written whole. A kill loses the piece at hand; a
rerun cuts the remaining rows into the same pieces. An image is identified by its id and the digest
of its pixels, so that no score is shown for other pixels: of a rewritten file, of another um/px,
of another release's resampling.

Kept scores are read part by part. Of all rows only a score and a time are held, twelve bytes a row;
embeddings stay in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Final, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.io import storage
from pipeline.records import Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset
from pipeline.store.part import name_file
from training.data.image_cache import StreamedImages
from training.data.part_columns import divide_by_part, read_rows
from training.scoring.loaded_model import Prediction, ScoringModel

PIECE_IMAGES = 2048  # scores that are kept together, and lost together by a kill
Rows: TypeAlias = NDArray[np.int64]

_NAMES: Final = ("image_id", "pixel_digest")
_COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("pixel_digest", pa.string()),
        ("anomaly_score", pa.float32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("embedding", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class KeptScores:
    """Scores of rows of a dataset, some of them from earlier runs.

    Args:
        anomaly_score: float32 (n,), in the order of the rows.
        scored_at: datetime64[us] (n,), UTC time at which each row was scored.
        new_count: Number of rows scored by this run.
    """

    anomaly_score: NDArray[np.float32]
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
            rows: int64 (n,), ascending rows of one part of the dataset.
            on_progress: Called with images done and in all.

        Returns:
            Number of rows scored.
        """
        found = score_rows(
            self.model, self.dataset, rows, self.batch_images, on_progress=on_progress
        )
        names = read_rows(self.dataset, _NAMES, rows)
        table = {
            **names,
            "anomaly_score": found.anomaly_score,
            "scored_at": [self.scored_at] * len(rows),
            "embedding": list(found.embedding),
        }
        named = "\n".join("\t".join(pair) for pair in zip(*names.values(), strict=True))
        ((number, _),) = divide_by_part(self.dataset, rows)
        folder = storage.join(self.kept_url, name_file(self.dataset.parts[number].name))
        url = storage.join(folder, f"{sha256(named.encode()).hexdigest()[:32]}.parquet")
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
    spans = max((len(np.unique(dataset.find_chunks(batch))) for batch in batches), default=1)
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
    kept = _Kept(scorer, rows)
    kept.read(kept.spans)
    pieces = kept.cut_pending()
    count = sum(map(len, pieces))
    done = len(rows) - count

    def report(before: int, count: int, _: int = 0) -> None:
        on_progress(before + count, len(rows))

    report(done, 0)
    if map_work is None:
        for piece in pieces:
            done += scorer(piece, on_progress=partial(report, done))
    else:
        for scored in map_work(scorer, pieces):
            report(done, scored)
            done += scored
    if pieces:
        kept.read(kept.list_incomplete())
    return KeptScores(kept.scores, kept.times.view("datetime64[us]"), count)


def read_embeddings(scorer: PieceScorer, rows: Rows) -> NDArray[np.float32]:
    """Read kept embeddings of some rows, at least one: float32 (n, D).

    Args:
        scorer: Version, dataset and the folder of its scores.
        rows: int64 (n,), ascending rows of the dataset that have been scored.
    """
    folders = _list_folders(scorer.kept_url)
    found = []
    for number, span in divide_by_part(scorer.dataset, rows):
        known = _PartScores.read(folders[name_file(scorer.dataset.parts[number].name)])
        names = read_rows(scorer.dataset, _NAMES, rows[span])
        places = [known.places[name] for name in zip(*names.values(), strict=True)]
        found.append(np.stack(known.table["embedding"].take(places).to_numpy()))
    return np.concatenate(found)


class _Kept:
    """The kept scores of rows: float32 scores, int64 times in us, and whether there is one."""

    def __init__(self, scorer: PieceScorer, rows: Rows) -> None:
        self._scorer, self._rows = scorer, rows
        self.spans = divide_by_part(scorer.dataset, rows)
        self.scores = np.full(len(rows), np.nan, np.float32)
        self.times = np.zeros(len(rows), np.int64)
        self._is_known = np.zeros(len(rows), bool)

    def read(self, spans: Sequence[tuple[int, slice]]) -> None:
        """Read what is kept of these parts, one after the other."""
        folders = _list_folders(self._scorer.kept_url)
        for number, span in spans:
            urls = folders.get(name_file(self._scorer.dataset.parts[number].name))
            if urls:
                self._read_part(_PartScores.read(urls), span)

    def _read_part(self, known: _PartScores, span: slice) -> None:
        names = read_rows(self._scorer.dataset, _NAMES, self._rows[span])
        places = [known.places.get(name) for name in zip(*names.values(), strict=True)]
        is_known = np.array([place is not None for place in places])
        found = [place for place in places if place is not None]
        kept = known.table.take(pa.array(found, pa.int64()))  # none has no type of its own
        within = np.flatnonzero(is_known) + span.start
        self.scores[within] = kept["anomaly_score"].to_numpy()
        self.times[within] = kept["scored_at"].cast(pa.int64()).to_numpy()
        self._is_known[within] = True

    def list_incomplete(self) -> list[tuple[int, slice]]:
        """List the parts with rows that have no score."""
        return [(number, span) for number, span in self.spans if not self._is_known[span].all()]

    def cut_pending(self) -> list[Rows]:
        """Cut the rows without a score into pieces, each of one part."""
        pieces: list[Rows] = []
        for _, span in self.list_incomplete():
            pending = self._rows[span][~self._is_known[span]]
            cut = range(0, len(pending), PIECE_IMAGES)
            pieces += [pending[first : first + PIECE_IMAGES] for first in cut]
        return pieces


def encode_parquet(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file; the same table gives the same bytes."""
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


@dataclass(frozen=True)
class _PartScores:
    """All kept scores of one part.

    Args:
        table: Scores, in the order of their pieces.
        places: Image and digest of its pixels -> row of the table; of several the first counts.
    """

    table: pa.Table
    places: Mapping[tuple[str, str], int]

    @classmethod
    def read(cls, urls: Sequence[str]) -> Self:
        table = pa.concat_tables(
            [pq.read_table(BytesIO(storage.read_bytes(url)), schema=_COLUMNS) for url in urls]
        )
        places: dict[tuple[str, str], int] = {}
        names = zip(*(table[name].to_pylist() for name in _NAMES), strict=True)
        for place, (image_id, digest) in enumerate(names):
            places.setdefault((image_id, digest), place)
        return cls(table, places)


def _list_folders(url: str) -> dict[str, list[str]]:
    """List the pieces that are kept of each part, in the order of their names."""
    root, folders = url.rstrip("/") + "/", dict[str, list[str]]()
    for info in storage.list_objects(root):
        folder, is_inside, _ = info.url.removeprefix(root).rpartition("/")
        if is_inside and info.url.endswith(".parquet"):
            folders.setdefault(folder, []).append(info.url)
    return {folder: sorted(urls) for folder, urls in folders.items()}
