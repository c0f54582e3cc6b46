"""The files of a dataset: its own folder or prefix, where only files of an ingest are deleted.

Next to the root document and the table of parts are the folders `parts/` and `review/`, the
manifest, and the progress of the ingest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.io import storage
from pipeline.io.atomic_files import is_temporary
from pipeline.io.staging import require_reachable
from pipeline.store.dataset import PROGRESS, read_root
from pipeline.store.part import PARTS, clear_part, find_attributes, read_document
from pipeline.store.spec import ROOT, SCHEMA_VERSION
from pipeline.store.table import PREFIX

MANIFEST: Final = "manifest.json"
REVIEW: Final = "review"
LEDGER: Final = "ledger"  # of what was removed
_SURVEY: Final = "survey"  # of datasets of schema 1
_FOLDERS: Final = frozenset({PARTS, REVIEW, LEDGER, _SURVEY})
_PICTURE: Final = re.compile(r".*-[0-9a-f]{16}\.png")
_FILES: Final = (ROOT, MANIFEST, PROGRESS)


def require_destination(url: str) -> None:
    """Check, before work is spent, that a dataset may be made at a URL.

    Raises:
        SettingsError: Something else lies there, e.g. the source itself.
        StorageError: It cannot be written.
    """
    url = storage.plain_url(url)
    require_reachable(url)
    if not lacks_dataset(url):
        return
    files, folders = storage.list_folder(url)
    # An ingest that has not finished has no root document, and begins with its progress. Beside
    # a table of parts a root document that cannot be read is a damaged one of ours.
    known = _FOLDERS if PROGRESS in files else frozenset()
    is_damaged = PROGRESS in files and any(name.startswith(PREFIX) for name in files)
    foreign = [n for n in files if not (is_damaged if n == ROOT else _is_ours(n))]
    # On a disk, folders may be left of which every file is gone.
    others = [f"{name}/" for name in folders if name not in known]
    foreign += [name for name in others if storage.list_objects(f"{url}/{name}")]
    if foreign:
        raise SettingsError(
            url,
            f"holds {foreign[0] or 'a file'}, which no ingest has written",
            "Choose a folder or prefix of the dataset's own, e.g. "
            f"{storage.join(url, 'dataset') if foreign[0] else f'{url}-dataset'}",
        )


def list_foreign(url: str) -> list[str]:
    """List the files and folders, these with a final slash, beside a dataset's own.

    Args:
        url: URL of the dataset.
    """
    files, folders = storage.list_folder(url)
    foreign = [name for name in files if not _is_ours(name)]
    return foreign + [f"{name}/" for name in folders if name not in _FOLDERS]


def lacks_dataset(url: str) -> bool:
    """Whether there is no dataset yet, of whatever schema."""
    return read_root(url) is None


def list_places(url: str) -> frozenset[str]:
    """List the folders of all parts that are there, whole or not, listed in a table or not."""
    _, folders = storage.list_folder(storage.join(url, PARTS))
    return frozenset(f"{PARTS}/{name}" for name in folders)


def sweep(url: str, places: Iterable[str], table: str) -> None:
    """Delete what an earlier ingest left and the sealed dataset does not name.

    Args:
        url: URL of the sealed dataset.
        places: Folders of parts to delete.
        table: Name of the table of parts that stays.
    """
    for place in sorted(places):
        clear_part(storage.join(url, place))
        storage.remove_empty_folders(storage.join(url, place))
    files, _ = storage.list_folder(url)
    for name in files:
        if (name.startswith(PREFIX) and name != table) or _is_left_over(name):
            storage.delete(storage.join(url, name))
    pictures, _ = storage.list_folder(storage.join(url, REVIEW))
    for name in pictures:
        if is_temporary(name, name[1:-9]):
            storage.delete(storage.join(url, REVIEW, name))


def sweep_pictures(url: str, named: Collection[str]) -> None:
    """Delete the review pictures of slides that are no longer in a dataset, and no other file.

    Args:
        url: URL of the dataset.
        named: Pictures that stay, below the dataset's URL.
    """
    for name in storage.list_folder(storage.join(url, REVIEW))[0]:
        picture = f"{REVIEW}/{name}"
        if picture not in named and _PICTURE.fullmatch(name):
            storage.delete(storage.join(url, picture))


def drop_old_arrays(url: str) -> None:
    """Delete the arrays of a dataset of schema 1, which this ingest is about to replace.

    It is unsealed before. It names its arrays until they are gone, so that a rerun finds what is
    left of them.
    """
    root = read_document(url)
    attributes = find_attributes(root) or {}
    if attributes.get("normscope_schema", SCHEMA_VERSION) == SCHEMA_VERSION:
        return
    unsealed = {**root, "attributes": {**attributes, "sealed": False}}
    storage.write_bytes(storage.join(url, ROOT), json.dumps(unsealed).encode())
    for folder in (*sorted(_arrays_of(root)), _SURVEY):
        for info in storage.list_objects(storage.join(url, folder) + "/"):
            storage.delete(info.url)


def _arrays_of(root: Mapping[str, Any]) -> set[str]:
    nodes = (root.get("consolidated_metadata") or {}).get("metadata", {})
    return {name for name, node in nodes.items() if node["node_type"] == "array"}


def _is_ours(name: str) -> bool:
    return name in _FILES or name.startswith(PREFIX) or _is_left_over(name)


def _is_left_over(name: str) -> bool:
    """Whether a file is a temporary one that a killed writer left."""
    is_table = name.startswith(f".{PREFIX}") and is_temporary(name, name[1:-9])
    return is_table or any(is_temporary(name, target) for target in _FILES)
