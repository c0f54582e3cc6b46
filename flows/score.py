"""`normscope score`: new images to a ranked worklist, by the champion."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Annotated

from prefect import flow
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine
from flows.shared.events import alert_of_drift, report_ranking
from flows.shared.progress import progress
from flows.shared.pseudonym_key import open_key
from flows.shared.reports import publish
from flows.shared.settings import Settings, load_settings
from flows.shared.tasks import resumable
from pipeline.conform import ingest_alike, is_dataset
from pipeline.errors import SettingsError
from pipeline.io.storage import join, name_of
from pipeline.records import Split
from pipeline.runtime.engines import MapWork
from pipeline.sources.modified_range import ModifiedRange
from training.cluster.connection import Share
from training.cluster.map import ray_engine
from training.learning.run_folder import make_absolute
from training.registry.champion import record_scoring
from training.registry.versions import load_champion
from training.score import ScoreReport, score_dataset


@flow(name="score")
def score(
    source: str,
    output: str,
    *,
    model_name: str,
    labels: str | None = None,
    mpp_table: str | None = None,
    splits: list[Split] | None = None,
    top_heatmaps: int = 200,
    reduced_precision: bool = False,
    workers: Annotated[int, Field(ge=1)] = 1,
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0,
    since: datetime | None = None,
    until: datetime | None = None,
    ledgers: str | None = None,
) -> ScoreReport:
    """Score what is new in a folder, prefix or dataset with the champion; write the worklist.

    Scans are first prepared exactly as the champion's training images were, into `dataset/`
    below the output. Run again, it scores what was added or rewritten since, or everything
    after a promotion; results are seen when all of them are there.

    Args:
        source: Folder or `s3://` prefix of scans, or a sealed dataset.
        output: Where the results go: a path or an `s3://` URL.
        model_name: Registered name, e.g. pcam-anomaly.
        labels: Label table of the scans, where there is one: then the AUROC is reported.
        mpp_table: CSV table (slide, mpp_um): micrometres per pixel of single slides.
        splits: Of a dataset, which to score; test by default.
        top_heatmaps: So many of the strangest get a heatmap and a picture in the worklist.
        reduced_precision: Features in bfloat16: about twice as fast on processors that have it,
            scores differ by some thousandths; the page says so.
        workers: Processes that score together, on the Ray cluster of `RAY_ADDRESS` or one that is
            started here; 1 scores in this process.
        gpus_per_worker: 1 for a GPU for each of them; with a part of one several share it.
        since: Only scans whose file was last modified then or later; UTC where no zone is given.
            The results are of these alone, so give a range an output of its own.
        until: Only scans whose file was last modified before.
        ledgers: Folder of the ledger of a model that has none yet, a path or `s3://`; below the
            home folder by default.
    """
    settings, period = load_settings(), ModifiedRange.of(since, until)
    source, output = make_absolute(source), make_absolute(output)  # workers stand elsewhere
    champion = load_champion(model_name)
    dataset = source
    if not is_dataset(source):
        dataset, splits = join(output, "dataset"), None
        with open_engine(settings) as map_work, progress("Images") as advance:
            resumable(ingest_alike)(
                source, dataset, champion.ingest.parameters, map_work,
                name=name_of(source), labels=labels, mpp_table=mpp_table, key=open_key(settings),
                period=period, on_progress=advance,
            )  # fmt: skip
    else:
        _require_unbounded(period, source)
        _require_no_mpp_table(mpp_table, source)
        splits = ["test"] if splits is None else splits
    with (
        _open_workers(settings, workers, gpus_per_worker) as map_work,
        progress("Scores") as advance,
    ):
        report = resumable(score_dataset)(
            dataset, champion.reduce_precision() if reduced_precision else champion, output,
            splits=splits, top_heatmaps=top_heatmaps, map_work=map_work, notes=period.notes,
            on_progress=advance,
        )  # fmt: skip
    resumable(record_scoring)(
        model_name,
        {**report.to_facts(), **period.to_facts()},
        ledgers_url=ledgers or join(str(settings.home), "ledgers"),
    )
    alert_of_drift(report)
    report_ranking(report)
    return publish(report)


def _require_unbounded(period: ModifiedRange, dataset: str) -> None:
    if period.is_bounded:
        raise SettingsError(
            "since, until", f"{dataset} is a sealed dataset, which does not keep when scans were "
            "modified", "Give the folder of scans as source, or leave both out",
        )  # fmt: skip


def _require_no_mpp_table(mpp_table: str | None, dataset: str) -> None:
    if mpp_table:
        raise SettingsError(
            "mpp_table", f"{dataset} is a sealed dataset, whose tiles are cut already",
            "Give the folder of slides as source, or leave it out",
        )  # fmt: skip


def _open_workers(
    settings: Settings, workers: int, gpus: float
) -> AbstractContextManager[MapWork | None]:
    """Workers of Ray, or none where this process is enough."""
    if workers == 1 and not gpus:
        return nullcontext()
    return ray_engine(settings.ray_address, workers=workers, share=Share(gpus=gpus))
