"""The specification of a dataset: its arrays and columns, and Zarr's documents that declare them.

docs/reference/dataset.md describes the format. Each column has one chunk per shard, so that writers
of different shards share no object. Metadata documents are computed and written whole: nothing is
read, modified and written back.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from math import prod
from typing import Any, Final

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.records import JSON
from pipeline.store.sharding import IMAGE_CODEC

SCHEMA_VERSION: Final = 1
IMAGE_DIMENSIONS: Final = ("image", "y", "x", "channel")

# Columns of every dataset; `source_digest` is the SHA-256 of the bytes that the image came from.
BASE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    "image_id": np.dtypes.StringDType(),
    "group_id": np.dtypes.StringDType(),
    "split": np.dtypes.StringDType(),
    "label": np.dtype("int8"),
    "readable": np.dtype("bool"),
    "source_digest": np.dtypes.StringDType(),
}
# Value of a row until it is written, where zero would be a statement.
_UNKNOWN: Final[Mapping[str, int]] = {"label": -1, "age_years": -1}


@dataclass(frozen=True)
class DatasetSpec:
    """Everything about a dataset that is known before its first image is read.

    Args:
        modality: `histology`, `radiograph` or `image`.
        source: Name of the source: `camelyon16`, `chestxray14`, or a folder's name.
        image_shape: (height, width, channels) of each image, in pixels.
        image_count: Number of rows.
        shard_images: Rows in a shard, the unit of work; a multiple of `chunk_images`.
        chunk_images: Rows in a chunk, the unit of reading.
        columns: dtype of each column, `BASE_COLUMNS` included; a name that ends in `_yx` has
            a trailing axis (y, x).
        mpp_um: Micrometres per pixel, or None where the unit has no meaning.
        parameters: Every setting that shaped the images.
        code_version: Version of the code that makes the images.
        group_order: Groups in the order of their rows, so that a dataset that grows keeps them
            in place; empty where it does not matter. It is not part of a shard's key of work.
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
        return self.image_count * prod(self.image_shape)

    def attributes(self) -> dict[str, JSON]:
        """The group's attributes that follow from the specification alone."""
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
    """Make Zarr's metadata documents for a dataset.

    Args:
        spec: Specification of the dataset.
        seal: Further attributes of a sealed dataset, or None for an unsealed one.

    Returns:
        Key below the dataset's URL -> content. The root document holds the others too
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
    """Value of a column's row until it is written: unknown rather than a statement."""
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
