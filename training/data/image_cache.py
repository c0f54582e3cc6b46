"""The images of a dataset by row: held in memory, or read chunk by chunk as they are needed.

Memory is the host's or, where they leave enough of it free, the training device's own.

Chunks are read whole and by several threads; single rows are never fetched from the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.store.chunk_reader import open_chunks
from pipeline.store.dataset import Dataset
from training.data.augmentation import locate_pixels
from training.networks.inputs import Images, Views, cut_views
from training.settings import WhereHeld

_READERS: Final = 4
# Of a device's free memory, what images may take at most: the rest is for steps and features.
_DEVICE_SHARE: Final = 0.5
HOST: Final = torch.device("cpu")

Rows = NDArray[np.int64]


class ImageCache(Protocol):
    """Where a training gets its images from."""

    def read_rows(self, rows: Rows) -> Images:
        """Images (n, H, W, C) of these rows, in their order."""
        ...

    def expect(self, rows: Rows) -> None:
        """Take notice that these rows will be read soon."""
        ...


class ViewReader(Protocol):
    """Where a training gets its views from."""

    def read_views(self, rows: Rows, views: Views) -> Tensor:
        """The view of each of these rows: (n, side, side, C) uint8."""
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
        _read_all(dataset, rows, self._images.__setitem__)

    def read_rows(self, rows: Rows) -> Images:
        """Images (n, H, W, C) of these rows, in their order."""
        return self._images[np.searchsorted(self._rows, rows)]

    def expect(self, rows: Rows) -> None:
        """Everything is here already."""


class HostImages:
    """Views that the host cuts out of images.

    Args:
        images: Where it gets them from.
        device: Where they go next: a GPU fetches from pinned memory while the host goes on.
    """

    def __init__(self, images: ImageCache, device: torch.device = HOST) -> None:
        self.images = images
        self._is_pinned = device.type == "cuda"

    def read_views(self, rows: Rows, views: Views) -> Tensor:
        """The view of each of these rows: (n, side, side, C) uint8."""
        taken = torch.from_numpy(cut_views(self.images.read_rows(rows), views))
        return taken.pin_memory() if self._is_pinned else taken

    def expect(self, rows: Rows) -> None:
        """Take notice that these rows will be read soon."""
        self.images.expect(rows)


class DeviceImages:
    """Images in the memory of a device, as bytes; views are cut out there too.

    Args:
        dataset: Read once, here.
        rows: Ascending rows to hold; no others can be asked for.
        device: Where.
    """

    def __init__(self, dataset: Dataset, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._images = torch.empty(
            (len(rows), *dataset.image_shape), dtype=torch.uint8, device=device
        )
        _read_all(dataset, rows, self._put)

    def read_views(self, rows: Rows, views: Views) -> Tensor:
        """The view of each of these rows: (n, side, side, C) uint8, on the device."""
        device = self._images.device
        places = torch.from_numpy(np.searchsorted(self._rows, rows)).to(device, non_blocking=True)
        y, x = locate_pixels(views, device)
        return self._images[places[:, None, None], y[:, :, None], x[:, None, :]]

    def expect(self, rows: Rows) -> None:
        """Everything is here already."""

    def _put(self, places: slice, images: Images) -> None:
        self._images[places] = torch.from_numpy(images).to(self._images.device)


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
        chunks, within = np.divmod(rows, self._chunk_images)
        by_chunk = np.argsort(chunks, kind="stable")
        parts = np.split(by_chunk, np.flatnonzero(np.diff(chunks[by_chunk])) + 1)
        waiting = [self._request(int(chunks[places[0]])) for places in parts if len(places)]
        for places, reading in zip(parts, waiting, strict=False):
            images[places] = reading.result()[within[places]]
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


def fits_on_device(dataset: Dataset, rows: Rows, device: torch.device, *, where: WhereHeld) -> bool:
    """Whether a training's images are held on its device.

    Args:
        dataset: Where they lie.
        rows: Which.
        device: The training's; `auto` asks what a GPU has free at this moment.
        where: The setting.
    """
    if where != "auto" or device.type != "cuda":
        return where == "always"
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return len(rows) * int(np.prod(dataset.image_shape)) <= _DEVICE_SHARE * free_bytes


def _read_all(dataset: Dataset, rows: Rows, put: Callable[[slice, Images], None]) -> None:
    """Hand over the images of ascending rows chunk by chunk, each with its place among them."""
    read = open_chunks(dataset)

    def hand_over(chunk: int) -> None:
        start = chunk * dataset.chunk_images
        images = read(chunk)
        first, last = np.searchsorted(rows, [start, start + len(images)])
        put(slice(first, last), images[rows[first:last] - start])

    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(hand_over, _chunks_of(rows, dataset.chunk_images)))


def _chunks_of(rows: Rows, chunk_images: int) -> list[int]:
    """The chunks that rows lie in, in the order of their first use."""
    return list(dict.fromkeys((rows // chunk_images).tolist()))
