"""Results that appear at once: written aside under a name of their own, then pointed at.

    OUTPUT/results/NAME/...     scores.parquet, scores.csv, worklist.html, manifest.json
    OUTPUT/...                  the same files, for whoever wants them at a fixed place
    OUTPUT/manifest.json        written last; `results` in it names the folder that counts

NAME follows from what was scored and by what: nothing new gives the same name, and no work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from pipeline.errors import AbsentError
from pipeline.ingest.manifest import write_manifest
from pipeline.io import storage
from pipeline.records import ManifestEntry

MANIFEST: Final = "manifest.json"
_FOLDER: Final = "results"


def name_results(*parts: object) -> str:
    """The name of results that follow from these parts, e.g. a fingerprint and a version."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:24]


def read_facts(output_url: str) -> Mapping[str, Any]:
    """What the manifest of the visible results says of them; nothing where there are none."""
    try:
        whole = json.loads(storage.read_bytes(storage.join(output_url, MANIFEST)))
    except AbsentError:
        return {}
    return {name: value for name, value in whole.items() if name not in {"items", "counts"}}


def locate(output_url: str, name: str) -> str:
    """The folder of results."""
    return storage.join(output_url, _FOLDER, name)


def publish(
    output_url: str,
    name: str,
    files: Mapping[str, bytes],
    manifest: Sequence[ManifestEntry],
    **facts: str,
) -> None:
    """Write results and let them be seen: whoever is killed before has shown nothing.

    Args:
        output_url: Folder or prefix.
        name: From `name_results`.
        files: File name -> content.
        manifest: What became of every item.
        **facts: What the manifest says besides.

    Raises:
        StorageError: The output cannot be written.
    """
    folder = locate(output_url, name)
    digests = {f"{file} sha256": sha256(data).hexdigest() for file, data in files.items()}
    whole = {**facts, "results": f"{_FOLDER}/{name}", **digests}
    for place in (folder, output_url):
        for file, data in files.items():
            storage.write_bytes(storage.join(place, file), data)
        write_manifest(storage.join(place, MANIFEST), manifest, **whole)
