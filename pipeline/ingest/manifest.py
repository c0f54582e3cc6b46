"""`manifest.json`: what became of every item of a batch, so that nothing goes unmentioned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime

from pipeline.io.storage import read_bytes, write_bytes
from pipeline.records import ManifestEntry


def describe_rows(item: str, reasons: Sequence[str | None]) -> ManifestEntry:
    """State what became of a source with rows.

    Args:
        item: Public name of the source.
        reasons: Why each of its rows is unreadable, or None for one that is readable.

    Returns:
        A source all of whose rows are unreadable has failed; one that lost some is `done`, and
        its reason counts them.
    """
    lost = [reason for reason in reasons if reason is not None]
    if lost and len(lost) == len(reasons):
        return ManifestEntry(item, "failed", lost[0])
    count = f"{len(lost)} of {len(reasons)} tiles unreadable, first: {lost[0]}" if lost else ""
    return ManifestEntry(item, "done", count)


def add_remark(entry: ManifestEntry, remarks: Mapping[str, str]) -> ManifestEntry:
    """Add the remark on an item to its entry, if it is done."""
    remark = remarks.get(entry.item) if entry.state == "done" else None
    if not remark:
        return entry
    return replace(entry, reason="; ".join(filter(None, [entry.reason, remark])))


def write_manifest(url: str, entries: Sequence[ManifestEntry], **facts: datetime | str) -> None:
    """Write a manifest.

    Args:
        url: URL of the file.
        entries: One entry for every item.
        **facts: Further facts of the run, e.g. its time.
    """
    content = {
        **{name: str(value) for name, value in facts.items()},
        "counts": dict(sorted(Counter(entry.state for entry in entries).items())),
        "items": [
            {name: value for name, value in asdict(entry).items() if name != "facts" or value}
            for entry in entries
        ],
    }
    write_bytes(url, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_manifest(url: str) -> tuple[ManifestEntry, ...]:
    """Read the entries of a manifest."""
    return tuple(ManifestEntry(**item) for item in json.loads(read_bytes(url))["items"])
