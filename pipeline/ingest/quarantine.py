"""Finds the file that kills every worker that reads it, and leaves it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.ingest.plan import Reader, SourceRead, name_source, read_all
from pipeline.ingest.shards import Commit, ShardTask, cut_sources, make_shard
from pipeline.records import Array
from pipeline.runtime.engines import DEATH, DEATH_REMEDY, MapWork

_Sample: TypeAlias = tuple[Any, Mapping[str, Array]]


@dataclass(frozen=True)
class Quarantine:
    """A `plan.Reader` that refuses some sources and reads the others by another reader.

    Args:
        reader: Reader of the sources that are not refused.
        names: Public names of the refused sources; engines log their readers.
    """

    reader: Reader[Any]
    names: frozenset[str]

    def read(
        self, source: Any, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read rows; raises SourceError for a source that is refused."""
        if name_source(source) in self.names:
            raise SourceError(name_source(source), DEATH, DEATH_REMEDY)
        yield from self.reader.read(source, rows, images)


def make_shard_without_killers(
    map_work: MapWork, url: str, reader: Reader[Any], task: ShardTask
) -> Commit:
    """Make a shard that has killed its workers, without the sources that are to blame.

    Its commit has no key of work: a later run tries the sources again.

    Args:
        map_work: An engine whose workers may die.
        url: URL of the dataset.
        reader: Reader of the shard's sources.
        task: The rows to make.

    Raises:
        SettingsError: No source kills by itself, but the shard does: it needs more memory.
    """
    deadly: list[str] = []
    for source, begin, end in cut_sources(task):
        sample = source, {name: values[begin:end] for name, values in task.columns.items()}
        probe = partial(_survive, reader, (end - begin, *task.spec.image_shape))
        deadly += map_work(probe, [sample], give_up=lambda killer: name_source(killer[0]))
    careful = Quarantine(reader, frozenset(filter(None, deadly)))
    (made,) = map_work(partial(make_shard, url, careful), [replace(task, key="")])
    return made


def _survive(reader: Reader[Any], shape: tuple[int, ...], sample: _Sample) -> str:
    """Read a source and drop the images; a worker that survives has no source to name."""
    with suppress(Exception):  # whatever it raises, the worker has survived it
        read_all(reader, *sample, shape)
    return ""
