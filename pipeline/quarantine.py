"""A file that kills every worker that reads it: found, and read by nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from pipeline.engines import DEATH, DEATH_REMEDY, MapWork
from pipeline.errors import NormscopeError, SourceError
from pipeline.plan import Reader, SourceRead
from pipeline.schema import Array
from pipeline.shards import Commit, ShardTask, cut_sources, make_shard

Sample: TypeAlias = tuple[Any, Mapping[str, Array]]


@dataclass(frozen=True)
class Quarantine:
    """A `plan.Reader` that refuses some sources and leaves the others to another.

    Args:
        reader: Of the others.
        names: Of those that it refuses, in public: engines log their readers.
    """

    reader: Reader[Any]
    names: frozenset[str]

    def read(self, source: Any, rows: Mapping[str, Array]) -> SourceRead:
        """Read rows.

        Raises:
            SourceError: The source is refused, or the reader's own.
        """
        if _name(source) in self.names:
            raise SourceError(_name(source), DEATH, DEATH_REMEDY)
        return self.reader.read(source, rows)


def make_without_deadly(
    url: str, reader: Reader[Any], map_work: MapWork, task: ShardTask
) -> Commit:
    """Make a shard that has killed its workers, without the sources that are to blame.

    Its commit has no key of work: a later run tries them again.

    Args:
        url: Of the dataset.
        reader: How to read its sources.
        map_work: An engine whose workers may die.
        task: The shard.

    Raises:
        SettingsError: No source kills by itself, but the shard does: it needs more memory.
    """
    samples = [
        (source, {name: values[begin:end] for name, values in task.columns.items()})
        for source, begin, end in cut_sources(task)
    ]
    probe = partial(_survive, reader)
    deadly = {
        found
        for sample in samples
        for found in map_work(probe, [sample], give_up=lambda killer: _name(killer[0]))
    }
    careful = Quarantine(reader, frozenset(deadly))
    (commit,) = map_work(partial(make_shard, url, careful), [replace(task, key="")])
    return commit


def _name(source: Any) -> str:
    """What a source is called in public; its URL may be that of an archive of many."""
    return str(getattr(source, "public_name", source.url))


def _survive(reader: Reader[Any], sample: Sample) -> str:
    """Read and forget: whoever comes back has no source to name."""
    try:
        reader.read(*sample)
    except NormscopeError:
        return ""
    return ""
