from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.slides.jpeg import proof as jpeg_proof
from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.jpeg.tiles import JpegTiles
from pipeline.slides.reader import resample
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.settings import SlideSettings
from tests.support.made.jpeg_slides import (
    cut,
    encode,
    paint,
    write_philips,
    write_pyramid,
    write_tiles,
)
from tests.support.made.slides import read_tiles


def read_both(
    path: Path, level: int, shape_yx: tuple[int, int], count: int = 40
) -> Iterator[tuple[NDArray[np.uint8] | SourceError | None, NDArray[np.uint8] | SourceError]]:
    """Regions at the level's corners and at random, by us and by OpenSlide."""
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, level) as tiles:
        assert tiles is not None
        room = np.subtract(slide.level_shapes_yx[level], shape_yx)
        starts = np.random.default_rng(3).integers(0, room + 1, (count, 2))
        starts = np.concatenate([starts, [(0, 0), (0, room[1]), (room[0], 0), tuple(room)]])
        places = [(int(y), int(x)) for y, x in starts]
        for place, mine in zip(places, tiles.read_regions(places, shape_yx), strict=True):
            origin_yx = jpeg_proof._to_level_0(slide, level, place)
            theirs: NDArray[np.uint8] | SourceError
            try:
                theirs = slide.read_region_yx(origin_yx, level, shape_yx)
            except SourceError as error:
                theirs = error
            yield mine, theirs


def assert_equal_to_openslide(path: Path, level: int, shape_yx: tuple[int, int]) -> None:
    for mine, theirs in read_both(path, level, shape_yx):
        assert isinstance(theirs, np.ndarray)
        assert isinstance(mine, np.ndarray)
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("tile", [(240, 240), (256, 512), (512, 512)])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("shape_yx", [(100, 60), (300, 530)])
def test_pixels_equal_openslides(
    tmp_path: Path, tile: tuple[int, int], subsampling: tuple[int, int], shape_yx: tuple[int, int]
) -> None:
    path = write_pyramid(
        tmp_path / "a.tif",
        [(701, 1203)],
        tile=tile,
        subsampling=subsampling,
        compressionargs={"level": 80},
    )
    assert_equal_to_openslide(path, 0, shape_yx)


def test_pixels_of_rgb_jpeg_equal_openslides(tmp_path: Path) -> None:
    jpeg = {"colorspace": "RGB", "outcolorspace": "RGB", "subsampling": "444"}
    rgb: dict[str, Any] = {
        "photometric": "rgb",
        "subsampling": None,
        "compressionargs": {"outcolorspace": "RGB"},
    }
    path = write_tiles(tmp_path / "a.tif", (500, 813), (256, 256), jpeg=jpeg, **rgb)
    assert_equal_to_openslide(path, 0, (90, 270))


def test_a_photometric_tag_that_contradicts_the_tiles_is_obeyed_as_openslide_does(
    tmp_path: Path,
) -> None:
    def drop_jfif(tiles: list[bytes]) -> None:
        for number, tile in enumerate(tiles):
            start = tile.find(b"\xff\xdb")
            tiles[number] = tile[:2] + tile[start:]

    rgb: dict[str, Any] = {
        "photometric": "rgb",
        "subsampling": None,
        "compressionargs": {"outcolorspace": "RGB"},
    }
    path = write_tiles(tmp_path / "a.tif", (500, 813), (256, 256), drop_jfif, **rgb)
    assert_equal_to_openslide(path, 0, (90, 270))


def test_where_markers_in_the_tiles_would_change_colours_openslide_reads(tmp_path: Path) -> None:
    rgb: dict[str, Any] = {
        "photometric": "rgb",
        "subsampling": None,
        "compressionargs": {"outcolorspace": "RGB"},
    }
    path = write_tiles(tmp_path / "a.tif", (500, 813), (256, 256), **rgb)  # JFIF says YCbCr
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is None


def test_tables_shared_by_all_tiles_are_used(tmp_path: Path) -> None:
    def share(tiles: list[bytes]) -> None:
        for number, tile in enumerate(tiles):
            tables, frame = tile.find(b"\xff\xdb"), tile.find(b"\xff\xc0")
            huffman, scan = tile.find(b"\xff\xc4"), tile.find(b"\xff\xda")
            shared[0] = b"\xff\xd8" + tile[tables:frame] + tile[huffman:scan] + b"\xff\xd9"
            tiles[number] = b"\xff\xd8" + tile[frame:huffman] + tile[scan:]

    shared = [b""]
    whole: list[bytes] = [encode(tile) for tile in cut(paint(500, 813), 256, 256)]
    share(whole)
    path = write_tiles(tmp_path / "a.tif", (500, 813), (256, 256), share, jpegtables=shared[0])
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.jpegtables == shared[0]
    assert_equal_to_openslide(path, 0, (90, 270))


def test_levels_with_a_downsample_for_each_axis_equal_openslides(tmp_path: Path) -> None:
    # Means of 3 and 6, where neither axis has that downsample.
    path = write_pyramid(
        tmp_path / "a.tif", [(1200, 1808), (600, 452), (300, 226)], tile=(128, 256)
    )
    for level in range(3):
        assert_equal_to_openslide(path, level, (130, 97))


def test_a_level_that_openslide_interpolates_is_left_to_it(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [(1201, 1807), (600, 451)], tile=(128, 256))
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 1) as tiles:
        assert tiles is None


def test_camelyons_padded_levels_equal_openslides_and_missing_tiles_are_left_to_it(
    tmp_path: Path,
) -> None:
    path = write_philips(tmp_path / "a.tif")
    with OpenSlideReader(path) as slide:
        assert slide.vendor == "philips"
        assert slide.level_shapes_yx == ((1024, 1536), (512, 768))
    assert_equal_to_openslide(path, 1, (200, 310))
    found = [mine is None for mine, _ in read_both(path, 0, (60, 60))]
    assert set(found) == {True, False}
    for mine, theirs in read_both(path, 0, (60, 60)):
        assert isinstance(theirs, np.ndarray)
        assert not isinstance(mine, SourceError)
        assert mine is None or np.array_equal(mine, theirs)


def test_real_aperio_slide_equals_openslide(shared_data: Path) -> None:
    assert_equal_to_openslide(shared_data / "slides/cmu-1-small-region.svs", 0, (300, 530))


@pytest.mark.parametrize("shared", ["boxes.tiff", "hs2p-test-mask.tif", "small.svs"])
def test_other_real_slides_are_equal_or_left_to_openslide(shared_data: Path, shared: str) -> None:
    path = shared_data / "slides" / shared
    with OpenSlideReader(path, item=shared, mpp_override_um=0.5) as slide:
        for level in range(len(slide.level_shapes_yx)):
            with open_jpeg_tiles(path, slide, level) as tiles:
                height, width = slide.level_shapes_yx[level]
                if tiles is not None:
                    (mine,) = tiles.read_regions([(0, 0)], (height, width))
                    assert isinstance(mine, np.ndarray)
                    theirs = slide.read_region_yx((0, 0), level, (height, width))
                    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tile": (256, 256), "compression": "lzw"},
        {"tile": (256, 256), "compression": "deflate"},
        {"tile": (256, 256), "compression": "aperio_jp2000_rgb", "description": "Aperio |MPP=0.5"},
        {"tile": (256, 256), "compression": "none"},
    ],
)
def test_other_codecs_are_left_to_openslide(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path = write_pyramid(tmp_path / "a.tif", [(300, 500)], **arguments)
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is None


def test_a_decoder_that_differs_by_one_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiles(tmp_path / "a.tif", (500, 813), (256, 256))
    right = JpegTiles._decode

    def decode_wrongly(self: JpegTiles, number: int) -> NDArray[np.uint8]:
        pixels = right(self, number)
        assert isinstance(pixels, np.ndarray)
        pixels[17, 4, 2] ^= 1
        return pixels

    monkeypatch.setattr(JpegTiles, "_decode", decode_wrongly)
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is None


def test_a_file_cut_off_after_opening_gives_no_pixels(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", (512, 1280), (256, 256))
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is not None
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        assert list(tiles.read_regions([(300, 1100)], (20, 20))) == [None]


def test_every_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiles(tmp_path / "a.tif", (1024, 1536), (256, 256))
    decoded: list[int] = []
    right = JpegTiles._decode

    def decode_and_tell(self: JpegTiles, number: int) -> NDArray[np.uint8] | SourceError | None:
        decoded.append(number)
        return right(self, number)

    starts = [(y, x) for y in range(0, 896, 64) for x in range(1408, -1, -128)]
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is not None
        monkeypatch.setattr(JpegTiles, "_decode", decode_and_tell)
        assert sum(1 for _ in tiles.read_regions(starts, (128, 128))) == len(starts)
        assert not tiles._kept
    assert sorted(decoded) == list(range(24))


def test_the_cache_stays_within_its_bounds(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", (1024, 1536), (256, 256))
    with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
        assert tiles is not None
        tiles._capacity = 3
        (whole,) = tiles.read_regions([(0, 0)], (1024, 1536))
        assert len(tiles._kept) + len(tiles._spare) <= 4
        np.testing.assert_array_equal(whole, slide.read_region_yx((0, 0), 0, (1024, 1536)))


def test_a_dataset_says_what_decoded_each_slide(tmp_path: Path) -> None:
    jpeg = write_pyramid(tmp_path / "a.tif", [(512, 768)], tile=(256, 256))
    other = write_pyramid(tmp_path / "b.tif", [(512, 768)], tile=(256, 256), compression="lzw")
    settings = SlideSettings(tile_size_px=64, mpp_um=1.0)
    origins_yx = [(0, 640), (256, 128)]
    reads = [read_tiles(path, origins_yx, settings) for path in (other, jpeg)]
    assert [decoder for _, _, decoder in reads] == ["openslide", "jpeg"]
    with OpenSlideReader(jpeg) as slide:
        for image, origin in zip(reads[1][0], origins_yx, strict=True):
            expected = resample(slide.read_region_yx(origin, 0, (128, 128)), 64)
            np.testing.assert_array_equal(image, expected)


def test_a_level_is_proved_once_for_each_version_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def count(tiles: JpegTiles, slide: OpenSlideReader, level: int) -> bool:
        asked.append(level)
        return True

    def open_twice(path: Path) -> None:
        for _ in range(2):
            with OpenSlideReader(path) as slide, open_jpeg_tiles(path, slide, 0) as tiles:
                assert tiles is not None

    monkeypatch.setattr(jpeg_proof, "_is_proved", count)
    for rows in (300, 310):
        open_twice(write_pyramid(tmp_path / "a.tif", [(rows, 530)], tile=(256, 256)))
    assert asked == [0, 0]
