"""Damaged TIFF tags: the level is left to OpenSlide, and nothing is raised."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import tifffile

from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from tests.support.made.jpeg_slides import write_philips, write_tiles

_TILE_WIDTH: Final = 322
_LAYOUT_TAGS: Final = frozenset({256, 257, 258, 259, 262, 277, 284, 322, 323, 324, 325, 530})
_ENTRY: Final = struct.Struct("<HHII")
"""Tag, type, count, and the value or its offset."""


def list_entries(path: Path) -> dict[int, int]:
    """Tag of the first page -> offset of its entry in the file."""
    with tifffile.TiffFile(path) as tiff:
        return {tag.code: tag.offset for tag in tiff.pages.first.tags.values()}


def mutate(entry: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The entry with one field changed."""
    for field, values in enumerate(
        [(0, 65000), (0, 2, 5, 7, 12, 99), (0, 2, 3, 1 << 31), (0, 1, 7, (1 << 32) - 1)]
    ):
        for value in values:
            yield (*entry[:field], value, *entry[field + 1 :])


def read(path: Path, slide: OpenSlideReader) -> object:
    """Read through a damaged copy; OpenSlide, which may abort, has the sound file."""
    with open_jpeg_tiles(path, slide, 0) as tiles:
        if tiles is None:
            return None
        (region,) = tiles.read_regions([(0, 0)], (300, 400))
        if isinstance(region, np.ndarray):
            expected = slide.read_region_yx((0, 0), 0, (300, 400))
            np.testing.assert_array_equal(region, expected)
        return region


def test_two_values_of_the_tile_width_leave_the_level_to_openslide(tmp_path: Path) -> None:
    sound = write_tiles(tmp_path / "a.tif", (300, 500), (128, 256))
    data = bytearray(sound.read_bytes())
    offset = list_entries(sound)[_TILE_WIDTH]
    tag, kind, count, value = _ENTRY.unpack_from(data, offset)
    assert (tag, count) == (_TILE_WIDTH, 1)
    _ENTRY.pack_into(data, offset, tag, kind, 2, value)
    damaged = tmp_path / "b.tif"
    damaged.write_bytes(data)
    with OpenSlideReader(sound) as slide:
        assert isinstance(read(sound, slide), np.ndarray)
        assert read(damaged, slide) is None


@pytest.mark.parametrize("is_philips", [False, True], ids=["plain", "philips"])
def test_no_damaged_tag_raises(tmp_path: Path, is_philips: bool) -> None:
    path = tmp_path / "a.tif"
    sound = write_philips(path) if is_philips else write_tiles(path, (300, 500), (128, 256))
    data = sound.read_bytes()
    entries = [offset for tag, offset in list_entries(sound).items() if tag in _LAYOUT_TAGS]
    outcomes = set()
    with OpenSlideReader(sound) as slide:
        for number, offset in enumerate(entries):
            for variant, entry in enumerate(mutate(_ENTRY.unpack_from(data, offset))):
                damaged = tmp_path / f"{number}_{variant}.tif"
                end = offset + _ENTRY.size
                damaged.write_bytes(data[:offset] + _ENTRY.pack(*entry) + data[end:])
                outcomes.add(type(read(damaged, slide)))
    assert outcomes == {type(None), np.ndarray}  # some damage does not matter
