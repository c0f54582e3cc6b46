"""Batches of a dataset's images, in an order that only the seed decides.

Batches depend neither on the number of workers that share them, nor on whether images are kept in
the memory of the host or the device, or read as needed.
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
from training.data.chosen_rows import ChosenRows, choose, list_groups
from training.data.image_cache import (
    HOST,
    DeviceImages,
    HostImages,
    fits_on_device,
    open_images,
)
from training.data.sample_order import BUFFER_CHUNKS, SampleOrder, divide_batch
from training.networks.inputs import Images, centre_views, cut_views
from training.settings import ImageSettings, TrainSettings

# The window in use and one read ahead, each of which may span two epochs.
_CACHED_CHUNKS: Final = 4 * BUFFER_CHUNKS

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Samples = NDArray[np.int64]


def check_trainable(dataset: Dataset, settings: TrainSettings) -> None:
    """Refuse a dataset that cannot be trained on with these settings.

    Raises:
        SchemaError: A group is in two splits, there is no normal image to train on, or a quality
            column that the settings limit is missing.
        SettingsError: Its images are smaller than the settings ask for, or no image passes the
            quality limits.
    """
    prove_disjoint(*list_groups(dataset), item=dataset.url)
    count = len(choose(dataset, "train", Label.NORMAL))
    if not count:
        raise SchemaError(
            dataset.url,
            "no readable normal image (label 0) in split `train`",
            "Ingest a source that has some, or change the split",
        )
    kept = len(choose_training_rows(dataset, settings))
    if kept < count:
        logger.info("quality: training uses %d of %d normal images", kept, count)
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


def choose_training_rows(dataset: Dataset, settings: TrainSettings) -> ChosenRows:
    """Choose the rows to train on: good normals of split `train`."""
    return choose(dataset, "train", Label.NORMAL, settings.quality.ranges())


def choose_rows(dataset: Dataset, split: Split, label: Label, limit: int | None = None) -> Rows:
    """Choose readable rows of a split and label, ascending; evenly spaced if over `limit`.

    Without a limit all are listed, at eight bytes each: for splits that are small.
    """
    return choose(dataset, split, label).space_evenly(limit)


class _Part(NamedTuple):
    """One worker's part of a batch; see `TrainingImages.read_batch`."""

    start: int
    batch_size: int
    rank: int
    world: int


class TrainingImages:
    """The images that a training draws its batches from: normals of split `train`.

    Of a dataset that does not fit into memory it holds a bit a row and some numbers a chunk.

    While a batch is in use, another thread prepares the next one. A device that holds the images
    cuts its batches when they are asked for.

    Args:
        dataset: Dataset that `check_trainable` accepts.
        settings: Seed, crops and flips, and limits of memory.
        device: Device that trains.
    """

    def __init__(
        self, dataset: Dataset, settings: TrainSettings, device: torch.device = HOST
    ) -> None:
        self._rows = rows = choose_training_rows(dataset, settings)
        self.image_count = len(rows)
        self._order = SampleOrder(rows, seed=settings.seed)
        where = settings.acceleration.images_on_device
        self._is_on_device = fits_on_device(dataset, len(rows), device, where=where)
        self._images: DeviceImages | HostImages
        if self._is_on_device:
            self._images = DeviceImages(dataset, rows.list_all(), device)
        else:
            read = open_images(
                dataset, rows, cache_bytes=settings.cache_bytes, cached_chunks=_CACHED_CHUNKS
            )
            self._images = HostImages(read, device)
        self._size_yx = dataset.image_shape[:2]
        self._chunk_starts = dataset.chunk_starts
        self._window = BUFFER_CHUNKS * dataset.chunk_images
        self._settings = settings
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="batch-maker")
        self._begun: dict[_Part, Future[Tensor]] = {}
        self._expected: _Part | None = None  # the part that continues where the last one ended

    def read_batch(self, start: int, batch_size: int, *, rank: int = 0, world: int = 1) -> Tensor:
        """Read one worker's part of a batch.

        Args:
            start: Number of samples drawn before, over the whole training.
            batch_size: Number of images in the batch, over all workers.
            rank: Number of this worker, from 0.
            world: Number of workers.

        Returns:
            (n, side, side, C) uint8, cropped and mirrored as the settings say; on the device if
            that holds the images.
        """
        share = _Part(start, batch_size, rank, world)
        if self._is_on_device:
            return self._make(share)
        batch = self._begun.pop(share, None) or self._begin(share)
        following = share._replace(start=start + batch_size)
        self._begun = {following: self._begin(following)}
        return batch.result()

    def _begin(self, share: _Part) -> Future[Tensor]:
        return self._maker.submit(self._make, share)

    def _make(self, share: _Part) -> Tensor:
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

    def _expect_after(self, share: _Part) -> None:
        """Start reading the rows of the window that follows a batch."""
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
        """Find which images `read_batch` reads with the same arguments.

        Returns:
            Which of the training images they are, from 0; and their numbers as samples, counted
            over the whole training.
        """
        rows, samples = self._find(_Part(start, batch_size, rank, world), batches=1)
        return self._rows.place_of(rows), samples

    def _find(self, share: _Part, *, batches: int) -> tuple[Rows, Samples]:
        """Find a worker's rows of this batch and the next ones, and their sample numbers."""
        start, batch_size, rank, world = share
        samples = np.arange(start, start + batches * batch_size).reshape(batches, batch_size)
        rows = self._order.rows_at(start, samples.size).reshape(samples.shape)
        taken = divide_batch(rows, chunk_starts=self._chunk_starts, rank=rank, world=world)
        own, numbers = (np.take_along_axis(each, taken, axis=-1) for each in (rows, samples))
        return own.ravel(), numbers.ravel()


def read_centres(dataset: Dataset, rows: Rows, settings: ImageSettings) -> Images:
    """Read the centres of images, as validation and scoring see them.

    Args:
        dataset: Dataset to read from.
        rows: Ascending rows to read.
        settings: Side of the crop.

    Returns:
        (n, side, side, C) uint8, the centre of each.
    """
    size_yx = dataset.image_shape[:2]
    images = open_images(dataset, rows, cache_bytes=2**63, cached_chunks=1).read_rows(rows)
    return cut_views(images, centre_views(len(rows), size_yx=size_yx, crop_px=settings.crop_px))
