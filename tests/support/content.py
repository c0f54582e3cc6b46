"""The content of a dataset as bytes, for tests that two of them are equal."""

from __future__ import annotations

from pipeline.io import storage


def content_of(url: str) -> dict[str, bytes]:
    """Every object of a dataset but the record of the run."""
    url = storage.plain_url(url)
    found = {
        info.url[len(url) :]: storage.read_bytes(info.url) for info in storage.list_objects(url)
    }
    del found["/manifest.json"]
    return found
