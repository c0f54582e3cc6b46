"""Ingests listed slides in one call: survey, plan, tiles, sealed dataset."""

from __future__ import annotations

from pipeline.ingest.plan import Plan
from pipeline.ingest.run import IngestReport, ingest
from pipeline.io.scratch import Scratch
from pipeline.io.storage import join
from pipeline.records import Progress, SlideListing, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.slides.plan import plan_slides
from pipeline.slides.reader import make_tile_reader
from pipeline.slides.settings import SlideSettings
from pipeline.store.dataset import read_group_order
from pipeline.store.layout import require_destination


def ingest_slides(
    url: str,
    listing: SlideListing,
    settings: SlideSettings,
    map_work: MapWork,
    *,
    scratch: Scratch | None = None,
    on_survey: Progress = ignore_progress,
    on_progress: Progress = ignore_progress,
) -> IngestReport:
    """Tile slides into a sealed dataset; run again, it makes only what is new or has changed.

    Args:
        url: Folder or prefix of the dataset; it may hold nothing else.
        listing: Slides to tile, e.g. from `pipeline.list_slides`.
        settings: Tile size, um/px, stains and splits.
        map_work: Engine to work with, e.g. `pipeline.map_serially`.
        scratch: Scratch folder that slides on S3 are copied to; the usual one if None.
        on_survey: Function that gets slides surveyed and slides in all.
        on_progress: Function that gets tiles made and tiles in all.

    Raises:
        StorageError: The destination holds other files or cannot be written.
        SourceError: No slide can be used.
    """
    require_destination(url)
    plan = plan_listing(url, listing, settings, map_work, scratch=scratch, on_progress=on_survey)
    reader = make_tile_reader(settings, scratch)
    return ingest(url, plan, reader, map_work, on_progress=on_progress)


def plan_listing(
    url: str,
    listing: SlideListing,
    settings: SlideSettings,
    map_work: MapWork,
    *,
    scratch: Scratch | None = None,
    on_progress: Progress = ignore_progress,
) -> Plan:
    """Survey listed slides and plan their dataset, with its review pictures and cached surveys.

    Args:
        url: Folder or prefix of the dataset, whose order of slides is kept if it exists.
        listing: Slides to tile, e.g. from `pipeline.list_slides`.
        settings: Tile size, um/px, stains and splits.
        map_work: Engine to work with, e.g. `pipeline.map_serially`.
        scratch: Scratch folder that slides on S3 are copied to; the usual one if None.
        on_progress: Function that gets slides surveyed and slides in all.
    """
    return plan_slides(
        listing.slides,
        settings,
        map_work,
        source=listing.source,
        rejected=listing.rejected,
        known_order=read_group_order(url),
        review_url=join(url, "review"),
        survey_url=join(url, "survey"),
        scratch=scratch,
        on_progress=on_progress,
    )
