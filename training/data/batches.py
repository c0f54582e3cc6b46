"""Dataset -> batches of images, in an order that only the seed decides.

Batches depend neither on how many workers share them, nor on whether images are held in memory,
the host's or the device's, or read as they come.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import SchemaError, SettingsError
from pipeline.records import Label, Split
from pipeline.splits import prove_disjoint
from pipeline.store.dataset import Dataset
from training.data.augmentation import draw_views
from training.data.image_cache import (
    HOST,
    DeviceImages,
    HostImages,
    ViewReader,
    fits_on_device,
    open_images,
)
from training.data.sample_order import BUFFER_CHUNKS, SampleOrder, divide_batch
from training.networks.inputs import Images, centre_views, cut_views
from training.settings import ImageSettings, TrainSettings

# The window in use and one read ahead, each perhaps astride two epochs.
_CACHED_CHUNKS: Final = 4 * BUFFER_CHUNKS

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Samples = NDArray[np.int64]


def check_trainable(dataset: Dataset, settings: TrainSettings) -> None:
    """Refuse a dataset that these settings cannot be trained on.

    Raises:
        SchemaError: A group is in two splits, there is no normal image to train on, or no column
            of a quality that is limited.
        SettingsError: Its images are smaller than the settings ask for, or none is good enough.
    """
    prove_disjoint(dataset.column("group_id"), dataset.column("split"), item=dataset.url)
    normals = choose_rows(dataset, "train", Label.NORMAL)
    if not len(normals):
        raise SchemaError(
            dataset.url,
            "no readable normal image (label 0) in split `train`",
            "Ingest a source that has some, or divide it otherwise",
        )
    count, kept = len(normals), len(_keep_good(dataset, normals, settings))
    if kept < count:
        logger.info("quality: %d of %d normal images are learnt from", kept, count)
    if not kept:
        limits = ", ".join(f"{name} {limit}" for name, limit in settings.quality if limit)
        raise SettingsError(
            "quality", f"{limits}: none of {count} normal images is left", "Loosen the limits"
        )
    height, width, _ = dataset.image_shape
    for name, wanted in (
        ("growth.final_resolution", settings.growth.final_resolution),
        ("images.crop_px", settings.images.crop_px or 0),
    ):
        if wanted > min(height, width):
            raise SettingsError(
                name,
                f"{wanted} px, but the images of {dataset.url} are {height} x {width} px",
                f"Choose at most {min(height, width)} px, or ingest larger images",
            )


def choose_training_rows(dataset: Dataset, settings: TrainSettings) -> Rows:
    """Rows that are learnt from, ascending: normals of split `train`, as good as is asked for."""
    return _keep_good(dataset, choose_rows(dataset, "train", Label.NORMAL), settings)


def _keep_good(dataset: Dataset, rows: Rows, settings: TrainSettings) -> Rows:
    for column, (least, greatest) in settings.quality.ranges().items():
        values = dataset.column(column)[rows]
        rows = rows[~((values < least) | (values > greatest))]  # what is unknown stays
    return rows


def choose_rows(dataset: Dataset, split: Split, label: Label, limit: int | None = None) -> Rows:
    """Readable rows of a split with a label, ascending; evenly spaced if more than `limit`."""
    chosen = np.flatnonzero(
        (dataset.column("split") == split)
        & (dataset.column("label") == label)
        & dataset.column("readable")
    )
    return space_evenly(chosen.astype(np.int64), limit)


def space_evenly(rows: Rows, limit: int | None) -> Rows:
    """As many of the rows as the limit says, the first and the last among them."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


class _Share(NamedTuple):
    """What one worker reads at once; see `TrainingImages.read_batch`."""

    start: int
    batch_size: int
    rank: int
    world: int


class TrainingImages:
    """What a training draws its batches from: the normal images of split `train`.

    While a batch is in use, the next one is made by another thread; or by the device, which needs
    none to be ahead, where that holds the images.

    Args:
        dataset: A dataset that `check_trainable` accepts.
        settings: Seed, views and memory.
        device: The training's.
    """

    def __init__(
        self, dataset: Dataset, settings: TrainSettings, device: torch.device = HOST
    ) -> None:
        self._rows = rows = choose_training_rows(dataset, settings)
        self.image_count = len(rows)
        self._order = SampleOrder(rows, chunk_images=dataset.chunk_images, seed=settings.seed)
        where = settings.acceleration.images_on_device
        self._is_on_device = fits_on_device(dataset, rows, device, where=where)
        self._images: ViewReader
        if self._is_on_device:
            self._images = DeviceImages(dataset, rows, device)
        else:
            read = open_images(
                dataset, rows, cache_bytes=settings.cache_bytes, cached_chunks=_CACHED_CHUNKS
            )
            self._images = HostImages(read, device)
        self._size_yx = dataset.image_shape[:2]
        self._chunk_images = dataset.chunk_images
        self._window = BUFFER_CHUNKS * dataset.chunk_images
        self._settings = settings
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="batch-maker")
        self._begun: dict[_Share, Future[Tensor]] = {}
        self._expected: _Share | None = None  # the share that goes on where the last one ended

    def read_batch(self, start: int, batch_size: int, *, rank: int = 0, world: int = 1) -> Tensor:
        """One worker's share of a batch.

        Args:
            start: Samples drawn before, over the whole training.
            batch_size: Images in the batch of all workers together.
            rank: This worker takes its part by `divide_batch`.
            world: Number of workers.

        Returns:
            (n, side, side, C) uint8, cropped and mirrored as the settings say; on the device if
            that holds the images.
        """
        share = _Share(start, batch_size, rank, world)
        if self._is_on_device:
            return self._make(share)
        batch = self._begun.pop(share, None) or self._begin(share)
        following = share._replace(start=start + batch_size)
        self._begun = {following: self._begin(following)}
        return batch.result()

    def _begin(self, share: _Share) -> Future[Tensor]:
        return self._maker.submit(self._make, share)

    def _make(self, share: _Share) -> Tensor:
        rows, samples = self._find(share, batches=1)
        views = draw_views(
            samples,
            size_yx=self._size_yx,
            settings=self._settings.images,
            seed=self._settings.seed,
        )
        batch = self._images.read_views(rows, views)
        self._expect_after(share)
        return batch

    def _expect_after(self, share: _Share) -> None:
        """Have a window's rows read that come after a batch, but for those that are expected."""
        batches = -(-self._window // share.batch_size)
        following = share._replace(start=share.start + share.batch_size)
        goes_on = self._expected == following
        if goes_on:
            following = share._replace(start=share.start + batches * share.batch_size)
        ahead, _ = self._find(following, batches=1 if goes_on else batches)
        self._images.expect(ahead)
        self._expected = share._replace(start=share.start + 2 * share.batch_size)

    def members_at(
        self, start: int, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> tuple[Rows, Samples]:
        """What `read_batch` reads with the same arguments.

        Returns:
            Which of the training images they are, from 0; and their numbers as samples, counted
            over the whole training.
        """
        rows, samples = self._find(_Share(start, batch_size, rank, world), batches=1)
        return np.searchsorted(self._rows, rows), samples

    def _find(self, share: _Share, *, batches: int) -> tuple[Rows, Samples]:
        """The rows that a worker takes of this batch and the next ones; their samples' numbers."""
        start, batch_size, rank, world = share
        samples = np.arange(start, start + batches * batch_size).reshape(batches, batch_size)
        rows = self._order.rows_at(start, samples.size).reshape(samples.shape)
        taken = divide_batch(rows, chunk_images=self._chunk_images, rank=rank, world=world)
        own, numbers = (np.take_along_axis(each, taken, axis=-1) for each in (rows, samples))
        return own.ravel(), numbers.ravel()


def read_centres(dataset: Dataset, rows: Rows, settings: ImageSettings) -> Images:
    """Read images as validation and scoring see them.

    Args:
        dataset: Where they lie.
        rows: Ascending rows.
        settings: Side of the crop.

    Returns:
        (n, side, side, C) uint8, the centre of each.
    """
    size_yx = dataset.image_shape[:2]
    images = open_images(dataset, rows, cache_bytes=2**63, cached_chunks=1).read_rows(rows)
    return cut_views(images, centre_views(len(rows), size_yx=size_yx, crop_px=settings.crop_px))
