"""What an ingest would do and cost, before it is begun; nothing is written.

Counts of items are exact. Tiles, sizes and times are scaled up from a sample, read on the workers
that would do the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.records import ManifestEntry
from pipeline.store.sharding import encode_shard
from pipeline.store.spec import DatasetSpec, empty_column, encode_part

Fate: TypeAlias = Literal["new", "changed", "kept"]
T = TypeVar("T")
SAMPLED_ITEMS: Final = 32  # slides or images that are read for an estimate


@dataclass(frozen=True)
class Estimate:
    """What an ingest would do and cost.

    Args:
        url: URL of the dataset.
        unit: Name of what `counts` counts: `slides`, or `parts` of images.
        counts: Number of units that are `new`, `changed` or `kept`. One that is told apart by its
            bytes counts as kept or changed by its size and time, until the ingest reads it.
        removed_count: Parts of the dataset that the source has no longer, and that would go.
        image_count: Images that would be made; None where unknown.
        is_exact: Whether `image_count` is counted and not scaled up from a sample.
        read_bytes: Bytes of sources that would be read or fetched; None where unknown.
        stored_bytes: Bytes of images that would be stored; None where unknown.
        object_count: Objects that would be written; None where unknown.
        seconds: Seconds that the work takes on the workers, without the writing to storage and
            the fetching from S3; None where unknown.
        worker_count: Number of items worked on at once.
        needed_bytes: Memory that a worker needs, in bytes.
        memory_bytes: Memory that a worker has, in bytes.
        sampled_count: Slides or images that were read for the estimate.
        rejected: Items that could not be used, as far as it was seen.
    """

    url: str
    unit: str
    counts: Counter[Fate]
    removed_count: int
    image_count: int | None
    is_exact: bool
    read_bytes: int | None
    stored_bytes: int | None
    object_count: int | None
    seconds: float | None
    worker_count: int
    needed_bytes: int
    memory_bytes: int
    sampled_count: int
    rejected: tuple[ManifestEntry, ...]

    @property
    def fits(self) -> bool:
        """Whether a worker has the memory that it needs."""
        return self.needed_bytes <= self.memory_bytes


def count_objects(spec: DatasetSpec) -> int:
    """Count the objects of a part beside its shards, which cost one each.

    Args:
        spec: Specification of the dataset.
    """
    return len(encode_part(spec, {name: empty_column(spec, name, 1) for name in spec.columns}, {}))


def measure_stored(images: NDArray[np.uint8]) -> float:
    """Measure the bytes that an image takes in a shard.

    Args:
        images: Some images, (n, H, W, C).
    """
    count = len(images)
    parts = encode_shard([images], chunk_images=count, shard_images=count)
    return sum(map(len, parts)) / count


def choose_sample(items: Sequence[T], count: int = SAMPLED_ITEMS) -> list[T]:
    """Choose items spread evenly over a sequence, all where there are no more.

    Args:
        items: Sequence to choose from.
        count: Number of items to choose.

    Examples:
        >>> choose_sample("abcdefghi", 3)
        ['a', 'e', 'i']
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
