"""Images of the benchmarks: painted ones, with a plan and reader, and the centres of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.ingest.plan import Plan, SourceRead
from pipeline.records import Array
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec

SHAPE = (64, 64, 3)
SHARD_IMAGES = 1024
CHUNK_IMAGES = 128


@dataclass(frozen=True)
class Shardful:
    """A source that fills one shard."""

    url: str
    version: str = "1"


@dataclass(frozen=True)
class Painter:
    """Hands out images that are painted already, so that only storage is measured."""

    def read(
        self, source: Shardful, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Give the same images for every source."""
        images[:] = paint_shard()[: len(rows["label"])]
        yield SourceRead((None,) * len(images), {}, source.url)


@lru_cache(maxsize=1)
def paint_shard() -> NDArray[np.uint8]:
    """Smooth blobs with a sensor's noise, neither flat nor incompressible: uint8 (n, H, W, C)."""
    random = np.random.default_rng(0)
    blobs = gaussian_filter(random.normal(size=(SHARD_IMAGES, *SHAPE)), sigma=(0, 4, 4, 0))
    noise = random.normal(scale=2.0, size=blobs.shape)
    painted: NDArray[np.uint8] = np.clip(170 + 300 * blobs + noise, 0, 255).astype(np.uint8)
    return painted


def make_plan(shard_count: int) -> Plan:
    """Shards that are all full."""
    count = shard_count * SHARD_IMAGES
    spec = DatasetSpec(
        modality="image",
        source="painted",
        image_shape=SHAPE,
        image_count=count,
        shard_images=SHARD_IMAGES,
        chunk_images=CHUNK_IMAGES,
        columns=BASE_COLUMNS,
        mpp_um=None,
        parameters={},
        code_version="benchmark",
    )
    columns = {
        "image_id": np.array([f"image-{row}" for row in range(count)], object),
        "group_id": np.full(count, "one", object),
        "split": np.full(count, "train", object),
        "label": np.zeros(count, np.int8),
    }
    sources = tuple(Shardful(f"shard-{shard}") for shard in range(shard_count))
    return Plan(spec, sources, np.repeat(np.arange(shard_count), SHARD_IMAGES), columns)


def read_centre(path: Path, side_px: int) -> NDArray[np.uint8]:
    """Read the centre of a tile: uint8 (side_px, side_px, 3)."""
    with Image.open(path) as tile:
        left, top = (tile.width - side_px) // 2, (tile.height - side_px) // 2
        return np.asarray(tile.convert("RGB").crop((left, top, left + side_px, top + side_px)))
