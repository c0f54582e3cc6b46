"""Draws the review picture of a slide: its tissue, tiles and lesions. Pure."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion
from shapely.geometry.base import BaseGeometry

from pipeline.slides.tiling import PairYX

_SIDE_PX: Final = 1024
_SMALL_SIDE_PX: Final = 512
_TISSUE_RGB: Final = (0, 140, 70)
_TILE_RGB: Final = (30, 90, 220)
_LESION_RGB: Final = (230, 30, 30)


def draw_review(
    pixels: NDArray[np.uint8],
    is_tissue: NDArray[np.bool_],
    slide_shape_yx: PairYX,
    origins_yx: NDArray[np.int64],
    extent_yx: PairYX,
    lesions: BaseGeometry | None,
) -> bytes:
    """Draw the outline of the tissue (green), the tiles (blue) and the lesions (red).

    Args:
        pixels: uint8 (y, x, 3), the slide's thumbnail.
        is_tissue: bool (y, x), tissue over the whole slide at any resolution.
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        origins_yx: (n, 2), upper left corners of the tiles in level-0 pixels.
        extent_yx: Height and width of every tile in level-0 pixels.
        lesions: Geometry of the lesions, (x, y) in level-0 pixels, or None.

    Returns:
        A PNG, its longer side 1024 px.
    """
    zoom = _SIDE_PX / max(pixels.shape[:2])
    size_yx = [max(1, round(side * zoom)) for side in pixels.shape[:2]]
    picture = Image.fromarray(pixels).resize((size_yx[1], size_yx[0]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    scale_yx = np.divide(size_yx, slide_shape_yx)
    height, width = np.multiply(extent_yx, scale_yx) - 1
    for top, left in np.multiply(origins_yx, scale_yx):
        bottom, right = top + height, left + width
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=_TILE_RGB)
    mask = Image.fromarray(is_tissue).resize(picture.size, Image.Resampling.NEAREST)
    edge = np.asarray(mask) & ~binary_erosion(np.asarray(mask), iterations=2)
    picture.paste(_TISSUE_RGB, mask=Image.fromarray(edge))
    for ring in _rings(lesions):
        draw.line([(x * scale_yx[1], y * scale_yx[0]) for x, y in ring], _LESION_RGB, width=3)
    buffer = BytesIO()
    # Noise has few repeats to be searched for: a quarter of the time for 5 percent more bytes.
    picture.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def shrink_review(picture: bytes) -> bytes:
    """Make a small copy of a review picture: a JPEG, its longer side at most 512 px."""
    with Image.open(BytesIO(picture)) as opened:
        small = opened.convert("RGB")
    small.thumbnail((_SMALL_SIDE_PX, _SMALL_SIDE_PX))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _rings(geometry: BaseGeometry | None) -> list[list[tuple[float, ...]]]:
    """List every closed outline of a geometry, holes included."""
    boundary = shapely.boundary(shapely.Polygon() if geometry is None else geometry)
    return [list(part.coords) for part in shapely.get_parts(boundary)]
