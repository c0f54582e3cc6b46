"""The painted datasets that benchmarks read and write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import painted, zarr_pipelines
from pipeline.ingest.run import ingest
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(painted, "SHARD_IMAGES", 8)
    monkeypatch.setattr(painted, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(painted, "SHAPE", (7, 5, 3))
    painted.paint_shard.cache_clear()
    yield
    painted.paint_shard.cache_clear()  # other benchmarks paint the full size


def test_a_dataset_holds_the_painted_images(tmp_path: Path) -> None:
    url = str(tmp_path / "dataset")
    ingest(url, painted.make_plan(3), painted.Painter(), map_serially)
    expected = np.tile(painted.paint_shard(), (3, 1, 1, 1))
    np.testing.assert_array_equal(open_dataset(url).read_images(0, 24), expected)
    assert expected.shape == (24, 7, 5, 3)
    assert expected.std() > 1


def test_every_chunk_is_read_once() -> None:
    chunks = zarr_pipelines.order_chunks()
    assert sorted(chunks) == list(range(32))
    assert chunks != list(range(32))
