"""Corrupt JPEG tiles in sound slides: none of their pixels reaches an image."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.reader import _read_regions
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.settings import SlideSettings
from tests.support.made.jpeg_slides import encode, paint, write_tiles
from tests.support.made.slides import read_tiles


def add_noise(tile: bytes) -> bytes:
    """Of a kind that OpenSlide's decoder warns of, and reads on: it holds no 0xff, no marker."""
    middle = len(tile) // 2
    noise = np.random.default_rng(1).integers(0, 255, 200, np.uint8).tobytes()
    return tile[:middle] + noise + tile[middle + 200 :]


def pad_the_end(tile: bytes) -> bytes:
    """All pixels sound, yet a decoder warns of what is between them and the end."""
    return tile[:-2] + bytes(8) + tile[-2:]


SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "noise": add_noise,
    "cut off": lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2),
    "filled": lambda tile: tile[: len(tile) // 2] + b"\xff" * (len(tile) - len(tile) // 2),
    "no header": lambda tile: bytes(40) + tile[40:],
    "other size": lambda _: encode(paint(200, 256)),
}


def spoil_tiles(spoil: Callable[[bytes], bytes], *numbers: int) -> Callable[[list[bytes]], None]:
    def spoil_some(tiles: list[bytes]) -> None:
        for number in numbers or range(len(tiles)):
            tiles[number] = spoil(tiles[number])

    return spoil_some


@pytest.mark.parametrize("number", [6, 7])  # the first is one of those that prove a sound slide
@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_corrupt_tile_is_not_read_and_its_neighbours_are(
    tmp_path: Path, spoil: Callable[[bytes], bytes], number: int
) -> None:
    # 2 rows of 5 tiles.
    sound = write_tiles(tmp_path / "sound.tif", (512, 1280), (256, 256))
    path = write_tiles(tmp_path / "a.tif", (512, 1280), (256, 256), spoil_tiles(spoil, number))
    y, x = 256 * (number // 5), 256 * (number % 5)
    starts_yx = [(y, x), (y + 100, x - 30), (y, x - 50), (y, x + 256), (256 - y, x)]
    with (
        OpenSlideReader(sound) as sound_slide,
        OpenSlideReader(path) as slide,
        open_jpeg_tiles(path, slide, 0) as tiles,
    ):
        assert tiles is not None
        touches = [True, True, False, False, False]
        regions = _read_regions(slide, tiles, np.array(starts_yx), 0, (30, 50))
        for start_yx, is_lost, region in zip(starts_yx, touches, regions, strict=True):
            if is_lost:
                assert isinstance(region, SourceError)
                assert region.item == str(path)
            else:
                expected = sound_slide.read_region_yx(start_yx, 0, (30, 50))
                np.testing.assert_array_equal(region, expected)


def test_a_corrupt_tile_that_openslide_would_paint_is_unreadable_and_named(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", (512, 1280), (256, 256), spoil_tiles(add_noise, 6))
    with OpenSlideReader(path) as opened:
        opened.read_region_yx((256, 256), 0, (256, 256))  # no error
    settings = SlideSettings(tile_size_px=256, mpp_um=0.5)
    _, reads, decoder = read_tiles(path, [(0, 256), (256, 256), (256, 512)], settings)
    reasons = [reason for read in reads for reason in read.reasons]
    assert [reason is None for reason in reasons] == [True, False, True]
    said = r"a\.tif: the JPEG tile in row 1, column 1 of level 0 is corrupt \(.+ data: .+\)\. Copy"
    assert re.search(said, str(reasons[1]))
    assert decoder == "jpeg"


def test_beside_a_missing_tile_a_corrupt_one_is_not_painted_either(tmp_path: Path) -> None:
    def spoil(tiles: list[bytes]) -> None:
        tiles[5], tiles[6] = b"", add_noise(tiles[6])

    path = write_tiles(tmp_path / "a.tif", (512, 1280), (256, 256), spoil)
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is not None
        missing, both = tiles.read_regions([(300, 180), (300, 240)], (20, 50))
    assert missing is None
    assert isinstance(both, SourceError)


def test_where_a_scanner_makes_every_tile_warn_openslide_reads(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", (512, 1280), (256, 256), spoil_tiles(pad_the_end))
    sound = write_tiles(tmp_path / "sound.tif", (512, 1280), (256, 256))
    one = write_tiles(tmp_path / "one.tif", (512, 1280), (256, 256), spoil_tiles(pad_the_end, 6))
    with OpenSlideReader(path) as slide, OpenSlideReader(sound) as sound_slide:
        with open_jpeg_tiles(path, slide, 0) as tiles:
            assert tiles is None
        np.testing.assert_array_equal(
            slide.read_region_yx((0, 0), 0, (512, 1280)),
            sound_slide.read_region_yx((0, 0), 0, (512, 1280)),
        )
    with OpenSlideReader(one) as slide, open_jpeg_tiles(one, slide, 0) as tiles:
        assert tiles is not None
        (region,) = tiles.read_regions([(300, 300)], (20, 50))
        assert isinstance(region, SourceError)
