"""Where tiles lie and what they hold: extents in, origins and shares out. Pure.

Every pair is (y, x). A tile's place is in whole level-0 pixels; its size follows from the wanted
um/px, for each axis by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

PairYX: TypeAlias = tuple[int, int]

# Pyramid levels are rounded to whole pixels: 250 px / 4 gives 62, a downsample of 4.03.
_LEVEL_TOLERANCE: Final = 0.02
# Scanners miss their nominal um/px by a few percent (0.2527 for 0.25): that is no enlargement.
_ENLARGEMENT_TOLERANCE: Final = 0.05


def measure_tile_extent_yx(
    mpp_yx: tuple[float, float], tile_mpp_um: float, tile_size_px: int
) -> PairYX:
    """Height and width of a tile in level-0 pixels, rounded to whole ones.

    Args:
        mpp_yx: um per level-0 pixel.
        tile_mpp_um: Wanted um per pixel of the tile.
        tile_size_px: Pixels along each side of the tile.

    Raises:
        ValueError: The slide is coarser than wanted, so that detail would have to be invented.

    Example:
        >>> measure_tile_extent_yx((0.25, 0.5), 1.0, 64)
        (256, 128)
    """
    if max(mpp_yx) > tile_mpp_um * (1 + _ENLARGEMENT_TOLERANCE):
        raise ValueError(
            f"the slide has {max(mpp_yx):g} um/px, too coarse for tiles of {tile_mpp_um:g} um/px: "
            f"set mpp_um to {max(mpp_yx):g} or more"
        )
    height, width = (max(1, round(tile_size_px * tile_mpp_um / mpp)) for mpp in mpp_yx)
    return height, width


def lay_tiles(slide_shape_yx: PairYX, extent_yx: PairYX, stride_yx: PairYX) -> NDArray[np.int64]:
    """Upper left corners of all tiles that lie wholly on the slide, row by row.

    Args:
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        extent_yx: Of a tile, in level-0 pixels.
        stride_yx: From one tile to the next, in level-0 pixels.

    Returns:
        (n, 2) int64, (y, x) in level-0 pixels; n is 0 where a tile is larger than the slide.
    """
    ys, xs = (
        np.arange(0, shape - extent + 1, stride, dtype=np.int64)
        for shape, extent, stride in zip(slide_shape_yx, extent_yx, stride_yx, strict=True)
    )
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def order_along_z(origins_yx: NDArray[np.int64], extent_yx: PairYX) -> NDArray[np.int64]:
    """Z-order, in which tiles that follow each other lie together, whatever the slide's width.

    Squares of 2 x 2 tiles follow each other in squares of 4 x 4, and these in larger ones (Morton,
    A computer oriented geodetic data base, IBM 1966). A tile of the file is still in the
    processor's cache when the next needs it, and few are needed by two shards: of JPEG tiles twice
    as wide as ours, row by row decodes a quarter more on a slide of Camelyon16's size, Z-order less
    than one percent.

    Args:
        origins_yx: (n, 2), level-0 pixels, none negative.
        extent_yx: Of a tile, level-0 pixels.

    Returns:
        (n,) indices of the tiles; row by row where several begin in the same place of the grid.
    """
    rows, columns = (origins_yx // extent_yx).T
    place = np.zeros(len(origins_yx), np.int64)
    for bit in range(int(origins_yx.max(initial=0)).bit_length()):
        place |= (columns >> bit & 1) << 2 * bit | (rows >> bit & 1) << 2 * bit + 1
    y, x = origins_yx.T
    return np.lexsort((x, y, place))


def choose_level(
    level_downsamples_yx: Sequence[tuple[float, float]], wanted_downsample_yx: tuple[float, float]
) -> int:
    """The coarsest level that still has every pixel wanted: no detail lost, least decoded.

    Args:
        level_downsamples_yx: Of each level, finest first.
        wanted_downsample_yx: Level-0 pixels per pixel wanted.

    Example:
        >>> choose_level([(1, 1), (4, 4), (16, 16)], (8, 8))
        1
    """
    fitting = [
        level
        for level, downsample_yx in enumerate(level_downsamples_yx)
        if all(
            downsample <= wanted * (1 + _LEVEL_TOLERANCE)
            for downsample, wanted in zip(downsample_yx, wanted_downsample_yx, strict=True)
        )
    ]
    return max(fitting, default=0)


def measure_mask_fractions(
    mask: NDArray[np.bool_],
    slide_shape_yx: PairYX,
    origins_yx: NDArray[np.int64],
    extent_yx: PairYX,
) -> NDArray[np.float64]:
    """Share of each rectangle that a mask covers, exact to fractions of a mask pixel.

    Args:
        mask: bool (y, x), over the whole slide at a lower resolution; each axis has its own.
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        origins_yx: (n, 2), upper left corners in level-0 pixels.
        extent_yx: Height and width of every rectangle in level-0 pixels; it may leave the slide,
            where nothing is covered.

    Returns:
        (n,), 0 to 1.
    """
    # Entry (y, x) is the covered area above and left of mask corner (y, x).
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    scale_yx = np.divide(mask.shape, slide_shape_yx)
    corners = origins_yx.astype(np.float64)
    begin = corners * scale_yx
    end = np.minimum((corners + extent_yx) * scale_yx, mask.shape)
    covered = (
        _interpolate(integral, end[:, 0], end[:, 1])
        - _interpolate(integral, begin[:, 0], end[:, 1])
        - _interpolate(integral, end[:, 0], begin[:, 1])
        + _interpolate(integral, begin[:, 0], begin[:, 1])
    )
    return np.clip(covered / np.prod(np.multiply(extent_yx, scale_yx)), 0.0, 1.0)


def _interpolate(
    integral: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bilinear between corners, which is exact: the mask is constant within a pixel."""
    row = np.minimum(y.astype(np.int64), integral.shape[0] - 2)
    column = np.minimum(x.astype(np.int64), integral.shape[1] - 2)
    dy, dx = y - row, x - column
    above = integral[row, column] * (1 - dx) + integral[row, column + 1] * dx
    below = integral[row + 1, column] * (1 - dx) + integral[row + 1, column + 1] * dx
    value: NDArray[np.float64] = above * (1 - dy) + below * dy
    return value
