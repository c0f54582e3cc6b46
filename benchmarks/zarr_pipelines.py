"""Shards by our own codec, by zarr-python, and by zarr-python with the codec pipeline of zarrs.

Needs `pip install zarrs==0.2.3`. docs/adr/0002-own-shard-codec.md has the figures.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from benchmarks.harness import Method, Outcome, compare, on_one_core, run_benchmark
from benchmarks.painted import CHUNK_IMAGES, SHARD_IMAGES, paint_shard, specify, write_painted
from pipeline.io.storage import write_parts
from pipeline.store.dataset import open_dataset
from pipeline.store.part import write_part
from pipeline.store.sharding import encode_shard
from pipeline.store.spec import empty_column

PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarr-python with zarrs": "zarrs.ZarrsCodecPipeline",
}
SHARDS = 4


def declare(url: Path) -> None:
    """Make a part whose images are to be written."""
    shutil.rmtree(url, ignore_errors=True)
    spec, count = specify(), SHARDS * SHARD_IMAGES
    columns = {name: empty_column(spec, name, count) for name in spec.columns}
    write_part(str(url), spec, columns, {})


def write_by_ours(url: Path) -> None:
    """Encode and write every shard."""
    images = paint_shard()
    for shard in range(SHARDS):
        chunks = (images[at : at + CHUNK_IMAGES] for at in range(0, SHARD_IMAGES, CHUNK_IMAGES))
        parts = encode_shard(chunks, chunk_images=CHUNK_IMAGES, shard_images=SHARD_IMAGES)
        write_parts(f"{url}/image/c/{shard}/0/0/0", parts)


def write_by_zarr(url: Path, pipeline: str) -> None:
    """Assign every shard to the array."""
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        array = zarr.open_array(url / "image", mode="r+")
        for start in range(0, SHARDS * SHARD_IMAGES, SHARD_IMAGES):
            array[start : start + SHARD_IMAGES] = paint_shard()


def order_chunks() -> list[int]:
    """Number every chunk once, in an order that stays the same."""
    count = SHARDS * SHARD_IMAGES // CHUNK_IMAGES
    numbers: list[int] = np.random.default_rng(1).permutation(count).tolist()
    return numbers


def read_by_ours(url: Path) -> None:
    """Read every chunk, shuffled."""
    read = open_dataset(str(url)).open_chunks()
    for chunk in order_chunks():
        read(chunk)


def read_by_zarr(url: Path, pipeline: str) -> None:
    """Read the same rows from the array."""
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        part = open_dataset(str(url)).open_part(0)
        for chunk in order_chunks():
            part.read_images(chunk * CHUNK_IMAGES, (chunk + 1) * CHUNK_IMAGES)


def measure(quick: bool) -> Outcome:
    """Write and read in turns, on one core."""
    rounds, count = 3 if quick else 7, SHARDS * SHARD_IMAGES
    paint_shard()
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as folder, on_one_core():
        sealed, written = Path(folder, "sealed"), Path(folder, "written")
        write_painted(str(sealed), SHARDS, part_shards=SHARDS)
        prepare = partial(declare, written)
        writing = [Method("ours", partial(write_by_ours, written), count, prepare)]
        reading = [Method("ours", partial(read_by_ours, sealed), count)]
        for name, path in PIPELINES.items():
            writing.append(Method(name, partial(write_by_zarr, written, path), count, prepare))
            reading.append(Method(name, partial(read_by_zarr, sealed, path), count))
        found = (
            compare("Writing shards", writing, unit="images/s", rounds=rounds),
            compare("Reading chunks, shuffled", reading, unit="images/s", rounds=rounds),
        )
    metrics = {
        f"{kind}_{name}": each.ratio(name)
        for kind, each in zip(("write", "read"), found, strict=True)
        for name in PIPELINES
    }
    return Outcome(found, metrics, ("Ratios are to our own codec.",))


if __name__ == "__main__":
    run_benchmark("zarr_pipelines", measure)
