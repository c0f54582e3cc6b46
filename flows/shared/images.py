"""The call that the flows of images and of radiographs share: ingest, or say what it would do."""

from __future__ import annotations

from typing import Any

from flows.shared.reports import EstimateReport
from flows.shared.tasks import resumable
from pipeline.images import ingest as image_ingest
from pipeline.images.estimate import estimate_images
from pipeline.images.ingest import ImageIngestReport
from pipeline.images.plan import ImageSettings
from pipeline.records import ImageListing, Progress
from pipeline.runtime.engines import MapWork


def ingest_or_estimate(
    dataset: str,
    listing: ImageListing,
    settings: ImageSettings,
    map_work: MapWork,
    *,
    dry_run: bool,
    on_progress: Progress,
    **options: Any,
) -> ImageIngestReport | EstimateReport:
    """Ingest images, or estimate what that would do.

    Args:
        dataset: URL of the dataset.
        listing: Images of the source, and what it left out.
        settings: Size, colour, resampling and splits of the dataset.
        map_work: Engine to work with.
        dry_run: Whether to estimate only, and write nothing at the destination.
        on_progress: Called with images done and in all.
        **options: Options that `ingest_images` and `estimate_images` share.
    """
    if dry_run:
        found = resumable(estimate_images)(dataset, listing, settings, map_work, **options)
        return EstimateReport(found)
    report: ImageIngestReport = resumable(image_ingest.ingest_images)(
        dataset, listing, settings, map_work, on_progress=on_progress, **options
    )
    return report
