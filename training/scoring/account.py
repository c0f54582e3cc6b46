"""What became of every item that a scoring was asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.shards import Commit
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import Dataset


def account_for_rows(
    dataset: Dataset, asked: NDArray[np.int64], scored: NDArray[np.int64]
) -> tuple[ManifestEntry, ...]:
    """One entry an image asked for, then what the ingest already had to leave out.

    Args:
        dataset: That was scored.
        asked: Rows that scores were asked for.
        scored: Rows that got one.
    """
    commits = enumerate(dataset.read_commits())
    reasons = {
        row: reason
        for shard, text in commits
        if text
        for row, reason in Commit.from_json(shard, text).unreadable
    }
    names = dataset.column("image_id")
    done = set(scored.tolist())
    entries = []
    for row in asked.tolist():
        if row in done:
            entries.append(ManifestEntry(str(names[row]), "done"))
        else:
            reason = reasons.get(row, "the model gave no finite score")
            entries.append(ManifestEntry(str(names[row]), "failed", reason))
    return (*entries, *_left_out_at_ingest(dataset, set(reasons.values())))


def _left_out_at_ingest(dataset: Dataset, known: set[str]) -> list[ManifestEntry]:
    """Items that never became images; a source whose images all failed is listed by them."""
    url = storage.join(dataset.url, "manifest.json")
    if not storage.exists(url):
        return []
    return [
        entry
        for entry in read_manifest(url)
        if entry.state != "done" and not (entry.state == "failed" and entry.reason in known)
    ]
