"""What a part is made from: its sources, and how a source is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Array


class Source(Protocol):
    """A file that images are read from: `records.Slide` or `records.SourceImage`."""

    @property
    def url(self) -> str:
        """Path or URL of the file."""

    @property
    def version(self) -> str:
        """Changes when the file does."""


def name_source(source: Source) -> str:
    """Name a source in public; its URL may name a person, or be that of an archive of many."""
    return str(getattr(source, "public_name", source.url))


@dataclass(frozen=True)
class SourceRead:
    """What a reader found out about the next rows of a source.

    Args:
        reasons: Why each row is unreadable, or None for a row that is readable.
        columns: Columns measured while reading, each (rows, ...).
        is_defect: Whether the reader failed in a way that the source need not be to blame for;
            a later run tries the part again.
    """

    reasons: tuple[str | None, ...]
    columns: Mapping[str, Array]
    is_defect: bool = False


S_contra = TypeVar("S_contra", bound=Source, contravariant=True)


class Reader(Protocol[S_contra]):
    """Reads a file of one image. Picklable; its `repr` states every parameter."""

    def read(self, source: S_contra, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        """Read an image into the memory given.

        Args:
            source: The file to read.
            images: uint8 (1, H, W, C), to be filled. It holds old data; the caller blanks an
                image that is unreadable.

        Yields:
            What was found out about the image, once.

        Raises:
            SourceError: It cannot be read.
            StorageError: The storage fails; unlike all other errors it stops the ingest.
        """
        ...
