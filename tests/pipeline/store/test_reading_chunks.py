"""Chunks read straight from shards are those that zarr-python reads, or are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.errors import SchemaError
from pipeline.io.storage import delete, read_bytes, write_bytes
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.sharding import encode_shard
from tests.support.toys import make_dataset

CHUNKS = 11  # 43 images in chunks of 4, four chunks a shard; every tenth is unreadable


def make(url: str) -> Dataset:
    """Three shards, the last of them not full, nor its last chunk."""
    return make_dataset(url, normals=35, validation=4, channels=3)


def part_of(dataset: Dataset) -> str:
    """URL of the one part."""
    return dataset.open_part(0).url


def shard_of(dataset: Dataset, number: int) -> str:
    return f"{part_of(dataset)}/image/c/{number}/0/0/0"


def read_by_zarr(dataset: Dataset) -> NDArray[np.uint8]:
    parts = [dataset.open_part(number) for number in range(len(dataset.parts))]
    return np.concatenate([opened.read_images(0, opened.part.image_count) for opened in parts])


def test_chunks_are_those_that_zarr_reads(store_url: str) -> None:
    dataset = make(store_url)
    read = dataset.open_chunks()
    with ThreadPoolExecutor(4) as readers:
        chunks = list(readers.map(read, [*range(CHUNKS), *range(CHUNKS)]))
    assert [len(chunk) for chunk in chunks[:CHUNKS]] == [4] * 10 + [3]
    expected = read_by_zarr(dataset)
    np.testing.assert_array_equal(np.concatenate(chunks[:CHUNKS]), expected)
    np.testing.assert_array_equal(np.concatenate(chunks[CHUNKS:]), expected)
    assert expected.any()


def test_chunks_of_many_parts_are_numbered_through(store_url: str) -> None:
    """Parts of 14, 14, 14 and one image, so that most end within a chunk and a shard."""
    dataset = make_dataset(store_url, normals=35, validation=4, channels=3, part_images=14)
    assert [part.image_count for part in dataset.parts] == [14, 14, 14, 1]
    read = dataset.open_chunks()
    starts = dataset.chunk_starts.tolist()
    assert starts == [0, 4, 8, 12, 14, 18, 22, 26, 28, 32, 36, 40, 42, 43]
    with ThreadPoolExecutor(4) as readers:
        chunks = list(readers.map(read, range(len(starts) - 1)))
    assert [len(chunk) for chunk in chunks] == np.diff(starts).tolist()
    whole = make(f"{store_url}-whole")
    expected = read_by_zarr(whole)
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    np.testing.assert_array_equal(dataset.read_images(13, 30), expected[13:30])
    np.testing.assert_array_equal(dataset.read_images(-2, 99), expected[-2:])
    assert dataset.read_images(9, 5).shape == (0, *dataset.image_shape)
    assert dataset.read_reasons() == whole.read_reasons()
    found = dataset.find_chunks(np.array([0, 13, 14, 41, 42]))
    assert found.tolist() == [0, 3, 4, 11, 12]


def test_chunks_that_do_not_compress_are_those_that_zarr_reads(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "one"))
    noise = np.random.default_rng(0).integers(0, 256, (16, *dataset.image_shape), dtype=np.uint8)
    noise[4:8] = 7  # between the others one that does
    chunks = noise.reshape(4, 4, *dataset.image_shape)
    write_bytes(
        shard_of(dataset, 0), b"".join(encode_shard(chunks, chunk_images=4, shard_images=16))
    )
    read = dataset.open_chunks()
    np.testing.assert_array_equal(np.concatenate([read(chunk) for chunk in range(4)]), noise)
    np.testing.assert_array_equal(read_by_zarr(dataset)[:16], noise)


def test_zarr_is_left_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make("memory://chunks/alone")
    expected = read_by_zarr(dataset)[8:12]
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    np.testing.assert_array_equal(dataset.open_chunks()(2), expected)
    np.testing.assert_array_equal(dataset.read_images(9, 11), expected[1:3])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_arrays_of_another_form_are_left_to_zarr(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "one"))
    group = zarr.open_group(part_of(dataset), mode="r+", use_consolidated=False)
    images = dataset.read_images(0, dataset.image_count)
    del group["image"]
    group.create_array(
        "image",
        shape=images.shape,
        dtype="uint8",
        chunks=(4, *images.shape[1:]),
        shards=(16, *images.shape[1:]),
        compressors=ZstdCodec(level=1),
    )[:] = images
    zarr.consolidate_metadata(group.store)
    other = open_dataset(dataset.url)
    np.testing.assert_array_equal(other.open_chunks()(10), images[40:])


def test_chunks_that_were_not_written_are_black(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "one"))
    group = zarr.open_group(part_of(dataset), mode="r+")
    array = group["image"]
    assert isinstance(array, zarr.Array)
    array[0:4] = 0  # which zarr-python leaves out of the shard
    read = open_dataset(dataset.url).open_chunks()
    assert not read(0).any()
    np.testing.assert_array_equal(read(1), read_by_zarr(dataset)[4:8])


@pytest.mark.parametrize(
    ("place", "problem"),
    [(-30, "index of the shard is damaged"), (5, "of another size"), (13, "of another size")],
)
def test_a_damaged_shard_is_refused(place: int, problem: str) -> None:
    dataset = make(f"memory://chunks/damaged-{place}")
    data = bytearray(read_bytes(shard_of(dataset, 1)))
    data[place] ^= 0xFF
    write_bytes(shard_of(dataset, 1), bytes(data))
    read = dataset.open_chunks()
    assert read(0).any()
    with pytest.raises(SchemaError, match=problem):
        read(4)


@pytest.mark.parametrize("size", [0, 67, 68])
def test_a_cut_shard_is_refused_with_its_remedy(size: int, store_url: str) -> None:
    """Four chunks a shard: its index takes 68 bytes."""
    dataset = make(store_url)
    shard = shard_of(dataset, 1)
    write_bytes(shard, read_bytes(shard)[:size])
    with pytest.raises(SchemaError, match=r"shard.*verify DATASET --repair`, then") as refused:
        dataset.open_chunks()(4)
    assert refused.value.item == shard
    with pytest.raises(SchemaError, match=r"shard.*verify DATASET --repair`, then"):
        dataset.read_images(16, 17)


def test_a_shard_that_is_gone_is_refused_with_its_remedy(store_url: str) -> None:
    dataset = make(store_url)
    delete(shard_of(dataset, 1))
    with pytest.raises(SchemaError, match=r"shard is gone.*verify DATASET --repair`, then"):
        dataset.read_images(16, 17)


@pytest.mark.parametrize("size", [0, 20])
def test_a_damaged_column_is_refused_with_its_remedy(size: int, store_url: str) -> None:
    dataset = make(store_url)
    place = f"{part_of(dataset)}/image_id/c/0"
    write_bytes(place, read_bytes(place)[:size])
    with pytest.raises(SchemaError, match=r"image_id: .*verify DATASET --repair`, then"):
        dataset.column("image_id")
