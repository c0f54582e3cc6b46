"""`manifest.json`: what became of every item of a batch, so that nothing goes unmentioned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import ManifestEntry
from pipeline.storage import read_bytes, write_bytes


def account_for(
    sources: Sequence[Any],
    source_index: NDArray[np.integer[Any]],
    unreadable: Mapping[int, str],
    rejected: Iterable[ManifestEntry],
) -> tuple[ManifestEntry, ...]:
    """State what became of each source.

    Args:
        sources: The planned files, each with its `url` or a `public_name` in its place.
        source_index: int (image,): the source of each row.
        unreadable: Row -> why it is unreadable.
        rejected: What never got into the plan.

    Returns:
        One entry an item. A source all of whose rows are unreadable has failed; one that lost
        some is `done`, and its reason counts them.
    """
    planned = np.bincount(source_index, minlength=len(sources))
    lost: dict[int, list[str]] = {}
    for row, reason in sorted(unreadable.items()):
        lost.setdefault(int(source_index[row]), []).append(reason)
    entries = []
    for number, source in enumerate(sources):
        reasons = lost.get(number, [])
        name = getattr(source, "public_name", source.url)
        if not reasons:
            entries.append(ManifestEntry(name, "done"))
        elif len(reasons) == planned[number]:
            entries.append(ManifestEntry(name, "failed", reasons[0]))
        else:
            count = f"{len(reasons)} of {planned[number]} tiles unreadable, first: {reasons[0]}"
            entries.append(ManifestEntry(name, "done", count))
    return (*entries, *rejected)


def write_manifest(url: str, entries: Sequence[ManifestEntry], **facts: datetime | str) -> None:
    """Write a manifest.

    Args:
        url: Of the file.
        entries: One an item.
        **facts: Of the run, e.g. its time.
    """
    content = {
        **{name: str(value) for name, value in facts.items()},
        "counts": dict(sorted(Counter(entry.state for entry in entries).items())),
        "items": [asdict(entry) for entry in entries],
    }
    write_bytes(url, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_manifest(url: str) -> tuple[ManifestEntry, ...]:
    """Read the entries of a manifest."""
    return tuple(ManifestEntry(**item) for item in json.loads(read_bytes(url))["items"])
