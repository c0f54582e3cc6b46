"""`normscope ingest xrays`: ChestX-ray14 radiographs to a dataset."""

from __future__ import annotations

from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

import flows.environment  # noqa: F401 -- sets variables, before the rest
from flows.engine import open_engine
from flows.progress import progress
from flows.reports import publish
from flows.settings import load_settings
from flows.tasks import resumable
from pipeline.image_dataset import ImageSettings, make_reader, plan_images
from pipeline.ingest import IngestReport, ingest
from pipeline.sources.chestxray14 import Views, list_radiographs


@flow(name="ingest-xrays")
def ingest_xrays(
    source: str,
    dataset: str,
    *,
    table: str | None = None,
    views: Views = "all",
    findings: list[str] | None = None,
    size_px: Annotated[int, Field(ge=8)] = 64,
    crop_px: int | None = None,
    equalize: bool = False,
    seed: int = 0,
) -> IngestReport:
    """Preprocess ChestX-ray14 radiographs into a sealed dataset.

    Images may lie at any depth below the source, and may be only a part of the data set: rows of
    the table without an image are counted. Patients are never divided by a split.

    Args:
        source: Folder or `s3://` prefix of the images.
        dataset: Where the dataset goes: a path or an `s3://` URL.
        table: The official Data_Entry_2017 table; by default found in the source or its parent.
        views: Radiographs of this view position only, or all.
        findings: Of the anomalous, those with one of these findings only; all by default.
        size_px: Height and width of the dataset's images.
        crop_px: Side of the square cut from each centre first, in the file's pixels.
        equalize: Equalise the histogram, as the reference method does.
        seed: Of the splits, where there are no official lists.
    """
    settings = ImageSettings(
        modality="radiograph", size_px=size_px, crop_px=crop_px, colour="grey", equalize=equalize,
        seed=seed,
    )  # fmt: skip
    listing = list_radiographs(source, table_url=table, views=views, findings=findings or ())
    for note in listing.notes:
        get_run_logger().info(note)
    plan = plan_images(listing.images, settings, source="chestxray14", rejected=listing.rejected)
    with open_engine(load_settings()) as map_work, progress("Radiographs") as advance:
        report = resumable(ingest)(dataset, plan, make_reader(plan), map_work, on_progress=advance)
    return publish(report)
