from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace

from pipeline.quality import (
    QUALITY_COLUMNS,
    measure_blank_fraction,
    measure_laplacian_variance,
    measure_pen_fraction,
    measure_quality,
    measure_saturation,
)


def texture(count: int = 3, height: int = 20, width: int = 31) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def one_colour(*rgb: int) -> NDArray[np.uint8]:
    return np.full((1, 6, 9, 3), rgb, np.uint8)


def test_measures_every_column_for_every_tile() -> None:
    measured = measure_quality(texture())
    assert tuple(measured) == QUALITY_COLUMNS
    assert all(values.shape == (3,) and values.dtype == np.float32 for values in measured.values())


def test_tiles_are_measured_at_half_their_size() -> None:
    tiles = texture()
    halved = tiles[:, :, :30].reshape(3, 10, 2, 15, 2, 3).mean(axis=(2, 4))
    halved = np.floor(halved + 0.5).astype(np.uint8)
    measured = measure_quality(tiles)
    np.testing.assert_array_equal(measured["saturation"], measure_saturation(halved))
    np.testing.assert_array_equal(measured["pen_fraction"], measure_pen_fraction(halved))
    sharpness = measure_laplacian_variance(halved)
    np.testing.assert_array_equal(measured["laplacian_variance"], sharpness)


def test_laplacian_variance_is_that_of_scipy() -> None:
    tiles = texture()
    luma = np.rint(tiles @ np.array([0.299, 0.587, 0.114]))
    expected = [laplace(tile)[1:-1, 1:-1].var() for tile in luma]
    np.testing.assert_allclose(measure_laplacian_variance(tiles), expected, rtol=1e-3)


def test_blur_lowers_the_laplacian_variance() -> None:
    sharp = texture(1)
    blurred = gaussian_filter(sharp, sigma=(0, 1.5, 1.5, 0))
    assert measure_laplacian_variance(blurred)[0] < 0.05 * measure_laplacian_variance(sharp)[0]


def test_saturation_of_known_colours() -> None:
    assert measure_saturation(one_colour(200, 100, 150))[0] == pytest.approx(0.5)
    assert measure_saturation(one_colour(0, 0, 0))[0] == 0.0


def test_blank_fraction_counts_bare_glass() -> None:
    tile = one_colour(205, 120, 170)
    tile[:, :2, :3] = (240, 238, 241)
    assert measure_blank_fraction(tile)[0] == pytest.approx(6 / 54)


@pytest.mark.parametrize(
    ("rgb", "is_pen"),
    [
        ((20, 120, 90), True),
        ((30, 90, 200), True),
        ((220, 20, 40), True),
        ((25, 22, 28), True),
        ((205, 120, 170), False),  # eosin
        ((110, 70, 150), False),  # haematoxylin
        ((200, 70, 100), False),  # blood
        ((240, 240, 242), False),  # glass
    ],
)
def test_pen_fraction_tells_marker_from_stain(rgb: tuple[int, int, int], is_pen: bool) -> None:
    tile = one_colour(240, 240, 240)
    tile[:, 1, 2:5] = rgb
    assert measure_pen_fraction(tile)[0] == pytest.approx(3 / 54 if is_pen else 0.0)


def test_finds_the_pen_on_real_thumbnails(shared_data: Path) -> None:
    def tiles_of(name: str) -> NDArray[np.uint8]:
        picture = Image.open(shared_data / "slides" / "thumbs" / name).convert("RGB")
        pixels = np.asarray(picture.resize((384, 288), Image.Resampling.BOX))
        return pixels.reshape(3, 96, 4, 96, 3).swapaxes(1, 2).reshape(12, 96, 96, 3)

    clean = measure_pen_fraction(tiles_of("tcga-lung-rgb.png"))
    green = measure_pen_fraction(tiles_of("tcga-green-pen.png"))
    assert clean.max() < 0.01
    assert green[[1, 5, 9]].min() > 0.2  # the stroke runs down the second column
    assert green[[3, 7, 11]].max() < 0.01
