"""Score a dataset: table, heatmaps, manifest and worklist."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.ingest.manifest import read_manifest
from pipeline.io import storage
from pipeline.io.ranges import open_by_range
from pipeline.io.staging import require_reachable
from pipeline.records import JSON, ManifestEntry, Progress, Split, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.part import OpenPart
from training.data.chosen_rows import ChosenRows, choose_in_parts
from training.data.part_columns import list_filled, read_column, read_rows
from training.evaluation.intervals import Interval
from training.evaluation.subgroups import SUBGROUP_COLUMNS
from training.scoring.drift import DriftReport, Reference, Sample, measure_drift
from training.scoring.kept_scores import (
    PieceScorer,
    Rows,
    read_embeddings,
    score_new_rows,
)
from training.scoring.loaded_model import ScoringModel
from training.scoring.outputs import (
    Outcomes,
    digest_file,
    list_outcomes,
    name_results,
    publish,
    read_facts,
)
from training.scoring.ranking_change import RankingChange, compare_rankings
from training.scoring.table import SPREADSHEET, TABLE, RankedScores, judge_scores, rank_scores
from training.worklist.cases import remove_stale_heatmaps, write_cases
from training.worklist.page import LISTED_CASES, WorklistFacts, describe, render_worklist
from training.worklist.slides import draw_slides, is_of_slides

_DRIFT_WINDOW: Final = np.timedelta64(1, "D")
_DRIFT_IMAGES: Final = 20_000  # at most, as their embeddings are held


@dataclass(frozen=True)
class ScoreReport:
    """The outcome of a scoring.

    Args:
        output_url: Folder or prefix of the results.
        dataset_url: Dataset that was scored.
        model_name: Registered name of the model.
        model_version: Number of the model's version.
        run_id: MLflow run that trained the version.
        scored_count: Number of images with a score.
        new_count: Number of images scored by this run; the others had a score.
        anomalous_count: Number of images over the threshold.
        threshold: Score above which an image is called anomalous.
        auroc: AUROC over labelled images with its interval; None unless both labels occur.
        average_precision: Average precision over labelled images; None unless both labels occur.
        failures: The items that failed.
        notes: Caveats that the worklist shows first.
        drift: Comparison of the last day's images with the version's normal images.
        moved: Changes of the ranking, where another version had made the former one.
        results: Name of the results; the same name means nothing new.
        seconds: Wall-clock time in seconds.
    """

    output_url: str
    dataset_url: str
    model_name: str
    model_version: str
    run_id: str
    scored_count: int
    new_count: int
    anomalous_count: int
    threshold: float
    auroc: Interval | None
    average_precision: float | None
    failures: tuple[ManifestEntry, ...]
    notes: tuple[str, ...]
    drift: DriftReport
    moved: RankingChange | None
    results: str
    seconds: float

    @property
    def worklist_url(self) -> str:
        """URL of the page to open."""
        return storage.join(self.output_url, "worklist.html")

    def to_facts(self) -> dict[str, JSON]:
        """The facts of the scoring that the model's ledger keeps."""
        return {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "run_id": self.run_id,
            "output_url": self.output_url,
            "dataset_url": self.dataset_url,
            "results": self.results,
            "scored_count": self.scored_count,
            "new_count": self.new_count,
            "anomalous_count": self.anomalous_count,
        }

    @property
    def manifest(self) -> tuple[ManifestEntry, ...]:
        """Outcome of every item, read from `manifest.json` of these results at each call."""
        return read_manifest(
            storage.join(self.output_url, "results", self.results, "manifest.json")
        )


def score_dataset(
    dataset_url: str,
    model: ScoringModel,
    output_url: str,
    *,
    splits: Sequence[Split] | None = None,
    scored_at: datetime | None = None,
    batch_images: int = 256,
    top_heatmaps: int = 200,
    map_work: MapWork | None = None,
    notes: Sequence[str] = (),
    on_progress: Progress = ignore_progress,
) -> ScoreReport:
    """Score what is new in a dataset, and write the results of all of it.

    `scores.parquet`, `scores.csv`, `worklist.html` and `manifest.json` appear together, when all
    of them are written (`training.scoring.outputs`); heatmaps lie next to them. A version scores
    an image once, however often this is run or killed. Columns and kept scores are read part by
    part, and embeddings of at most 20,000 images. Of each image only numbers are held, at most
    about a hundred bytes; names and digests pass through temporary files of some hundred bytes an
    image. Entries of failed images are held.

    Args:
        dataset_url: Path or URL of a sealed dataset.
        model: Loaded version, usually the champion.
        output_url: Folder or prefix of the results; created if absent.
        splits: Splits to score; all if None.
        scored_at: Time to record, with a time zone; now if None.
        batch_images: Number of images read and scored at once.
        top_heatmaps: Number of images, the most anomalous first, that get heatmaps and pictures.
        map_work: Engine whose workers score, each with a copy of the network; this process alone
            if None.
        notes: Caveats that the worklist shows first.
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
    asked, readable = _choose_rows(dataset, splits)
    time_utc = (scored_at or datetime.now(UTC)).astimezone(UTC)
    scorer = PieceScorer(model, dataset, _kept_url(output_url, model), time_utc, batch_images)
    found = score_new_rows(scorer, readable, map_work=map_work, on_progress=on_progress)
    with TemporaryDirectory(prefix="normscope-scores-") as name:
        folder, named = Path(name), max(LISTED_CASES, top_heatmaps)
        scored = rank_scores(dataset, model, readable, found, folder, named_count=named)
        _require_some(dataset, scored.rows)
        drift = _measure_recent_drift(scorer, scored)
        notes = (*model.notes, *drift.notes, *notes)
        facts = describe(model, dataset, scored, notes)
        outcomes = Outcomes.write(folder / "items", list_outcomes(dataset, asked, scored.rows))
        made = _Results(output_url, dataset, model, scored, facts, outcomes, folder)
        moved = made.compare_with_current()
        results = made.write(", ".join(splits or ["all"]), top_heatmaps, batch_images)
    auroc, average_precision = judge_scores(dataset, scored)
    return ScoreReport(
        output_url=output_url,
        dataset_url=dataset_url,
        model_name=model.name,
        model_version=model.version,
        run_id=model.run_id,
        scored_count=len(scored.rows),
        new_count=found.new_count,
        anomalous_count=int(scored.prediction.is_anomalous.sum()),
        threshold=model.threshold.value,
        auroc=auroc,
        average_precision=average_precision,
        failures=outcomes.failures,
        notes=notes,
        drift=drift,
        moved=moved,
        results=results,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Results:
    """All that is written of a scoring."""

    output_url: str
    dataset: Dataset
    model: ScoringModel
    scored: RankedScores
    facts: WorklistFacts
    outcomes: Outcomes
    folder: Path  # of the ranking's files

    def compare_with_current(self) -> RankingChange | None:
        """Compare with the ranking in the output, if another version made that."""
        current = read_facts(self.output_url).get("results")
        if current is None:
            return None
        former = storage.describe(storage.join(self.output_url, current, TABLE))
        with open_by_range(former) as file, pq.ParquetFile(self.folder / TABLE) as after:
            return compare_rankings(pq.ParquetFile(file), after)

    def write(self, splits: str, top_heatmaps: int, batch_images: int) -> str:
        """Write the results unless they are the current ones, and return their name."""
        dataset, model, scored, output_url = self.dataset, self.model, self.scored, self.output_url
        tables = {name: self.folder / name for name in (TABLE, SPREADSHEET)}
        page = sha256(render_worklist(self.facts, []).encode()).hexdigest()
        digests = [digest_file(path) for path in (*tables.values(), self.outcomes.path)]
        results = name_results(*digests, page, dataset.fingerprint, splits, top_heatmaps)
        if read_facts(output_url).get("results") == f"results/{results}":
            return results
        cases = write_cases(output_url, dataset, model, scored, top_heatmaps, batch_images)
        page_file = ("worklist.html", render_worklist(self.facts, cases).encode())
        reference = model.calibration.reference
        slides = draw_slides(dataset, scored, reference) if is_of_slides(dataset) else ()
        publish(
            output_url,
            results,
            chain(tables.items(), [page_file], slides),
            self.outcomes,
            dataset=dataset.url,
            dataset_fingerprint=dataset.fingerprint,
            splits=splits,
            run_id=model.run_id,
            model=f"{model.name} version {model.version}",
            scored_at=self.facts.scored_at,
        )
        remove_stale_heatmaps(output_url, scored, model, top_heatmaps)
        return results


def _measure_recent_drift(scorer: PieceScorer, scored: RankedScores) -> DriftReport:
    """Measure drift of the images scored on the last day: the same however often it is run.

    Of more than `_DRIFT_IMAGES` a sample counts: images at even distances in the dataset.
    """
    dataset, model = scorer.dataset, scorer.model
    recent = np.flatnonzero(scored.scored_at >= scored.scored_at.max() - _DRIFT_WINDOW)
    recent = recent[np.argsort(scored.rows[recent])]
    if len(recent) > _DRIFT_IMAGES:
        recent = recent[np.linspace(0, len(recent) - 1, _DRIFT_IMAGES).astype(np.int64)]
    rows = scored.rows[recent]
    names = sorted(set(SUBGROUP_COLUMNS) & set(dataset.column_names))
    batch = Sample(scored.prediction.anomaly_score[recent], read_embeddings(scorer, rows))
    known = model.calibration.normals
    normals = Sample(np.asarray(known.scores), np.asarray(known.embeddings))
    reference = Reference(model.calibration.reference, model.threshold.value, normals)
    return measure_drift(batch, reference, read_rows(dataset, names, rows))


def _kept_url(output_url: str, model: ScoringModel) -> str:
    """Folder in which the scores of a version are kept."""
    precision = "-bfloat16" if model.detector.is_reduced else ""
    name = f"{model.version}-{model.run_id[:8]}{precision}"
    return storage.join(output_url, "scored", model.name, name)


def _choose_rows(dataset: Dataset, splits: Sequence[Split] | None) -> tuple[ChosenRows, Rows]:
    """Rows of the splits, and the readable ones of them, of which there must be some."""

    def is_asked(opened: OpenPart) -> NDArray[np.bool_]:
        if splits is None:
            return np.ones(opened.part.image_count, bool)
        return np.isin(read_column(opened, "split").astype(str), list(splits))

    def is_readable(opened: OpenPart) -> NDArray[np.bool_]:
        return is_asked(opened) & opened.column("readable")

    filled = list_filled(dataset)
    asked, readable = (
        choose_in_parts(dataset, filled, function) for function in (is_asked, is_readable)
    )
    rows = readable.list_all()
    _require_some(dataset, rows)
    return asked, rows


def _require_some(dataset: Dataset, rows: Rows) -> None:
    if not len(rows):
        raise SchemaError(
            dataset.url,
            "no readable image to score in these splits",
            "Choose other splits; its manifest.json gives the outcome of each source",
        )
