"""`normscope verify`: every digest of a dataset, against what lies there."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.commands.status import format_bytes
from flows.shared.engine import open_engine
from flows.shared.progress import progress
from flows.shared.settings import load_settings
from pipeline.ingest.verify import Finding, VerifyReport, verify_dataset

_NAMED: Final = 100


def verify(dataset: str, *, repair: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Verify a sealed dataset: read everything again and compare it with its digests.

    Verifies the pixels of every image, the columns, documents and objects of every part, the table
    of parts and the fingerprint. Findings are named part by part, with the remedy. Files that no
    ingest has written are mentioned and left alone. Exit status: 0 all is whole; 1 damage was
    found; 2 there is no dataset that can be verified.

    Args:
        dataset: Path or `s3://` URL of the dataset.
        repair: Mark damaged parts, so that the next run of the same ingest makes exactly these
            again from their sources. Nothing else is changed.

    Returns:
        The exit status.
    """
    with open_engine(load_settings()) as map_work, progress("Images") as advance:
        report = verify_dataset(dataset, map_work, repair=repair, on_progress=advance)
    print(describe_report(report))
    return 1 if report.damages else 0


def describe_report(report: VerifyReport) -> str:
    """Describe the outcome of a verification in lines of text.

    Args:
        report: Outcome of the check.
    """
    lines = [
        f"{report.url}: {'damaged' if report.damages else 'whole'}.",
        f"  verified   {report.part_count} parts, {report.image_count} images, "
        f"{format_bytes(report.read_bytes)} of pixels, in {report.seconds:.1f} s",
    ]
    remarks = [each for each in report.findings if each.severity == "remark"]
    for title, found in (("damaged  ", report.damages), ("mentioned", remarks)):
        lines += [f"  {title}  {_describe(finding)}" for finding in found[:_NAMED]]
        if len(found) > _NAMED:
            lines.append(f"  {title}  and {len(found) - _NAMED} more")
    if report.repaired:
        names = ", ".join(report.repaired[:_NAMED])
        lines.append(f"  marked     {names}: the next ingest makes these parts again")
    return "\n".join(lines)


def _describe(finding: Finding) -> str:
    part = f"part {finding.part}, " if finding.part else ""
    return f"{part}{finding.item}: {finding.problem}. {finding.remedy}"
