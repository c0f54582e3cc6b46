"""The files of a dataset: its own folder or prefix, where only files of an ingest are deleted.

Next to a dataset's arrays are its manifest and, in `review/` and `survey/`, files of the planning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pipeline.errors import AbsentError, SettingsError
from pipeline.io import storage
from pipeline.io.atomic_files import is_temporary
from pipeline.io.staging import require_reachable

MANIFEST: Final = "manifest.json"
_ROOT: Final = "zarr.json"
_BESIDE: Final = ("review/", "survey/")


def require_destination(url: str) -> None:
    """Check, before work is spent, that a dataset may be made at a URL.

    Raises:
        SettingsError: Something else lies there, e.g. the source itself.
        StorageError: It cannot be written.
    """
    url = storage.plain_url(url)
    require_reachable(url)
    for info in storage.list_objects(url) if lacks_dataset(url) else ():
        key = _key_of(info.url, url)
        if not (key == MANIFEST or key.startswith(_BESIDE) or _is_left_over(key)):
            raise SettingsError(
                url,
                f"holds {key or 'a file'}, which no ingest has written",
                "Choose a folder or prefix of the dataset's own, e.g. "
                f"{storage.join(url, 'dataset') if key else f'{url}-dataset'}",
            )


def lacks_dataset(url: str) -> bool:
    """Whether there is no dataset yet, of whatever schema, sealed or not."""
    return _read_root(url) is None


def is_laid_out(url: str, documents: Mapping[str, bytes]) -> bool:
    """Whether a dataset's arrays are declared as in these documents, whatever they hold."""
    key = "image/zarr.json"  # it counts the images, as every other array's does
    return storage.holds(storage.join(url, key), documents[key])


def write_changed(url: str, documents: Mapping[str, bytes]) -> None:
    """Write metadata documents, leaving alone what is already so.

    The root comes first, so that a dataset is unsealed before anything else in it changes; when
    sealing, only the root differs.
    """
    for key, data in sorted(documents.items(), key=lambda item: item[0].count("/")):
        target = storage.join(url, key)
        if not storage.holds(target, data):
            storage.write_bytes(target, data)


def drop_arrays(url: str, documents: Mapping[str, bytes]) -> None:
    """Delete arrays of an earlier dataset that the new one will not have.

    The earlier one is unsealed before. It names them until they are gone, so that a rerun finds
    what is left of them.

    Args:
        url: Path or URL of the dataset.
        documents: Metadata documents of the new dataset.
    """
    root = _read_root(url) or {}
    dropped = sorted(_arrays_of(root) - {_array_of(key) for key in documents})
    if not dropped:
        return
    unsealed = {**root, "attributes": {**root["attributes"], "sealed": False}}
    storage.write_bytes(storage.join(url, _ROOT), json.dumps(unsealed).encode())
    for array in dropped:
        for info in storage.list_objects(storage.join(url, array) + "/"):
            storage.delete(info.url)


def sweep(url: str, documents: Mapping[str, bytes], shard_count: int) -> None:
    """Delete shards beyond the end and what a killed writer left.

    Args:
        url: Path or URL of the dataset.
        documents: Metadata documents of the dataset.
        shard_count: Number of shards of the dataset.
    """
    arrays = {_array_of(key) for key in documents if "/" in key}
    for info in storage.list_objects(url):
        key = _key_of(info.url, url)
        is_inside = _array_of(key) in arrays and key not in documents
        if _is_left_over(key) or (is_inside and not _is_shard(key, shard_count)):
            storage.delete(info.url)


def _is_shard(key: str, shard_count: int) -> bool:
    places = key.partition("/c/")[2].split("/")
    return all(place.isdecimal() for place in places) and int(places[0]) < shard_count


def sweep_temporary(url: str) -> None:
    """Delete the temporary files that a killed writer left next to documents and pictures."""
    for info in storage.list_objects(url):
        if _is_left_over(_key_of(info.url, url)):
            storage.delete(info.url)


def _is_left_over(key: str) -> bool:
    folder, _, name = key.rpartition("/")
    if f"{folder}/" in _BESIDE:
        return is_temporary(name, name[1:-9])  # of any picture or table
    return is_temporary(key, _ROOT) or is_temporary(key, MANIFEST)


def _read_root(url: str) -> dict[str, Any] | None:
    """The root document of a dataset; None without one."""
    try:
        root = json.loads(storage.read_bytes(storage.join(url, _ROOT)))
    except (AbsentError, ValueError):
        return None
    is_ours = isinstance(root, dict) and "normscope_schema" in root.get("attributes", {})
    return root if is_ours else None


def _arrays_of(root: Mapping[str, Any]) -> set[str]:
    nodes = (root.get("consolidated_metadata") or {}).get("metadata", {})
    return {name for name, node in nodes.items() if node["node_type"] == "array"}


def _array_of(key: str) -> str:
    """The first folder of a key: the array's name, in the key of its document or of a chunk."""
    return key.partition("/")[0] if "/" in key else ""


def _key_of(found: str, url: str) -> str:
    return found[len(url.rstrip("/")) + 1 :]
