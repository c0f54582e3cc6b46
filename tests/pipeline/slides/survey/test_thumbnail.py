from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.survey import thumbnail as thumbnails
from pipeline.slides.survey.thumbnail import read_thumbnail
from tests.support.made.slides import corrupt_tile, make_pixels, write_pyramid


def test_each_pixel_is_the_mean_of_its_area(tmp_path: Path) -> None:
    pixels = make_pixels((320, 480))
    with OpenSlideReader(write_pyramid(tmp_path / "a.tif", pixels)) as slide:
        small = read_thumbnail(slide, 120)
    expected = pixels.reshape(80, 4, 120, 4, 3).mean((1, 3))
    assert small.is_readable.all()
    assert np.abs(small.pixels - expected).max() <= 1


@pytest.mark.parametrize("block_px", [1024, 50])
def test_each_pixel_covers_those_whose_centres_it_holds_across_blocks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_px: int
) -> None:
    monkeypatch.setattr(thumbnails, "_BLOCK_PX", block_px)
    pixels = np.random.default_rng(1).integers(0, 256, (331, 487, 3), np.uint8)
    with OpenSlideReader(write_pyramid(tmp_path / "a.tif", pixels)) as slide:
        found = read_thumbnail(slide, 111).pixels
    shape_yx = (round(331 * 111 / 487), 111)
    row, column = (
        ((np.arange(size) + 0.5) * small / size).astype(int)
        for size, small in zip((331, 487), shape_yx, strict=True)
    )
    expected, count = np.zeros((*shape_yx, 3)), np.zeros((*shape_yx, 1))
    np.add.at(expected, (row[:, None], column), pixels)
    np.add.at(count, (row[:, None], column), 1)
    assert found.shape == expected.shape
    assert np.abs(found - expected / count).max() <= 1


def test_reads_the_coarsest_level_that_suffices(tmp_path: Path) -> None:
    pixels = make_pixels((320, 480))
    path = write_pyramid(tmp_path / "a.tif", pixels, downsamples_yx=((1, 1), (4, 4), (16, 16)))
    for row in range(5):
        for column in range(8):
            corrupt_tile(path, row, column)  # all of level 0, which must not be needed
    with OpenSlideReader(path) as slide:
        small = read_thumbnail(slide, 120)
    np.testing.assert_array_equal(small.pixels, pixels[::4, ::4])


def test_does_not_enlarge(tmp_path: Path) -> None:
    pixels = make_pixels((70, 90))
    with OpenSlideReader(write_pyramid(tmp_path / "a.tif", pixels)) as slide:
        np.testing.assert_array_equal(read_thumbnail(slide, 1000).pixels, pixels)


def test_marks_what_is_corrupt_and_nothing_far_from_it(tmp_path: Path) -> None:
    pixels = make_pixels((1088, 1600))
    path = write_pyramid(tmp_path / "a.tif", pixels)
    corrupt_tile(path, row=2, column=20)  # y 128 to 192, x 1280 to 1344
    with OpenSlideReader(path) as slide:
        small = read_thumbnail(slide, 400)
    lost_y, lost_x = np.nonzero(~small.is_readable)
    assert 32 in lost_y
    assert 320 in lost_x
    assert lost_y.max() < 64 + 64
    assert lost_x.min() > 320 - 64
    assert not small.pixels[~small.is_readable].any()


def test_refuses_a_slide_with_nothing_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SourceError("a.tif", "corrupt", "Mend it")

    with OpenSlideReader(write_pyramid(tmp_path / "a.tif", make_pixels((60, 50)))) as slide:
        monkeypatch.setattr(slide, "read_region_yx", fail)
        with pytest.raises(SourceError, match=r"a\.tif: corrupt"):
            read_thumbnail(slide, 30)
