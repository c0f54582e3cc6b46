"""Killed before any one of its writes, an ingest leaves the earlier dataset or a whole new one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.errors import SchemaError
from pipeline.io import storage
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from tests.support.content import content_of
from tests.support.made.datasets import ingest_made, write_sources
from tests.support.made.slides import SETTINGS, write_slide

_WRITERS = ("write_bytes", "write_parts", "create_bytes", "delete")


class KilledError(BaseException):
    """The end of a process: nothing catches it."""


@dataclass
class Life:
    """A process that dies before its n-th write, and writes nothing after that."""

    writes_left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self) -> None:
        with self.lock:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise KilledError


@contextmanager
def killed_after(writes: int) -> Iterator[Life]:
    life = Life(writes)

    def spending(original: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object, **options: object) -> object:
            life.spend()
            return original(*arguments, **options)

        return write

    patches = [patch.object(storage, name, spending(getattr(storage, name))) for name in _WRITERS]
    for each in patches:
        each.start()
    try:
        yield life
    finally:
        for each in patches:
            each.stop()


def kill_before_every_write(
    run: Callable[[str], object], url: str, reference: str, *, step: int
) -> int:
    """Kill a run before its first write and every `step`-th, each time from the same beginning.

    After each, what is open to readers is whole, and a rerun gives the content of the reference.
    Returns how many times it was killed.
    """
    url = storage.plain_url(url)  # as listings name what lies there
    run(reference)
    expected = content_of(reference)
    beginning = {
        info.url.removeprefix(f"{url}/"): storage.read_bytes(info.url)
        for info in storage.list_objects(f"{url}/")
    }
    sealed = open_dataset(url).fingerprint if beginning else None
    kills = 0
    while True:
        with killed_after(kills * step) as life, suppress(KilledError):
            run(url)
        if life.writes_left >= 0:
            return kills
        kills += 1
        require_whole(url, {sealed, open_dataset(reference).fingerprint})
        run(url)
        assert content_of(url) == expected
        restore(url, beginning)


def require_whole(url: str, fingerprints: set[str | None]) -> None:
    """What readers find is not sealed, or a dataset whose every column and image can be read."""
    try:
        dataset = open_dataset(url)
    except SchemaError:
        assert None in fingerprints
        return
    assert dataset.fingerprint in fingerprints
    for name in dataset.column_names:
        assert len(dataset.column(name)) == dataset.image_count
    readable = dataset.column("readable")
    assert (dataset.read_images(0, dataset.image_count).any(axis=(1, 2, 3)) == readable).all()


def restore(url: str, objects: dict[str, bytes]) -> None:
    for info in storage.list_objects(f"{url}/"):
        if info.url.removeprefix(f"{url}/") not in objects:
            storage.delete(info.url)
    for key, data in objects.items():
        if not storage.holds(storage.join(url, key), data):
            storage.write_bytes(storage.join(url, key), data)


def choose_step(url: str) -> int:
    """Every write in memory, where it costs least; elsewhere some of each kind."""
    return 1 if url.startswith("memory:") else 7


@pytest.mark.slow
def test_a_kill_before_any_write_of_a_first_ingest_leaves_no_trace(
    tmp_path: Path, store_url: str
) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"01x34", "b": b"56"})
    reference = f"{store_url}-reference"
    step = choose_step(store_url)
    kills = kill_before_every_write(
        lambda url: ingest_made(url, sources), store_url, reference, step=step
    )
    assert kills * step > len(content_of(reference))


@pytest.mark.slow
def test_a_kill_before_any_write_of_a_later_ingest_leaves_one_dataset_or_the_other(
    tmp_path: Path, store_url: str
) -> None:
    """One source is new, one has changed, one is gone: parts, table, root, manifest, sweep."""
    before = write_sources(tmp_path / "in", {"a": b"01x34", "b": b"56", "c": b"789"})
    ingest_made(store_url, before)
    after = write_sources(tmp_path / "in", {"b": b"567", "d": b"01"})
    step = choose_step(store_url)
    kills = kill_before_every_write(
        lambda url: ingest_made(url, [before[0], *after]),
        store_url,
        f"{store_url}-reference",
        step=step,
    )
    assert kills * step > 50


@pytest.mark.slow
def test_a_kill_before_a_write_of_a_slide_leaves_no_trace(tmp_path: Path, s3_url: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a", "b"):
        write_slide(source, name, boxes=[(64, 64, 320, 448)])

    def run(url: str) -> None:
        ingest_slides(url, list_slides(str(source)), SETTINGS, map_serially)

    kills = kill_before_every_write(run, f"{s3_url}/out", f"{s3_url}/reference", step=8)
    assert kills >= 5
