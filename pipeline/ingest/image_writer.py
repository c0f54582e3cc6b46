"""The images of a shard, written by another thread while the rest of them is still being read.

Reading takes the processor and writing the disk or the network: one after the other, each would
wait for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.io.storage import write_parts
from pipeline.store.sharding import encode_shard

Images = NDArray[np.uint8]


class _AbandonedError(Exception):
    """Reading has failed, and what was written is to be dropped."""


class ImageWriter:
    """What one thread has read, for another to write.

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
        """Say that so many more images are there, and will not change any more."""
        size, total = self._chunk_images, len(self._images)
        begin = self._read_count // size * size
        self._read_count += count
        end = total if self._read_count == total else self._read_count // size * size
        for start in range(begin, end, size):
            self._chunks.put(self._images[start : start + size])

    def abandon(self) -> None:
        """Say that no more will come."""
        self._chunks.put(None)

    def write(self, url: str, shard_images: int) -> blake3:
        """Write the images as they come, all of them or none.

        Returns:
            Their digest, which the columns' can be added to.
        """
        chunks = self._follow()
        write_parts(
            url, encode_shard(chunks, chunk_images=self._chunk_images, shard_images=shard_images)
        )
        return self._digest

    def _follow(self) -> Iterator[Images]:
        for _ in range(0, len(self._images), self._chunk_images):
            chunk = self._chunks.get()
            if chunk is None:
                raise _AbandonedError
            self._digest.update(chunk.reshape(-1).data)
            yield chunk
