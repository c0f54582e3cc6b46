"""Images of the benchmarks: painted ones, datasets of them, and the centres of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.ingest.parts import Draft, make_part
from pipeline.ingest.run import Outcome, Work, ingest
from pipeline.ingest.sources import SourceRead
from pipeline.records import Array
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.part import Part, name_place
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec

SHAPE = (64, 64, 3)
SHARD_IMAGES = 1024
CHUNK_IMAGES = 128


@lru_cache(maxsize=1)
def paint_shard() -> NDArray[np.uint8]:
    """Smooth blobs with a sensor's noise, neither flat nor incompressible: uint8 (n, H, W, C)."""
    random = np.random.default_rng(0)
    blobs = gaussian_filter(random.normal(size=(SHARD_IMAGES, *SHAPE)), sigma=(0, 4, 4, 0))
    noise = random.normal(scale=2.0, size=blobs.shape)
    painted: NDArray[np.uint8] = np.clip(170 + 300 * blobs + noise, 0, 255).astype(np.uint8)
    return painted


def specify() -> DatasetSpec:
    """Specify a dataset of painted images."""
    return DatasetSpec(
        modality="image",
        source="painted",
        image_shape=SHAPE,
        shard_images=SHARD_IMAGES,
        chunk_images=CHUNK_IMAGES,
        columns=BASE_COLUMNS,
        mpp_um=None,
        parameters={},
        stamp={},
    )


def make_columns(number: int, count: int) -> dict[str, Array]:
    """Columns of a part that are known before its images are read.

    Args:
        number: Number of the part, which its rows are named by.
        count: Rows of the part.
    """
    return {
        "image_id": np.array([f"image-{number}-{row}" for row in range(count)], object),
        "label": np.zeros(count, np.int8),
    }


@dataclass(frozen=True)
class PaintedVisit:
    """Makes a part of images that are painted already, so that only storage is measured.

    Args:
        url: URL of the dataset.
        shards: Shards of each part, all of them full and alike.
    """

    url: str
    shards: int

    def __call__(self, number: int) -> Outcome:
        """Make the part of a number."""
        name = f"{number:06d}"
        columns = make_columns(number, self.shards * SHARD_IMAGES)
        draft = Draft(name, name_place(name), "painted", columns)
        part = make_part(self.url, specify(), draft, _give_shard)
        return Outcome(replace(part, group_id="one", split="train"), ())


def _give_shard(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
    images[:] = paint_shard()[: stop - start]
    yield SourceRead((None,) * len(images), {})


def write_painted(url: str, shard_count: int, part_shards: int = 1) -> Dataset:
    """Write a sealed dataset of full shards.

    Args:
        url: URL of the dataset.
        shard_count: Shards in all.
        part_shards: Shards of each part; the number of all is a multiple of it.
    """
    work = Work(
        spec=specify(),
        items=range(shard_count // part_shards),
        visit=PaintedVisit(url, part_shards),
        give_up=_never,
        arrange=_keep_order,
        weigh=_count_one,
    )
    ingest(url, work, map_serially)
    return open_dataset(url)


def _never(number: int) -> Outcome:
    raise AssertionError(number)


def _keep_order(parts: Sequence[Part]) -> tuple[Sequence[Part], Mapping[str, str]]:
    return parts, {}


def _count_one(_: int) -> int:
    return 1


def read_centre(path: Path, side_px: int) -> NDArray[np.uint8]:
    """Read the centre of a tile: uint8 (side_px, side_px, 3)."""
    with Image.open(path) as tile:
        left, top = (tile.width - side_px) // 2, (tile.height - side_px) // 2
        return np.asarray(tile.convert("RGB").crop((left, top, left + side_px, top + side_px)))
