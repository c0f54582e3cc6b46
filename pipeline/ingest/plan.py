"""What a dataset is made from: the plan, its sources, and how a source is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Array, ManifestEntry
from pipeline.store.spec import DatasetSpec


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
        digest: SHA-256 of the source's bytes, hexadecimal.
        is_defect: Whether the reader failed in a way that the source need not be to blame for;
            a later run tries the shard again.
    """

    reasons: tuple[str | None, ...]
    columns: Mapping[str, Array]
    digest: str
    is_defect: bool = False


S = TypeVar("S", bound=Source)
S_contra = TypeVar("S_contra", bound=Source, contravariant=True)


class Reader(Protocol[S_contra]):
    """Reads rows of one source. Picklable; its `repr` states every parameter."""

    def read(
        self, source: S_contra, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read rows into the memory given.

        Args:
            source: The file to read.
            rows: The planned columns of these rows, each (rows, ...).
            images: uint8 (rows, H, W, C), filled from the first to the last. It holds old data;
                the caller blanks the rows that are unreadable.

        Yields:
            What was found out about the next rows, as soon as their images are final.

        Raises:
            SourceError: None of the remaining rows can be read.
            StorageError: The storage fails; unlike all other errors it stops the ingest.
        """
        ...


def read_all(
    reader: Reader[S], source: S, rows: Mapping[str, Array], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], SourceRead]:
    """Read rows of one source into new memory.

    Args:
        reader: Reader of the source.
        source: The file to read.
        rows: The planned columns of these rows, each (rows, ...).
        shape: Shape of the images: (rows, H, W, C).

    Returns:
        The images, and what was found out about all rows.

    Raises:
        SourceError: Rows are left that cannot be read.
    """
    images = np.zeros(shape, np.uint8)
    reads = list(reader.read(source, rows, images))
    columns = {
        name: np.concatenate([read.columns[name] for read in reads]) for name in reads[0].columns
    }
    reasons = tuple(reason for read in reads for reason in read.reasons)
    return images, replace(reads[0], reasons=reasons, columns=columns)


@dataclass(frozen=True)
class Plan:
    """The place of every image, fixed before any is read.

    Args:
        spec: Specification of the dataset.
        sources: The files to read.
        source_index: int (image,), non-decreasing: the source of each row.
        columns: Columns known before reading, each (image, ...).
        rejected: Items without a row in the dataset, each with the reason.
        coverage: Area by fate for each group; `tiled` is what got a row.
        area: float (image,): area of each row in the coverage account.
        remarks: URL of a source -> remark for its entry in the manifest.
        manifest_columns: Columns whose values the manifest states for each source.
    """

    spec: DatasetSpec
    sources: tuple[Any, ...]
    source_index: NDArray[np.integer[Any]]
    columns: Mapping[str, Array]
    rejected: tuple[ManifestEntry, ...] = ()
    coverage: Mapping[str, Mapping[str, float]] | None = None
    area: NDArray[np.floating[Any]] | None = None
    remarks: Mapping[str, str] | None = None
    manifest_columns: tuple[str, ...] = ()
