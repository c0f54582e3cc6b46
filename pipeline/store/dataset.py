"""An open dataset, for reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.errors import AbsentError, SchemaError
from pipeline.io.storage import join, open_zarr_store, plain_url
from pipeline.records import Array
from pipeline.store.sharding import ReadChunk, open_chunks
from pipeline.store.spec import SCHEMA_VERSION

_COMMANDS: Final[Mapping[str, str]] = {"histology": "slides", "radiograph": "xrays"}
# 0.1 decoded names in file:// URLs twice, and mistook one file for another.
_REFUSED_RELEASE: Final = "0.1."


@dataclass(frozen=True)
class Dataset:
    """An open dataset, for reading.

    Args:
        url: Path or URL of the dataset.
        group: The open Zarr group.
    """

    url: str
    group: zarr.Group

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The group's attributes."""
        return self.group.attrs.asdict()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over content and parameters; the same wherever it was made."""
        return str(self.attributes["fingerprint"])

    @property
    def coverage(self) -> Mapping[str, Mapping[str, float]]:
        """For each group of a slide dataset: area (um^2) tiled, excluded by reason, unreadable."""
        coverage: Mapping[str, Mapping[str, float]] = self.attributes["coverage"]
        return coverage

    @property
    def image_count(self) -> int:
        """Number of rows, unreadable ones included."""
        return int(self._array("image").shape[0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self._array("image").shape
        return height, width, channels

    @property
    def chunk_images(self) -> int:
        """Rows in a chunk: reads that are aligned to chunks decode nothing twice."""
        return int(self._array("image").chunks[0])

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(sorted(set(self.group.array_keys()) - {"image", "commit"}))

    def read_images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows `start` to `stop` as (n, H, W, C); rows that are not `readable` are zeros."""
        return np.asarray(self._array("image")[start:stop], dtype=np.uint8)

    def open_chunks(self) -> ReadChunk:
        """Open a sealed dataset for reading whole chunks, past zarr-python where that is faster."""
        return open_chunks(join(self.url, "image"), self._array("image"))

    def column(self, name: str) -> Array:
        """Read one whole column: (n,), or (n, 2) for a name that ends in `_yx`; text as `object`.

        Raises:
            SchemaError: The dataset has no such column.
        """
        if name not in self.group:
            raise SchemaError(
                self.url, f"no column {name!r}", f"It has {', '.join(self.column_names)}"
            )
        values = np.asarray(self._array(name)[:])
        return values.astype(object) if values.dtype.kind == "T" else values

    def read_commits(self) -> list[str]:
        """Read what each shard was made from, as JSON; empty for one that is not made."""
        return [str(text) for text in np.asarray(self._array("commit")[:])]

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise SchemaError(self.url, f"{name!r} is not an array", "Ingest the dataset again")
        return array


def read_group_order(url: str) -> tuple[str, ...]:
    """Read the groups of a dataset in the order of their rows; empty where there is no dataset."""
    try:
        dataset = open_dataset(url, allow_unsealed=True)
    except SchemaError:
        return ()
    return tuple(dataset.attributes.get("group_order", ()))


def open_dataset(url: str, *, allow_unsealed: bool = False) -> Dataset:
    """Open a dataset for reading.

    Args:
        url: Path or URL of the dataset.
        allow_unsealed: Open a dataset whose ingest has not finished, too.

    Raises:
        SchemaError: There is no dataset, it is unsealed, or of another schema version.
    """
    url = plain_url(url)
    try:
        group = zarr.open_group(open_zarr_store(url, read_only=True), mode="r")
    except (FileNotFoundError, AbsentError) as error:
        raise SchemaError(url, "no dataset here", "Make one with `normscope ingest`") from error
    problem = _explain_refusal(group.attrs)
    if problem:
        command = _name_command(group.attrs.get("modality"), url)
        raise SchemaError(url, problem, f"Make it again: {command}")
    if not group.attrs.get("sealed") and not allow_unsealed:
        raise SchemaError(
            url, "not sealed: its ingest has not finished", "Run the same ingest again to finish"
        )
    return Dataset(url, group)


def _explain_refusal(attributes: Mapping[str, Any]) -> str:
    """What keeps a dataset from being read; empty where nothing does."""
    found = attributes.get("normscope_schema")
    if found != SCHEMA_VERSION:
        return f"schema {found!r}, this version reads schema {SCHEMA_VERSION}"
    release = str(attributes.get("code_version")).partition("+")[0]
    if release.startswith(_REFUSED_RELEASE):
        return f"made by Normscope {release}, which mistook some files for others"
    return ""


def _name_command(modality: object, url: str) -> str:
    """The command line that makes a dataset of this kind at the same place."""
    kind = _COMMANDS.get(str(modality), "images")
    return f"`normscope ingest {kind} SOURCE {url}`"
