from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.slides.survey.tissue import find_tissue
from tests.support.made.slides import paint_tissue

BOX = (20, 90, 50, 140)


def noisy(pixels: NDArray[np.uint8], spread: int = 3) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(-spread, spread + 1, pixels.shape)
    return (pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)


def expect_box(is_tissue: NDArray[np.bool_], box: tuple[int, int, int, int] = BOX) -> None:
    top, left, bottom, right = box
    expected = np.zeros(is_tissue.shape, bool)
    expected[top:bottom, left:right] = True
    # Corners are rounded off a little.
    assert (is_tissue ^ expected).sum() <= 16
    assert is_tissue[top + 2 : bottom - 2, left + 2 : right - 2].all()


def test_finds_tissue_on_glass() -> None:
    found = find_tissue(noisy(paint_tissue((80, 200), [BOX])))
    assert found.method == "otsu"
    expect_box(found.is_tissue)


def test_a_black_border_is_no_tissue_whatever_its_tint() -> None:
    pixels = paint_tissue((80, 200), [BOX])
    pixels[:8], pixels[:, :10] = (0, 4, 27), (27, 2, 1)
    expect_box(find_tissue(noisy(pixels, 1)).is_tissue)


def test_faint_tissue_survives_beside_dark_tissue() -> None:
    pixels = paint_tissue((80, 200), [BOX])
    pixels[10:70, 20:60] = (238, 222, 232)  # fat
    pixels[55:75, 100:180] = (120, 60, 140)
    is_tissue = find_tissue(noisy(pixels, 2)).is_tissue
    assert is_tissue[12:68, 22:58].mean() > 0.99
    assert not is_tissue[:8].any()


@pytest.mark.parametrize("value", [255, 240, 0])
def test_a_slide_of_one_colour_has_none(value: int) -> None:
    assert not find_tissue(np.full((40, 70, 3), value, np.uint8)).is_tissue.any()


def test_noisy_glass_has_none() -> None:
    found = find_tissue(noisy(np.full((80, 200, 3), 240, np.uint8), 5))
    assert not found.is_tissue.any()
    assert found.method == "fixed"


def test_tissue_without_glass_is_found_whole() -> None:
    pixels = np.full((60, 90, 3), (205, 120, 170), np.uint8)
    found = find_tissue(noisy(pixels))
    assert found.method == "fixed"
    assert found.is_tissue.all()


def test_drops_specks_and_fills_holes() -> None:
    pixels = paint_tissue((80, 200), [BOX, (5, 5, 7, 7)])
    pixels[30:33, 110:113] = 243
    expect_box(find_tissue(noisy(pixels)).is_tissue)


def test_the_smallest_island_and_the_largest_hole_are_the_users() -> None:
    pixels = paint_tissue((80, 200), [BOX, (5, 5, 15, 25)])  # 200 px, with rounded corners
    pixels[30:40, 110:125] = 243  # 150 px
    # Areas are known to a few pixels, as the median rounds corners off.
    kept = find_tissue(noisy(pixels), min_island_px=190, max_hole_px=140).is_tissue
    assert kept[6:14, 6:24].all()
    assert not kept[31:39, 111:124].any()
    dropped = find_tissue(noisy(pixels), min_island_px=210, max_hole_px=160).is_tissue
    expect_box(dropped)


def paint_ihc() -> NDArray[np.uint8]:
    """A pale blue-grey counterstain with dark brown DAB on it, and a black border."""
    pixels = np.full((80, 200, 3), 241, np.uint8)
    top, left, bottom, right = BOX
    pixels[top:bottom, left:right] = (217, 216, 223)
    pixels[25:45, 95:120] = (92, 55, 30)
    pixels[30:36, 100:110] = (28, 14, 6)  # as dark as the border, but brown
    pixels[:6] = (2, 3, 4)
    return noisy(pixels, 2)


def test_ihc_finds_the_pale_counterstain_beside_the_chromogen() -> None:
    expect_box(find_tissue(paint_ihc(), "ihc").is_tissue)
    # The usual method finds the chromogen alone.
    assert find_tissue(paint_ihc()).is_tissue.sum() < 0.5 * 30 * 50


def test_ihc_measures_against_the_slides_own_glass() -> None:
    # Yellowish, dim glass absorbs by itself.
    tinted = (paint_ihc() * np.array([0.95, 0.94, 0.93])).astype(np.uint8)
    expect_box(find_tissue(tinted, "ihc").is_tissue)


def test_ihc_finds_nothing_on_glass_and_everything_without_it() -> None:
    assert not find_tissue(noisy(np.full((70, 40, 3), 236, np.uint8)), "ihc").is_tissue.any()
    stained = noisy(np.full((70, 40, 3), (170, 150, 180), np.uint8))
    assert find_tissue(stained, "ihc").is_tissue.all()


def paint_fluorescence() -> NDArray[np.uint8]:
    """Blue nuclei and faint green tissue on black, and a white strip that was not scanned."""
    pixels = np.full((80, 200, 3), 3, np.uint8)
    top, left, bottom, right = BOX
    pixels[top:bottom, left:right] = (6, 26, 12)
    pixels[25:40, 95:130] = (10, 30, 190)
    pixels[:, 180:] = 255
    return pixels


def test_a_dark_background_leaves_what_shines() -> None:
    pixels = paint_fluorescence()
    pixels[:, :180] = noisy(pixels[:, :180], 2)
    expect_box(find_tissue(pixels, "dark-background").is_tissue)
    # The usual method takes what is dark for a border.
    assert find_tissue(pixels).is_tissue.sum() < 0.6 * 30 * 50


@pytest.mark.parametrize("value", [0, 4, 255])
def test_a_dark_background_alone_has_no_tissue(value: int) -> None:
    pixels = np.full((40, 70, 3), value, np.uint8)
    assert not find_tissue(pixels, "dark-background").is_tissue.any()


def test_leaves_its_input_alone() -> None:
    pixels = noisy(paint_tissue((80, 200), [BOX]))
    before = pixels.copy()
    find_tissue(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_real_thumbnails_keep_tissue_and_leave_glass(shared_data: Path) -> None:
    picture = Image.open(shared_data / "slides" / "thumbs" / "wsi-blue-pen.png").convert("RGB")
    pixels = np.asarray(picture.resize((400, 300), Image.Resampling.BOX))
    is_tissue = find_tissue(pixels).is_tissue
    assert 0.3 < is_tissue.mean() < 0.6
    brightness = pixels.mean(axis=-1)
    assert brightness[is_tissue].mean() < brightness[~is_tissue].mean() - 15
