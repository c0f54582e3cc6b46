"""Lays tiles over a slide, chooses those to read, and accounts for all tissue. Pure.

Every pair is (y, x). A tile's origin is in whole level-0 pixels; its size follows from the wanted
um/px, for each axis by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pipeline.records import Label, Slide
from pipeline.slides.annotations import measure_lesion_fractions
from pipeline.slides.settings import SlideSettings

PairYX: TypeAlias = tuple[int, int]

# Pyramid levels are rounded to whole pixels: 250 px / 4 gives 62, a downsample of 4.03.
_LEVEL_TOLERANCE: Final = 0.02
# Scanners miss their nominal um/px by a few percent (0.2527 for 0.25): that is no enlargement.
_ENLARGEMENT_TOLERANCE: Final = 0.05
# A tile of pure glass is never a tile of tissue, even where the setting asks for no tissue.
_LEAST_TISSUE: Final = 1e-9


def measure_tile_extent_yx(
    mpp_yx: tuple[float, float], tile_mpp_um: float, tile_size_px: int
) -> PairYX:
    """Height and width of a tile in level-0 pixels, rounded to whole ones.

    Args:
        mpp_yx: Micrometres per level-0 pixel, (y, x).
        tile_mpp_um: Wanted micrometres per tile pixel.
        tile_size_px: Height and width of the tile in pixels.

    Raises:
        ValueError: The slide is coarser than wanted, so that detail would have to be invented.

    Examples:
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


def list_origins(slide_shape_yx: PairYX, extent_yx: PairYX, stride_yx: PairYX) -> NDArray[np.int64]:
    """List the upper left corners of all tiles that lie wholly on the slide, row by row.

    Args:
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        extent_yx: Height and width of a tile in level-0 pixels.
        stride_yx: Distance from one tile to the next in level-0 pixels.

    Returns:
        (n, 2) int64, (y, x) in level-0 pixels; n is 0 where a tile is larger than the slide.
    """
    ys, xs = (
        np.arange(0, shape - extent + 1, stride, dtype=np.int64)
        for shape, extent, stride in zip(slide_shape_yx, extent_yx, stride_yx, strict=True)
    )
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def order_along_z(origins_yx: NDArray[np.int64], extent_yx: PairYX) -> NDArray[np.int64]:
    """Order tiles along a Z curve, so that tiles that follow each other lie together.

    Squares of 2 x 2 tiles follow each other in squares of 4 x 4, and these in larger ones (Morton,
    A computer oriented geodetic data base, IBM 1966). A tile of the file is still in the
    processor's cache when the next needs it, and few are needed by two shards: of JPEG tiles twice
    as wide as ours, row by row decodes a quarter more on a slide of Camelyon16's size, Z-order less
    than one percent.

    Args:
        origins_yx: (n, 2), upper left corners in level-0 pixels, none negative.
        extent_yx: Height and width of a tile in level-0 pixels.

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
    """Choose the coarsest level that loses no detail, so that least is decoded.

    Args:
        level_downsamples_yx: Downsamples (y, x) of the levels, finest first.
        wanted_downsample_yx: Level-0 pixels per wanted pixel, (y, x).

    Examples:
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
    """Measure the share of rectangles that a mask covers, exact to fractions of its pixels.

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


def label_tiles(lesion_fraction: NDArray[np.float32], lesion_threshold: float) -> NDArray[np.int8]:
    """Label tiles: normal without lesion, anomalous above the threshold, else unknown.

    Args:
        lesion_fraction: (n,), share of lesion; NaN where nobody annotated.
        lesion_threshold: Lesion share above which a tile is anomalous.

    Returns:
        (n,) int8, values of `records.Label`.
    """
    label = np.full(lesion_fraction.shape, Label.UNKNOWN, np.int8)
    label[lesion_fraction == 0.0] = Label.NORMAL
    label[lesion_fraction > lesion_threshold] = Label.ANOMALOUS
    return label


def name_states(lesion_fraction: NDArray[np.float32], lesion_threshold: float) -> NDArray[Any]:
    """Name what tiles show: `normal`, `tumour`, `mixed` between the two, or `unknown`.

    Args:
        lesion_fraction: (n,), share of lesion; NaN where nobody annotated.
        lesion_threshold: Lesion share above which a tile is `tumour`.

    Returns:
        (n,) str.
    """
    label = label_tiles(lesion_fraction, lesion_threshold)
    is_mixed = (label == Label.UNKNOWN) & ~np.isnan(lesion_fraction)
    words = {Label.NORMAL: "normal", Label.ANOMALOUS: "tumour", Label.UNKNOWN: "unknown"}
    states = np.array([words[Label(value)] for value in label], dtype=object)
    states[is_mixed] = "mixed"
    return states


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Every tile that fits on a slide.

    Args:
        origins_yx: (n, 2), upper left corners in level-0 pixels.
        tissue_fraction: (n,), share of each tile that is tissue, 0 to 1.
        tissue_px2: (n,), tissue that the tile stands for and no other does, level-0 px^2.
    """

    origins_yx: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    tissue_px2: NDArray[np.float64]


def make_grid(
    mask: NDArray[np.bool_], shape_yx: PairYX, extent_yx: PairYX, stride_yx: PairYX
) -> Grid:
    """Lay tiles over a whole slide and measure their tissue.

    Args:
        mask: bool (y, x), tissue over the whole slide.
        shape_yx: Height and width of the slide in level-0 pixels.
        extent_yx: Height and width of a tile in level-0 pixels.
        stride_yx: Distance from one tile to the next in level-0 pixels.
    """
    origins_yx = list_origins(shape_yx, extent_yx, stride_yx)
    cell_yx = (min(extent_yx[0], stride_yx[0]), min(extent_yx[1], stride_yx[1]))
    cell_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, cell_yx)
    tissue_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, extent_yx)
    return Grid(origins_yx, tissue_fraction, cell_fraction * cell_yx[0] * cell_yx[1])


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The chosen tiles of a grid, and why the others are not; all are indices of tiles.

    Args:
        chosen: (n,), tiles to read.
        lesion_fraction: (n,), lesion share of the chosen tiles.
        below: Tiles without enough tissue.
        outside: Tiles outside lesions, where only lesions are wanted.
        not_sampled: Tiles left out by the random sample.
    """

    chosen: NDArray[np.int64]
    lesion_fraction: NDArray[np.float32]
    below: NDArray[np.int64]
    outside: NDArray[np.int64]
    not_sampled: NDArray[np.int64]


def choose_tiles(
    slide: Slide,
    grid: Grid,
    lesions: BaseGeometry | None,
    extent_yx: PairYX,
    settings: SlideSettings,
    is_partly_annotated: bool,
) -> Choice:
    """Choose the tiles to read.

    Args:
        slide: The slide as listed.
        grid: All tiles of the slide.
        lesions: Geometry of the lesions, (x, y) in level-0 pixels; None where nobody knows.
        extent_yx: Height and width of a tile in level-0 pixels.
        settings: Settings of the dataset.
        is_partly_annotated: Whether there may be lesions that nobody outlined.
    """
    holds_tissue = grid.tissue_fraction >= max(settings.min_tissue_fraction, _LEAST_TISSUE)
    candidates = np.flatnonzero(holds_tissue)
    lesion_fraction = _share_lesions(lesions, grid.origins_yx[candidates], extent_yx)
    if is_partly_annotated:
        lesion_fraction[lesion_fraction == 0.0] = np.nan
    has_lesions = slide.label is Label.ANOMALOUS or not (lesions is None or lesions.is_empty)
    is_wanted = np.ones(len(candidates), np.bool_)
    if settings.lesion_tiles_only and has_lesions:
        is_wanted = lesion_fraction > settings.lesion_threshold
    wanted = np.flatnonzero(is_wanted)
    taken = _sample(wanted, slide.slide_id, settings)
    return Choice(
        chosen=candidates[taken],
        lesion_fraction=lesion_fraction[taken],
        below=np.flatnonzero(~holds_tissue),
        outside=candidates[~is_wanted],
        not_sampled=candidates[np.setdiff1d(wanted, taken)],
    )


def account_for_tissue(
    mask: NDArray[np.bool_], shape_yx: PairYX, grid: Grid, choice: Choice
) -> dict[str, float]:
    """Sum up the tissue in level-0 px^2, in all and by fate."""
    tissue = float(mask.mean()) * shape_yx[0] * shape_yx[1]
    fates = {
        "tiled": choice.chosen,
        "below_min_tissue": choice.below,
        "outside_lesions": choice.outside,
        "not_sampled": choice.not_sampled,
    }
    areas = {fate: float(grid.tissue_px2[tiles].sum()) for fate, tiles in fates.items()}
    outside_tiles = max(0.0, tissue - sum(areas.values()))
    return {"tissue": tissue, **areas, "outside_tiles": outside_tiles}


def _share_lesions(
    lesions: BaseGeometry | None, origins_yx: NDArray[np.int64], extent_yx: PairYX
) -> NDArray[np.float32]:
    if lesions is None:
        return np.full(len(origins_yx), np.nan, np.float32)
    return measure_lesion_fractions(lesions, origins_yx, extent_yx).astype(np.float32)


def _sample(
    candidates: NDArray[np.int64], slide_id: str, settings: SlideSettings
) -> NDArray[np.int64]:
    """Draw at most `max_tiles_per_slide` candidates, in order, whatever other slides there are."""
    limit = settings.max_tiles_per_slide
    if limit is None or len(candidates) <= limit:
        return candidates
    entropy = int.from_bytes(sha256(slide_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng([settings.seed, entropy])
    return np.sort(generator.choice(candidates, limit, replace=False))
