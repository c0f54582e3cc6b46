"""Which objects of a dataset a run has made, changed and deleted, and that it wrote no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from pipeline.io import storage

_WRITERS = ("write_bytes", "write_parts", "create_bytes", "delete")


@dataclass
class Changes:
    """Keys of objects below a dataset's URL.

    Args:
        made: Objects that are new.
        changed: Objects of another size, time of modification or ETag.
        gone: Objects that are no more.
        written: Objects that were written or deleted, though they may be as they were.
    """

    made: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    @property
    def all(self) -> set[str]:
        """All keys that were touched."""
        return self.made | self.changed | self.gone | self.written

    @property
    def places(self) -> set[str]:
        """Folders of parts that were touched."""
        return {"/".join(key.split("/")[:2]) for key in self.all if key.startswith("parts/")}


@contextmanager
def watched(url: str) -> Iterator[Changes]:
    """Watch what the block, which writes in this process, does to a dataset."""
    url = storage.plain_url(url)
    found = Changes()
    before = _list_versions(url)
    with _recording(url, found.written):
        yield found
    after = _list_versions(url)
    found.made = after.keys() - before.keys()
    found.gone = before.keys() - after.keys()
    found.changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}


def _list_versions(url: str) -> dict[str, tuple[str, str]]:
    return {
        info.url.removeprefix(f"{url}/"): (info.version, str(info.modified_at))
        for info in storage.list_objects(f"{url}/")
    }


@contextmanager
def _recording(url: str, written: set[str]) -> Iterator[None]:
    """Record each call that writes or deletes; S3 tells a time to the second only."""
    patches = []
    for name in _WRITERS:
        original = getattr(storage, name)

        def record(target: str, *args: object, _original: object = original) -> object:
            written.add(storage.plain_url(target).removeprefix(f"{url}/"))
            assert callable(_original)
            return _original(target, *args)

        patches.append(patch.object(storage, name, record))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
