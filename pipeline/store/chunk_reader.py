"""Whole chunks of a dataset's images, straight from their shards.

zarr-python reads a shard's index anew for every chunk and passes its bytes through an event loop
and a pipeline of codecs, which takes eight times as long as reading and decompressing them. Here
the index of a shard is read once, then one request gives one chunk. Written for what `schema`
declares; arrays of any other form are left to zarr-python.
Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, cast

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.metadata.v3 import ArrayV3Metadata

from pipeline.errors import SchemaError
from pipeline.io.storage import describe, join, read_range
from pipeline.store.dataset import Dataset
from pipeline.store.sharding import (
    ABSENT,
    BLOSC_HEADER,
    IS_STORED,
    decode_index,
    measure_index_bytes,
)

# Its annotations know no arrays.
_decode: Final[Callable[..., object]] = cast("Callable[..., object]", imagecodecs.blosc_decode)
_REMEDY: Final = "Ingest it again: what is whole is kept"


class ReadChunk(Protocol):
    """Read a chunk by its number; any number of threads may do so at once."""

    def __call__(self, chunk: int) -> NDArray[np.uint8]:
        """Images (n, H, W, C) of a chunk, fewer at the end of the dataset; not to be written to."""
        ...


def open_chunks(dataset: Dataset) -> ReadChunk:
    """How to read the chunks of a sealed dataset.

    Args:
        dataset: Sealed, and not ingested anew while it is read.
    """
    array = cast("zarr.Array[ArrayV3Metadata]", dataset.group["image"])
    if _is_as_declared(array):
        return _ShardReader(dataset, array).read
    return partial(_read_by_zarr, dataset)


def _read_by_zarr(dataset: Dataset, chunk: int) -> NDArray[np.uint8]:
    start = chunk * dataset.chunk_images
    return dataset.read_images(start, min(start + dataset.chunk_images, dataset.image_count))


def _is_as_declared(array: zarr.Array[ArrayV3Metadata]) -> bool:
    """Whether shards hold chunks of whole images by Blosc, with a checked index at their end."""
    codecs = array.metadata.to_dict()["codecs"]
    if not isinstance(codecs, list | tuple) or [c["name"] for c in codecs] != ["sharding_indexed"]:
        return False
    sharding = codecs[0]["configuration"]
    return (
        [codec["name"] for codec in sharding["codecs"]] == ["bytes", "blosc"]
        and [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
        and sharding["index_location"] == "end"
        and array.chunks[1:] == array.shape[1:]
        and array.dtype == np.uint8
    )


class _ShardReader:
    """Reads chunks, and remembers where they lie."""

    def __init__(self, dataset: Dataset, array: zarr.Array[ArrayV3Metadata]) -> None:
        self._url = join(dataset.url, "image")
        self._key = array.metadata.encode_chunk_key
        self._image_count, self._shape = array.shape[0], array.chunks
        self._chunks_a_shard = (array.shards or array.chunks)[0] // array.chunks[0]
        self._indices: dict[int, NDArray[np.uint64]] = {}

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """Images (n, H, W, C) of a chunk.

        Raises:
            SchemaError: The shard is damaged.
            StorageError: It cannot be reached.
        """
        shard, place = divmod(chunk, self._chunks_a_shard)
        url = join(self._url, self._key((shard, 0, 0, 0)))
        if shard not in self._indices:
            self._indices[shard] = self._read_index(url)
        offset, size = self._indices[shard][place].tolist()
        count = min(self._shape[0], self._image_count - chunk * self._shape[0])
        if offset == ABSENT:
            return np.zeros((count, *self._shape[1:]), np.uint8)
        data = read_range(url, offset, offset + size)
        return _unpack(url, data, math.prod(self._shape)).reshape(self._shape)[:count]

    def _read_index(self, url: str) -> NDArray[np.uint64]:
        size = describe(url).size_bytes
        data = read_range(url, size - measure_index_bytes(self._chunks_a_shard), size)
        try:
            return decode_index(data)
        except ValueError as error:
            raise SchemaError(url, str(error), _REMEDY) from error


def _unpack(url: str, data: bytes, expected_size: int) -> NDArray[np.uint8]:
    # Blosc believes its own header, and would read beyond a cut.
    header = BLOSC_HEADER.unpack_from(data.ljust(BLOSC_HEADER.size, b"\0"))
    _, _, flags, _, size, _, packed_size = header
    if (size, packed_size) != (expected_size, len(data)):
        problem = f"a chunk of the shard is {len(data)} bytes of {packed_size}, or of another size"
        raise SchemaError(url, problem, _REMEDY)
    if flags & IS_STORED and packed_size == BLOSC_HEADER.size + size:  # nothing to unpack: no copy
        return np.frombuffer(data, np.uint8, offset=BLOSC_HEADER.size)
    unpacked = np.empty(size, np.uint8)
    try:
        # One thread each: other threads read other chunks meanwhile.
        _decode(data, numthreads=1, out=unpacked)
    except imagecodecs.BloscError as error:
        raise SchemaError(url, f"a chunk of the shard is damaged ({error})", _REMEDY) from error
    return unpacked
