"""A dataset scored: table, heatmaps, manifest and worklist."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import SchemaError
from pipeline.manifest import write_manifest
from pipeline.records import Label, ManifestEntry, Progress, Split, ignore_progress
from pipeline.schema import Dataset, open_dataset
from pipeline.staging import require_reachable
from training.account import account_for_rows
from training.heatmaps import encode_heatmap
from training.image_cache import StreamedImages
from training.scores import RankedScores, encode_parquet, judge_scores, rank_scores, tabulate
from training.scoring_model import Prediction, ScoringModel
from training.statistics import Interval
from training.worklist import (
    LISTED_CASES,
    Case,
    data_uri,
    describe,
    picture_uri,
    render_worklist,
)

logger = logging.getLogger(__name__)

_EMBEDDED_SIDE_PX: Final = 128  # of heatmaps in the page, which the browser enlarges smoothly
_HEATMAP_BATCH: Final = 64
Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreReport:
    """The outcome of a scoring.

    Args:
        output_url: Where everything lies.
        dataset_url: What was scored.
        model_name: Registered name.
        model_version: Its version.
        run_id: The run that made it.
        scored_count: Images scored.
        anomalous_count: Of them over the threshold.
        threshold: The score above which an image is called anomalous.
        auroc: With its interval, over images of known label; None unless both labels occur.
        average_precision: Likewise.
        manifest: What became of every item.
        notes: What a reader must know first.
        seconds: Wall time.
    """

    output_url: str
    dataset_url: str
    model_name: str
    model_version: str
    run_id: str
    scored_count: int
    anomalous_count: int
    threshold: float
    auroc: Interval | None
    average_precision: float | None
    manifest: tuple[ManifestEntry, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def worklist_url(self) -> str:
        """The page to open."""
        return storage.join(self.output_url, "worklist.html")

    @property
    def failures(self) -> tuple[ManifestEntry, ...]:
        """The items that failed."""
        return tuple(entry for entry in self.manifest if entry.state == "failed")


def score_dataset(
    dataset_url: str,
    model: ScoringModel,
    output_url: str,
    *,
    splits: Sequence[Split] | None = None,
    scored_at: datetime | None = None,
    batch_images: int = 256,
    top_heatmaps: int = 200,
    notes: Sequence[str] = (),
    on_progress: Progress = ignore_progress,
) -> ScoreReport:
    """Score a dataset and write `scores.parquet`, `heatmaps/`, `manifest.json`, `worklist.html`.

    Run again, it writes the same bytes but for the time. Memory is bounded by the batch and the
    heatmaps, apart from some hundred bytes an image for its scores.

    Args:
        dataset_url: Sealed dataset.
        model: Usually the champion.
        output_url: Folder or prefix; made if absent.
        splits: Which splits to score; all if None.
        scored_at: Time to put down; now if None.
        batch_images: Images read and scored at once.
        top_heatmaps: So many of the strangest get heatmaps, and pictures in the worklist.
        notes: What a reader of the worklist must know first.
        on_progress: Called with images done and in all.

    Raises:
        SchemaError: The dataset is unsealed, prepared otherwise than the model's, or has no
            readable image in these splits.
        StorageError: The output cannot be written.
    """
    began = time.monotonic()
    dataset = open_dataset(dataset_url)
    model.ingest.require_alike(dataset, image_shape=model.description.image_shape)
    require_reachable(output_url)
    asked, readable = _choose(dataset, splits)
    prediction = score_rows(model, dataset, readable, batch_images, on_progress=on_progress)
    scored = rank_scores(
        readable,
        prediction,
        **{name: dataset.column(name)[readable] for name in ("image_id", "group_id", "label")},
    )
    _check_some(dataset, scored)
    time_stamp = (scored_at or datetime.now(UTC)).astimezone(UTC)
    notes = (*model.notes, *notes)
    cases = _write_heatmaps(output_url, dataset, model, scored, top_heatmaps, batch_images)
    _write_worklist(output_url, dataset, model, cases, len(scored.rows), time_stamp, notes)
    manifest = account_for_rows(dataset, asked, scored.rows)
    write_manifest(
        storage.join(output_url, "manifest.json"),
        manifest,
        dataset=dataset_url,
        dataset_fingerprint=dataset.fingerprint,
        splits=", ".join(splits) if splits else "all",
        model=f"{model.name} version {model.version}",
        scored_at=time_stamp,
    )
    table = tabulate(scored, model, source=str(dataset.attributes["source"]), scored_at=time_stamp)
    storage.write_bytes(storage.join(output_url, "scores.parquet"), encode_parquet(table))
    auroc, average_precision = judge_scores(scored)
    return ScoreReport(
        output_url, dataset_url, model.name, model.version, model.run_id, len(scored.rows),
        int(scored.prediction.is_anomalous.sum()), model.threshold.value, auroc,
        average_precision, manifest, notes, time.monotonic() - began,
    )  # fmt: skip


def _write_worklist(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    cases: Sequence[Case],
    scored_count: int,
    scored_at: datetime,
    notes: tuple[str, ...],
) -> None:
    facts = describe(
        model,
        source=str(dataset.attributes["source"]),
        dataset_fingerprint=dataset.fingerprint,
        scored_count=scored_count,
        scored_at=scored_at,
        notes=notes,
    )
    page = render_worklist(facts, cases)
    storage.write_bytes(storage.join(output_url, "worklist.html"), page.encode())


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
    for _, images in _read_batches(dataset, rows, batch_images):
        parts.append(model.predict(images))
        done += len(images)
        on_progress(done, len(rows))
    return Prediction(
        np.concatenate([part.anomaly_score for part in parts] or [np.empty(0, np.float32)]),
        np.concatenate([part.percentile for part in parts] or [np.empty(0)]),
        np.concatenate([part.is_anomalous for part in parts] or [np.empty(0, bool)]),
        None,
    )


def _read_batches(
    dataset: Dataset, rows: Rows, batch_images: int
) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Rows and their images, a batch at a time; the next batch is read meanwhile."""
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


def _choose(dataset: Dataset, splits: Sequence[Split] | None) -> tuple[Rows, Rows]:
    """Rows asked for, and those of them that are readable."""
    is_asked = np.ones(dataset.image_count, bool)
    if splits is not None:
        is_asked = np.isin(dataset.column("split").astype(str), list(splits))
    asked = np.flatnonzero(is_asked)
    return asked, asked[dataset.column("readable")[asked]]


def _check_some(dataset: Dataset, scored: RankedScores) -> None:
    if not len(scored.rows):
        raise SchemaError(
            dataset.url,
            "no readable image to score in these splits",
            "Choose other splits; its manifest.json says what became of each source",
        )


def _write_heatmaps(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    top_heatmaps: int,
    batch_images: int,
) -> list[Case]:
    """Write heatmaps of the strangest, remove those of earlier runs, and list the cases."""
    low, high = model.calibration.heatmap_low, model.calibration.heatmap_high
    # Read in the order of the dataset, named by the place in the ranking.
    place_of = {int(row): place for place, row in enumerate(scored.rows[:top_heatmaps])}
    top = np.sort(scored.rows[:top_heatmaps])
    written, pictures = set(), {}
    for rows, images in _read_batches(dataset, top, min(batch_images, _HEATMAP_BATCH)):
        heatmaps = model.predict(images, heatmaps=True).heatmap
        assert heatmaps is not None  # noqa: S101 -- they were asked for
        for row, image, heatmap in zip(rows, images, heatmaps, strict=True):
            place = place_of[int(row)]
            url = storage.join(output_url, "heatmaps", heatmap_name(scored.image_id[place]))
            storage.write_bytes(url, encode_heatmap(heatmap, low=low, high=high))
            written.add(url)
            small = encode_heatmap(heatmap, low=low, high=high, max_side_px=_EMBEDDED_SIDE_PX)
            pictures[place] = (picture_uri(image), data_uri("image/png", small))
    for info in storage.list_objects(storage.join(output_url, "heatmaps") + "/"):
        if info.url not in written:
            storage.delete(info.url)
    return [
        Case(
            str(scored.image_id[place]),
            str(scored.group_id[place]),
            float(scored.prediction.anomaly_score[place]),
            float(scored.prediction.percentile[place]),
            bool(scored.prediction.is_anomalous[place]),
            Label(int(scored.label[place])),
            *pictures.get(place, ("", "")),
        )
        for place in range(min(len(scored.rows), LISTED_CASES))
    ]


def heatmap_name(image_id: str) -> str:
    """File name of an image's heatmap: readable, safe on every store, and unique."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._")[-80:]
    return f"{readable}-{sha256(image_id.encode()).hexdigest()[:10]}.png"
