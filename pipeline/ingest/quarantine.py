"""A file that kills every worker that reads it: found, and read by nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from pipeline.errors import NormscopeError, SourceError
from pipeline.ingest.plan import Reader, SourceRead
from pipeline.ingest.several_sizes import ShardGroup, make_group, read_once, readers_of
from pipeline.ingest.shards import Commit, cut_sources
from pipeline.runtime.engines import DEATH, DEATH_REMEDY, MapWork
from pipeline.store.dataset import Array

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


def make_without_deadly(map_work: MapWork, group: ShardGroup) -> list[tuple[str, Commit]]:
    """Make shards that have killed their workers, without the sources that are to blame.

    Their commits have no key of work: a later run tries them again.

    Args:
        map_work: An engine whose workers may die.
        group: The shards; now they are made one by one.

    Raises:
        SettingsError: No source kills by itself, but a shard does: it needs more memory.
    """
    samples: dict[str, Sample] = {}
    for task in (work.task for work in group):
        for source, begin, end in cut_sources(task):
            rows = {name: values[begin:end] for name, values in task.columns.items()}
            samples.setdefault(_name(source), (source, rows))
    probe = partial(_survive, list(readers_of(group).values()))
    deadly = frozenset(
        found
        for sample in samples.values()
        for found in map_work(probe, [sample], give_up=lambda killer: _name(killer[0]))
    )
    careful = [
        replace(work, reader=Quarantine(work.reader, deadly), task=replace(work.task, key=""))
        for work in group
    ]
    return [made for work in careful for (made,) in map_work(make_group, [(work,)])]


def _name(source: Any) -> str:
    """What a source is called in public; its URL may be that of an archive of many."""
    return str(getattr(source, "public_name", source.url))


def _survive(readers: Sequence[Reader[Any]], sample: Sample) -> str:
    """Read and forget: whoever comes back has no source to name."""
    try:
        read_once(readers, *sample)
    except NormscopeError:
        return ""
    return ""
