"""`manifest.json`: what became of every item of a batch, so that nothing goes unmentioned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.plan import name_source
from pipeline.io.storage import read_bytes, write_bytes
from pipeline.records import ManifestEntry


def account_for(
    sources: Sequence[Any],
    source_index: NDArray[np.integer[Any]],
    unreadable: Mapping[int, str],
    rejected: Iterable[ManifestEntry],
    columns: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[ManifestEntry, ...]:
    """State what became of each source.

    Args:
        sources: The planned files, each with its `url` or a `public_name` in its place.
        source_index: int (image,): the source of each row.
        unreadable: Row -> reason why it is unreadable.
        rejected: Items without a row in the plan.
        columns: Name -> text (image,): the values in a source's rows become its facts.

    Returns:
        One entry an item. A source all of whose rows are unreadable has failed; one that lost
        some is `done`, and its reason counts them.
    """
    planned = np.bincount(source_index, minlength=len(sources))
    lost: dict[int, list[str]] = {}
    for row, reason in sorted(unreadable.items()):
        lost.setdefault(int(source_index[row]), []).append(reason)
    facts = _gather_facts(columns or {}, source_index)
    entries = []
    for number, source in enumerate(sources):
        reasons = lost.get(number, [])
        entry = ManifestEntry(name_source(source), "done", facts=facts.get(number, {}))
        if reasons and len(reasons) == planned[number]:
            entry = replace(entry, state="failed", reason=reasons[0])
        elif reasons:
            count = f"{len(reasons)} of {planned[number]} tiles unreadable, first: {reasons[0]}"
            entry = replace(entry, reason=count)
        entries.append(entry)
    return (*entries, *rejected)


def _gather_facts(
    columns: Mapping[str, NDArray[Any]], source_index: NDArray[np.integer[Any]]
) -> dict[int, dict[str, str]]:
    facts: dict[int, dict[str, str]] = {}
    for name, values in columns.items():
        found: dict[int, list[str]] = {}
        for number, value in sorted(set(zip(source_index.tolist(), values.tolist(), strict=True))):
            found.setdefault(number, []).append(value)
        for number, texts in found.items():
            facts.setdefault(number, {})[name] = ", ".join(filter(None, texts))
    return facts


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
