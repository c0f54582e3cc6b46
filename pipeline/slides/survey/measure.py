"""Surveys one slide: finds its tissue, tiles and lesions, and fits its stains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.io.scratch import Scratch
from pipeline.records import Slide
from pipeline.slides.annotations import find_touched
from pipeline.slides.colour import convert_to_srgb
from pipeline.slides.reader import open_tiles
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.resolution import MppSource
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.fit import fit_stains
from pipeline.slides.stain.normalise import StainFit
from pipeline.slides.survey.marks import Marks, describe_corner, read_marks
from pipeline.slides.survey.masks import find_corner, make_mask
from pipeline.slides.survey.review import draw_review
from pipeline.slides.survey.thumbnail import read_thumbnail
from pipeline.slides.tiling import (
    Choice,
    Grid,
    PairYX,
    account_for_tissue,
    choose_tiles,
    label_tiles,
    make_grid,
    measure_tile_extent_yx,
    order_along_z,
)

_MASK_SIDE_LIMIT_PX: Final = 8192
# Stains are fitted on about this many pixels, of this many tiles spread over the slide.
_FIT_PX: Final = 1 << 20
_FIT_TILES: Final = (16, 256)


@dataclass(frozen=True, slots=True, eq=False)
class SlideSurvey:
    """Findings on one slide.

    Args:
        shape_yx: Height and width of level 0 in pixels.
        mpp_yx: Micrometres per level-0 pixel, (y, x).
        mpp_source: Origin of `mpp_yx`.
        origins_yx: (n, 2) int64, the tiles to read, level-0 pixels, by `tiling.order_along_z`.
        tissue_fraction: (n,) float32, share of each tile that is tissue.
        lesion_fraction: (n,) float32; NaN where nobody annotated.
        label: (n,) int8, values of `records.Label`.
        has_lesion: Whether a lesion is outlined on the slide, however small.
        tissue_um2: (n,) float64, tissue that each tile stands for in the account. Tiles that
            overlap share it, so that nothing counts twice.
        coverage: um^2 of tissue in all, and by fate: `tiled`, `below_min_tissue`,
            `outside_lesions`, `not_sampled`, `outside_tiles`. The fates add up to `tissue`.
        stain_fit: The slide's two stains, or None where stains are left as they are.
        picture: Review picture, a PNG.
        bounds_yx: Corner of the part that was scanned, (y, x) in level-0 pixels.
        remarks: Remarks for the manifest on the slide's um/px and annotation.
    """

    shape_yx: PairYX
    mpp_yx: tuple[float, float]
    mpp_source: MppSource
    origins_yx: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    lesion_fraction: NDArray[np.float32]
    label: NDArray[np.int8]
    has_lesion: bool
    tissue_um2: NDArray[np.float64]
    coverage: dict[str, float]
    stain_fit: StainFit | None
    picture: bytes
    bounds_yx: PairYX
    remarks: tuple[str, ...] = ()


def survey_slide(
    slide: Slide,
    path: Path,
    reader: SlideReader,
    settings: SlideSettings,
    *,
    scratch: Scratch | None = None,
) -> SlideSurvey:
    """Find the tissue of a slide, lay tiles over it and measure their lesion shares.

    Where the file is too corrupt to show whether there is tissue, the area counts as tissue: its
    tiles are attempted, and those that cannot be read are accounted for as unreadable.

    Args:
        slide: The slide as listed.
        path: Local path of its file.
        reader: The open file.
        settings: Settings of the dataset.
        scratch: Folder where a mask on object storage is staged; None for the default one.

    Raises:
        SourceError: The slide, its annotations or its mask cannot be used.
        StorageError: The annotations or the mask cannot be fetched.
    """
    shape_yx, mpp_yx = reader.level_shapes_yx[0], reader.mpp_yx
    thumbnail = read_thumbnail(reader, _mask_side_px(reader, settings.mask_mpp_um))
    if settings.icc == "srgb":
        pixels = convert_to_srgb(thumbnail.pixels, reader.icc_profile, slide.url)
        thumbnail = replace(thumbnail, pixels=pixels)
    extent_yx, stride_yx = _measure_grid(slide, reader, settings)
    corner_yx = find_corner(slide, reader.bounds_yxhw[:2], settings)
    mask = make_mask(slide, settings, thumbnail, shape_yx, mpp_yx, scratch, corner_yx)
    marked = read_marks(slide, reader, settings)
    grid = make_grid(mask, shape_yx, extent_yx, stride_yx)
    lesions = marked.lesions
    choice = choose_tiles(slide, grid, lesions, extent_yx, settings, slide.is_partly_annotated)
    choice = _order(choice, grid, marked, extent_yx)
    origins_yx = grid.origins_yx[choice.chosen]
    px_um2 = mpp_yx[0] * mpp_yx[1]
    return SlideSurvey(
        shape_yx=shape_yx,
        mpp_yx=mpp_yx,
        mpp_source=reader.mpp_source if slide.mpp_um is None else "user table",
        origins_yx=origins_yx,
        tissue_fraction=grid.tissue_fraction[choice.chosen].astype(np.float32),
        lesion_fraction=choice.lesion_fraction,
        label=label_tiles(choice.lesion_fraction, settings.lesion_threshold),
        has_lesion=lesions is not None and bool(lesions.area),
        tissue_um2=grid.tissue_px2[choice.chosen] * px_um2,
        coverage={
            fate: float(area_px2 * px_um2)
            for fate, area_px2 in account_for_tissue(mask, shape_yx, grid, choice).items()
        },
        stain_fit=_fit_stains(path, reader, origins_yx, settings),
        picture=draw_review(thumbnail.pixels, mask, shape_yx, origins_yx, extent_yx, lesions),
        bounds_yx=reader.bounds_yxhw[:2],
        remarks=tuple(
            filter(None, (reader.mpp_remark, describe_corner(corner_yx, "mask"), *marked.remarks))
        ),
    )


def _order(choice: Choice, grid: Grid, marked: Marks, extent_yx: PairYX) -> Choice:
    """Order the chosen tiles, and call none normal that something unclear touches."""
    order = order_along_z(grid.origins_yx[choice.chosen], extent_yx)
    chosen, lesion_fraction = choice.chosen[order], choice.lesion_fraction[order]
    is_unclear = find_touched(marked.unclear, grid.origins_yx[chosen], extent_yx)
    lesion_fraction[is_unclear & (lesion_fraction == 0.0)] = np.nan
    return replace(choice, chosen=chosen, lesion_fraction=lesion_fraction)


def _mask_side_px(reader: SlideReader, mask_mpp_um: float) -> int:
    sides_um = np.multiply(reader.level_shapes_yx[0], reader.mpp_yx)
    return min(_MASK_SIDE_LIMIT_PX, ceil(float(sides_um.max()) / mask_mpp_um))


def _measure_grid(
    slide: Slide, reader: SlideReader, settings: SlideSettings
) -> tuple[PairYX, PairYX]:
    """Measure extent and stride in level-0 pixels."""
    stride_px = settings.stride_px or settings.tile_size_px
    try:
        return (
            measure_tile_extent_yx(reader.mpp_yx, settings.mpp_um, settings.tile_size_px),
            measure_tile_extent_yx(reader.mpp_yx, settings.mpp_um, stride_px),
        )
    except ValueError as error:
        problem = "; ".join(filter(None, (reader.mpp_remark, str(error))))
        raise SourceError(slide.url, problem, "Or leave this slide out") from error


def _fit_stains(
    path: Path, reader: SlideReader, origins_yx: NDArray[np.int64], settings: SlideSettings
) -> StainFit | None:
    """Fit the stains once a slide, on tiles from all over it; None where no fit is wanted."""
    if settings.stain == "none" or not len(origins_yx):
        return None
    fewest, most = _FIT_TILES
    side = settings.tile_size_px
    count = min(len(origins_yx), most, max(fewest, _FIT_PX // side**2))
    chosen = np.linspace(0, len(origins_yx) - 1, count).round().astype(int)
    images = np.empty((count, side, side, 3), np.uint8)
    with open_tiles(path, reader, settings) as tiles:
        reads = list(tiles.read(origins_yx[chosen], images))
    is_readable = np.array([reason is None for read in reads for reason in read.reasons])
    return fit_stains(images[is_readable], settings.stain, seed=settings.seed)
