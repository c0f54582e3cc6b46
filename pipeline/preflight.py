"""Before spending: how much there is to do, what it takes, and whether the workers can bear it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from pipeline.engines import MapWork, Workers, describe_workers
from pipeline.errors import NormscopeError, SettingsError
from pipeline.plan import Reader
from pipeline.schema import Array, DatasetSpec
from pipeline.shards import ShardTask

logger = logging.getLogger(__name__)

# Of a worker's memory: the libraries, an open slide and its decoded tiles; and how often a shard's
# images are there at once while it is read, unreadable ones are blanked, and it is put together.
_BASE_BYTES: Final = 512 << 20
_COPIES: Final = 3
_SAMPLE_IMAGES: Final = 16


@dataclass(frozen=True, slots=True)
class Preflight:
    """What an ingest is about to do.

    Args:
        image_count: Images to make.
        shard_count: Shards to make.
        raw_bytes: Size of these images, uncompressed.
        worker_bytes: Memory that one worker needs.
        workers: Those that there are.
        read_s: About how long reading takes on them, fetching left out; None where unknown.
    """

    image_count: int
    shard_count: int
    raw_bytes: int
    worker_bytes: int
    workers: Workers
    read_s: float | None

    def __str__(self) -> str:
        seconds = "unknown" if self.read_s is None else f"{self.read_s:.0f} s"
        return (
            f"{self.image_count} images in {self.shard_count} shards to make "
            f"({self.raw_bytes / 2**20:.1f} MiB raw); {self.workers.count} workers, each needs "
            f"{self.worker_bytes / 2**20:.0f} of its {self.workers.memory_bytes / 2**20:.0f} MiB; "
            f"estimated reading time {seconds}"
        )


def measure_worker_bytes(spec: DatasetSpec) -> int:
    """Memory that a worker needs at most to make one shard of a dataset."""
    images = min(spec.shard_images, spec.image_count)
    return _BASE_BYTES + _COPIES * images * int(np.prod(spec.image_shape))


def check_before_spending(
    url: str,
    spec: DatasetSpec,
    pending: Sequence[ShardTask],
    reader: Reader[Any],
    map_work: MapWork,
) -> Preflight:
    """Count what is to be made, log it, and refuse what cannot fit.

    Args:
        url: Of the dataset.
        spec: Of the dataset.
        pending: The shards to make; at least one.
        reader: How to read them; a few images are read on a worker to see how long it takes.
        map_work: The engine.

    Raises:
        SettingsError: A shard needs more memory than a worker has.
    """
    workers, needed = describe_workers(map_work), measure_worker_bytes(spec)
    if needed > workers.memory_bytes:
        per_image = _COPIES * int(np.prod(spec.image_shape))
        fitting = max(0, workers.memory_bytes - _BASE_BYTES) // per_image
        raise SettingsError(
            url,
            f"a shard of {spec.shard_images} images needs {needed / 2**20:.0f} MiB, a worker has "
            f"{workers.memory_bytes / 2**20:.0f} MiB",
            f"Lower shard_images to {fitting // spec.chunk_images * spec.chunk_images} or less, "
            "or give workers more memory",
        )
    count = sum(len(task.source_index) for task in pending)
    sample = [_take_sample(pending[0])]
    # A source that kills its worker is found, and named, when its shard is made.
    image_s = next(map_work(partial(time_reading, reader), sample, give_up=lambda _: None))
    found = Preflight(
        image_count=count,
        shard_count=len(pending),
        raw_bytes=count * int(np.prod(spec.image_shape)),
        worker_bytes=needed,
        workers=workers,
        read_s=None if image_s is None else image_s * count / workers.count,
    )
    logger.info("%s: %s", url, found)
    return found


def _take_sample(task: ShardTask) -> tuple[Any, Mapping[str, Array]]:
    """The first rows of a shard that come from one source."""
    rows = np.flatnonzero(task.source_index == task.source_index[0])[:_SAMPLE_IMAGES]
    columns = {name: values[rows] for name, values in task.columns.items()}
    return task.sources[int(task.source_index[0])], columns


def time_reading(reader: Reader[Any], sample: tuple[Any, Mapping[str, Array]]) -> float | None:
    """Seconds an image, once its source has been fetched; None where it cannot be read."""
    source, rows = sample
    try:
        reader.read(source, {name: values[:1] for name, values in rows.items()})
        began = time.perf_counter()
        reader.read(source, rows)
    except NormscopeError:
        return None
    return (time.perf_counter() - began) / len(next(iter(rows.values())))
