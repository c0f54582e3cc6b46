"""`normscope export`: where a dataset's tiles lie, in the formats of other tools."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.export.tiles import ExportFormat, ExportReport, export_tiles


@flow(name="export")
def export(dataset: str, output: str, *, export_format: ExportFormat = "parquet") -> ExportReport:
    """Write a file for each slide of a dataset that says where its tiles lie.

    A file is named by the stem of the slide's file; where two slides share one, by the whole path
    with `__` in place of `/`. Coordinates are level-0 pixels.

    Args:
        dataset: Sealed dataset of slides, a path or an `s3://` URL.
        output: Folder or `s3://` prefix of the files.
        export_format: Format of the files: `parquet`, a table of all columns; `geojson`, outlines
            that QuPath opens over the slide; `clam` or `trident`, HDF5 with `coords` (x, y) for
            the feature extraction of these tools.
    """
    load_settings()
    with progress("Slides") as advance:
        report = resumable(export_tiles)(dataset, output, export_format, on_progress=advance)
    return publish(report)
