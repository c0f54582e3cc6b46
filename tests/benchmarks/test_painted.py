"""The painted datasets that benchmarks read and write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import painted, zarr_pipelines


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(painted, "SHARD_IMAGES", 8)
    monkeypatch.setattr(painted, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(painted, "SHAPE", (7, 5, 3))
    painted.paint_shard.cache_clear()
    yield
    painted.paint_shard.cache_clear()  # other benchmarks paint the full size


@pytest.mark.parametrize("part_shards", [1, 3])
def test_a_dataset_holds_the_painted_images(tmp_path: Path, part_shards: int) -> None:
    dataset = painted.write_painted(str(tmp_path / "dataset"), 3, part_shards)
    expected = np.tile(painted.paint_shard(), (3, 1, 1, 1))
    np.testing.assert_array_equal(dataset.read_images(0, 24), expected)
    assert len(dataset.parts) == 3 // part_shards
    assert expected.shape == (24, 7, 5, 3)
    assert expected.std() > 1


def test_every_chunk_is_read_once() -> None:
    chunks = zarr_pipelines.order_chunks()
    assert sorted(chunks) == list(range(32))
    assert chunks != list(range(32))
