"""Before spending: how much there is to do, what it takes, and whether the workers can bear it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import NormscopeError, SettingsError
from pipeline.ingest.several_sizes import ShardGroup, read_once, readers_of
from pipeline.runtime.engines import MapWork, Workers, describe_workers
from pipeline.store.dataset import DatasetSpec

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


def measure_worker_bytes(*specs: DatasetSpec) -> int:
    """Memory that a worker needs at most to make one shard of each of some datasets.

    They are made in turns: of all but one there is no more than what waits to be put together.
    """
    shards = [min(s.shard_images, s.image_count) * int(np.prod(s.image_shape)) for s in specs]
    return _BASE_BYTES + (_COPIES - 1) * max(shards) + sum(shards)


def check_before_spending(groups: Sequence[ShardGroup], map_work: MapWork) -> Preflight:
    """Count what is to be made, log it, and refuse what cannot fit.

    Args:
        groups: The shards to make; at least one. A few images are read on a worker to see how
            long it takes.
        map_work: The engine.

    Raises:
        SettingsError: What is made together needs more memory than a worker has.
    """
    works = [work for group in groups for work in group]
    specs = {work.url: work.task.spec for work in works}
    workers, needed = describe_workers(map_work), measure_worker_bytes(*specs.values())
    if needed > workers.memory_bytes:
        raise _refuse(specs, needed, workers.memory_bytes)
    # A source that kills its worker is found, and named, when its shard is made.
    image_s = next(map_work(time_reading, [groups[0]], give_up=lambda _: None))
    read_count = sum(map(_count_rows, groups))
    counts = [len(work.task.source_index) for work in works]
    found = Preflight(
        image_count=sum(counts),
        shard_count=len(works),
        raw_bytes=sum(
            count * int(np.prod(work.task.spec.image_shape))
            for count, work in zip(counts, works, strict=True)
        ),
        worker_bytes=needed,
        workers=workers,
        read_s=None if image_s is None else image_s * read_count / workers.count,
    )
    logger.info("%s: %s", ", ".join(specs), found)
    return found


def _refuse(specs: Mapping[str, DatasetSpec], needed: int, given: int) -> SettingsError:
    """The error for what a worker's memory cannot hold."""
    if len(specs) > 1:
        what = f"shards of {len(specs)} datasets at once"
        remedy = "Make fewer datasets at a time, or give workers more memory"
    else:
        (spec,) = specs.values()
        fitting = max(0, given - _BASE_BYTES) // (_COPIES * int(np.prod(spec.image_shape)))
        what = f"a shard of {spec.shard_images} images"
        whole = fitting // spec.chunk_images * spec.chunk_images
        remedy = f"Lower shard_images to {whole} or less, or give workers more memory"
        if not whole:
            remedy = f"Give workers more memory: a chunk of {spec.chunk_images} does not fit either"
    return SettingsError(
        ", ".join(specs),
        f"making {what} needs {needed / 2**20:.0f} MiB, a worker has {given / 2**20:.0f} MiB",
        remedy,
    )


def _count_rows(group: ShardGroup) -> int:
    """Rows that a group reads, however many datasets they are for."""
    return len({row for work in group for row in range(work.task.start, work.task.stop)})


def time_reading(group: ShardGroup) -> float | None:
    """Seconds an image, once its source has been fetched; None where it cannot be read.

    Args:
        group: Its first rows that come from one source are read.
    """
    task, readers = group[0].task, list(readers_of(group).values())
    rows = np.flatnonzero(task.source_index == task.source_index[0])[:_SAMPLE_IMAGES]
    columns = {name: values[rows] for name, values in task.columns.items()}
    source = task.sources[int(task.source_index[0])]
    try:
        read_once(readers, source, {name: values[:1] for name, values in columns.items()})
        began = time.perf_counter()
        read_once(readers, source, columns)
    except NormscopeError:
        return None
    return (time.perf_counter() - began) / len(rows)
