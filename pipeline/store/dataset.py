"""An open dataset, for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.io.storage import exists, join, plain_url
from pipeline.records import Array
from pipeline.store.part import OpenPart, Part, find_attributes, open_part, read_document
from pipeline.store.selection import ImageSelection, choose_rows
from pipeline.store.sharding import ReadChunk
from pipeline.store.spec import ROOT, SCHEMA_VERSION, check_attributes
from pipeline.store.table import read_table, tabulate_parts

if TYPE_CHECKING:
    from types import ModuleType

    import pandas as pd
    import xarray

T = TypeVar("T")

PROGRESS: Final = "ingest.json"
# Attributes without which a root document of this schema is a damaged one.
_NEEDED: Final = frozenset(
    {
        "modality",
        "source",
        "parameters",
        "image_shape",
        "shard_images",
        "chunk_images",
        "columns",
        "fingerprint",
        "parts_table",
    }
)
_COMMANDS: Final[Mapping[str, str]] = {"histology": "slides", "radiograph": "xrays"}
_READERS: Final = 8
# Facts that every part has as fields of its own, and that are read like columns.
_OF_PARTS: Final = ("group_id", "split", "source_digest")


@dataclass(frozen=True)
class Dataset:
    """An open dataset, for reading.

    Rows are numbered through all parts in the order of the table of parts; chunks are numbered
    likewise, and each lies in one part.

    Args:
        url: Path or URL of the dataset.
        attributes: Attributes of the root document.
        parts: Table of parts, in the order of rows; those without an image included.
    """

    url: str
    attributes: Mapping[str, Any]
    parts: tuple[Part, ...]

    def __reduce__(self) -> tuple[Callable[..., Dataset], tuple[str, str, str]]:
        # Tasks carry a dataset's name, not its table of parts.
        return _reopen, (self.url, self.fingerprint, str(self.attributes["parts_table"]))

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"<Dataset {self.url}: {self.image_count} {self.attributes['modality']} images of "
            f"{height} x {width} x {channels} in {len(self.parts)} parts, source "
            f"{self.attributes['source']}, fingerprint {self.fingerprint[:12]}>"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over content and parameters; the same wherever it was made."""
        return str(self.attributes["fingerprint"])

    @property
    def image_count(self) -> int:
        """Number of rows, unreadable ones included."""
        return int(self.starts[-1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.attributes["image_shape"]
        return int(height), int(width), int(channels)

    @property
    def chunk_images(self) -> int:
        """Rows in a whole chunk; the last chunk of a part may have fewer."""
        return int(self.attributes["chunk_images"])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each part, and the number of all rows: int64 (parts + 1,)."""
        counts = [part.image_count for part in self.parts]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def chunk_starts(self) -> NDArray[np.int64]:
        """First row of each chunk, and the number of all rows: int64 (chunks + 1,)."""
        firsts = [
            np.arange(start, stop, self.chunk_images, dtype=np.int64)
            for start, stop in zip(self.starts, self.starts[1:], strict=False)
        ]
        return np.concatenate([*firsts, self.starts[-1:]])

    def find_chunks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the number of the chunk that each row lies in."""
        return find_chunks(rows, self.chunk_starts)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns and of the facts of parts, which `column` reads alike."""
        facts = {name for part in self.parts for name in part.facts}
        return tuple(sorted({*self.attributes["columns"], *facts, *_OF_PARTS}))

    def open_part(self, number: int) -> OpenPart:
        """Open a part by its place in the table of parts."""
        return open_part(self.url, self.parts[number])

    def column(self, name: str) -> Array:
        """Read a column of all parts: (n,), or (n, 2) for a name in `_yx`; text as `object`.

        A fact of whole parts is repeated for each of their rows.

        Raises:
            SchemaError: The dataset has no such column.
        """
        if name in self.attributes["columns"]:
            found = list(self._map_parts(lambda opened: opened.column(name)))
            return np.concatenate(found) if found else np.empty(0, object)
        if name not in self.column_names:
            raise SchemaError(
                self.url, f"no column {name!r}", f"It has {', '.join(self.column_names)}"
            )
        values = [read_fact(part, name) for part in self.parts]
        is_text = any(isinstance(value, str) for value in values)
        known = np.array(values, object if is_text else None)
        return np.repeat(known, np.diff(self.starts))

    def read_images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows `start` to `stop` as (n, H, W, C); rows that are not `readable` are zeros.

        Raises:
            SchemaError: A part is damaged.
        """
        start, stop, _ = slice(start, stop).indices(self.image_count)
        # Not by zarr-python, to which a shard that is gone is one of zeros.
        return ImageSelection(self, np.arange(start, stop))[:]

    def images(self, where: str | NDArray[np.bool_] | None = None) -> ImageSelection:
        """Choose images; nothing is read before the selection is indexed or iterated.

        Args:
            where: Condition on the columns, as `pandas.DataFrame.query` takes it, e.g.
                `split == 'test' and tissue_fraction > 0.8`; or one bool for each row; or None for
                every image.

        Raises:
            SettingsError: The condition cannot be evaluated.
        """
        return ImageSelection(self, choose_rows(self, where))

    def to_frame(self) -> pd.DataFrame:
        """Read all columns, and the facts of parts, as a table with one row per image.

        A column in `_yx` becomes two, `_y` and `_x`; the index is the row of the dataset.
        """
        frame: pd.DataFrame = _load_frames().make_frame(self)
        return frame

    def parts_to_frame(self) -> pd.DataFrame:
        """Make a table of the parts, facts included: of slides, one row per slide."""
        frame: pd.DataFrame = tabulate_parts(self.parts).to_pandas()
        return frame

    def to_xarray(self) -> xarray.Dataset:
        """Open all images and columns lazily as one dataset, concatenated along `image`.

        Columns and facts are variables of their own; images are Dask arrays in the chunks of the
        parts, called `pixels`, as a variable must not be called like its dimension.
        """
        whole: xarray.Dataset = _load_frames().open_xarray(self)
        return whole

    def open_chunks(self) -> ReadChunk:
        """Open a dataset for reading whole chunks by their number, from any number of threads."""
        return _ChunkReader(self).read

    def read_reasons(self) -> dict[int, str]:
        """Read why rows are unreadable, by row of the dataset."""
        reasons: dict[int, str] = {}
        for number, part in enumerate(self.parts):
            if part.unreadable_count:
                found = self.open_part(number).read_reasons()
                reasons |= {int(self.starts[number]) + row: text for row, text in found.items()}
        return reasons

    def _map_parts(self, function: Callable[[OpenPart], T]) -> Iterator[T]:
        """Apply a function to each open part that has images, several at once, in order."""
        numbers = [number for number, part in enumerate(self.parts) if part.image_count]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="parts") as threads:
            yield from threads.map(lambda number: function(self.open_part(number)), numbers)


def find_chunks(rows: NDArray[np.int64], chunk_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the number of the chunk that each row lies in.

    Args:
        rows: Rows of a dataset.
        chunk_starts: First row of each chunk of the dataset, and the number of all rows.
    """
    return np.searchsorted(chunk_starts, rows, side="right") - 1


def _load_frames() -> ModuleType:
    """Import pandas and xarray, which take a second that no command needs."""
    return import_module("pipeline.store.frames")


def read_fact(part: Part, name: str) -> Any:
    """Read a fact that holds for all rows of a part; None where it has none."""
    return getattr(part, name) if name in _OF_PARTS else part.facts.get(name)


class _ChunkReader:
    """Reads chunks of all parts; a part is opened when its first chunk is read."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._chunk_starts = dataset.chunk_starts
        self._part_of = np.searchsorted(dataset.starts, self._chunk_starts[:-1], side="right") - 1
        # Number of each part's first chunk.
        self._first = np.searchsorted(self._chunk_starts[:-1], dataset.starts[:-1])
        self._readers: dict[int, ReadChunk] = {}

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W, C) of a chunk; do not write to the array."""
        number = int(self._part_of[chunk])
        if (reader := self._readers.get(number)) is None:
            reader = self._readers[number] = self._dataset.open_part(number).open_chunks()
        return reader(chunk - int(self._first[number]))


def open_dataset(url: str) -> Dataset:
    """Open a sealed dataset for reading.

    Args:
        url: Path or URL of the dataset.

    Raises:
        SchemaError: There is no dataset, its ingest has not finished, it is of another schema
            version, or its root document or table of parts is damaged.
    """
    url = plain_url(url)
    attributes = read_root(url)
    if attributes is None and exists(join(url, PROGRESS)):
        raise SchemaError(
            url, "not sealed: its ingest has not finished", "Run the same ingest again to finish"
        )
    if attributes is None:
        raise MissingDatasetError(url, "no dataset here", "Make one with `normscope ingest`")
    _require_form(url, attributes)
    try:
        return Dataset(url, attributes, read_table(url, str(attributes["parts_table"])))
    except SchemaError:
        # Sealed anew between the two reads: the root document names another table now.
        now = read_root(url)
        if now is None or now.get("parts_table") == attributes["parts_table"]:
            raise
        return open_dataset(url)


def _require_form(url: str, attributes: Mapping[str, Any]) -> None:
    """Refuse the attributes of another schema version, and those that no ingest has written."""
    found = attributes.get("normscope_schema")
    if found != SCHEMA_VERSION:
        kind = _COMMANDS.get(str(attributes.get("modality")), "images")
        raise SchemaError(
            url,
            f"schema {found!r}, this version reads schema {SCHEMA_VERSION}",
            f"Make it again: `normscope ingest {kind} SOURCE {url}`",
        )
    try:
        check_attributes(attributes)
    except (ValueError, TypeError) as error:
        remedy = "Run the same ingest again: it writes this document again"
        raise SchemaError(join(url, ROOT), f"is damaged: {error}", remedy) from error


@lru_cache(maxsize=4)
def _reopen(url: str, fingerprint: str, table: str) -> Dataset:  # noqa: ARG001 - of the cache
    """Open the dataset that another process has opened.

    The same content may lie in other folders after another ingest, which the table's name tells.

    Raises:
        SchemaError: It has been ingested again since, with another result.
    """
    dataset = open_dataset(url)
    if dataset.fingerprint != fingerprint:
        raise SchemaError(url, "has changed while it was read", "Run again")
    return dataset


class MissingDatasetError(SchemaError):
    """There is no dataset at a URL, sealed or not."""


def read_root(url: str) -> dict[str, Any] | None:
    """Read the attributes of a dataset of any schema version; None where there is none."""
    attributes = find_attributes(read_document(url))
    if attributes is None or "normscope_schema" not in attributes:
        return None
    is_current = attributes["normscope_schema"] == SCHEMA_VERSION
    return None if is_current and not attributes.keys() >= _NEEDED else attributes
