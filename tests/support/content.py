"""The content of a dataset as bytes, for tests that two of them are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from pipeline.store.layout import MANIFEST
from pipeline.store.part import PARTS
from pipeline.store.spec import ROOT

# When and where the run was: the manifest's time, and its progress.
_OF_THE_RUN = frozenset({MANIFEST, "ingest.json"})
_OF_THE_FILES = ("key", "place", "source_version")


def content_of(url: str) -> dict[str, bytes]:
    """Every object of a dataset but the record of the run, byte for byte.

    Datasets are equal if they are made from the same files: the folder of a part, its key and its
    attributes tell the version of its source, which for a local file is its size and time.
    """
    url = storage.plain_url(url)
    found = {
        info.url.removeprefix(f"{url}/"): storage.read_bytes(info.url)
        for info in storage.list_objects(f"{url}/")
    }
    return {key: data for key, data in found.items() if key not in _OF_THE_RUN}


def content_whatever_versions(url: str) -> dict[str, Any]:
    """As `content_of`, but equal for datasets from copies of the same files.

    Parts are called by their names, and what tells versions of sources is left out: the name of
    the table of parts, and in its rows and in the attributes of parts `_OF_THE_FILES`.
    """
    content: dict[str, Any] = dict(content_of(url))
    parts = open_dataset(url).parts
    root = json.loads(content.pop(ROOT))
    content.pop(root["attributes"].pop("parts_table"))
    rows = [_leave_out_versions(asdict(part)) for part in parts]
    named: dict[str, Any] = {ROOT: root, "table of parts": rows}
    for part in parts:
        for key in [key for key in content if key.startswith(f"{part.place}/")]:
            data = content.pop(key)
            if key == f"{part.place}/{ROOT}":
                data = json.loads(data)
                data["attributes"] = _leave_out_versions(data["attributes"])
            named[f"{PARTS}/{part.name}{key.removeprefix(part.place)}"] = data
    return {**content, **named}


def _leave_out_versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in _OF_THE_FILES}
