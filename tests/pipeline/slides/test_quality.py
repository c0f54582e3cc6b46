from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace

from pipeline.slides.quality import QUALITY_COLUMNS, measure_quality


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


def measure(tile: NDArray[np.uint8]) -> dict[str, float]:
    """Attributes of one tile that is enlarged first, so that halving gives it back."""

    def enlarge(factor: int) -> NDArray[np.float64]:
        (found,) = measure_quality(tile.repeat(factor, 0).repeat(factor, 1)[None])
        return np.asarray(found)

    sharpness, *_ = enlarge(2)
    _, *colours = enlarge(4)
    return dict(zip(QUALITY_COLUMNS, [sharpness, *colours], strict=True))


def test_tiles_are_measured_each_by_itself_at_half_or_a_quarter_of_its_size() -> None:
    tiles = np.stack([texture(), gaussian_filter(texture(), (1, 1, 0)), texture()[::-1] // 4])
    for tile, found in zip(tiles, measure_quality(tiles), strict=True):
        half = halve(tile)
        expected = measure(halve(half)) | {"laplacian_variance": laplacian_variance(half)}
        assert dict(zip(QUALITY_COLUMNS, found.tolist(), strict=True)) == pytest.approx(
            expected, rel=1e-3
        )


def laplacian_variance(tile: NDArray[np.uint8]) -> float:
    luma = np.rint(tile @ np.array([0.299, 0.587, 0.114]))
    return float(laplace(luma)[1:-1, 1:-1].var())


def test_opencv_keeps_to_one_thread_and_gets_its_count_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, split, seen = cv2.getNumThreads(), cv2.split, []

    def split_and_note(pixels: MatLike) -> Sequence[MatLike]:
        seen.append(cv2.getNumThreads())
        return split(pixels)

    monkeypatch.setattr(cv2, "split", split_and_note)
    try:
        for count in (2, 1):
            cv2.setNumThreads(count)
            measure_quality(texture()[None])
            assert cv2.getNumThreads() == count
    finally:
        cv2.setNumThreads(before)
    assert seen == [1, 1]


def test_importing_changes_nothing_in_opencv() -> None:
    code = (
        "import cv2; cv2.setNumThreads(2); import pipeline.slides.ingest; "
        "print(cv2.getNumThreads())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2"]


def test_blur_lowers_the_laplacian_variance() -> None:
    sharp = texture()
    blurred = gaussian_filter(sharp, sigma=(1.5, 1.5, 0))
    found, limit = measure(blurred), 0.05 * measure(sharp)["laplacian_variance"]
    assert found["laplacian_variance"] < limit


def test_saturation_of_known_colours() -> None:
    assert measure(one_colour(200, 100, 150))["saturation"] == pytest.approx(0.5)
    assert measure(one_colour(0, 0, 0))["saturation"] == 0.0


def test_blank_fraction_counts_bare_glass() -> None:
    tile = one_colour(205, 120, 170)
    tile[:2, :3] = (240, 238, 241)
    assert measure(tile)["blank_fraction"] == pytest.approx(6 / 54)


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
    assert measure(tile)["pen_fraction"] == pytest.approx(3 / 54 if is_pen else 0.0)


@pytest.mark.parametrize(
    ("rgb", "is_fold"),
    [
        ((120, 30, 90), True),  # eosin, two layers
        ((70, 40, 110), True),  # haematoxylin, two layers
        ((205, 120, 170), False),
        ((110, 70, 150), False),
        ((200, 70, 100), False),  # blood
        ((90, 90, 95), False),  # shadow: dark, but hardly saturated
        ((30, 90, 200), False),  # pen
        ((240, 240, 242), False),
    ],
)
def test_fold_fraction_tells_two_layers_from_one(rgb: tuple[int, int, int], is_fold: bool) -> None:
    tile = one_colour(240, 240, 240)
    tile[1, 2:5] = rgb
    assert measure(tile)["fold_fraction"] == pytest.approx(3 / 54 if is_fold else 0.0)


def test_a_fold_is_where_saturation_exceeds_intensity_and_is_no_pen() -> None:
    colours = texture().reshape(-1, 3)[:99]
    found = [measure(one_colour(*colour)) for colour in colours.tolist()]
    values = colours.astype(float)
    saturation = (values.max(-1) - values.min(-1)) / values.max(-1)
    is_pen = np.array([each["pen_fraction"] for each in found]) > 0
    expected = (saturation - values.mean(-1) / 255 > 0.3) & ~is_pen
    assert [each["fold_fraction"] for each in found] == expected.astype(float).tolist()
    assert 5 < expected.sum() < 90


def test_finds_the_pen_on_real_thumbnails(shared_data: Path) -> None:
    def measure_tiles(name: str) -> NDArray[np.float64]:
        picture = Image.open(shared_data / "slides" / "thumbs" / name).convert("RGB")
        pixels = np.asarray(picture.resize((384, 288), Image.Resampling.BOX))
        tiles = pixels.reshape(3, 96, 4, 96, 3).swapaxes(1, 2).reshape(12, 96, 96, 3)
        return measure_quality(tiles)[:, QUALITY_COLUMNS.index("pen_fraction")]

    clean, green = measure_tiles("tcga-lung-rgb.png"), measure_tiles("tcga-green-pen.png")
    assert clean.max() < 0.01
    assert green[[1, 5, 9]].min() > 0.2  # the stroke runs down the second column
    assert green[[3, 7, 11]].max() < 0.01
