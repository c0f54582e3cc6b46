from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image
from shapely.affinity import scale

from pipeline.errors import SourceError
from pipeline.records import Slide
from pipeline.slides.survey.masks import draw_outlines, read_mask
from tests.support.made.slides import (
    SETTINGS,
    SHAPE,
    expect_balance,
    list_slide,
    survey_made,
    visit_made,
    write_asap,
    write_slide,
)

# A slide of 600 x 1000 px (y, x), and a mask of it at a fifth: tissue off every diagonal.
SLIDE_SHAPE = (600, 1000)
MASK_SHAPE = (120, 200)


def paint_mask(value: int = 1) -> NDArray[np.uint8]:
    mask = np.zeros(MASK_SHAPE, np.uint8)
    mask[10:30, 120:180] = value
    mask[80:110, 20:40] = value
    return mask


def write_mask(path: Path, levels: Sequence[NDArray[Any]], **options: Any) -> str:
    """Write a tiled pyramid, as ASAP does."""
    given = {"tile": (48, 64), "compression": "lzw", "photometric": "minisblack"} | options
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(level, subfiletype=min(number, 1), metadata=None, **given)
    return str(path)


def write_geojson(path: Path, outlines: Sequence[Sequence[tuple[float, float]]]) -> str:
    """Write polygons, (x, y) each, as QuPath exports them."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*outline, outline[0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
        }
        for outline in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


@pytest.mark.parametrize("value", [1, 2, 255])
def test_all_but_0_is_tissue_in_a_tiff(tmp_path: Path, value: int) -> None:
    url = write_mask(tmp_path / "a_mask.tif", [paint_mask(value)])
    found = read_mask(url, SLIDE_SHAPE, MASK_SHAPE)
    np.testing.assert_array_equal(found, paint_mask() > 0)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "LA"])
def test_all_but_black_is_tissue_in_a_png(tmp_path: Path, mode: str) -> None:
    Image.fromarray(paint_mask(255)).convert(mode).save(tmp_path / "a.png")
    found = read_mask(str(tmp_path / "a.png"), SLIDE_SHAPE, MASK_SHAPE)
    np.testing.assert_array_equal(found, paint_mask() > 0)


def test_a_png_of_16_bits_is_read(tmp_path: Path) -> None:
    Image.fromarray(paint_mask().astype(np.uint16) * 256).save(tmp_path / "a.png")
    found = read_mask(str(tmp_path / "a.png"), SLIDE_SHAPE, MASK_SHAPE)
    np.testing.assert_array_equal(found, paint_mask() > 0)


@pytest.mark.parametrize(("wanted_px", "level"), [(190, 0), (120, 1), (100, 1), (60, 2), (25, 2)])
def test_the_coarsest_level_is_read_that_is_fine_enough(
    tmp_path: Path, wanted_px: int, level: int
) -> None:
    """Every level marks another place, so that it shows which one was read."""
    levels = [np.zeros((240 >> each, 400 >> each), np.uint8) for each in range(3)]
    for number, values in enumerate(levels):
        height, width = values.shape
        values[: height // 4, width * number // 4 : width * (number + 1) // 4] = 1
    url = write_mask(tmp_path / "a.tif", levels)
    wanted = (wanted_px, wanted_px * 5 // 3)
    found = read_mask(url, SLIDE_SHAPE, wanted)
    assert found.shape == wanted
    columns = np.flatnonzero(found.any(axis=0)) / wanted[1]
    assert columns.min() == pytest.approx(level / 4, abs=0.03)
    assert columns.max() == pytest.approx((level + 1) / 4, abs=0.03)
    assert np.flatnonzero(found.any(axis=1)).max() / wanted[0] == pytest.approx(0.25, abs=0.05)


def test_a_coarse_mask_keeps_its_own_grid(tmp_path: Path) -> None:
    url = write_mask(tmp_path / "a.tif", [paint_mask()])
    np.testing.assert_array_equal(read_mask(url, SLIDE_SHAPE, (300, 500)), paint_mask() > 0)


def test_a_negative_of_one_bit_is_read_as_it_is_shown(tmp_path: Path) -> None:
    options = {"photometric": "miniswhite", "compression": None, "tile": None}
    url = write_mask(tmp_path / "a.tif", [paint_mask() == 0], **options)
    np.testing.assert_array_equal(read_mask(url, SLIDE_SHAPE, MASK_SHAPE), paint_mask() > 0)


def test_what_is_opaque_is_no_tissue_for_that(tmp_path: Path) -> None:
    opaque = np.stack([paint_mask(), *[np.zeros(MASK_SHAPE, np.uint8)] * 2, paint_mask() | 255], -1)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    url = write_mask(tmp_path / "a.tif", [opaque], **options)
    np.testing.assert_array_equal(read_mask(url, SLIDE_SHAPE, MASK_SHAPE), paint_mask() > 0)


def test_outlines_are_drawn_where_they_lie(tmp_path: Path) -> None:
    outlines = [
        [(600.0, 50.0), (900.0, 50.0), (900.0, 150.0), (600.0, 150.0)],
        [(100.0, 400.0), (200.0, 400.0), (200.0, 550.0), (100.0, 550.0)],
    ]
    url = write_geojson(tmp_path / "a.geojson", outlines)
    np.testing.assert_array_equal(read_mask(url, SLIDE_SHAPE, MASK_SHAPE), paint_mask() > 0)


def test_excluded_groups_are_holes(tmp_path: Path) -> None:
    whole = [(600.0, 50.0), (900.0, 50.0), (900.0, 150.0), (600.0, 150.0)]
    hole = [(700.0, 100.0), (800.0, 100.0), (800.0, 125.0), (700.0, 125.0)]
    path = write_asap(tmp_path / "a.xml", [("Tissue", whole), ("Exclusion", hole)])
    found = read_mask(str(path), SLIDE_SHAPE, MASK_SHAPE)
    expected = np.zeros(MASK_SHAPE, bool)
    expected[10:30, 120:180] = True
    expected[20:25, 140:160] = False
    np.testing.assert_array_equal(found, expected)


def test_a_pixel_of_a_drawing_is_what_lies_at_its_centre() -> None:
    star = shapely.Polygon(
        [(13.2, 5.1), (61.7, 30.4), (97.3, -8.0), (70.2, 44.9), (110.5, 71.3), (40.3, 58.8)],
        holes=[[(49.3, 34.6), (66.4, 36.2), (58.7, 47.3)]],
    )
    geometry = star | shapely.box(2.3, 60, 17, 69)
    found = draw_outlines(geometry, (70, 100), (35, 25))  # a pixel is 2 high and 4 wide
    y, x = np.mgrid[:35, :25]
    shrunk = scale(geometry, 1 / 4, 1 / 2, origin=(0, 0))
    expected = shapely.contains_xy(shrunk, x + 0.5, y + 0.5)
    np.testing.assert_array_equal(found, expected)
    assert 200 < found.sum() < 700


def test_a_mask_of_another_size_names_both_shapes(tmp_path: Path) -> None:
    url = write_mask(tmp_path / "a.tif", [paint_mask().T])
    with pytest.raises(SourceError, match=r"another size.*200 x 120 px.*slide 600 x 1000 px"):
        read_mask(url, SLIDE_SHAPE, MASK_SHAPE)


@pytest.mark.parametrize(
    ("slide_yx", "is_refused"),
    [((600, 1000), False), ((604, 1000), False), ((600, 1020), True), ((590, 1000), True)],
)
def test_sides_of_a_mask_may_be_rounded_to_whole_pixels(
    tmp_path: Path, slide_yx: tuple[int, int], is_refused: bool
) -> None:
    url = write_mask(tmp_path / "a.tif", [paint_mask()])
    if is_refused:
        with pytest.raises(SourceError, match="another size"):
            read_mask(url, slide_yx, MASK_SHAPE)
    else:
        assert read_mask(url, slide_yx, MASK_SHAPE).any()


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    urls = [
        write_mask(tmp_path / "a.tif", [paint_mask(0)]),
        write_geojson(tmp_path / "a.geojson", []),
    ]
    for url in urls:
        with pytest.raises(SourceError, match="an empty mask"):
            read_mask(url, SLIDE_SHAPE, MASK_SHAPE)


def test_outlines_outside_of_the_slide_are_refused(tmp_path: Path) -> None:
    outline = [(1100.0, 50.0), (1200.0, 50.0), (1200.0, 150.0)]
    url = write_geojson(tmp_path / "a.geojson", [outline])
    with pytest.raises(SourceError, match=r"y 50 to 150, x 1100 to 1200.*outside the slide of 600"):
        read_mask(url, SLIDE_SHAPE, MASK_SHAPE)


def test_a_mask_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    whole = Path(write_mask(tmp_path / "a.tif", [paint_mask()])).read_bytes()
    (tmp_path / "torn.tif").write_bytes(whole[:60])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "text.tif").write_bytes(b"not a mask")
    lossy = write_mask(tmp_path / "lossy.tif", [paint_mask()], compression="jpeg", tile=(48, 64))
    for name, said in (
        ("torn.tif", "cannot be read"),
        ("torn.png", "cannot be read"),
        ("text.tif", "neither TIFF, PNG"),
        (Path(lossy).name, "with loss"),
    ):
        with pytest.raises(SourceError, match=said) as caught:
            read_mask(str(tmp_path / name), SLIDE_SHAPE, MASK_SHAPE)
        assert caught.value.item == str(tmp_path / name)


def test_a_real_mask_is_read(shared_data: Path) -> None:
    url = str(shared_data / "slides" / "hs2p-test-mask.tif")
    pages = tifffile.imread(url, level=1)
    found = read_mask(url, (800, 864), (400, 432))
    np.testing.assert_array_equal(found, pages > 0)


def test_a_slide_with_a_mask_is_tiled_by_it_and_not_by_its_pixels(tmp_path: Path) -> None:
    slide = list_with_mask(tmp_path, (320, 128, 448, 256))  # on glass
    found = survey_made(slide, SETTINGS)
    expected = {(320, 128), (320, 192), (384, 128), (384, 192)}
    assert {(y, x) for y, x in found.origins_yx.tolist()} == expected
    assert found.coverage["tissue"] == pytest.approx(128 * 128 * 0.25)
    assert found.coverage["tiled"] == pytest.approx(128 * 128 * 0.25)
    expect_balance(found.coverage)


def list_with_mask(folder: Path, box: tuple[int, int, int, int]) -> Slide:
    """A slide and a mask of a quarter of its size, in which one box (level-0 px) is tissue."""
    top, left, bottom, right = (side // 4 for side in box)
    mask = np.zeros((SHAPE[0] // 4, SHAPE[1] // 4), np.uint8)
    mask[top:bottom, left:right] = 1
    url = write_mask(folder / "a_mask.tif", [mask])
    return replace(list_slide(write_slide(folder, "a")), mask_url=url)


def test_a_bad_mask_fails_its_slide_alone(tmp_path: Path) -> None:
    good = list_slide(write_slide(tmp_path, "good"))
    bad = list_with_mask(tmp_path, (0, 0, 0, 0))
    gone = replace(list_slide(write_slide(tmp_path, "gone")), mask_url=str(tmp_path / "no.tif"))
    outcomes = {slide.slide_id: visit_made(tmp_path / "out", slide) for slide in (good, bad, gone)}
    assert [name for name, found in outcomes.items() if found.part] == ["good"]
    reasons = {name: found.entries[0].reason for name, found in outcomes.items()}
    assert "an empty mask" in reasons["a"]
    assert "no.tif" in reasons["gone"]
