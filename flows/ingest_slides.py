"""`normscope ingest slides`: whole-slide images to a dataset of tiles."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

import flows.environment  # noqa: F401 -- sets variables, before the rest
from flows.engine import open_engine
from flows.progress import progress
from flows.reports import publish
from flows.settings import load_settings
from flows.tasks import resumable
from pipeline.ingest import IngestReport, ingest
from pipeline.slide_dataset import SlideSettings, make_reader, plan_slides
from pipeline.sources.camelyon16 import list_slides
from pipeline.storage import join


@flow(name="ingest-slides")
def ingest_slides(
    source: str,
    dataset: str,
    *,
    labels: str | None = None,
    tile_size_px: Annotated[int, Field(ge=8)] = 64,
    mpp_um: Annotated[float, Field(gt=0)] = 1.0,
    min_tissue_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5,
    max_tiles_per_slide: int | None = None,
    mpp_override_um: float | None = None,
    seed: int = 0,
) -> IngestReport:
    """Tile whole-slide images into a sealed dataset.

    Reads Camelyon16's official layout (training/normal, training/tumor, testing/images,
    annotations), a folder or prefix of slides, or one slide. A review picture of every slide
    goes to `review/` in the dataset.

    Args:
        source: Folder, `s3://` prefix or single slide.
        dataset: Where the dataset goes: a path or an `s3://` URL.
        labels: CSV table (slide, label), where the official layout does not say.
        tile_size_px: Height and width of a tile.
        mpp_um: Micrometres per pixel of the tiles; a 10x objective gives about 1.
        min_tissue_fraction: Tiles with a smaller share of tissue are left out.
        max_tiles_per_slide: A random sample of so many tiles a slide; all by default.
        mpp_override_um: Micrometres per pixel of every slide, where the files do not say.
        seed: Of the splits and of the sample.
    """
    settings = SlideSettings(
        tile_size_px=tile_size_px, mpp_um=mpp_um, min_tissue_fraction=min_tissue_fraction,
        max_tiles_per_slide=max_tiles_per_slide, mpp_override_um=mpp_override_um, seed=seed,
    )  # fmt: skip
    listing = list_slides(source, labels=labels)
    with open_engine(load_settings()) as map_work:
        with progress("Slides") as surveyed:
            plan = plan_slides(
                listing.slides, settings, map_work, source=listing.source,
                rejected=listing.rejected, review_url=join(dataset, "review"), on_progress=surveyed,
            )  # fmt: skip
        with progress("Tiles") as advance:
            report = resumable(ingest)(
                dataset, plan, make_reader(settings), map_work, on_progress=advance
            )
    return publish(report)
