"""Images of a dataset by row: kept in memory, or read chunk by chunk as needed.

Memory is the host's, or the training device's where they leave enough of it free. Chunks are read
whole, by several threads; single rows are never fetched from the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.store.dataset import Dataset, find_chunks
from training.data.augmentation import locate_pixels
from training.data.chosen_rows import ChosenRows
from training.networks.inputs import Images, Views, cut_views
from training.settings import WhereHeld

_READERS: Final = 4
# Largest share of a device's free memory for images: the rest is for steps and features.
_DEVICE_SHARE: Final = 0.5
HOST: Final = torch.device("cpu")

Rows = NDArray[np.int64]


def open_images(
    dataset: Dataset, rows: Rows | ChosenRows, *, cache_bytes: int, cached_chunks: int
) -> ImagesInMemory | StreamedImages:
    """Keep the images in memory if they fit, otherwise read them as needed.

    Args:
        dataset: Dataset to read from.
        rows: Ascending rows that may be asked for.
        cache_bytes: Largest size of the images in memory, in bytes.
        cached_chunks: Number of chunks kept where images are read as needed.
    """
    if len(rows) * int(np.prod(dataset.image_shape)) <= cache_bytes:
        listed = rows.list_all() if isinstance(rows, ChosenRows) else rows
        return ImagesInMemory(dataset, listed)
    return StreamedImages(dataset, cached_chunks=cached_chunks)


class ImagesInMemory:
    """Images in memory, as bytes.

    Args:
        dataset: Dataset, read once, here.
        rows: Ascending rows to keep; no others can be asked for.
    """

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self._rows = rows
        self._images = np.empty((len(rows), *dataset.image_shape), np.uint8)
        _read_all(dataset, rows, self._images.__setitem__)

    def read_rows(self, rows: Rows) -> Images:
        """Read the images (n, H, W, C) of these rows, in their order."""
        return self._images[np.searchsorted(self._rows, rows)]

    def expect(self, rows: Rows) -> None:
        """Everything is here already."""


class HostImages:
    """Views that the host cuts out of images.

    Args:
        images: Source of the whole images.
        device: Device that uses the views; for a GPU they are put into pinned memory, which it
            copies while the host continues.
    """

    def __init__(
        self, images: ImagesInMemory | StreamedImages, device: torch.device = HOST
    ) -> None:
        self.images = images
        self._is_pinned = device.type == "cuda"

    def read_views(self, rows: Rows, views: Views) -> Tensor:
        """Read the view of each of these rows: uint8 (n, side, side, C)."""
        taken = torch.from_numpy(cut_views(self.images.read_rows(rows), views))
        return taken.pin_memory() if self._is_pinned else taken

    def expect(self, rows: Rows) -> None:
        """Prepare for these rows to be read soon."""
        self.images.expect(rows)


class DeviceImages:
    """Images in the memory of a device, as bytes; views are cut out there too.

    Args:
        dataset: Dataset, read once, here.
        rows: Ascending rows to keep; no others can be asked for.
        device: Device whose memory keeps them.
    """

    def __init__(self, dataset: Dataset, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._images = torch.empty(
            (len(rows), *dataset.image_shape), dtype=torch.uint8, device=device
        )
        _read_all(dataset, rows, self._store)

    def read_views(self, rows: Rows, views: Views) -> Tensor:
        """Cut the view of each of these rows: uint8 (n, side, side, C), on the device."""
        device = self._images.device
        places = torch.from_numpy(np.searchsorted(self._rows, rows)).to(device, non_blocking=True)
        y, x = locate_pixels(views, device)
        return self._images[places[:, None, None], y[:, :, None], x[:, None, :]]

    def expect(self, rows: Rows) -> None:
        """Everything is here already."""

    def _store(self, places: slice, images: Images) -> None:
        self._images[places] = torch.from_numpy(images).to(self._images.device)


class StreamedImages:
    """Images read chunk by chunk; the chunks used last are kept.

    Args:
        dataset: Dataset to read from.
        cached_chunks: Number of chunks kept.
    """

    def __init__(self, dataset: Dataset, *, cached_chunks: int) -> None:
        self._read = dataset.open_chunks()
        self._image_shape, self._chunk_starts = dataset.image_shape, dataset.chunk_starts
        self._cached_chunks = cached_chunks
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="chunk-reader")
        self._chunks: OrderedDict[int, Future[Images]] = OrderedDict()
        self._lock = Lock()

    def read_rows(self, rows: Rows) -> Images:
        """Read the images (n, H, W, C) of these rows, in their order."""
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        chunks = find_chunks(rows, self._chunk_starts)
        within = rows - self._chunk_starts[chunks]
        by_chunk = np.argsort(chunks, kind="stable")
        parts = np.split(by_chunk, np.flatnonzero(np.diff(chunks[by_chunk])) + 1)
        waiting = [self._request(int(chunks[places[0]])) for places in parts if len(places)]
        for places, reading in zip(parts, waiting, strict=False):
            images[places] = reading.result()[within[places]]
        return images

    def expect(self, rows: Rows) -> None:
        """Start reading the chunks of these rows."""
        for chunk in _chunks_of(rows, self._chunk_starts):
            self._request(chunk)

    def _request(self, chunk: int) -> Future[Images]:
        with self._lock:
            if chunk not in self._chunks:
                self._chunks[chunk] = self._readers.submit(self._read, chunk)
            self._chunks.move_to_end(chunk)
            while len(self._chunks) > self._cached_chunks:
                self._chunks.popitem(last=False)
            return self._chunks[chunk]


def fits_on_device(dataset: Dataset, count: int, device: torch.device, *, where: WhereHeld) -> bool:
    """Decide whether a training's images are kept in its device's memory.

    Args:
        dataset: Dataset that holds the images.
        count: Number of images to keep.
        device: Device that trains.
        where: `always`, `never`, or `auto`: on a GPU that has enough memory free now.
    """
    if where != "auto" or device.type != "cuda":
        return where == "always"
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return count * int(np.prod(dataset.image_shape)) <= _DEVICE_SHARE * free_bytes


def _read_all(dataset: Dataset, rows: Rows, store: Callable[[slice, Images], None]) -> None:
    """Store the images of ascending rows chunk by chunk, with their places among the rows."""
    read = dataset.open_chunks()

    def read_chunk(chunk: int) -> None:
        start = dataset.chunk_starts[chunk]
        images = read(chunk)
        first, last = np.searchsorted(rows, [start, start + len(images)])
        store(slice(first, last), images[rows[first:last] - start])

    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(read_chunk, _chunks_of(rows, dataset.chunk_starts)))


def _chunks_of(rows: Rows, chunk_starts: Rows) -> list[int]:
    """List the chunks of rows, in the order of their first use."""
    return list(dict.fromkeys(find_chunks(rows, chunk_starts).tolist()))
