"""`normscope score`: new images to a ranked worklist, by the champion."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from prefect import flow
from pydantic import Field, NonNegativeInt, PositiveInt

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.driver import drive
from flows.shared.engine import open_engine, open_key
from flows.shared.events import alert_of_drift, report_ranking
from flows.shared.limits import cancel_late_runs, limited
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import Settings, load_settings
from flows.shared.tasks import resumable
from pipeline.conform import ingest_alike, is_dataset
from pipeline.errors import SettingsError
from pipeline.io.storage import join, name_of
from pipeline.records import Split
from pipeline.sources.modified_range import ModifiedRange
from pipeline.store.dataset import open_dataset
from training.cluster.connection import Share
from training.learning.run_folder import make_absolute
from training.registry.champion import record_scoring
from training.registry.versions import load_champion
from training.score import ScoreReport, score_dataset
from training.score_on_workers import score_on_workers
from training.scoring.loaded_model import ScoringModel


@flow(name="score")
def score(
    source: str,
    output: str,
    *,
    model_name: str,
    sheet: str | None = None,
    labels: str | None = None,
    mpp_table: str | None = None,
    splits: list[Split] | None = None,
    top_heatmaps: NonNegativeInt = 200,
    reduced_precision: bool = False,
    workers: PositiveInt = 1,
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0,
    since: datetime | None = None,
    until: datetime | None = None,
    ledgers: str | None = None,
) -> ScoreReport:
    """Score new scans of a folder, prefix or dataset with the champion; write the worklist.

    Scans are first prepared exactly as the champion's training images were, into `dataset/` in
    the output. A second run scores what was added or changed since, or everything after a
    promotion. Results appear once all of them are complete.

    Args:
        source: Folder or `s3://` prefix of scans, or a sealed dataset.
        output: Destination of the results, a path or an `s3://` URL.
        model_name: Registered name, e.g. pcam-anomaly.
        sheet: Sample sheet of slides, a CSV table as for `ingest slides`: patients, um/px, tissue
            masks, labels. Images have theirs in `labels`.
        labels: Table of the scans' labels, where there is one; the AUROC is then reported.
        mpp_table: CSV table (slide, mpp_um) with the micrometres per pixel of single slides.
        splits: Splits of a sealed dataset to score; test by default.
        top_heatmaps: Number of the highest scores that get a heatmap and a picture in the
            worklist.
        reduced_precision: Compute features in bfloat16: about twice as fast on processors that
            support it; scores differ by some thousandths, which the page says.
        workers: Number of processes that score together, on the Ray cluster of `RAY_ADDRESS` or
            one that is started here; 1 scores in this process.
        gpus_per_worker: GPUs of each worker; a fraction, e.g. 0.5, shares one among several.
        since: Earliest time of a scan's last modification, UTC where no zone is given. The
            results hold these scans alone, so give a range its own output.
        until: Time before which a scan was last modified, UTC where no zone is given.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    settings, period = load_settings(), ModifiedRange.of(since, until)
    cancel_late_runs()
    ledgers = settings.place("ledgers", ledgers)
    source, output = make_absolute(source), make_absolute(output)  # workers stand elsewhere
    champion = load_champion(model_name)
    if is_dataset(source):
        _require_whole(source, period, {"mpp_table": mpp_table, "sheet": sheet})
        dataset, splits = source, ["test"] if splits is None else splits
    else:
        dataset, splits = join(output, "dataset"), None
        with open_engine(settings) as map_work, progress("Images") as advance:
            resumable(ingest_alike)(
                source,
                dataset,
                champion.ingest.parameters,
                map_work,
                name=name_of(source),
                sheet=sheet,
                labels=labels,
                mpp_table=mpp_table,
                key=open_key(settings),
                period=period,
                on_progress=advance,
            )
    choices = {"splits": splits, "top_heatmaps": top_heatmaps, "notes": period.notes}
    if workers == 1 and not gpus_per_worker:
        report = _score_here(dataset, output, champion, reduced_precision, choices)
    else:
        share = Share(gpus=gpus_per_worker, wait_s=settings.ray_wait_s)
        more = {"reduced_precision": reduced_precision, "workers": workers, "share": share}
        with limited(gpus=workers * gpus_per_worker):
            report = _score_on_workers(dataset, output, champion, settings, {**choices, **more})
    return _publish(report, period, ledgers)


def _score_here(
    dataset: str, output: str, champion: ScoringModel, is_reduced: bool, choices: dict[str, Any]
) -> ScoreReport:
    """Score in this process."""
    model = champion.reduce_precision() if is_reduced else champion
    with progress("Scores") as advance:
        report: ScoreReport = resumable(score_dataset)(
            dataset, model, output, **choices, on_progress=advance
        )
    return report


def _score_on_workers(
    dataset: str, output: str, champion: ScoringModel, settings: Settings, choices: dict[str, Any]
) -> ScoreReport:
    """Score on Ray: started here, or the cluster that the settings name."""
    work = drive(score_on_workers, settings, subject=output)
    with progress("Scores") as advance:
        report: ScoreReport = resumable(work)(
            dataset_url=dataset,
            output_url=output,
            model_name=champion.name,
            model_version=champion.version,
            dataset_fingerprint=open_dataset(dataset).fingerprint,
            **choices,
            on_progress=advance,
        )
    return report


def _publish(report: ScoreReport, period: ModifiedRange, ledgers: str) -> ScoreReport:
    facts = {**report.to_facts(), **period.to_facts()}
    resumable(record_scoring)(report.model_name, facts, ledgers_url=ledgers)
    alert_of_drift(report)
    report_ranking(report)
    return publish(report)


def _require_whole(dataset: str, period: ModifiedRange, tables: Mapping[str, str | None]) -> None:
    """Refuse parameters that only scans can follow.

    Raises:
        SettingsError: A range of time or a table of slides is given with a sealed dataset.
    """
    if period.is_bounded:
        problem = f"{dataset} is a sealed dataset, which does not keep when scans were modified"
        raise SettingsError(
            "since, until", problem, "Give the folder of scans as source, or leave both out"
        )
    for name in filter(tables.get, tables):
        problem = f"{dataset} is a sealed dataset, whose tiles are cut already"
        raise SettingsError(name, problem, "Give the folder of slides as source, or leave it out")
