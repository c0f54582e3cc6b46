"""Shards of images: bytes that Zarr's sharding codec specifies, written and read chunk by chunk.

zarr-python holds all chunks of a shard, their concatenation, and what it sends; here each chunk is
sent as soon as it is compressed. zarr-python reads the index of a shard for every chunk; here it is
read once. docs/adr/0002-own-shard-codec.md has the measured difference. Arrays in any other form
are read by zarr-python.
Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, Protocol, cast

import google_crc32c
import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.core.metadata.v3 import ArrayV3Metadata

from pipeline.errors import AbsentError, SchemaError
from pipeline.io.atomic_files import Part
from pipeline.io.storage import describe, join, read_range

# What mends damage in a part: an ingest alone keeps a part of which the root document is whole.
REPAIR: Final = (
    "Run `normscope verify DATASET --repair`, then the same ingest: it makes this part again"
)
# Stained tissue and films hardly compress: of tiles all of tissue Zstandard leaves 97 percent, LZ4
# 99, of tiles half of glass 89 and 92. LZ4 takes a fifth of the time, and reads back ten times as
# fast. Where a sample shows that it would save little, a chunk is stored as it is, which is valid
# Blosc too: packing and unpacking the rest takes as long as moving it over a network.
IMAGE_CODEC: Final = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1)
# Their annotations do not know arrays.
_decompress: Final[Callable[..., object]] = cast("Callable[..., object]", imagecodecs.blosc_decode)
_compress: Final[Callable[..., bytes]] = cast("Callable[..., bytes]", imagecodecs.blosc_encode)
_ABSENT: Final = 2**64 - 1  # in place of a chunk's offset
_LEAST_SAVING: Final = 1 / 8
_SAMPLED_ROWS: Final = 16  # one row in so many is sampled
_ENTRY_BYTES: Final = 16
# Blosc's header (c-blosc, README_CHUNK_FORMAT): versions of it and of its LZ4, flags, bytes of a
# number; then bytes unpacked, of a block, and packed, itself included.
_BLOSC_HEADER: Final = struct.Struct("<4B3I")
_IS_STORED: Final = 0x02  # among the flags: the bytes follow as they are
_BY_LZ4: Final = 0x20
_BLOCK_BYTES: Final = 1 << 17
_CRC_BYTES: Final = 4


def encode_shard(
    chunks: Iterable[NDArray[np.uint8]], *, chunk_images: int, shard_images: int
) -> Iterator[Part]:
    """Encode a shard.

    Args:
        chunks: Images, uint8 (n, H, W, C) each, at most `shard_images` in all; the last shard may
            have fewer.
        chunk_images: Images in a chunk; the last one is filled up with zeros.
        shard_images: Images in a full shard.

    Yields:
        The compressed chunks, some in two parts; then the index: offset and size of each chunk,
        and its CRC-32C.
    """
    index = np.full((shard_images // chunk_images, 2), _ABSENT, "<u8")
    offset = 0
    for number, chunk in enumerate(chunks):
        parts = _encode_chunk(_pad(chunk, chunk_images))
        size = sum(map(len, parts))
        index[number] = offset, size
        offset += size
        yield from parts
    content = index.tobytes()
    yield content + _checksum(content)


def _pad(chunk: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    if missing := count - len(chunk):
        return np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), np.uint8)])
    return np.ascontiguousarray(chunk)


def _encode_chunk(chunk: NDArray[np.uint8]) -> tuple[Part, ...]:
    sample = np.ascontiguousarray(chunk[:, ::_SAMPLED_ROWS])
    if len(_pack(sample)) <= (1 - _LEAST_SAVING) * sample.nbytes:
        return (_pack(chunk),)
    size = chunk.nbytes
    sizes = size, min(size, _BLOCK_BYTES), size + _BLOSC_HEADER.size
    return _BLOSC_HEADER.pack(2, 1, _BY_LZ4 | _IS_STORED, 1, *sizes), chunk.reshape(-1).data


def _pack(chunk: NDArray[np.uint8]) -> bytes:
    # One thread: several would write its blocks in the order in which they are ready.
    return _compress(
        chunk, level=IMAGE_CODEC.clevel, compressor="lz4", shuffle=0, typesize=1, numthreads=1
    )


def _decode_index(data: bytes) -> NDArray[np.uint64]:
    """Decode an index: uint64 (chunks, 2), offset and size in bytes of each; ValueError if damaged.

    The offset is `_ABSENT` where there is no chunk.
    """
    content, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if _checksum(content) != checksum:
        raise ValueError("the index of the shard is damaged")
    return np.frombuffer(content, "<u8").reshape(-1, 2)


def _checksum(content: bytes) -> bytes:
    checksum: bytes = google_crc32c.value(content).to_bytes(_CRC_BYTES, "little")
    return checksum


class ReadChunk(Protocol):
    """Reads a chunk by its number; any number of threads may do so at once."""

    def __call__(self, chunk: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W, C) of a chunk, fewer at the end; do not write to the array."""
        ...


def open_chunks(url: str, array: zarr.Array[Any]) -> ReadChunk:
    """Choose how to read the whole chunks of an image array.

    Args:
        url: URL of the array, in a sealed dataset that is not ingested again while it is read.
        array: The open array.
    """
    if _is_as_declared(array):
        return _ShardReader(url, array).read
    return partial(_read_by_zarr, array)


def _read_by_zarr(array: zarr.Array[Any], chunk: int) -> NDArray[np.uint8]:
    size = array.chunks[0]
    return np.asarray(array[chunk * size : (chunk + 1) * size], dtype=np.uint8)


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
    """Reads chunks; the index of a shard is read once, then each chunk takes one request."""

    def __init__(self, url: str, array: zarr.Array[ArrayV3Metadata]) -> None:
        self._url = url
        self._key = array.metadata.encode_chunk_key
        self._image_count, self._shape = array.shape[0], array.chunks
        self._chunks_a_shard = (array.shards or array.chunks)[0] // array.chunks[0]
        self._indices: dict[int, NDArray[np.uint64]] = {}

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W, C) of a chunk.

        Raises:
            SchemaError: The shard is damaged or gone.
            StorageError: It cannot be reached.
        """
        shard, place = divmod(chunk, self._chunks_a_shard)
        url = join(self._url, self._key((shard, 0, 0, 0)))
        if shard not in self._indices:
            self._indices[shard] = self._read_index(url)
        offset, size = self._indices[shard][place].tolist()
        count = min(self._shape[0], self._image_count - chunk * self._shape[0])
        if offset == _ABSENT:
            return np.zeros((count, *self._shape[1:]), np.uint8)
        data = read_range(url, offset, offset + size)
        return _unpack(url, data, math.prod(self._shape)).reshape(self._shape)[:count]

    def _read_index(self, url: str) -> NDArray[np.uint64]:
        try:
            size = describe(url).size_bytes
        except AbsentError as error:
            raise SchemaError(url, "the shard is gone", REPAIR) from error
        start = size - self._chunks_a_shard * _ENTRY_BYTES - _CRC_BYTES
        if start < 0:
            raise SchemaError(url, f"the shard is {size} bytes, fewer than its index", REPAIR)
        try:
            return _decode_index(read_range(url, start, size))
        except ValueError as error:
            raise SchemaError(url, str(error), REPAIR) from error


def _unpack(url: str, data: bytes, expected_size: int) -> NDArray[np.uint8]:
    # Blosc trusts its own header, and would read beyond the end of a cut chunk.
    header = _BLOSC_HEADER.unpack_from(data.ljust(_BLOSC_HEADER.size, b"\0"))
    _, _, flags, _, size, _, packed_size = header
    if (size, packed_size) != (expected_size, len(data)):
        problem = f"a chunk of the shard is {len(data)} bytes of {packed_size}, or of another size"
        raise SchemaError(url, problem, REPAIR)
    if flags & _IS_STORED and packed_size == _BLOSC_HEADER.size + size:  # no copy needed
        return np.frombuffer(data, np.uint8, offset=_BLOSC_HEADER.size)
    unpacked = np.empty(size, np.uint8)
    try:
        # One thread each: other threads read other chunks meanwhile.
        _decompress(data, numthreads=1, out=unpacked)
    except imagecodecs.BloscError as error:
        raise SchemaError(url, f"a chunk of the shard is damaged ({error})", REPAIR) from error
    return unpacked
