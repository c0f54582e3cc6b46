"""The dataset on disk: one Zarr v3 group of images and columns, and how to open it.

`image` is uint8 (image, y, x, channel), sharded; beside it lie 1-D columns along `image`, each
with one chunk a shard, so that whoever writes a shard shares no object with anybody. `commit`
(shard,) holds what each shard was made from. Metadata documents are computed here and written
whole: nothing is read, modified and written back. `xarray.open_zarr(url)` opens the result.

The time of sealing is in `manifest.json`, not here: equal input gives equal bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.errors import AbsentError, SchemaError
from pipeline.io.storage import open_zarr_store, plain_url
from pipeline.store.sharding import IMAGE_CODEC

SCHEMA_VERSION: Final = 1
IMAGE_DIMENSIONS: Final = ("image", "y", "x", "channel")
JSON: TypeAlias = "str | int | float | bool | list[JSON] | Mapping[str, JSON] | None"
Array: TypeAlias = NDArray[Any]

# Every dataset has these; `source_digest` is the SHA-256 of the bytes that the image came from.
BASE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    "image_id": np.dtypes.StringDType(),
    "group_id": np.dtypes.StringDType(),
    "split": np.dtypes.StringDType(),
    "label": np.dtype("int8"),
    "readable": np.dtype("bool"),
    "source_digest": np.dtypes.StringDType(),
}
# What a row holds until it is written, where zero would be a statement.
_UNKNOWN: Final[Mapping[str, int]] = {"label": -1, "age_years": -1}


@dataclass(frozen=True)
class DatasetSpec:
    """Everything about a dataset that is known before its first image is read.

    Args:
        modality: `histology`, `radiograph` or `image`.
        source: What it was made from: `camelyon16`, `chestxray14`, or a folder's name.
        image_shape: (height, width, channels) of each image.
        image_count: Number of rows.
        shard_images: Rows in a shard, the unit of work; a multiple of `chunk_images`.
        chunk_images: Rows in a chunk, the unit of reading.
        columns: dtype of each column, `BASE_COLUMNS` included; a name that ends in `_yx` has
            a trailing axis (y, x).
        mpp_um: Micrometres a pixel, or None where the unit has no meaning.
        parameters: Every setting that shaped the images.
        code_version: Of the code that makes them.
        group_order: Groups in the order of their rows, kept so that a dataset that grows keeps
            it; empty where it does not matter. No part of a shard's key of work.
    """

    modality: str
    source: str
    image_shape: tuple[int, int, int]
    image_count: int
    shard_images: int
    chunk_images: int
    columns: Mapping[str, np.dtype[Any]]
    mpp_um: float | None
    parameters: Mapping[str, JSON]
    code_version: str
    group_order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shard_images % self.chunk_images:
            raise ValueError(
                f"shard_images {self.shard_images} is not a multiple of chunk_images "
                f"{self.chunk_images}: choose a multiple"
            )

    @property
    def shard_count(self) -> int:
        """Number of shards; the last may be partly filled."""
        return -(-self.image_count // self.shard_images)

    def count_rows(self, shard: int) -> int:
        """Number of rows in a shard."""
        return min(self.shard_images, self.image_count - shard * self.shard_images)

    @property
    def raw_bytes(self) -> int:
        """Size of all images, uncompressed."""
        return self.image_count * int(np.prod(self.image_shape))

    def attributes(self) -> dict[str, JSON]:
        """The group's attributes that follow from this alone."""
        return {
            "normscope_schema": SCHEMA_VERSION,
            "modality": self.modality,
            "source": self.source,
            "mpp_um": self.mpp_um,
            "parameters": self.parameters,
            "code_version": self.code_version,
        }


@lru_cache(maxsize=1)
def code_version() -> str:
    """Version of this package and a digest of its source, e.g. `0.1.0+1f3a9c0b2d4e`."""
    digest = sha256()
    for path in sorted(files("pipeline").rglob("*.py"), key=str):  # type: ignore[attr-defined]
        digest.update(path.read_bytes())
    return f"{version('normscope')}+{digest.hexdigest()[:12]}"


def write_documents(spec: DatasetSpec, seal: Mapping[str, JSON] | None) -> dict[str, bytes]:
    """Zarr's metadata documents for a dataset.

    Args:
        spec: Of the dataset.
        seal: Further attributes of a sealed dataset, or None for an unsealed one.

    Returns:
        Key below the dataset's URL -> content. The root document carries the others too
        (consolidated), so that opening takes one request and sealing is one atomic write.
    """
    documents: dict[str, Buffer] = {}
    store = MemoryStore(documents)
    order = {"group_order": list(spec.group_order)} if spec.group_order else {}
    attributes = {**spec.attributes(), **order, "sealed": seal is not None, **(seal or {})}
    group = zarr.create_group(store, attributes=attributes)
    group.create_array(
        "image",
        shape=(spec.image_count, *spec.image_shape),
        dtype="uint8",
        chunks=(spec.chunk_images, *spec.image_shape),
        shards=(spec.shard_images, *spec.image_shape),
        compressors=IMAGE_CODEC,
        dimension_names=IMAGE_DIMENSIONS,
    )
    for name, dtype in sorted(spec.columns.items()):
        _declare_column(group, spec, name, dtype)
    group.create_array(
        "commit", shape=(spec.shard_count,), dtype=str, chunks=(1,), dimension_names=("shard",)
    )
    with warnings.catch_warnings():
        # Consolidated metadata is outside the core of the v3 specification; xarray wants it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(store)
    return {key: value.to_bytes() for key, value in documents.items()}


def fill_value(name: str, dtype: np.dtype[Any]) -> str | int | float:
    """What a row of a column holds until it is written: unknown rather than a statement."""
    if dtype.kind in "TUO":
        return ""
    return float("nan") if dtype.kind == "f" else _UNKNOWN.get(name, 0)


def _declare_column(group: zarr.Group, spec: DatasetSpec, name: str, dtype: np.dtype[Any]) -> None:
    tail = (2,) if name.endswith("_yx") else ()
    group.create_array(
        name,
        shape=(spec.image_count, *tail),
        dtype=str if dtype.kind in "TUO" else dtype,
        chunks=(spec.shard_images, *tail),
        fill_value=fill_value(name, dtype),
        compressors=ZstdCodec(level=1),
        dimension_names=("image", "yx") if tail else ("image",),
    )


@dataclass(frozen=True)
class Dataset:
    """An open dataset, for reading.

    Args:
        url: Where it lies.
        group: The Zarr group.
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
        """For each group of a slide dataset: area tiled, excluded by reason, unreadable."""
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
        """Rows in a chunk: reads aligned to it decode nothing twice."""
        return int(self._array("image").chunks[0])

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(sorted(set(self.group.array_keys()) - {"image", "commit"}))

    def read_images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` as (n, H, W, C); rows that are not `readable` are zeros."""
        return np.asarray(self._array("image")[start:stop], dtype=np.uint8)

    def column(self, name: str) -> Array:
        """One whole column: (n,), or (n, 2) for a name that ends in `_yx`; text as `object`.

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
        """What each shard was made from, as JSON; empty for one that is not made."""
        return [str(text) for text in np.asarray(self._array("commit")[:])]

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise SchemaError(self.url, f"{name!r} is no array", "Ingest the dataset again")
        return array


def read_group_order(url: str) -> tuple[str, ...]:
    """The groups of a dataset, finished or not, in the order of their rows; empty without one."""
    try:
        dataset = open_dataset(url, allow_unsealed=True)
    except SchemaError:
        return ()
    return tuple(dataset.attributes.get("group_order", ()))


def open_dataset(url: str, *, allow_unsealed: bool = False) -> Dataset:
    """Open a dataset for reading.

    Args:
        url: Where it lies.
        allow_unsealed: Whether one whose writing has not finished will do.

    Raises:
        SchemaError: There is none, it is unsealed, or of another schema version.
    """
    url = plain_url(url)
    try:
        group = zarr.open_group(open_zarr_store(url, read_only=True), mode="r")
    except (FileNotFoundError, AbsentError) as error:
        raise SchemaError(url, "no dataset here", "Make one with `normscope ingest`") from error
    found = group.attrs.get("normscope_schema")
    if found != SCHEMA_VERSION:
        raise SchemaError(
            url, f"schema {found!r}, this code reads {SCHEMA_VERSION}", "Ingest it again"
        )
    if not group.attrs.get("sealed") and not allow_unsealed:
        raise SchemaError(
            url, "not sealed: its ingest has not finished", "Run the same ingest again to finish"
        )
    return Dataset(url, group)
