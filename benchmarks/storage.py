"""How much of the disk's own speed a dataset keeps: writing it, and reading it chunk-shuffled.

The limit is a plain memory map of the same images, neither compressed nor checked nor sealed.
The dataset is written as every dataset is, through `pipeline.ingest.run` on one thread, and read as
training reads it: whole chunks in random order.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark
from pipeline.ingest.plan import Plan, SourceRead
from pipeline.ingest.run import ingest
from pipeline.records import Array
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
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


def write_map(path: Path, shard_count: int) -> None:
    """Write the same images into a memory map, and on to the disk."""
    shape = (shard_count * SHARD_IMAGES, *SHAPE)
    images = np.memmap(path, np.uint8, "w+", shape=shape)
    for start in range(0, len(images), SHARD_IMAGES):
        images[start : start + SHARD_IMAGES] = paint_shard()
    images.flush()


def order_chunks(shard_count: int) -> list[slice]:
    """Every chunk once, in an order that stays the same."""
    starts = np.arange(0, shard_count * SHARD_IMAGES, CHUNK_IMAGES)
    shuffled = np.random.default_rng(1).permutation(starts)
    return [slice(int(start), int(start) + CHUNK_IMAGES) for start in shuffled]


def read_map(path: Path, shard_count: int) -> None:
    """Read the memory map chunk by chunk."""
    shape = (shard_count * SHARD_IMAGES, *SHAPE)
    images = np.memmap(path, np.uint8, "r", shape=shape)
    for chunk in order_chunks(shard_count):
        np.array(images[chunk])


def read_dataset(url: str, shard_count: int) -> None:
    """Read the dataset chunk by chunk."""
    dataset = open_dataset(url)
    for chunk in order_chunks(shard_count):
        dataset.read_images(chunk.start, chunk.stop)


def measure(quick: bool) -> Outcome:
    """Write and read, each against its limit."""
    shard_count, rounds = (2, 3) if quick else (8, 7)
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as folder:
        return _measure_in(Path(folder), shard_count, rounds)


def _measure_in(folder: Path, shard_count: int, rounds: int) -> Outcome:
    flat, url, plan = folder / "images.bin", folder / "dataset", make_plan(shard_count)
    paint_shard()
    count = plan.spec.image_count
    writing = compare(
        f"Writing {count:,} images of {SHAPE[0]} px in colour",
        [
            Method(
                "memory map",
                partial(write_map, flat, shard_count),
                count,
                prepare=lambda: flat.unlink(missing_ok=True),
            ),
            Method(
                "sealed dataset",
                lambda: _write_dataset(url, plan),
                count,
                prepare=lambda: shutil.rmtree(url, ignore_errors=True),
            ),
        ],
        unit="images/s",
        rounds=rounds,
    )
    reading = compare(
        "Reading them by whole chunks, shuffled, one thread",
        [
            Method("memory map", partial(read_map, flat, shard_count), count),
            Method("sealed dataset", partial(read_dataset, str(url), shard_count), count),
        ],
        unit="images/s",
        rounds=rounds,
    )
    stored = sum(path.stat().st_size for path in url.rglob("*") if path.is_file())
    return _conclude(writing, reading, plan.spec.raw_bytes / stored)


def _write_dataset(url: Path, plan: Plan) -> None:
    ingest(str(url), plan, Painter(), map_serially)


def _conclude(writing: Comparison, reading: Comparison, compression: float) -> Outcome:
    metrics = {
        "write_share_of_limit": writing.ratio("sealed dataset"),
        "read_share_of_limit": reading.ratio("sealed dataset"),
        "compression": compression,
    }
    note = f"The images shrink {compression:.1f} times; the limit writes and reads them whole."
    return Outcome((writing, reading), metrics, (note,))


if __name__ == "__main__":
    sys.exit(run_benchmark("storage", measure))
