from __future__ import annotations

from io import BytesIO

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from pipeline.slides.survey.review import draw_review


def test_draws_everything_where_it_lies() -> None:
    pixels = np.full((128, 256, 3), 255, np.uint8)
    is_tissue = np.zeros((128, 256), bool)
    is_tissue[10:50, 200:240] = True
    # The thumbnail's pixels are 10 level-0 px high and 5 wide.
    png = draw_review(
        pixels,
        is_tissue,
        (1280, 1280),
        np.array([[800, 150]]),
        (200, 50),
        shapely.box(750, 900, 1000, 1100),
    )
    picture = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    assert picture.shape == (512, 1024, 3)
    # 4 picture px per thumbnail px: 0.4 per level-0 px down and 0.8 across.
    blue = (picture[..., 0] < 100) & (picture[..., 2] > 200)
    assert find_bounds(blue) == (320, 120, 399, 159)
    assert picture[100, 800:803, 1].min() > 100  # left edge of the tissue: green
    assert picture[100, 800:803, 0].min() == 0
    red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    assert find_bounds(red) == (359, 599, 441, 801)


def find_bounds(is_drawn: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First row and column, last row and column."""
    rows, columns = np.nonzero(is_drawn)
    return int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())


def test_draws_nothing_but_the_thumbnail_on_an_empty_slide() -> None:
    pixels = np.full((50, 20, 3), 240, np.uint8)
    png = draw_review(
        pixels, np.zeros((50, 20), bool), (500, 200), np.zeros((0, 2), np.int64), (64, 64), None
    )
    assert (np.asarray(Image.open(BytesIO(png))) == 240).all()
