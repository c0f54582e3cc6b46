"""The documents and columns of a part: as zarr-python itself would write them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.records import JSON, Array
from pipeline.store.sharding import IMAGE_CODEC
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec, empty_column, encode_part

SPEC = DatasetSpec(
    modality="histology",
    source="made",
    image_shape=(7, 5, 3),
    shard_images=8,
    chunk_images=4,
    columns={
        **BASE_COLUMNS,
        "origin_yx": np.dtype("int64"),
        "sharpness": np.dtype("float32"),
        "blank_fraction": np.dtype("float32"),
    },
    mpp_um=0.5,
    parameters={},
    stamp={},
)


def make_columns(count: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        **{name: empty_column(SPEC, name, count) for name in SPEC.columns},
        "image_id": np.array([f"ä_{row}" for row in range(count)], object),
        "origin_yx": random.integers(0, 2**40, (count, 2)),
        "sharpness": random.random(count, np.float32),
        "readable": np.arange(count) % 3 > 0,
    }


def write_by_zarr(columns: dict[str, Array], attributes: dict[str, Any]) -> dict[str, bytes]:
    documents: dict[str, Buffer] = {}
    store = MemoryStore(documents)
    group = zarr.create_group(store, attributes=attributes)
    count = len(columns["image_id"])
    group.create_array(
        "image",
        shape=(count, 7, 5, 3),
        dtype="uint8",
        chunks=(4, 7, 5, 3),
        shards=(8, 7, 5, 3),
        compressors=IMAGE_CODEC,
        dimension_names=("image", "y", "x", "channel"),
    )
    names = ["blank_fraction", "sharpness"]
    shared = np.stack([columns[name] for name in names], axis=1)
    arrays: dict[str, tuple[Array, tuple[str, ...], Any]] = {
        "measures": (shared, ("image", "measure"), float("nan")),
        "measure": (np.array(names, object), ("measure",), ""),
        "image_id": (columns["image_id"], ("image",), ""),
        "pixel_digest": (columns["pixel_digest"], ("image",), ""),
        "label": (columns["label"], ("image",), -1),
        "readable": (columns["readable"], ("image",), False),
        "origin_yx": (columns["origin_yx"], ("image", "yx"), 0),
    }
    for name, (values, dimensions, fill) in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=str if values.dtype == object else values.dtype,
            chunks=values.shape,
            fill_value=fill,
            compressors=ZstdCodec(level=1),
            dimension_names=dimensions,
            config={"write_empty_chunks": True},
        )
        array[:] = values
    zarr.consolidate_metadata(store)
    return {key: value.to_bytes() for key, value in documents.items()}


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("count", [1, 11, 300])
def test_a_part_is_what_zarr_would_write(count: int) -> None:
    columns = make_columns(count)
    attributes: dict[str, JSON] = {"name": "ä", "unreadable": [[0, "torn"]]}
    expected, found = write_by_zarr(columns, attributes), encode_part(SPEC, columns, attributes)
    assert found.keys() == expected.keys()
    for key, content in expected.items():
        if key.endswith("zarr.json"):
            assert json.loads(found[key]) == json.loads(content), key
        else:
            assert found[key] == content, key


def test_parts_of_one_dataset_differ_in_their_rows_alone() -> None:
    few, many = (encode_part(SPEC, make_columns(count), {}) for count in (2, 9))
    shapes = [json.loads(each["image/zarr.json"])["shape"] for each in (few, many)]
    assert shapes == [[2, 7, 5, 3], [9, 7, 5, 3]]
    assert json.loads(few["label/zarr.json"])["shape"] == [2]
