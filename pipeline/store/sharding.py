"""A shard of images as bytes, chunk by chunk, as Zarr's sharding codec lays it out.

zarr-python holds a shard's chunks, all of them joined, and what it sends; here each chunk goes as
soon as it is compressed. Reading is zarr-python's, or `chunk_reader`'s.
Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from pipeline.io.atomic_files import Part

# Stained tissue and films hardly compress: of tiles all of tissue Zstandard leaves 97 percent, LZ4
# 99, of tiles half of glass 89 and 92. LZ4 takes a fifth of the time, and reads back ten times as
# fast. Where a sample shows that it would save little, a chunk is stored as it is, which is valid
# Blosc too: packing and unpacking the rest takes as long as moving it over a network.
IMAGE_CODEC: Final = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1)
# Its annotations know no arrays.
_compress: Final[Callable[..., bytes]] = cast("Callable[..., bytes]", imagecodecs.blosc_encode)
ABSENT: Final = 2**64 - 1  # in place of a chunk's offset
_LEAST_SAVING: Final = 1 / 8
_SAMPLED_ROWS: Final = 16  # one of so many
_ENTRY_BYTES: Final = 16
# Blosc's header (c-blosc, README_CHUNK_FORMAT): versions of it and of its LZ4, flags, bytes of a
# number; then bytes unpacked, of a block, and packed, itself included.
BLOSC_HEADER: Final = struct.Struct("<4B3I")
IS_STORED: Final = 0x02  # among the flags: the bytes follow as they are
_BY_LZ4: Final = 0x20
_BLOCK_BYTES: Final = 1 << 17
_CRC_BYTES: Final = 4


def encode_shard(
    chunks: Iterable[NDArray[np.uint8]], *, chunk_images: int, shard_images: int
) -> Iterator[Part]:
    """Encode a shard.

    Args:
        chunks: uint8 (n, H, W, C) each, `shard_images` at most in all; the last shard may have
            fewer.
        chunk_images: Images in a chunk; what the last one lacks is zeros.
        shard_images: Images in a full shard.

    Yields:
        The compressed chunks, some in two parts; then the index: offset and size of each chunk,
        and its CRC-32C.
    """
    index = np.full((shard_images // chunk_images, 2), ABSENT, "<u8")
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
    sizes = size, min(size, _BLOCK_BYTES), size + BLOSC_HEADER.size
    return BLOSC_HEADER.pack(2, 1, _BY_LZ4 | IS_STORED, 1, *sizes), chunk.reshape(-1).data


def _pack(chunk: NDArray[np.uint8]) -> bytes:
    # One thread: several would write its blocks in the order in which they are ready.
    return _compress(
        chunk, level=IMAGE_CODEC.clevel, compressor="lz4", shuffle=0, typesize=1, numthreads=1
    )


def measure_index_bytes(chunk_count: int) -> int:
    """Size of the index at the end of a shard of so many chunks."""
    return chunk_count * _ENTRY_BYTES + _CRC_BYTES


def decode_index(data: bytes) -> NDArray[np.uint64]:
    """Read an index.

    Args:
        data: The last `measure_index_bytes` bytes of a shard.

    Returns:
        uint64 (chunks, 2): offset and size of each, in bytes; the offset `ABSENT` where there is
        no chunk.

    Raises:
        ValueError: It is damaged.
    """
    content, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if _checksum(content) != checksum:
        raise ValueError("the index of the shard is damaged")
    return np.frombuffer(content, "<u8").reshape(-1, 2)


def _checksum(content: bytes) -> bytes:
    checksum: bytes = google_crc32c.value(content).to_bytes(_CRC_BYTES, "little")
    return checksum
