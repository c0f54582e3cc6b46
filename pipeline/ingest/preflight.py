"""Before spending: how much there is to do, and whether the workers have the memory for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.runtime.engines import MapWork, describe_workers
from pipeline.store.spec import DatasetSpec

logger = logging.getLogger(__name__)

# Memory of a worker: the libraries, an open slide and its decoded tiles; and how many copies of a
# shard's images exist at once while it is read, unreadable ones are blanked, and it is encoded.
_BASE_BYTES: Final = 512 << 20
_COPIES: Final = 3


def measure_worker_bytes(spec: DatasetSpec) -> int:
    """Memory that a worker needs at most to make one part, whose shards follow each other."""
    return _BASE_BYTES + _COPIES * spec.shard_images * spec.image_bytes


@dataclass(frozen=True)
class Memory:
    """The workers and their memory.

    Args:
        worker_count: Number of items worked on at once.
        needed_bytes: Memory that a worker needs, in bytes.
        memory_bytes: Memory that a worker has, in bytes.
    """

    worker_count: int
    needed_bytes: int
    memory_bytes: int


def measure_memory(spec: DatasetSpec, map_work: MapWork) -> Memory:
    """Measure the memory that a worker needs for a shard, and has.

    Args:
        spec: Specification of the dataset.
        map_work: Engine whose workers would make the parts.
    """
    workers = describe_workers(map_work)
    return Memory(workers.count, measure_worker_bytes(spec), workers.memory_bytes)


def check_before_spending(
    url: str, spec: DatasetSpec, items: Sequence[Any], map_work: MapWork
) -> None:
    """Log what is to be visited, and refuse what cannot fit.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        items: Items to visit.
        map_work: The engine whose workers will make the parts.

    Raises:
        SettingsError: A shard needs more memory than a worker has.
    """
    memory = measure_memory(spec, map_work)
    if items and memory.needed_bytes > memory.memory_bytes:
        raise _refuse(url, spec, memory.needed_bytes, memory.memory_bytes)
    logger.info(
        "%s: %d items to visit; %d workers, each needs %.0f of its %.0f MiB",
        url,
        len(items),
        memory.worker_count,
        memory.needed_bytes / 2**20,
        memory.memory_bytes / 2**20,
    )


def _refuse(url: str, spec: DatasetSpec, needed: int, given: int) -> SettingsError:
    """The error for a shard that a worker's memory cannot hold."""
    fitting = max(0, given - _BASE_BYTES) // (_COPIES * spec.image_bytes)
    whole = fitting // spec.chunk_images * spec.chunk_images
    remedy = f"Lower shard_images to {whole} or less, or give workers more memory"
    if not whole:
        remedy = f"Give workers more memory: a chunk of {spec.chunk_images} does not fit either"
    return SettingsError(
        url,
        f"making a shard of {spec.shard_images} images needs {needed / 2**20:.0f} MiB, a worker "
        f"has {given / 2**20:.0f} MiB",
        remedy,
    )
