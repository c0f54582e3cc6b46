"""A dataset scored: table, heatmaps, manifest and worklist."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SchemaError
from pipeline.io import storage
from pipeline.io.staging import require_reachable
from pipeline.records import ManifestEntry, Progress, Split, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import JSON, Dataset, open_dataset
from training.evaluation.intervals import Interval
from training.evaluation.subgroups import SUBGROUP_COLUMNS
from training.scoring.account import account_for_rows
from training.scoring.bfloat16 import NOTE, is_reduced
from training.scoring.drift import DriftReport, Reference, Sample, measure_drift
from training.scoring.kept_scores import Rows, RowScores, encode_parquet, score_new_rows
from training.scoring.loaded_model import ScoringModel
from training.scoring.outputs import name_results, publish, read_facts
from training.scoring.piece_scorer import PieceScorer
from training.scoring.ranking_change import RankingChange, compare_rankings
from training.scoring.table import RankedScores, encode_csv, judge_scores, rank_scores, tabulate
from training.worklist.cases import remove_stale_heatmaps, write_cases
from training.worklist.page import WorklistFacts, describe, render_worklist
from training.worklist.slides import draw_slides, is_of_slides

_A_BATCH: Final = np.timedelta64(1, "D")


@dataclass(frozen=True)
class ScoreReport:
    """The outcome of a scoring.

    Args:
        output_url: Where everything lies.
        dataset_url: What was scored.
        model_name: Registered name.
        model_version: Its version.
        run_id: The run that made it.
        scored_count: Images with a score.
        new_count: Of them scored by this run; the others had one.
        anomalous_count: Of them over the threshold.
        threshold: The score above which an image is called anomalous.
        auroc: With its interval, over images of known label; None unless both labels occur.
        average_precision: Likewise.
        manifest: What became of every item.
        notes: What a reader must know first.
        drift: How the last day's images lie against the champion's normals.
        moved: What moved in the ranking, where another version had made the visible one.
        results: Name of the results, which are new if it is.
        seconds: Wall time.
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
    manifest: tuple[ManifestEntry, ...]
    notes: tuple[str, ...]
    drift: DriftReport
    moved: RankingChange | None
    results: str
    seconds: float

    @property
    def worklist_url(self) -> str:
        """The page to open."""
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
    map_work: MapWork | None = None,
    notes: Sequence[str] = (),
    on_progress: Progress = ignore_progress,
) -> ScoreReport:
    """Score what is new in a dataset, and write the results of all of it.

    `scores.parquet`, `scores.csv`, `worklist.html` and `manifest.json` appear when all of them are
    there (`training.scoring.outputs`); heatmaps lie beside them. An image is scored once by a
    version, however often this is run or killed. Memory is bounded by the batch and the
    heatmaps, apart from some hundred bytes an image for its scores.

    Args:
        dataset_url: Sealed dataset.
        model: Usually the champion.
        output_url: Folder or prefix; made if absent.
        splits: Which splits to score; all if None.
        scored_at: Time to put down; now if None.
        batch_images: Images read and scored at once.
        top_heatmaps: So many of the strangest get heatmaps, and pictures in the worklist.
        map_work: An engine whose workers score, each with a copy of the network; this process
            alone if None.
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
    found = _score(
        model, dataset, readable, output_url, map_work=map_work, batch_images=batch_images,
        scored_at=(scored_at or datetime.now(UTC)).astimezone(UTC), on_progress=on_progress,
    )  # fmt: skip
    names = ("image_id", "group_id", "label", "source_digest")
    scored = rank_scores(
        readable, found, **{name: dataset.column(name)[readable] for name in names}
    )
    _check_some(dataset, scored)
    drift = _find_drift(dataset, model, scored)
    notes = (*model.notes, *((NOTE,) if is_reduced(model) else ()), *drift.notes, *notes)
    manifest = account_for_rows(dataset, asked, scored.rows)
    facts = _describe(dataset, model, scored, notes)
    table = tabulate(scored, model, source=facts.source)
    moved = _compare_with_visible(output_url, table)
    results = _write_results(
        output_url, dataset, model, scored, table, facts, manifest, top_heatmaps=top_heatmaps,
        batch_images=batch_images, splits=", ".join(splits or ["all"]),
    )  # fmt: skip
    auroc, average_precision = judge_scores(scored)
    return ScoreReport(
        output_url, dataset_url, model.name, model.version, model.run_id, len(scored.rows),
        found.new_count, int(scored.prediction.is_anomalous.sum()), model.threshold.value, auroc,
        average_precision, manifest, notes, drift, moved, results, time.monotonic() - began,
    )  # fmt: skip


def _score(
    model: ScoringModel,
    dataset: Dataset,
    rows: Rows,
    output_url: str,
    *,
    map_work: MapWork | None,
    scored_at: datetime,
    batch_images: int,
    on_progress: Progress,
) -> RowScores:
    """Score what is new, here or on the workers of an engine."""
    kept_url, map_pieces = _kept_url(output_url, model), None
    if map_work is not None:
        scorer = PieceScorer.of(model, dataset.url, kept_url, scored_at, batch_images)
        map_pieces = partial(map_work, scorer)
    return score_new_rows(
        model, dataset, rows, kept_url, scored_at=scored_at, batch_images=batch_images,
        map_pieces=map_pieces, on_progress=on_progress,
    )  # fmt: skip


def _write_results(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    table: pa.Table,
    facts: WorklistFacts,
    manifest: tuple[ManifestEntry, ...],
    *,
    top_heatmaps: int,
    batch_images: int,
    splits: str,
) -> str:
    """Write the results unless they are visible already, and give their name."""
    files = {"scores.parquet": encode_parquet(table), "scores.csv": encode_csv(table)}
    if is_of_slides(dataset):
        files |= draw_slides(dataset, scored, model.calibration.reference)
    empty_page = render_worklist(facts, []).encode()
    results = name_results(
        *(sha256(data).hexdigest() for data in (*files.values(), empty_page)),
        dataset.fingerprint, splits, top_heatmaps, manifest,
    )  # fmt: skip
    if read_facts(output_url).get("results") == f"results/{results}":
        return results
    cases = write_cases(
        output_url, dataset, model, scored, top_heatmaps=top_heatmaps, batch_images=batch_images
    )
    files["worklist.html"] = render_worklist(facts, cases).encode()
    publish(
        output_url, results, files, manifest, dataset=dataset.url,
        dataset_fingerprint=dataset.fingerprint, splits=splits, run_id=model.run_id,
        model=f"{model.name} version {model.version}", scored_at=facts.scored_at,
    )  # fmt: skip
    remove_stale_heatmaps(output_url, scored, model, top_heatmaps=top_heatmaps)
    return results


def _compare_with_visible(output_url: str, table: pa.Table) -> RankingChange | None:
    """What moves in the ranking against the visible results, if another version made them."""
    visible = read_facts(output_url).get("results")
    if visible is None:
        return None
    data = storage.read_bytes(storage.join(output_url, visible, "scores.parquet"))
    return compare_rankings(pq.read_table(BytesIO(data)), table)


def _find_drift(dataset: Dataset, model: ScoringModel, scored: RankedScores) -> DriftReport:
    """Drift of what was scored within a day before the last: the same however often it is run."""
    is_recent = scored.scored_at >= scored.scored_at.max() - _A_BATCH
    names = set(SUBGROUP_COLUMNS) & set(dataset.column_names)
    batch = Sample(scored.prediction.anomaly_score, scored.prediction.embedding)
    known = model.calibration.normals
    normals = Sample(np.asarray(known.scores), np.asarray(known.embeddings)) if known else None
    reference = Reference(model.calibration.reference, model.threshold.value, normals)
    columns = {name: dataset.column(name)[scored.rows[is_recent]] for name in names}
    return measure_drift(batch.choose(is_recent), reference, columns)


def _kept_url(output_url: str, model: ScoringModel) -> str:
    """Where the scores of a version are kept, row by row."""
    precision = "-bfloat16" if is_reduced(model) else ""
    name = f"{model.version}-{model.run_id[:8]}{precision}"
    return storage.join(output_url, "scored", model.name, name)


def _describe(
    dataset: Dataset, model: ScoringModel, scored: RankedScores, notes: tuple[str, ...]
) -> WorklistFacts:
    return describe(
        model,
        source=str(dataset.attributes["source"]),
        dataset_fingerprint=dataset.fingerprint,
        scored_count=len(scored.rows),
        # When the last of them was scored: nothing new gives the same page.
        scored_at=scored.scored_at.max().astype("datetime64[s]").item(),
        notes=notes,
    )


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
