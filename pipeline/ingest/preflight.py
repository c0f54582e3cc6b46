"""Before spending: how much there is to do, and whether the workers have the memory for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    workers, needed = describe_workers(map_work), measure_worker_bytes(spec)
    if items and needed > workers.memory_bytes:
        raise _refuse(url, spec, needed, workers.memory_bytes)
    logger.info(
        "%s: %d items to visit; %d workers, each needs %.0f of its %.0f MiB",
        url,
        len(items),
        workers.count,
        needed / 2**20,
        workers.memory_bytes / 2**20,
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
