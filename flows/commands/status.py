"""`normscope status`: how far a dataset is, and what became of its items."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Final

from cyclopts import Parameter

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from pipeline.ingest.status import DatasetStatus, read_status
from pipeline.records import ManifestEntry

_NAMED: Final = 20
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_IN_WORDS: Final[Mapping[str, str]] = {
    "running": "an ingest is running",
    "stalled": "its ingest has probably been killed",
    "sealed": "the last ingest has finished",
    "refused": "the last ingest was refused",
    "interrupted": "the last ingest was interrupted",
    "failed": "the last ingest ended in a defect",
}
_DAMAGED: Final = "ingest.json is damaged and left out, the next ingest writes it anew"


def status(
    dataset: str, *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> int:
    """Say how far a dataset is: sealed, being made, or left halfway by an ingest that was killed.

    Names what failed or was skipped, and parts that `verify --repair` has marked. Reads only;
    run it beside an ingest as often as you like. Exit status: 0 nothing has failed; 1 some items
    failed; 2 there is no dataset.

    Args:
        dataset: Path or `s3://` URL of the dataset.
        as_json: Print all facts as one JSON object, for programs.

    Returns:
        The exit status.
    """
    found = read_status(dataset)
    print(_encode(found) if as_json else describe_status(found))
    return 1 if found.failed_count else 0


def _encode(found: DatasetStatus) -> str:
    known: dict[str, Any] = {**asdict(found), "elapsed_s": found.elapsed_s}
    known |= {"items_per_s": found.items_per_s, "left_s": found.left_s, "silent_s": found.silent_s}
    return json.dumps(known, indent=1, ensure_ascii=False, default=str)


def describe_status(found: DatasetStatus) -> str:
    """Describe a status in lines of text.

    Args:
        found: Status of a dataset.
    """
    seal = "sealed" if found.is_sealed else "not sealed"
    last = _DAMAGED if found.is_damaged else _IN_WORDS[found.state]
    lines = [f"{found.url}: {seal}; {last}."]
    if found.reason and found.reason != found.state:
        lines.append(f"  why        {found.reason}")
    lines.append(f"  items      {_describe_counts(found)}")
    lines.append(
        f"  bytes      {format_bytes(found.read_bytes)} read, "
        f"{format_bytes(found.stored_bytes)} of images stored"
    )
    lines += _describe_time(found)
    if found.is_sealed:
        lines += [
            f"  images     {found.image_count}, {found.unreadable_count} of them unreadable, in "
            f"{found.part_count} parts",
            f"  sources    told apart by their {found.source_identity}",
            f"  content    fingerprint {found.fingerprint[:16]}",
        ]
    disk = format_bytes(found.disk_bytes)
    lines.append(f"  on disk    {disk} in {found.object_count} objects")
    lines += _name_parts(found.marked)
    lines += _name_entries("failed ", found.failures)
    lines += _name_entries("skipped", found.skips)
    return "\n".join([*lines, *_advise(found)])


def _describe_counts(found: DatasetStatus) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in found.counts.items() if name != "items")
    said = f"{found.counts.get('items', 0)} in all: {counts}"
    if found.kept_count is None or "kept" in found.counts:
        return said
    return f"{said}; {found.kept_count} kept as an earlier ingest had made them"


def _name_entries(title: str, entries: Sequence[ManifestEntry]) -> list[str]:
    """Name the first entries of the manifest, each with its reason."""
    lines = []
    for entry in entries[:_NAMED]:
        why = entry.reason.removeprefix(f"{entry.item}: ")
        lines.append(f"  {title}    {entry.item}: {why}")
    if len(entries) > _NAMED:
        lines.append(f"  {title}    and {len(entries) - _NAMED} more; see manifest.json")
    return lines


def _name_parts(marked: Sequence[str]) -> list[str]:
    """Name the first parts that are marked for repair."""
    if not marked:
        return []
    more = f" and {len(marked) - _NAMED} more" if len(marked) > _NAMED else ""
    parts = "part is" if len(marked) == 1 else "parts are"
    return [
        f"  to repair  {len(marked)} {parts} gone or marked: {', '.join(marked[:_NAMED])}{more}"
    ]


def _describe_time(found: DatasetStatus) -> list[str]:
    if found.began_at is None:
        return []
    rate = found.items_per_s
    pace = f", {60 * rate:.3g} items a minute" if rate else ""
    lines = [
        f"  time       {format_seconds(found.elapsed_s)} since {found.began_at:%F %R} UTC{pace}"
    ]
    if found.left_s is not None:
        lines.append(f"  time left  about {format_seconds(found.left_s)}, if items go on as fast")
    if found.state in {"running", "stalled"}:
        ago = format_seconds(found.silent_s)
        lines.append(f"  last sign  {ago} ago, by process {found.pid} on {found.host}")
    return lines


def _advise(found: DatasetStatus) -> list[str]:
    if found.state in {"stalled", "interrupted"}:
        return ["Run the same ingest command again: it keeps what is made and does the rest."]
    if found.state == "refused":
        return ["Follow the reason above, then run the same ingest command again."]
    if found.state == "running" and found.is_sealed:
        return ["The sealed dataset can be read meanwhile; the running ingest replaces it."]
    advice = []
    if found.marked:
        advice.append("Run the same ingest command again: it makes the parts to repair again.")
    if found.state == "sealed" and found.failures:
        advice.append(
            "Mend the failed items and run the same ingest command again: it keeps the rest."
        )
    return advice


def format_bytes(size_bytes: float) -> str:
    """Write a size with a binary unit, e.g. `1.5 GiB`.

    Args:
        size_bytes: Size in bytes.
    """
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    power = min(4, int(math.log(size_bytes, 1024)))
    return f"{size_bytes / 1024**power:.1f} {_UNITS[power]}"


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss.

    Args:
        seconds: Duration in seconds.
    """
    return str(timedelta(seconds=round(seconds)))
