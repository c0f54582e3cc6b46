from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.duplicates import DuplicateSet, find_duplicates, hash_images
from tests.support.made.images import make_image, recompress


def digest(images: NDArray[np.uint8]) -> list[str]:
    """A digest of each image's pixels."""
    return [blake3(image.tobytes()).hexdigest() for image in images]


def test_exact_and_near_duplicates_across_groups_are_found() -> None:
    first, second, third = (make_image(seed) for seed in range(3))
    images = np.stack([first, second, first, recompress(second), third, third])
    assert not np.array_equal(images[1], images[3])
    groups = ["a", "b", "c", "d", "e", "e"]
    splits = ["train", "train", "train", "test", "test", "test"]
    found = find_duplicates(digest(images), hash_images(images), groups, splits)
    assert found == (
        DuplicateSet((0, 2), "exact", crosses_splits=False),
        DuplicateSet((1, 3), "near", crosses_splits=True),
    )  # rows 4 and 5 are one patient's


def test_unreadable_rows_are_left_out_and_rows_keep_their_numbers() -> None:
    images = np.stack([np.zeros((64, 96, 1), np.uint8), make_image(1), make_image(1)])
    images = np.concatenate([images, np.zeros((1, 64, 96, 1), np.uint8)])
    readable = np.array([False, True, True, False])
    found = find_duplicates(
        digest(images), hash_images(images), list("abcd"), ["test"] * 4, readable=readable
    )
    assert [duplicate.rows for duplicate in found] == [(1, 2)]


def test_colour_images_are_hashed_too() -> None:
    grey = make_image(5)
    colour = np.concatenate([grey, 255 - grey, grey // 2], axis=2)
    hashes = hash_images(np.stack([colour, colour[..., ::-1]]))
    assert hashes.shape == (2, 4)
    assert not np.array_equal(hashes[0], hash_images(grey[None])[0])


@pytest.mark.parametrize("distance", [0, 1, 5, 24, 48])
def test_banding_finds_what_comparing_all_pairs_finds(distance: int) -> None:
    rng = np.random.default_rng(0)
    centers = rng.integers(0, 2**63, (60, 4), dtype=np.uint64)
    hashes = np.repeat(centers, 5, axis=0)
    for row in range(len(hashes)):
        for bit in rng.integers(0, 256, rng.integers(0, 40)):
            hashes[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    count = len(hashes)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1)
    reached = apart <= distance
    for _ in range(9):  # sets grow by steps
        reached = reached @ reached
    expected = {tuple(np.flatnonzero(row).tolist()) for row in reached if row.sum() > 1}
    names = [str(row) for row in range(count)]
    found = find_duplicates(names, hashes, names, ["test"] * count, max_distance_bits=distance)
    assert {duplicate.rows for duplicate in found} == expected
    assert expected


def test_many_near_copies_need_no_list_of_their_pairs() -> None:
    """3,000 copies make 4.5 million pairs in every band: 25 bands of them held 1.7 GiB."""
    rng = np.random.default_rng(1)
    count = 3000
    hashes = np.tile(rng.integers(0, 2**63, (1, 4), dtype=np.uint64), (count, 1))
    hashes[:, 0] ^= np.arange(count, dtype=np.uint64)  # up to 12 bits
    far = rng.integers(0, 2**63, (200, 4), dtype=np.uint64)
    names = [str(row) for row in range(count + len(far))]
    tracemalloc.start()
    (found,) = find_duplicates(names, np.concatenate([hashes, far]), names, ["test"] * len(names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows == tuple(range(count))
    assert peak < 32 * 2**20


def test_impossible_arguments_are_refused() -> None:
    digests, hashes = digest(make_image(0)[None]), hash_images(make_image(0)[None])
    with pytest.raises(ValueError, match="lengths \\[1, 2\\]"):
        find_duplicates(digests, hashes, ["a", "b"], ["test"])
    with pytest.raises(ValueError, match="distance 60"):
        find_duplicates(digests, hashes, ["a"], ["test"], max_distance_bits=60)
    empty = hash_images(np.zeros((0, 8, 8, 1), np.uint8))
    assert find_duplicates([], empty, [], []) == ()


def test_real_radiographs_of_different_patients_are_no_duplicates(shared_data: Path) -> None:
    paths = sorted((shared_data / "nih224").rglob("*.png"))[:120]
    paths = paths or sorted((shared_data / "nih224").rglob("*.jpg"))[:120]
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("L").resize((96, 96)))[..., None])
    images.append(recompress(images[7]))
    names = [str(row) for row in range(len(images))]
    found = find_duplicates(
        digest(np.stack(images)), hash_images(np.stack(images)), names, ["test"] * len(names)
    )
    assert [duplicate.rows for duplicate in found] == [(7, len(images) - 1)]
