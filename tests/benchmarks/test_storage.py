"""The storage benchmark measures the same images on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import storage
from pipeline.ingest.run import ingest
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(storage, "SHARD_IMAGES", 8)
    monkeypatch.setattr(storage, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(storage, "SHAPE", (7, 5, 3))
    storage.paint_shard.cache_clear()
    yield
    storage.paint_shard.cache_clear()  # other benchmarks paint the full size


def test_both_sides_hold_the_same_images(tmp_path: Path) -> None:
    flat, url = tmp_path / "flat.bin", str(tmp_path / "dataset")
    storage.write_map(flat, 3)
    ingest(url, storage.make_plan(3), storage.Painter(), map_serially)
    expected = np.memmap(flat, np.uint8, "r", shape=(24, 7, 5, 3))
    np.testing.assert_array_equal(open_dataset(url).read_images(0, 24), expected)
    assert expected.std() > 1


def test_every_chunk_is_read_once() -> None:
    chunks = storage.order_chunks(3)
    assert sorted(chunk.start for chunk in chunks) == [0, 4, 8, 12, 16, 20]
    assert [chunk.start for chunk in chunks] != [0, 4, 8, 12, 16, 20]


def test_it_reports_both_shares() -> None:
    metrics = storage.measure(quick=True).metrics
    assert set(metrics) == {"write_share_of_limit", "read_share_of_limit", "compression"}
    assert all(value > 0 for value in metrics.values())
