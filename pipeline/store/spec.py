"""The specification of a dataset: its arrays and columns, and Zarr's documents that declare them.

docs/reference/dataset.md describes the format. A dataset is a table of parts and a folder for each
part, which is a Zarr group by itself. The float32 columns of a part share one array, so that a
slide costs few objects. Documents are computed and written whole: nothing is read, modified and
written back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from math import prod
from reprlib import repr as shorten
from typing import Annotated, Any, Final, Literal

import imagecodecs
import numpy as np
import zarr
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.records import JSON, Array
from pipeline.store.sharding import IMAGE_CODEC

SCHEMA_VERSION: Final = 2
ROOT: Final = "zarr.json"
IMAGE_DIMENSIONS: Final = ("image", "y", "x", "channel")
MEASURES: Final = "measures"
_MEASURE: Final = "measure"
_ZSTD_LEVEL: Final = 1
_TEXT: Final = np.dtypes.StringDType()

# Columns of every dataset. `pixel_digest` is the BLAKE3 of an image's own pixels, 128 bits.
BASE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    "image_id": _TEXT,
    "label": np.dtype("int8"),
    "readable": np.dtype("bool"),
    "pixel_digest": _TEXT,
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
        shard_images: Rows in a shard, which is one object; a multiple of `chunk_images`.
        chunk_images: Rows in a chunk, the unit of reading.
        columns: dtype of each column of a part, `BASE_COLUMNS` included; a name that ends in
            `_yx` has a trailing axis (y, x).
        mpp_um: Micrometres per pixel, or None where the unit has no meaning.
        parameters: Every setting that shaped the images.
        stamp: Format numbers and versions of the libraries that make pixels.
    """

    modality: str
    source: str
    image_shape: tuple[int, int, int]
    shard_images: int
    chunk_images: int
    columns: Mapping[str, np.dtype[Any]]
    mpp_um: float | None
    parameters: Mapping[str, JSON]
    stamp: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.shard_images % self.chunk_images:
            raise ValueError(
                f"shard_images {self.shard_images} is not a multiple of chunk_images "
                f"{self.chunk_images}: choose a multiple"
            )

    @property
    def image_bytes(self) -> int:
        """Size of one image, uncompressed."""
        return prod(self.image_shape)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the float32 columns, which share one array."""
        return tuple(sorted(n for n, dtype in self.columns.items() if dtype == np.float32))

    def attributes(self) -> dict[str, JSON]:
        """The dataset's attributes that follow from the specification alone."""
        return {
            "normscope_schema": SCHEMA_VERSION,
            "modality": self.modality,
            "source": self.source,
            "mpp_um": self.mpp_um,
            "parameters": self.parameters,
            "image_shape": list(self.image_shape),
            "shard_images": self.shard_images,
            "chunk_images": self.chunk_images,
            "columns": {name: str(dtype) for name, dtype in sorted(self.columns.items())},
        }


class _Attributes(BaseModel):
    """Form of the attributes of a root document, as an ingest writes them."""

    model_config = ConfigDict(strict=True)

    sealed: Literal[True]
    modality: str
    source: str
    mpp_um: float | None
    parameters: dict[str, Any]
    image_shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    shard_images: PositiveInt
    chunk_images: PositiveInt
    columns: dict[str, str]
    stamp: dict[str, str]
    fingerprint: str
    image_count: NonNegativeInt
    unreadable_count: NonNegativeInt
    parts_table: str


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Check that the attributes of a root document are of the form that an ingest writes.

    Args:
        attributes: Attributes of the root document, of this schema.

    Raises:
        ValueError: An attribute is missing or of another form.
        TypeError: A column has no dtype of NumPy.
    """
    try:
        _Attributes.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f" {shorten(first['input'])}"
        raise ValueError(f"{where}{given}: {first['msg']}") from error
    recall_spec(attributes)


def recall_spec(attributes: Mapping[str, Any]) -> DatasetSpec:
    """Recall the specification of a sealed dataset.

    Args:
        attributes: Attributes of its root document.
    """
    height, width, channels = attributes["image_shape"]
    return DatasetSpec(
        modality=attributes["modality"],
        source=attributes["source"],
        image_shape=(height, width, channels),
        shard_images=attributes["shard_images"],
        chunk_images=attributes["chunk_images"],
        columns={
            name: _TEXT if dtype == str(_TEXT) else np.dtype(dtype)
            for name, dtype in attributes["columns"].items()
        },
        mpp_um=attributes["mpp_um"],
        parameters=attributes["parameters"],
        stamp=attributes["stamp"],
    )


@lru_cache(maxsize=1)
def code_version() -> str:
    """Version of this package and a digest of its source, e.g. `0.1.0+1f3a9c0b2d4e`."""
    digest = sha256()
    for path in sorted(files("pipeline").rglob("*.py"), key=str):  # type: ignore[attr-defined]
        digest.update(path.read_bytes())
    return f"{version('normscope')}+{digest.hexdigest()[:12]}"


def encode_root(attributes: Mapping[str, JSON]) -> bytes:
    """Encode the root document of a dataset: a Zarr group without arrays of its own."""
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}},
    }
    return (json.dumps(root, indent=1, ensure_ascii=False) + "\n").encode()


def encode_part(
    spec: DatasetSpec, columns: Mapping[str, Array], attributes: Mapping[str, JSON]
) -> dict[str, bytes]:
    """Encode all objects of a part but its images.

    Args:
        spec: Specification of the dataset.
        columns: Values of all columns, each (image, ...).
        attributes: Attributes of the part's group.

    Returns:
        Key below the part's folder -> content. The root document holds the other documents too
        (consolidated), so that opening a part takes one request; written last, it commits.
    """
    count = len(columns["image_id"])
    arrays = {
        name: _count_rows(name, document, count) for name, document in _declare(*_key(spec)).items()
    }
    root = {
        "attributes": attributes,
        "zarr_format": 3,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
        "node_type": "group",
    }
    documents = {
        ROOT: root,
        **{f"{name}/{ROOT}": document for name, document in arrays.items()},
    }
    objects = {key: json.dumps(document, indent=2).encode() for key, document in documents.items()}
    for name, values in _gather(spec, columns).items():
        chunk = "/".join("0" * values.ndim)
        objects[f"{name}/c/{chunk}"] = _pack_column(values)
    return objects


def _key(spec: DatasetSpec) -> tuple[tuple[int, int, int], int, int, tuple[tuple[str, str], ...]]:
    """What the documents of a part follow from, but for the number of its rows."""
    columns = tuple(sorted((name, str(dtype)) for name, dtype in spec.columns.items()))
    return spec.image_shape, spec.shard_images, spec.chunk_images, columns


@lru_cache(maxsize=8)
def _declare(
    image_shape: tuple[int, int, int],
    shard_images: int,
    chunk_images: int,
    columns: tuple[tuple[str, str], ...],
) -> dict[str, Any]:
    """Let zarr-python declare the arrays of a part of one row: name -> document.

    It takes longer than writing a small part, so that it is done once for all parts.
    """
    documents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(documents))
    group.create_array(
        "image",
        shape=(1, *image_shape),
        dtype="uint8",
        chunks=(chunk_images, *image_shape),
        shards=(shard_images, *image_shape),
        compressors=IMAGE_CODEC,
        dimension_names=IMAGE_DIMENSIONS,
    )
    dtypes = {name: _TEXT if dtype == str(_TEXT) else np.dtype(dtype) for name, dtype in columns}
    measures = [name for name, dtype in dtypes.items() if dtype == np.float32]
    if measures:
        dimensions: tuple[str, ...] = ("image", _MEASURE)
        shared = (1, len(measures)), np.dtype("float32")
        _add_array(group, MEASURES, *shared, dimensions, float("nan"))
        _add_array(group, _MEASURE, (len(measures),), _TEXT, (_MEASURE,), "")
    for name, dtype in dtypes.items():
        if name not in measures:
            dimensions = ("image", "yx") if name.endswith("_yx") else ("image",)
            shape = (1, 2)[: len(dimensions)]
            _add_array(group, name, shape, dtype, dimensions, fill_value(name, dtype))
    names = sorted(group.array_keys())
    return {name: json.loads(documents[f"{name}/{ROOT}"].to_bytes()) for name in names}


def _add_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dimensions: tuple[str, ...],
    fill: str | float,
) -> None:
    group.create_array(
        name,
        shape=shape,
        dtype=str if dtype == _TEXT else dtype,
        chunks=shape,
        fill_value=fill,
        compressors=ZstdCodec(level=_ZSTD_LEVEL),
        dimension_names=dimensions,
    )


def _count_rows(name: str, document: dict[str, Any], count: int) -> dict[str, Any]:
    """Declare an array for so many rows. A column is one chunk; images have a grid of shards."""
    if name == _MEASURE:
        return document
    shape = [count, *document["shape"][1:]]
    if name == "image":
        return {**document, "shape": shape}
    grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
    return {**document, "shape": shape, "chunk_grid": grid}


def _gather(spec: DatasetSpec, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Gather the arrays of a part but its images; the float32 columns share one."""
    measures = spec.measures
    arrays = {name: values for name, values in columns.items() if name not in measures}
    if measures:
        arrays[MEASURES] = np.stack([columns[name] for name in measures], axis=1)
        arrays[_MEASURE] = np.array(measures, object)
    return arrays


def _pack_column(values: Array) -> bytes:
    """Encode an array's one chunk, as its document declares."""
    if values.dtype.kind in "TUO":
        texts = [str(text).encode() for text in values.tolist()]
        # Zarr's vlen-utf8: the number of texts, then each one's length and bytes.
        parts = [part for text in texts for part in (len(text).to_bytes(4, "little"), text)]
        data = b"".join([len(texts).to_bytes(4, "little"), *parts])
    else:
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return bytes(imagecodecs.zstd_encode(data, level=_ZSTD_LEVEL))


def fill_value(name: str, dtype: np.dtype[Any]) -> str | int | float:
    """Value of a column's row until it is written: unknown rather than a statement."""
    if dtype.kind in "TUO":
        return ""
    return float("nan") if dtype.kind == "f" else _UNKNOWN.get(name, 0)


def empty_column(spec: DatasetSpec, name: str, count: int) -> Array:
    """Make a column of unknown values, (count,) or (count, 2); text as `object`."""
    dtype = spec.columns[name]
    shape = (count, 2) if name.endswith("_yx") else (count,)
    return np.full(shape, fill_value(name, dtype), object if dtype.kind in "TUO" else dtype)
