"""Results that appear at once: written under a name of their own, then pointed at.

    OUTPUT/results/NAME/...     scores.parquet, scores.csv, worklist.html, manifest.json
    OUTPUT/...                  copies of the same files under fixed names
    OUTPUT/manifest.json        written last; `results` in it names the current folder

NAME follows from what was scored and by what: nothing new gives the same name, and no work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError
from pipeline.ingest.manifest import read_manifest, write_manifest
from pipeline.ingest.shards import Commit
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import Dataset

MANIFEST: Final = "manifest.json"
_FOLDER: Final = "results"


def name_results(*parts: object) -> str:
    """Name results by the parts they follow from, e.g. a fingerprint and a version."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:24]


def read_facts(output_url: str) -> Mapping[str, Any]:
    """Read what the manifest says of the current results; empty where there are none."""
    try:
        whole = json.loads(storage.read_bytes(storage.join(output_url, MANIFEST)))
    except AbsentError:
        return {}
    return {name: value for name, value in whole.items() if name not in {"items", "counts"}}


def publish(
    output_url: str,
    name: str,
    files: Mapping[str, bytes],
    manifest: Sequence[ManifestEntry],
    **facts: str,
) -> None:
    """Write results, then make them the current ones; a kill before that leaves the old ones.

    Args:
        output_url: Folder or prefix of the results.
        name: Name of the results, from `name_results`.
        files: Content of each file, by file name.
        manifest: One entry for each item.
        **facts: Further facts that the manifest states.

    Raises:
        StorageError: The output cannot be written.
    """
    folder = storage.join(output_url, _FOLDER, name)
    digests = {f"{file} sha256": sha256(data).hexdigest() for file, data in files.items()}
    whole = {**facts, "results": f"{_FOLDER}/{name}", **digests}
    for place in (folder, output_url):
        for file, data in files.items():
            storage.write_bytes(storage.join(place, file), data)
        write_manifest(storage.join(place, MANIFEST), manifest, **whole)


def list_outcomes(
    dataset: Dataset, asked: NDArray[np.int64], scored: NDArray[np.int64]
) -> tuple[ManifestEntry, ...]:
    """List the outcome of every image asked for, then the items that the ingest left out.

    Args:
        dataset: Dataset that was scored.
        asked: int64 (n,), rows of the dataset that were to be scored.
        scored: int64 (m,), rows that have a score.
    """
    reasons = {
        row: reason
        for shard, text in enumerate(dataset.read_commits())
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
    return (*entries, *_list_left_out(dataset, set(reasons.values())))


def _list_left_out(dataset: Dataset, known: set[str]) -> list[ManifestEntry]:
    """Items that never became images; a source whose images all failed is listed by them."""
    url = storage.join(dataset.url, MANIFEST)
    if not storage.exists(url):
        return []
    return [
        entry
        for entry in read_manifest(url)
        if entry.state != "done" and not (entry.state == "failed" and entry.reason in known)
    ]
