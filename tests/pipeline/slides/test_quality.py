from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace

from pipeline.slides.quality import (
    QUALITY_COLUMNS,
    measure_blank_fraction,
    measure_laplacian_variance,
    measure_pen_fraction,
    measure_quality,
    measure_saturation,
)


def texture(height: int = 20, width: int = 31) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_colour(*rgb: int) -> NDArray[np.uint8]:
    return np.full((6, 9, 3), rgb, np.uint8)


def halve(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 pixels, what is left over at the edges dropped."""
    height, width = (side // 2 for side in tile.shape[:2])
    pairs = tile[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    half: NDArray[np.uint8] = np.floor(pairs.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    return half


def test_tiles_are_measured_each_by_itself_at_half_or_a_quarter_of_its_size() -> None:
    tiles = np.stack([texture(), gaussian_filter(texture(), (1, 1, 0)), texture()[::-1] // 4])
    for tile, found in zip(tiles, measure_quality(tiles), strict=True):
        half = halve(tile)
        quarter = halve(half)
        assert dict(zip(QUALITY_COLUMNS, found.tolist(), strict=True)) == {
            "laplacian_variance": measure_laplacian_variance(half),
            "saturation": measure_saturation(quarter),
            "blank_fraction": measure_blank_fraction(quarter),
            "pen_fraction": measure_pen_fraction(quarter),
        }


def test_laplacian_variance_is_that_of_scipy() -> None:
    tile = texture()
    luma = np.rint(tile @ np.array([0.299, 0.587, 0.114]))
    expected = laplace(luma)[1:-1, 1:-1].var()
    assert measure_laplacian_variance(tile) == pytest.approx(expected, rel=1e-3)


def test_blur_lowers_the_laplacian_variance() -> None:
    sharp = texture()
    blurred = gaussian_filter(sharp, sigma=(1.5, 1.5, 0))
    assert measure_laplacian_variance(blurred) < 0.05 * measure_laplacian_variance(sharp)


def test_saturation_of_known_colours() -> None:
    assert measure_saturation(one_colour(200, 100, 150)) == pytest.approx(0.5)
    assert measure_saturation(one_colour(0, 0, 0)) == 0.0


def test_blank_fraction_counts_bare_glass() -> None:
    tile = one_colour(205, 120, 170)
    tile[:2, :3] = (240, 238, 241)
    assert measure_blank_fraction(tile) == pytest.approx(6 / 54)


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
    tile[1, 2:5] = rgb
    assert measure_pen_fraction(tile) == pytest.approx(3 / 54 if is_pen else 0.0)


def test_finds_the_pen_on_real_thumbnails(shared_data: Path) -> None:
    def measure_tiles(name: str) -> NDArray[np.float64]:
        picture = Image.open(shared_data / "slides" / "thumbs" / name).convert("RGB")
        pixels = np.asarray(picture.resize((384, 288), Image.Resampling.BOX))
        tiles = pixels.reshape(3, 96, 4, 96, 3).swapaxes(1, 2).reshape(12, 96, 96, 3)
        return np.array([measure_pen_fraction(tile) for tile in tiles])

    clean, green = measure_tiles("tcga-lung-rgb.png"), measure_tiles("tcga-green-pen.png")
    assert clean.max() < 0.01
    assert green[[1, 5, 9]].min() > 0.2  # the stroke runs down the second column
    assert green[[3, 7, 11]].max() < 0.01
