"""Results that appear at once: written under a name of their own, then pointed at.

    OUTPUT/results/NAME/...     scores.parquet, scores.csv, worklist.html, manifest.json
    OUTPUT/...                  copies of the same files under fixed names
    OUTPUT/manifest.json        written last; `results` in it names the current folder

NAME follows from what was scored and by what: nothing new gives the same name, and no work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError
from pipeline.ingest.manifest import read_manifest, write_manifest
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import Dataset
from training.data.part_columns import read_rows

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
    files: Iterable[tuple[str, bytes]],
    manifest: Sequence[ManifestEntry],
    **facts: str,
) -> None:
    """Write results, then make them the current ones; a kill before that leaves the old ones.

    Args:
        output_url: Folder or prefix of the results.
        name: Name of the results, from `name_results`.
        files: Name and content of each file; one is in memory at a time.
        manifest: One entry for each item.
        **facts: Further facts that the manifest states.

    Raises:
        StorageError: The output cannot be written.
    """
    folder, digests = storage.join(output_url, _FOLDER, name), dict[str, str]()
    for file, data in files:
        storage.write_bytes(storage.join(folder, file), data)
        digests[file] = sha256(data).hexdigest()
    whole = {
        **facts,
        "results": f"{_FOLDER}/{name}",
        **{f"{file} sha256": digest for file, digest in digests.items()},
    }
    write_manifest(storage.join(folder, MANIFEST), manifest, **whole)
    for file in digests:
        data = storage.read_bytes(storage.join(folder, file))
        storage.write_bytes(storage.join(output_url, file), data)
    write_manifest(storage.join(output_url, MANIFEST), manifest, **whole)


def list_outcomes(
    dataset: Dataset, asked: NDArray[np.int64], scored: NDArray[np.int64]
) -> tuple[ManifestEntry, ...]:
    """List the outcome of every image asked for, then the items that the ingest left out.

    Args:
        dataset: Dataset that was scored.
        asked: int64 (n,), rows of the dataset that were to be scored.
        scored: int64 (m,), rows that have a score.
    """
    reasons = dataset.read_reasons()
    names = read_rows(dataset, ["image_id"], asked)["image_id"]
    entries = []
    for row, name, is_done in zip(
        asked.tolist(), names.tolist(), np.isin(asked, scored).tolist(), strict=True
    ):
        if is_done:
            entries.append(ManifestEntry(name, "done"))
        else:
            reason = reasons.get(row, "the model gave no finite score")
            entries.append(ManifestEntry(name, "failed", reason))
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
