"""The shard: the unit of work, of retry and of commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from zarr import AsyncArray
from zarr.api.asynchronous import open_group

from pipeline.errors import AbsentError, SchemaError, SourceError
from pipeline.ingest.image_writer import ImageWriter
from pipeline.ingest.plan import FillingReader, Plan, Reader, SourceRead
from pipeline.io.storage import join, open_zarr_store
from pipeline.runtime.malloc import KeptMemory
from pipeline.store.dataset import SCHEMA_VERSION, Array, DatasetSpec, fill_value

UNREADABLE: Final = (SourceError, AbsentError)
_memory: Final = KeptMemory()


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
        "rows": _digest(blake3(_view_bytes(source_index)), columns),
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(digest: blake3, columns: Mapping[str, Array]) -> str:
    """Go on with a digest, and end it."""
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
    draft = _Draft.of(task)
    writer = ImageWriter(draft.images, task.spec.chunk_images)
    place = join(url, "image", "c", str(task.shard), "0", "0", "0")
    with ThreadPoolExecutor(1, thread_name_prefix="image-writer") as thread:
        written = thread.submit(writer.write, place, task.spec.shard_images)
        try:
            for read in _read(reader, task, draft.images):
                writer.advance(draft.put(read))
        except BaseException:
            writer.abandon()
            raise
        return asyncio.run(_write_columns(url, task, draft, written.result))


@dataclass(frozen=True, slots=True, eq=False)
class _Draft:
    """What has been read of a shard; images that could not be are zeros."""

    images: NDArray[np.uint8]
    columns: Mapping[str, Array]
    reasons: list[str | None]

    @classmethod
    def of(cls, task: ShardTask) -> Self:
        count = len(task.source_index)
        columns = {name: _empty_column(task.spec, name, count) for name in task.spec.columns}
        columns |= {name: np.array(values) for name, values in task.columns.items()}
        columns["readable"] = np.zeros(count, bool)
        return cls(_memory.take((count, *task.spec.image_shape)), columns, [])

    def put(self, read: SourceRead) -> int:
        """Take what was read of the next rows; returns how many."""
        count = len(read.reasons)
        rows = slice(len(self.reasons), len(self.reasons) + count)
        images = self.images[rows]
        if not np.may_share_memory(images, read.images):
            images[:] = read.images
        readable = np.array([reason is None for reason in read.reasons])
        if not readable.all():
            images[~readable] = 0
        self.columns["readable"][rows] = readable
        self.columns["source_digest"][rows] = read.digest
        for name, values in read.columns.items():
            self.columns[name][rows] = values
        self.reasons.extend(read.reasons)
        return count


def _read(reader: Reader[Any], task: ShardTask, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
    """Read a shard's rows in their order, piece by piece.

    Raises:
        StorageError: The storage is broken, which is no unreadable source.
    """
    for source, begin, end in cut_sources(task):
        rows = {name: values[begin:end] for name, values in task.columns.items()}
        left = end - begin
        try:
            if isinstance(reader, FillingReader):
                for read in reader.fill(source, rows, images[begin:end]):
                    left -= len(read.reasons)
                    yield read
            else:
                yield reader.read(source, rows)
        except UNREADABLE as error:
            yield mark_unreadable(error, left, task.spec.image_shape)


async def _write_columns(
    url: str, task: ShardTask, draft: _Draft, wait_for_images: Callable[[], blake3]
) -> Commit:
    """Write the columns while the last images are written, and the commit when all is there."""
    group = await open_group(open_zarr_store(url, read_only=False), mode="r+")

    async def write(name: str, where: slice, values: Array) -> None:
        array = await group.getitem(name)
        if not isinstance(array, AsyncArray):
            raise SchemaError(url, f"{name!r} is no array", "Choose an empty destination")
        # Comparing every chunk with the fill value costs as much as compressing it.
        await array.with_config({"write_empty_chunks": True}).setitem(where, values)

    rows = slice(task.start, task.stop)
    digest, _ = await asyncio.gather(
        asyncio.to_thread(wait_for_images),
        asyncio.gather(*(write(name, rows, values) for name, values in draft.columns.items())),
    )
    reasons = enumerate(draft.reasons, task.start)
    unreadable = tuple((row, reason) for row, reason in reasons if reason is not None)
    commit = Commit(task.shard, task.key, _digest(digest, draft.columns), unreadable)
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


def mark_unreadable(error: Exception, count: int, shape: tuple[int, int, int]) -> SourceRead:
    """What stands for the rows of a source that could not be read."""
    return SourceRead(np.zeros((count, *shape), np.uint8), (str(error),) * count, {}, "")
