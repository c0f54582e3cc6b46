from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.store.sharding import IMAGE_CODEC, encode_shard

SHAPE = (37, 11, 2)


def write(folder: Path, shards: list[NDArray[np.uint8]], count: int) -> zarr.Array[Any]:
    """An array in shards of six images, chunks of two, whose shards are these."""
    array = zarr.create_array(
        str(folder),
        shape=(count, *SHAPE),
        dtype="uint8",
        chunks=(2, *SHAPE),
        shards=(6, *SHAPE),
        compressors=IMAGE_CODEC,
    )
    for number, images in enumerate(shards):
        path = folder / "c" / str(number) / "0" / "0" / "0"
        path.parent.mkdir(parents=True)
        chunks = (images[start : start + 2] for start in range(0, len(images), 2))
        path.write_bytes(b"".join(encode_shard(chunks, chunk_images=2, shard_images=6)))
    return array


def draw(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, *SHAPE), np.uint8)


def test_zarr_reads_full_shards_and_a_last_one_that_ends_within_a_chunk(tmp_path: Path) -> None:
    images = draw(15)
    array = write(tmp_path, [images[:6], images[6:12], images[12:]], 15)
    np.testing.assert_array_equal(array[:], images)
    np.testing.assert_array_equal(array[11:13], images[11:13])


def test_a_chunk_that_was_not_written_reads_as_zeros(tmp_path: Path) -> None:
    images = draw(3)
    found = np.asarray(write(tmp_path, [images], 6)[:])
    np.testing.assert_array_equal(found[:3], images)
    assert not found[3:].any()


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    array = write(tmp_path, [draw(6)], 6)
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        array[:]


def test_a_chunk_is_packed_where_that_pays_and_stored_where_it_does_not(tmp_path: Path) -> None:
    grain = draw(4)
    glass = np.full((2, *SHAPE), 240, np.uint8)
    images = np.concatenate([grain[:2], glass, grain[2:]])
    array = write(tmp_path, [images], 6)
    np.testing.assert_array_equal(array[:], images)
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    assert path.read_bytes().count(grain[:2].tobytes()) == 1
    assert path.read_bytes().count(grain[2:].tobytes()) == 1
    assert path.read_bytes().count(glass.tobytes()) == 0
