"""Plain JPEG and PNG as slides."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.slides.readers.registry import open_slide
from tests.support.made.slides import make_pixels

PIXELS = make_pixels((300, 470))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_bytes_tell_a_picture_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name, "PNG", dpi=(300, 300))
    with open_slide(tmp_path / name, mpp_fallback_um=0.5) as slide:
        assert (slide.name, slide.vendor, slide.level_shapes_yx) == ("pillow", "png", ((300, 470),))
        np.testing.assert_array_equal(
            slide.read_region_yx((31, 217), 0, (90, 55)), PIXELS[31:121, 217:272]
        )


def test_dots_per_inch_are_those_of_print(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", dpi=(25_400, 25_400))
    with pytest.raises(SourceError, match=r"a\.jpg: no um/px.*mpp_fallback_um"):
        open_slide(tmp_path / "a.jpg")


def test_a_rotation_in_exif_data_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    with open_slide(tmp_path / "a.png", mpp_fallback_um=0.5) as slide:
        assert slide.level_shapes_yx == ((470, 300),)
        np.testing.assert_array_equal(
            slide.read_region_yx((0, 0), 0, (470, 300)), np.rot90(PIXELS, -1)
        )


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    alpha = np.full((300, 470, 1), 255, np.uint8)
    alpha[:100] = 0
    Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp_fallback_um=0.5) as slide:
        region = slide.read_region_yx((90, 211), 0, (20, 30))
    assert (region[:10] == 255).all()
    np.testing.assert_array_equal(region[10:], PIXELS[100:110, 211:241])


def test_other_kinds_of_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(PIXELS).convert("L").save(tmp_path / "grey.jpg")
    deep = imagecodecs.png_encode(PIXELS.astype(np.uint16) * 257)
    (tmp_path / "deep.png").write_bytes(deep)
    for name, found in {"cmyk.jpg": "CMYK", "grey.jpg": "L", "deep.png": "RGB in 16 bit"}.items():
        with pytest.raises(SourceError, match=f"pixels of {found}.*only 8-bit RGB"):
            open_slide(tmp_path / name, mpp_fallback_um=0.5)


def test_a_declared_size_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    frame = data.index(b"\xff\xc0")  # the start of frame: length, precision, height, width
    data[frame + 5 : frame + 9] = b"\xff\xf0\xff\xf0"
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(SourceError, match=r"more than 178956970 pixels.*tiled TIFF"):
        open_slide(tmp_path / "a.jpg", mpp_fallback_um=0.5)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="truncated"):
        open_slide(tmp_path / name, mpp_fallback_um=0.5)
