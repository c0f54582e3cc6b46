"""Lays tiles over a slide, chooses those to read, and accounts for all tissue. Pure.

Every pair is (y, x). A tile's origin is in whole level-0 pixels; its size follows from the wanted
um/px, for each axis by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isclose
from typing import Final, TypeAlias

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
# Both sides of the account are exact but for rounding: this share of the tissue, or of the slide.
_ACCOUNT_TOLERANCE: Final = 1e-6
_SLIDE_TOLERANCE: Final = 1e-9
# Rows of the account that are painted at once, so that memory stays bounded.
_BAND_ROWS: Final = 128


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
            f"tile with `--mpp-um {max(mpp_yx):g}` or more (it holds for all slides)"
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
    integral = _integrate(mask)
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


def _integrate(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Sum up the mask above and left of each of its corners, without a copy of that size."""
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    for row, pixels in enumerate(mask):
        np.cumsum(pixels, dtype=np.int32, out=integral[row + 1, 1:])
        integral[row + 1] += integral[row]
    return integral


def _interpolate(
    integral: NDArray[np.int32], y: NDArray[np.float64], x: NDArray[np.float64]
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


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Every tile that fits on a slide.

    Args:
        origins_yx: (n, 2), upper left corners in level-0 pixels, row by row.
        cell_yx: Height and width in level-0 pixels of the part of each tile, from its upper left
            corner, that no later tile covers.
        tissue_fraction: (n,), share of each tile that is tissue, 0 to 1.
        tissue_px2: (n,), tissue in each tile's cell, level-0 px^2.
    """

    origins_yx: NDArray[np.int64]
    cell_yx: PairYX
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
    tissue_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, extent_yx)
    cell_fraction = tissue_fraction
    if cell_yx != extent_yx:
        cell_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, cell_yx)
    return Grid(origins_yx, cell_yx, tissue_fraction, cell_fraction * cell_yx[0] * cell_yx[1])


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
    """Measure the tissue, in all and by fate, and prove that the account is complete.

    The fates are painted on the mask and measured there, none as what the others leave; the same
    is known of `tiled` and its like from the tiles themselves. `prove_account` compares the three.

    Args:
        mask: bool (y, x), tissue over the whole slide.
        shape_yx: Height and width of the slide in level-0 pixels.
        grid: All tiles of the slide.
        choice: The fate of every tile.

    Returns:
        Level-0 px^2 of `tissue`, `tiled`, `below_min_tissue`, `outside_lesions`, `not_sampled`
        and `outside_tiles`, which no tile's cell covers.

    Raises:
        RuntimeError: The account does not add up.
    """
    fates = {
        "tiled": choice.chosen,
        "below_min_tissue": choice.below,
        "outside_lesions": choice.outside,
        "not_sampled": choice.not_sampled,
    }
    slide_px2 = float(shape_yx[0]) * shape_yx[1]
    account = {"tissue": float(mask.mean()) * slide_px2, **_paint(mask, shape_yx, grid, fates)}
    by_tile = {fate: float(grid.tissue_px2[tiles].sum()) for fate, tiles in fates.items()}
    prove_account(account, by_tile, slide_px2)
    return account


def prove_account(
    account: Mapping[str, float], by_tile: Mapping[str, float], slide_px2: float
) -> None:
    """Check that the fates add up to the tissue, and that each is what its tiles say.

    Args:
        account: Area of `tissue` and of each fate as painted, level-0 px^2.
        by_tile: Sum of the tiles' own areas for each fate that has tiles, level-0 px^2.
        slide_px2: Area of the slide in level-0 pixels.

    Raises:
        RuntimeError: Two areas differ by more than a millionth of the tissue and a billionth of
            the slide.
    """
    tissue = account["tissue"]
    fates = sum(area for name, area in account.items() if name != "tissue")
    pairs = {"all fates together": (fates, tissue)}
    pairs |= {fate: (account[fate], area) for fate, area in by_tile.items()}
    limit = max(_ACCOUNT_TOLERANCE * tissue, _SLIDE_TOLERANCE * slide_px2)
    for name, (painted, expected) in pairs.items():
        if not isclose(painted, expected, rel_tol=0.0, abs_tol=limit):
            raise RuntimeError(
                f"the account of tissue does not add up: {name} cover {painted:.0f} px^2 of the "
                f"mask, expected {expected:.0f} of {tissue:.0f} px^2"
            )


def _paint(
    mask: NDArray[np.bool_],
    shape_yx: PairYX,
    grid: Grid,
    fates: Mapping[str, NDArray[np.int64]],
) -> dict[str, float]:
    """Paint the fates on the mask, and measure the tissue under each and under no tile's cell.

    Mask pixels and cells are cut at each other's edges, so that each piece lies in one of both.
    """
    starts_yx = [np.unique(grid.origins_yx[:, axis]) for axis in (0, 1)]
    no_cell, no_fate, nothing = len(fates), len(fates) + 1, len(fates) + 2
    # The last row and column are for pieces outside of all cells.
    painted = np.full((len(starts_yx[0]) + 1, len(starts_yx[1]) + 1), no_cell, np.uint8)
    cells = np.full(len(grid.origins_yx), no_fate, np.uint8)
    for code, tiles in enumerate(fates.values()):
        cells[tiles] = code
    painted[:-1, :-1] = cells.reshape(len(starts_yx[0]), len(starts_yx[1]))
    (heights, rows, cell_rows), (widths, columns, cell_columns) = (
        _cut_axis(starts_yx[axis], grid.cell_yx[axis], shape_yx[axis], mask.shape[axis])
        for axis in (0, 1)
    )
    areas = np.zeros(nothing + 1)
    for band in _bands(len(heights)):
        fate = painted[cell_rows[band]][:, cell_columns]
        fate[~mask[rows[band]][:, columns]] = nothing
        area = np.outer(heights[band], widths)
        areas += np.bincount(fate.ravel(), weights=area.ravel(), minlength=len(areas))
    return {name: float(areas[code]) for code, name in enumerate((*fates, "outside_tiles"))}


def _cut_axis(
    starts: NDArray[np.int64], cell: int, size: int, mask_size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut an axis at the edges of mask pixels and cells: lengths, pixels, cells (-1: none)."""
    edges = np.unique(
        np.concatenate([np.arange(mask_size + 1) * (size / mask_size), starts, starts + cell])
    )
    middle = (edges[1:] + edges[:-1]) / 2
    pixel = np.minimum((middle * (mask_size / size)).astype(np.int64), mask_size - 1)
    number = np.searchsorted(starts, middle, side="right") - 1
    is_inside = (number >= 0) & (middle < starts[number] + cell) if len(starts) else number >= 0
    return np.diff(edges), pixel, np.where(is_inside, number, -1)


def _bands(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BAND_ROWS):
        yield slice(start, start + _BAND_ROWS)


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
