from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.synthetic.slides import encode_pyramid
from tests.support.made.slides import corrupt_tile, make_pixels, write_pyramid

SHAPE = (300, 470)


@pytest.mark.parametrize("name", ["broken.svs", "unreadable.svs", "unopenable.tiff"])
def test_refuses_a_file_that_openslide_cannot_use_by_name(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    with pytest.raises(SourceError, match=name) as caught, OpenSlideReader(path):
        pass
    assert caught.value.remedy


def test_names_the_url_that_a_file_was_staged_from(tmp_path: Path) -> None:
    path = tmp_path / "scratch.tif"
    path.write_bytes(b"no slide")
    with (
        pytest.raises(SourceError, match=r"s3://archive/a\.tif"),
        OpenSlideReader(path, item="s3://archive/a.tif"),
    ):
        pass


def test_reads_a_real_slide(shared_data: Path) -> None:
    with OpenSlideReader(shared_data / "slides" / "cmu-1-small-region.svs") as slide:
        assert slide.level_shapes_yx == ((2967, 2220),)
        assert (slide.mpp_yx, slide.mpp_source) == ((0.499, 0.499), "vendor property")
        assert slide.vendor == "aperio"
        assert slide.read_region_yx((2900, 2000), 0, (67, 220)).shape == (67, 220, 3)


def test_regions_are_where_they_should_be(tmp_path: Path) -> None:
    pixels = make_pixels(SHAPE)
    path = write_pyramid(tmp_path / "a.tif", pixels, downsamples_yx=((1, 1), (2, 2)))
    with OpenSlideReader(path) as slide:
        assert slide.level_downsamples_yx == ((1.0, 1.0), (2.0, 2.0))
        level_0 = slide.read_region_yx((37, 211), 0, (120, 90))
        level_1 = slide.read_region_yx((38, 210), 1, (50, 90))
        corner = slide.read_region_yx((280, 400), 0, (20, 70))
    np.testing.assert_array_equal(level_0, pixels[37:157, 211:301])
    np.testing.assert_array_equal(level_1, pixels[38:138:2, 210:390:2])
    np.testing.assert_array_equal(corner, pixels[280:, 400:])


def test_anisotropic_levels_are_read_at_each_axis_own_scale(tmp_path: Path) -> None:
    pixels = make_pixels((400, 960))
    path = write_pyramid(
        tmp_path / "a.tif", pixels, mpp_yx=(0.5, 0.25), downsamples_yx=((1, 1), (2, 4))
    )
    with OpenSlideReader(path) as slide:
        assert slide.mpp_yx == (0.5, 0.25)
        assert slide.level_downsamples_yx[1] == (2.0, 4.0)
        region = slide.read_region_yx((200, 480), 1, (60, 70))
    np.testing.assert_array_equal(region, pixels[200:320:2, 480:760:4])


@pytest.mark.parametrize(
    ("origin_yx", "level", "shape_yx"),
    [
        ((250, 0), 0, (60, 10)),
        ((0, 420), 0, (10, 60)),
        ((0, 0), 1, (10, 300)),
        ((-9, 0), 0, (9, 9)),
    ],
)
def test_refuses_a_region_outside_of_the_level(
    tmp_path: Path, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_pixels(SHAPE), downsamples_yx=((1, 1), (2, 2)))
    with OpenSlideReader(path) as slide, pytest.raises(ValueError, match="keep it inside"):
        slide.read_region_yx(origin_yx, level, shape_yx)


def test_goes_on_after_a_corrupt_tile(tmp_path: Path) -> None:
    pixels = make_pixels(SHAPE)
    path = write_pyramid(tmp_path / "a.tif", pixels)
    corrupt_tile(path, row=1, column=3)
    with OpenSlideReader(path) as slide:
        with pytest.raises(SourceError, match=r"a\.tif: .*y=64, x=192"):
            slide.read_region_yx((64, 192), 0, (64, 64))
        after = slide.read_region_yx((64, 256), 0, (64, 64))
    np.testing.assert_array_equal(after, pixels[64:128, 256:320])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_refuses_a_truncated_slide(tmp_path: Path, kept: float) -> None:
    data = encode_pyramid(make_pixels((700, 900)), 0.5)
    path = tmp_path / "cut.tif"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SourceError, match=r"cut\.tif.*truncated"), OpenSlideReader(path):
        pass


def test_refuses_a_slide_without_mpp_unless_it_is_given(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_pixels(SHAPE), mpp_yx=None)
    with pytest.raises(SourceError, match=r"a\.tif.*mpp.*mpp_fallback_um"), OpenSlideReader(path):
        pass
    with OpenSlideReader(path, mpp_override_um=0.3) as slide:
        assert (slide.mpp_yx, slide.mpp_source) == ((0.3, 0.3), "settings")
