"""What a flow reports: the same words on the terminal and as a Prefect artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Final, TypeVar

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from pipeline.ingest import IngestReport
from pipeline.records import ManifestEntry

R = TypeVar("R")
_NAMED: Final = 20  # failures that a report names; the manifest has them all


def publish(report: R) -> R:
    """Keep a report as an artifact of the flow run, and hand it on.

    Args:
        report: Of a type that `to_markdown` knows.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow is not None:
        create_markdown_artifact(to_markdown(report), key=context.flow.name)
    return report


@singledispatch
def to_markdown(report: Any) -> str:
    """A report in Markdown.

    Raises:
        TypeError: Nobody has said how.
    """
    raise TypeError(f"no Markdown for {type(report).__name__}: register it in flows/reports.py")


@singledispatch
def count_failures(report: Any) -> int:  # noqa: ARG001 -- dispatches on it
    """How many items of a batch failed."""
    return 0


def _list_failures(entries: Sequence[ManifestEntry], manifest_url: str) -> list[str]:
    failed = [entry for entry in entries if entry.state == "failed"]
    lines = [f"- {e.item}: {e.reason.removeprefix(f'{e.item}: ')}" for e in failed[:_NAMED]]
    if len(failed) > _NAMED:
        lines.append(f"- and {len(failed) - _NAMED} more in {manifest_url}")
    return ["", "**Failed**", "", *lines] if lines else []


@to_markdown.register
def _(report: IngestReport) -> str:
    counts = Counter(entry.state for entry in report.manifest)
    items = ", ".join(f"{counts[state]} {state}" for state in ("done", "skipped", "failed"))
    lines = [
        f"**Dataset** `{report.url}` is sealed.",
        "",
        f"- {report.image_count} images, {report.unreadable_count} of them unreadable",
        f"- items: {items}",
        f"- {report.shards_made} shards made, {report.shards_kept} kept, {report.seconds:.1f} s",
        f"- fingerprint `{report.fingerprint[:16]}`",
    ]
    return "\n".join([*lines, *_list_failures(report.manifest, f"{report.url}/manifest.json")])


@count_failures.register
def _(report: IngestReport) -> int:
    return len(report.failures)
