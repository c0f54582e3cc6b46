"""The shard: the unit of work, of retry and of commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from queue import SimpleQueue
from traceback import format_tb
from typing import Any, Final, Self

import numpy as np
import zarr
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import AbsentError, SchemaError, SourceError, StorageError
from pipeline.ingest.plan import Plan, Reader, SourceRead, name_source
from pipeline.io.storage import join, open_zarr_store, write_parts
from pipeline.records import Array
from pipeline.runtime.malloc import ReusedMemory
from pipeline.store.sharding import encode_shard
from pipeline.store.spec import SCHEMA_VERSION, DatasetSpec, fill_value

Images = NDArray[np.uint8]
_UNREADABLE: Final = (SourceError, AbsentError)
_memory: Final = ReusedMemory()
logger = logging.getLogger(__name__)


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
    """What a finished shard was made from, and the result.

    Args:
        shard: Number of the shard.
        key: The key of work.
        digest: BLAKE3 of the images and columns, uncompressed; a quarter of SHA-256's time.
        unreadable: (row in the dataset, reason) of each unreadable row.
    """

    shard: int
    key: str
    digest: str
    unreadable: tuple[tuple[int, str], ...]

    def to_json(self) -> str:
        """Encode for the `commit` array."""
        return json.dumps([self.key, self.digest, self.unreadable], separators=(",", ":"))

    @classmethod
    def from_json(cls, shard: int, text: str) -> Commit:
        """Decode an element of the `commit` array."""
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
    """Add columns to a digest and finish it."""
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
        url: URL of the dataset, whose metadata documents have been written.
        reader: Reader of the shard's sources.
        task: The rows to make.

    Returns:
        What was made; also kept in the dataset.
    """
    shard = _ShardInMemory.of(task)
    writer = _ImageWriter(shard.images, task.spec.chunk_images)
    has_defect = False
    place = join(url, "image", "c", str(task.shard), "0", "0", "0")
    with ThreadPoolExecutor(1, thread_name_prefix="image-writer") as thread:
        written = thread.submit(writer.write, place, task.spec.shard_images)
        try:
            for read in _read(reader, task, shard.images):
                writer.advance(shard.add(read))
                has_defect |= read.is_defect
        except BaseException:
            writer.abort()
            raise
        group = zarr.open_group(open_zarr_store(url, read_only=False), mode="r+")
        _write_rows(group, slice(task.start, task.stop), shard.columns)
        digest = written.result()
    reasons = enumerate(shard.reasons, task.start)
    unreadable = tuple((row, reason) for row, reason in reasons if reason is not None)
    key = "" if has_defect else task.key  # no task has an empty key: the shard is made again
    commit = Commit(task.shard, key, _digest(digest, shard.columns), unreadable)
    text = np.array([commit.to_json()], object)
    _write_rows(group, slice(task.shard, task.shard + 1), {"commit": text})
    return commit


@dataclass(frozen=True, slots=True, eq=False)
class _ShardInMemory:
    """What has been read of a shard; images that could not be are zeros."""

    images: Images
    columns: Mapping[str, Array]
    reasons: list[str | None]

    @classmethod
    def of(cls, task: ShardTask) -> Self:
        count = len(task.source_index)
        columns = {name: _empty_column(task.spec, name, count) for name in task.spec.columns}
        columns |= {name: np.array(values) for name, values in task.columns.items()}
        columns["readable"] = np.zeros(count, bool)
        return cls(_memory.reserve((count, *task.spec.image_shape)), columns, [])

    def add(self, read: SourceRead) -> int:
        """Record what was read of the next rows; returns how many."""
        count = len(read.reasons)
        rows = slice(len(self.reasons), len(self.reasons) + count)
        readable = np.array([reason is None for reason in read.reasons])
        if not readable.all():
            self.images[rows][~readable] = 0
        self.columns["readable"][rows] = readable
        self.columns["source_digest"][rows] = read.digest
        for name, values in read.columns.items():
            self.columns[name][rows] = values
        self.reasons.extend(read.reasons)
        return count


def _empty_column(spec: DatasetSpec, name: str, count: int) -> Array:
    dtype = spec.columns[name]
    shape = (count, 2) if name.endswith("_yx") else (count,)
    return np.full(shape, fill_value(name, dtype), object if dtype.kind in "TUO" else dtype)


def _read(reader: Reader[Any], task: ShardTask, images: Images) -> Iterator[SourceRead]:
    """Read a shard's rows in their order, piece by piece.

    Raises:
        StorageError: The storage is broken, which does not make a source unreadable.
    """
    for source, begin, end in cut_sources(task):
        rows = {name: values[begin:end] for name, values in task.columns.items()}
        left = end - begin
        try:
            for read in reader.read(source, rows, images[begin:end]):
                left -= len(read.reasons)
                yield read
        except _UNREADABLE as error:
            yield SourceRead((str(error),) * left, {}, "")
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - one file must not stop the batch
            yield SourceRead((report_defect(source, error),) * left, {}, "", is_defect=True)


def report_defect(source: Any, error: Exception) -> str:
    """Log what a reader should not have raised; its text may name a patient and is withheld."""
    name, kind = name_source(source), type(error).__name__
    logger.error(
        "%s: the reader raised %s\n%s", name, kind, "".join(format_tb(error.__traceback__))
    )
    return f"{name}: the reader raised {kind}. Report the log's traceback, or leave the file out"


def cut_sources(task: ShardTask) -> Iterator[tuple[Any, int, int]]:
    """Yield each source with the begin and end of its rows in the shard."""
    edges = np.flatnonzero(np.diff(task.source_index)) + 1
    for begin, end in zip([0, *edges], [*edges, len(task.source_index)], strict=True):
        yield task.sources[int(task.source_index[begin])], int(begin), int(end)


def _write_rows(group: zarr.Group, rows: slice, columns: Mapping[str, Array]) -> None:
    """Write rows of some columns at once: each is one object, and storage may be far away."""

    def write(name: str) -> None:
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise SchemaError(
                str(group.store_path), f"{name!r} is not an array", "Choose an empty destination"
            )
        # Comparing every chunk with the fill value costs as much as compressing it.
        array.with_config({"write_empty_chunks": True})[rows] = columns[name]

    with ThreadPoolExecutor(len(columns), thread_name_prefix="columns") as threads:
        list(threads.map(write, columns))


class _AbortedError(Exception):
    """Reading has failed, and what was written is to be dropped."""


class _ImageWriter:
    """Writes a shard's images in one thread while another still reads the rest of them.

    Reading takes the processor and writing the disk or the network: one after the other, each
    would wait for the other.

    Args:
        images: uint8 (n, H, W, C), which are filled from the first to the last.
        chunk_images: Images in a chunk.
    """

    def __init__(self, images: Images, chunk_images: int) -> None:
        self._images, self._chunk_images = images, chunk_images
        self._read_count = 0
        self._chunks: SimpleQueue[Images | None] = SimpleQueue()
        self._digest = blake3()

    def advance(self, count: int) -> None:
        """Report that so many more images are final."""
        size, total = self._chunk_images, len(self._images)
        begin = self._read_count // size * size
        self._read_count += count
        end = total if self._read_count == total else self._read_count // size * size
        for start in range(begin, end, size):
            self._chunks.put(self._images[start : start + size])

    def abort(self) -> None:
        """Report that no more images will come."""
        self._chunks.put(None)

    def write(self, url: str, shard_images: int) -> blake3:
        """Write all images as they become final, or none.

        Returns:
            The digest of the images, to which that of the columns can be added.
        """
        chunks = self._wait_for_chunks()
        write_parts(
            url, encode_shard(chunks, chunk_images=self._chunk_images, shard_images=shard_images)
        )
        return self._digest

    def _wait_for_chunks(self) -> Iterator[Images]:
        for _ in range(0, len(self._images), self._chunk_images):
            chunk = self._chunks.get()
            if chunk is None:
                raise _AbortedError
            self._digest.update(chunk.reshape(-1).data)
            yield chunk
