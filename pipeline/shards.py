"""The shard: the unit of work, of retry and of commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from zarr import AsyncArray
from zarr.api.asynchronous import open_group

from pipeline.errors import AbsentError, SchemaError, SourceError
from pipeline.plan import Plan, Reader, SourceRead
from pipeline.schema import SCHEMA_VERSION, Array, DatasetSpec, fill_value
from pipeline.shard_codec import encode_shard
from pipeline.storage import join, open_zarr_store, write_parts

UNREADABLE: Final = (SourceError, AbsentError)


@dataclass(frozen=True)
class ShardTask:
    """One shard's work: rows `start` to `stop`, and all that is needed to make them."""

    shard: int
    start: int
    sources: tuple[Any, ...]
    source_index: NDArray[np.integer[Any]]
    columns: Mapping[str, Array]
    spec: DatasetSpec
    key: str

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.start + len(self.source_index)


@dataclass(frozen=True)
class Commit:
    """What a finished shard was made from and what came of it.

    Args:
        shard: Its number.
        key: The key of work.
        digest: BLAKE3 of its images and columns, uncompressed; a quarter of SHA-256's time.
        unreadable: (row in the dataset, reason) of each unreadable row.
    """

    shard: int
    key: str
    digest: str
    unreadable: tuple[tuple[int, str], ...]

    def to_json(self) -> str:
        """As kept in the `commit` array."""
        return json.dumps([self.key, self.digest, self.unreadable], separators=(",", ":"))

    @classmethod
    def from_json(cls, shard: int, text: str) -> Commit:
        """The reverse of `to_json`."""
        key, digest, unreadable = json.loads(text)
        return cls(shard, key, digest, tuple((row, reason) for row, reason in unreadable))


def cut_shards(plan: Plan, reader: Reader[Any]) -> Iterator[ShardTask]:
    """Cut a plan into shards, each with its key of work."""
    size = plan.spec.shard_images
    for shard, start in enumerate(range(0, plan.spec.image_count, size)):
        index = plan.source_index[start : start + size]
        first, last = int(index[0]), int(index[-1])
        columns = {name: values[start : start + size] for name, values in plan.columns.items()}
        sources = plan.sources[first : last + 1]
        key = _key_of_work(plan.spec, reader, sources, index - first, columns)
        yield ShardTask(shard, start, sources, index - first, columns, plan.spec, key)


def _key_of_work(
    spec: DatasetSpec,
    reader: Reader[Any],
    sources: tuple[Any, ...],
    source_index: NDArray[np.integer[Any]],
    columns: Mapping[str, Array],
) -> str:
    # Whatever other settings chose the rows, the same rows give the same shard.
    facts = {
        "normscope_schema": SCHEMA_VERSION,
        "code_version": spec.code_version,
        "shape": spec.image_shape,
        "shard_images": spec.shard_images,
        "chunk_images": spec.chunk_images,
        "columns": {name: str(dtype) for name, dtype in sorted(spec.columns.items())},
        "reader": repr(reader),
        "versions": [source.version for source in sources],
        "rows": _digest(source_index, columns),
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(first: Array, columns: Mapping[str, Array]) -> str:
    digest = blake3(_view_bytes(first))
    for name, values in sorted(columns.items()):
        digest.update(name.encode())
        if values.dtype.kind in "TUO":
            digest.update(json.dumps(values.tolist()).encode())
        else:
            digest.update(_view_bytes(values))
    return digest.hexdigest()


def _view_bytes(values: Array) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def make_shard(url: str, reader: Reader[Any], task: ShardTask) -> Commit:
    """Read and write one whole shard, the commit last.

    Args:
        url: Of the dataset, whose metadata is already there.
        reader: How to read its sources.
        task: Which rows.

    Returns:
        What was made; also kept in the dataset.
    """
    count = len(task.source_index)
    images = np.zeros((count, *task.spec.image_shape), np.uint8)  # takes no memory until it is used
    columns = {name: _empty_column(task.spec, name, count) for name in task.spec.columns}
    columns |= {name: np.array(values) for name, values in task.columns.items()}
    columns["readable"] = np.zeros(count, bool)
    unreadable: list[tuple[int, str]] = []
    for source, begin, end in cut_sources(task):
        rows = {name: values[begin:end] for name, values in task.columns.items()}
        read = read_or_mark(partial(reader.read, source, rows), end - begin, task.spec.image_shape)
        readable = np.array([reason is None for reason in read.reasons])
        pixels = read.images if readable.all() else _blank(read.images, readable)
        if len(pixels) == count:  # most shards are of one source: no copy, nor twice the memory
            images = pixels
        else:
            images[begin:end] = pixels
        columns["readable"][begin:end] = readable
        columns["source_digest"][begin:end] = read.digest
        for name, values in read.columns.items():
            columns[name][begin:end] = values
        unreadable += [
            (task.start + begin + row, reason)
            for row, reason in enumerate(read.reasons)
            if reason is not None
        ]
    return asyncio.run(_write_shard(url, task, images, columns, tuple(unreadable)))


def _blank(images: NDArray[np.uint8], readable: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy with zeros for what is not readable."""
    blanked = images.copy()
    blanked[~readable] = 0
    return blanked


async def _write_shard(
    url: str,
    task: ShardTask,
    images: NDArray[np.uint8],
    columns: Mapping[str, Array],
    unreadable: tuple[tuple[int, str], ...],
) -> Commit:
    """Write images and columns, and digest them meanwhile; the commit when they are there."""
    spec = task.spec
    group = await open_group(open_zarr_store(url, read_only=False), mode="r+")

    async def write(name: str, where: slice, values: Array) -> None:
        array = await group.getitem(name)
        if not isinstance(array, AsyncArray):
            raise SchemaError(url, f"{name!r} is no array", "Choose an empty destination")
        # Comparing every chunk with the fill value costs as much as compressing it.
        await array.with_config({"write_empty_chunks": True}).setitem(where, values)

    parts = encode_shard(images, chunk_images=spec.chunk_images, shard_images=spec.shard_images)
    place = join(url, "image", "c", str(task.shard), "0", "0", "0")
    rows = slice(task.start, task.stop)
    digest, _, _ = await asyncio.gather(
        asyncio.to_thread(_digest, images, columns),
        asyncio.to_thread(write_parts, place, parts),
        asyncio.gather(*(write(name, rows, values) for name, values in columns.items())),
    )
    commit = Commit(task.shard, task.key, digest, unreadable)
    await write("commit", slice(task.shard, task.shard + 1), np.array([commit.to_json()], object))
    return commit


def _empty_column(spec: DatasetSpec, name: str, count: int) -> Array:
    dtype = spec.columns[name]
    shape = (count, 2) if name.endswith("_yx") else (count,)
    return np.full(shape, fill_value(name, dtype), object if dtype.kind in "TUO" else dtype)


def cut_sources(task: ShardTask) -> Iterator[tuple[Any, int, int]]:
    """Each source with the begin and end of its rows in the shard."""
    edges = np.flatnonzero(np.diff(task.source_index)) + 1
    for begin, end in zip([0, *edges], [*edges, len(task.source_index)], strict=True):
        yield task.sources[int(task.source_index[begin])], int(begin), int(end)


def read_or_mark(
    read: Callable[[], SourceRead], count: int, shape: tuple[int, int, int]
) -> SourceRead:
    """Read a source, or mark its rows unreadable; broken storage is no such case.

    Args:
        read: Reads it.
        count: Its rows.
        shape: (H, W, C) of an image.
    """
    try:
        return read()
    except UNREADABLE as error:
        return mark_unreadable(error, count, shape)


def mark_unreadable(error: Exception, count: int, shape: tuple[int, int, int]) -> SourceRead:
    """What stands for the rows of a source that could not be read."""
    return SourceRead(np.zeros((count, *shape), np.uint8), (str(error),) * count, {}, "")
