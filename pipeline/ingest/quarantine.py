"""Finds the file that kills every worker that reads it, and leaves it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.ingest.sources import Reader, SourceRead, name_source
from pipeline.runtime.engines import DEATH, DEATH_REMEDY, MapWork


@dataclass(frozen=True)
class Quarantine:
    """A `sources.Reader` that refuses some sources and reads the others by another reader.

    Args:
        reader: Reader of the sources that are not refused.
        names: Public names of the refused sources; engines log their readers.
    """

    reader: Reader[Any]
    names: frozenset[str]

    def read(self, source: Any, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        """Read an image; raises SourceError for a source that is refused."""
        if name_source(source) in self.names:
            raise SourceError(name_source(source), DEATH, DEATH_REMEDY)
        yield from self.reader.read(source, images)


def leave_out_killers(
    map_work: MapWork, reader: Reader[Any], sources: tuple[Any, ...], shape: tuple[int, ...]
) -> Quarantine:
    """Find the sources that kill the workers that read them.

    Args:
        map_work: An engine whose workers may die.
        reader: Reader of the sources.
        sources: Sources of a part whose workers have all died.
        shape: Shape of an image: (H, W, C).

    Returns:
        The reader, which refuses the sources that are to blame. Where none is, the part needs
        more memory than a worker has.
    """
    survive = partial(_survive, reader, shape)
    deadly = map_work(survive, sources, give_up=name_source)
    return Quarantine(reader, frozenset(filter(None, deadly)))


def _survive(reader: Reader[Any], shape: tuple[int, ...], source: Any) -> str:
    """Read a source and drop the image; a worker that survives has no source to name."""
    with suppress(Exception):  # whatever it raises, the worker has survived it
        list(reader.read(source, np.zeros((1, *shape), np.uint8)))
    return ""
