"""The images of a dataset by row: held in memory, or read chunk by chunk as they are needed.

Chunks are read whole and by several threads; single rows are never fetched from the store.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.chunk_reader import ReadChunk, open_chunks
from pipeline.schema import Dataset

_READERS: Final = 4

Rows = NDArray[np.int64]
Images = NDArray[np.uint8]


class ImageCache(Protocol):
    """Where a training gets its images from."""

    def read_rows(self, rows: Rows) -> Images:
        """Images (n, H, W, C) of these rows, in their order."""
        ...

    def expect(self, rows: Rows) -> None:
        """Take notice that these rows will be read soon."""
        ...


def open_images(
    dataset: Dataset, rows: Rows, *, cache_bytes: int, cached_chunks: int
) -> ImageCache:
    """Hold the images in memory if they fit, else read them as they come.

    Args:
        dataset: Where they lie.
        rows: Ascending rows that may be asked for.
        cache_bytes: What images in memory may take.
        cached_chunks: How many chunks are kept while reading as they come.
    """
    if len(rows) * int(np.prod(dataset.image_shape)) <= cache_bytes:
        return HeldImages(dataset, rows)
    return StreamedImages(dataset, cached_chunks=cached_chunks)


class HeldImages:
    """Images in memory, as bytes.

    Args:
        dataset: Read once, here.
        rows: Ascending rows to hold; no others can be asked for.
    """

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self._rows = rows
        self._images = np.empty((len(rows), *dataset.image_shape), np.uint8)
        self._chunk_images = dataset.chunk_images
        fill = partial(self._fill, open_chunks(dataset))
        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(fill, _chunks_of(rows, dataset.chunk_images)))

    def read_rows(self, rows: Rows) -> Images:
        """Images (n, H, W, C) of these rows, in their order."""
        return self._images[np.searchsorted(self._rows, rows)]

    def expect(self, rows: Rows) -> None:
        """Everything is here already."""

    def _fill(self, read: ReadChunk, chunk: int) -> None:
        start = chunk * self._chunk_images
        images = read(chunk)
        first, last = np.searchsorted(self._rows, [start, start + len(images)])
        self._images[first:last] = images[self._rows[first:last] - start]


class StreamedImages:
    """Images read chunk by chunk; the chunks used last are kept.

    Args:
        dataset: Where they lie.
        cached_chunks: How many chunks are kept.
    """

    def __init__(self, dataset: Dataset, *, cached_chunks: int) -> None:
        self._read = open_chunks(dataset)
        self._image_shape, self._chunk_images = dataset.image_shape, dataset.chunk_images
        self._cached_chunks = cached_chunks
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="chunk-reader")
        self._chunks: OrderedDict[int, Future[Images]] = OrderedDict()
        self._lock = Lock()

    def read_rows(self, rows: Rows) -> Images:
        """Images (n, H, W, C) of these rows, in their order."""
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        chunks = rows // self._chunk_images
        waiting = {chunk: self._request(chunk) for chunk in np.unique(chunks).tolist()}
        for chunk, reading in waiting.items():
            wanted = chunks == chunk
            images[wanted] = reading.result()[rows[wanted] % self._chunk_images]
        return images

    def expect(self, rows: Rows) -> None:
        """Begin to read the chunks of these rows."""
        for chunk in _chunks_of(rows, self._chunk_images):
            self._request(chunk)

    def _request(self, chunk: int) -> Future[Images]:
        with self._lock:
            if chunk not in self._chunks:
                self._chunks[chunk] = self._readers.submit(self._read, chunk)
            self._chunks.move_to_end(chunk)
            while len(self._chunks) > self._cached_chunks:
                self._chunks.popitem(last=False)
            return self._chunks[chunk]


def _chunks_of(rows: Rows, chunk_images: int) -> list[int]:
    """The chunks that rows lie in, in the order of their first use."""
    return list(dict.fromkeys((rows // chunk_images).tolist()))
