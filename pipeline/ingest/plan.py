"""What a dataset is made from: the plan, its sources, and how a source is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.records import ManifestEntry
from pipeline.store.dataset import Array, DatasetSpec


class Source(Protocol):
    """A file that images are read from: `records.Slide` or `records.SourceImage`."""

    @property
    def url(self) -> str:
        """Where it lies."""

    @property
    def version(self) -> str:
        """Changes when the file does."""


@dataclass(frozen=True)
class SourceRead:
    """What a reader made of the rows of one source.

    Args:
        images: uint8 (rows, H, W, C); whatever stands at unreadable rows is dropped.
        reasons: For each row why it is unreadable, or None.
        columns: Columns measured while reading, each (rows, ...).
        digest: SHA-256 of the source's bytes, hexadecimal.
    """

    images: NDArray[np.uint8]
    reasons: tuple[str | None, ...]
    columns: Mapping[str, Array]
    digest: str


S = TypeVar("S", bound=Source)
S_contra = TypeVar("S_contra", bound=Source, contravariant=True)


class Reader(Protocol[S_contra]):
    """Reads rows of one source. Picklable; its `repr` states every parameter."""

    def read(self, source: S_contra, rows: Mapping[str, Array]) -> SourceRead:
        """Read rows.

        Args:
            source: Where they come from.
            rows: The planned columns of these rows, each (rows, ...).

        Raises:
            SourceError: None of the rows can be read.
        """
        ...


@runtime_checkable
class FillingReader(Reader[S_contra], Protocol[S_contra]):
    """A reader of sources of many images, whose first can be used while it reads the others."""

    def fill(
        self, source: S_contra, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read rows into memory that is given.

        Args:
            source: Where they come from.
            rows: As for `read`.
            images: uint8 (rows, H, W, C), to be filled from the first to the last.

        Yields:
            What was made of the next rows, whose images are those of `images`.

        Raises:
            SourceError: None of the rows that are left can be read.
        """
        ...


@runtime_checkable
class SharingReader(Reader[S_contra], Protocol[S_contra]):
    """A reader of sources of one image each, whose costly half serves others of its kind too.

    `read` is `prepare` of `decode`. What `prepare` gives keeps its memory.
    """

    def decode(self, source: S_contra) -> Any:
        """Read and decode a source, in the same way for all readers that share it.

        Raises:
            SourceError: It cannot be decoded.
        """
        ...

    def prepare(self, decoded: Any) -> SourceRead:
        """Make this reader's own image of what `decode` gave.

        Raises:
            SourceError: It cannot be made.
        """
        ...


def read_whole(
    reader: FillingReader[S], source: S, rows: Mapping[str, Array], *, shape: tuple[int, ...]
) -> SourceRead:
    """What `read` of a `FillingReader` gives: new memory, filled, and its pieces put together.

    Args:
        reader: Fills it.
        source: Where the rows come from.
        rows: As for `Reader.read`.
        shape: Of the images: (rows, H, W, C).

    Raises:
        SourceError: Rows are left that cannot be read.
    """
    images = np.empty(shape, np.uint8)
    reasons: list[str | None] = []
    columns: dict[str, list[Array]] = {}
    for read in reader.fill(source, rows, images):
        reasons += read.reasons
        for name, values in read.columns.items():
            columns.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return SourceRead(images, tuple(reasons), joined, read.digest)


@dataclass(frozen=True)
class Plan:
    """Every image's place, fixed before any is read.

    Args:
        spec: Of the dataset.
        sources: The files.
        source_index: int (image,), non-decreasing: which source each row comes from.
        columns: Columns known now, each (image, ...).
        rejected: Items that never got a place, with the reason.
        coverage: For each group: area by fate; `tiled` is what got a place.
        weight: float (image,): the area of each row in the coverage account.
        notes: URL of a source -> what the manifest says of it though it is done.
        told: Columns whose values the manifest gives for each source.
    """

    spec: DatasetSpec
    sources: tuple[Any, ...]
    source_index: NDArray[np.integer[Any]]
    columns: Mapping[str, Array]
    rejected: tuple[ManifestEntry, ...] = ()
    coverage: Mapping[str, Mapping[str, float]] | None = None
    weight: NDArray[np.floating[Any]] | None = None
    notes: Mapping[str, str] | None = None
    told: tuple[str, ...] = ()
