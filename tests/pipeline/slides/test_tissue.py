from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.slides.tissue import find_tissue
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
