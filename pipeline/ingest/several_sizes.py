"""Shards of several datasets that are made together, so that each source is decoded once.

Datasets of the same images at several sizes have shards of several lengths. A group is what lies
between two rows at which shards of all of them end; most often that is one shard of the smallest
images. In a group, shards are made in order of their last row: whoever reads a source first
prepares it for all, and of each dataset no more than one shard's images wait for their turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, TypeAlias

from pipeline.ingest.plan import Reader, SharingReader, SourceRead
from pipeline.ingest.shards import UNREADABLE, Commit, ShardTask, make_shard, mark_unreadable
from pipeline.store.dataset import Array


@dataclass(frozen=True)
class ShardWork:
    """A shard to make.

    Args:
        url: Of its dataset.
        reader: Of its sources.
        task: Its rows.
    """

    url: str
    reader: Reader[Any]
    task: ShardTask


ShardGroup: TypeAlias = tuple[ShardWork, ...]


def cut_groups(works: Sequence[ShardWork]) -> list[ShardGroup]:
    """Put together what is made together; of one dataset, every shard is a group.

    Args:
        works: The shards to make; datasets share their sources and the order of their rows.

    Returns:
        In order of rows, the groups and what is in each.
    """
    length = lcm(*(work.task.spec.shard_images for work in works))
    groups: dict[int, list[ShardWork]] = {}
    for work in sorted(works, key=lambda work: work.task.stop):
        groups.setdefault(work.task.start // length, []).append(work)
    return [tuple(group) for group in groups.values()]


def make_group(group: ShardGroup) -> list[tuple[str, Commit]]:
    """Read and write the shards of a group.

    Returns:
        For each the URL of its dataset, and what was made.
    """
    readers = _share_decoding(group)
    return [(work.url, make_shard(work.url, readers[work.url], work.task)) for work in group]


def readers_of(group: ShardGroup) -> Mapping[str, Reader[Any]]:
    """URL of each dataset in a group -> its reader."""
    return {work.url: work.reader for work in group}


def read_once(
    readers: Sequence[Reader[Any]], source: Any, rows: Mapping[str, Array]
) -> list[SourceRead]:
    """Read rows of one source for each of several readers, and decode it once.

    Raises:
        SourceError: One of them cannot read it.
    """
    if len(readers) == 1:
        return [readers[0].read(source, rows)]
    sharing = [_require_sharing(reader) for reader in readers]
    decoded = sharing[0].decode(source)
    return [reader.prepare(decoded) for reader in sharing]


def _require_sharing(reader: Reader[Any]) -> SharingReader[Any]:
    if not isinstance(reader, SharingReader):
        raise TypeError(f"{reader!r} cannot share what it decodes: ingest one dataset at a time")
    return reader


def _share_decoding(group: ShardGroup) -> Mapping[str, Reader[Any]]:
    """A reader for each dataset of a group, which together decode each source once."""
    readers = readers_of(group)
    if len(readers) == 1:
        return readers
    sharing = {url: _require_sharing(reader) for url, reader in readers.items()}
    shapes = {work.url: work.task.spec.image_shape for work in group}
    waiting: dict[str, dict[str, SourceRead | None]] = {url: {} for url in readers}
    for work in group:
        waiting[work.url] |= dict.fromkeys(work.task.columns["image_id"])
    return {url: _TurnReader(url, sharing, shapes, waiting) for url in readers}


@dataclass(frozen=True)
class _TurnReader:
    """A `plan.Reader` for one dataset of a group; whose turn is first decodes for all.

    Args:
        url: Of its dataset.
        readers: Of every dataset of the group.
        shapes: Of their images.
        waiting: For every dataset, the images that it will still ask for, and what has been read.
    """

    url: str
    readers: Mapping[str, SharingReader[Any]]
    shapes: Mapping[str, tuple[int, int, int]]
    waiting: Mapping[str, dict[str, SourceRead | None]]

    def read(self, source: Any, rows: Mapping[str, Array]) -> SourceRead:
        """Give what is there, or read the source for whoever waits for it."""
        image_id = rows["image_id"][0]
        found = self.waiting[self.url].pop(image_id)
        if found is not None:
            return found
        others = [url for url, images in self.waiting.items() if image_id in images]
        read = self._read_for([self.url, *others], source)
        for url in others:
            self.waiting[url][image_id] = read[url]
        return read[self.url]

    def _read_for(self, urls: Sequence[str], source: Any) -> dict[str, SourceRead]:
        """Decode once and prepare for each dataset; what is unreadable is marked, not raised."""
        try:
            decoded = self.readers[self.url].decode(source)
        except UNREADABLE as error:
            return {url: mark_unreadable(error, 1, self.shapes[url]) for url in urls}
        return {url: _prepare_or_mark(self.readers[url], decoded, self.shapes[url]) for url in urls}


def _prepare_or_mark(
    reader: SharingReader[Any], decoded: Any, shape: tuple[int, int, int]
) -> SourceRead:
    try:
        return reader.prepare(decoded)
    except UNREADABLE as error:
        return mark_unreadable(error, 1, shape)
