from __future__ import annotations

from io import BytesIO

import numpy as np
import shapely
from PIL import Image

from pipeline.slides.review import draw_review


def test_draws_everything_where_it_lies() -> None:
    pixels = np.full((128, 256, 3), 255, np.uint8)
    is_tissue = np.zeros((128, 256), bool)
    is_tissue[10:50, 200:240] = True
    png = draw_review(
        pixels,
        is_tissue,
        (1280, 2560),
        np.array([[800, 300]]),
        (200, 100),
        shapely.box(1500, 900, 2000, 1100),
    )
    picture = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    assert picture.shape == (512, 1024, 3)
    # 0.4 picture px per level-0 px, 4 per thumbnail px.
    assert picture[320:323, 140].min(axis=0).tolist()[0] < 100  # upper edge of the tile: blue
    assert picture[100, 800:803, 1].min() > 100  # left edge of the tissue: green
    assert picture[100, 800:803, 0].min() == 0
    red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert (rows.min(), columns.min()) == (359, 599)
    assert (rows.max(), columns.max()) == (441, 801)


def test_draws_nothing_but_the_thumbnail_on_an_empty_slide() -> None:
    pixels = np.full((50, 20, 3), 240, np.uint8)
    png = draw_review(
        pixels, np.zeros((50, 20), bool), (500, 200), np.zeros((0, 2), np.int64), (64, 64), None
    )
    assert (np.asarray(Image.open(BytesIO(png))) == 240).all()
