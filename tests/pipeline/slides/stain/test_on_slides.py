from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2hsv, rgb2lab

from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.stain.fit import fit_stains
from pipeline.slides.stain.normalise import REFERENCE_STAINS, StainMethod, normalise_stains
from tests.support.made.stains import METHODS, require_stains


def spread_of_hue(tiles: NDArray[np.uint8]) -> float:
    """Circular standard deviation, in degrees, of the tiles' mean hue over their tissue."""
    directions = []
    for tile in tiles:
        hue = rgb2hsv(tile)[rgb2lab(tile)[..., 0] < 80][:, 0] * 2 * np.pi
        mean = np.exp(1j * hue).mean()
        directions.append(mean / abs(mean))
    return float(np.degrees(np.sqrt(-2 * np.log(abs(np.mean(directions))))))


@pytest.mark.parametrize("method", METHODS)
def test_tiles_of_many_slides_come_closer_in_hue(method: StainMethod, shared_data: Path) -> None:
    files = sorted((shared_data / "pcam").glob("train/normal/*"))[:80]
    if not files:
        pytest.skip(f"no PatchCamelyon tiles below {shared_data}")
    tiles = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    fits = [fit_stains(tile, method) for tile in tiles]
    kept = [(tile, fit) for tile, fit in zip(tiles, fits, strict=True) if not fit.is_degenerate]
    assert len(kept) > 40
    normalised = np.stack([normalise_stains(tile, fit) for tile, fit in kept])
    assert spread_of_hue(normalised) < 0.9 * spread_of_hue(np.stack([tile for tile, _ in kept]))


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_reaches_the_target(method: StainMethod, shared_data: Path) -> None:
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    if not path.exists():
        pytest.skip(f"no slide at {path}")
    with OpenSlideReader(path, item=str(path)) as slide:
        region = slide.read_region_yx((300, 200), 0, (1536, 1280))
    tiles = region.reshape(6, 256, 5, 256, 3).swapaxes(1, 2).reshape(-1, 256, 256, 3)
    fit = fit_stains(tiles, method)
    normalised = normalise_stains(tiles, fit)
    after = require_stains(fit_stains(normalised, method))
    before = require_stains(fit)
    distances = [np.abs(each.matrix - REFERENCE_STAINS.matrix).max() for each in (before, after)]
    assert distances[1] < 0.6 * distances[0]
    assert not np.array_equal(normalised, tiles)
