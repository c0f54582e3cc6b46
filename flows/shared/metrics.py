"""Figures of finished work, as events that `normscope metrics` turns into Prometheus metrics.

A flow's process is too short-lived to be scraped; Prefect's server keeps its events for a week.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import singledispatch
from typing import Any, Final

from prefect.context import FlowRunContext
from prefect.events import emit_event

from pipeline.errors import StorageError
from pipeline.ingest.progress import read_progress
from pipeline.ingest.run import IngestReport
from training.score import ScoreReport

WORKED: Final = "normscope.work.done"

FIGURES: Final[Mapping[str, str]] = {
    "images": "Images in the dataset or in the table of scores, made or kept.",
    "failed_items": "Items of the source that failed; the manifest lists them.",
    "read_bytes": "Bytes of slides that were read.",
    "stored_bytes": "Bytes of images that were stored or kept.",
    "seconds": "Wall time of the work in seconds.",
}
"""What is told of a run: name and meaning."""


@singledispatch
def to_figures(report: Any) -> tuple[str, dict[str, float]]:  # noqa: ARG001 -- dispatches on it
    """What a report is about, and its figures by the names of `FIGURES`; none by default."""
    return "", {}


@to_figures.register
def _(report: IngestReport) -> tuple[str, dict[str, float]]:
    figures = {
        "images": report.image_count,
        "failed_items": len(report.failures),
        "seconds": report.seconds,
    }
    with suppress(StorageError):  # a store that is away now has cost the ingest nothing
        known = read_progress(report.url) or {}
        # Of images nobody counts the bytes that are read: no figure, rather than a wrong 0.
        figures |= {name: known[name] for name in ("read_bytes", "stored_bytes") if known.get(name)}
    return report.url, figures


@to_figures.register
def _(report: ScoreReport) -> tuple[str, dict[str, float]]:
    return report.output_url, {
        "images": report.scored_count,
        "failed_items": len(report.failures),
        "seconds": report.seconds,
    }


def announce_work(report: Any) -> None:
    """Emit the figures of a finished run's report; nothing where it has none.

    Args:
        report: Report of a flow.
    """
    context = FlowRunContext.get()
    subject, figures = to_figures(report)
    if not figures or context is None or context.flow is None:
        return
    emit_event(
        WORKED,
        resource={"prefect.resource.id": f"normscope.flow.{context.flow.name}", "subject": subject},
        payload={"flow": context.flow.name, "figures": figures},
    )
