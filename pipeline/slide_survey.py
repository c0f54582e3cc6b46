"""The first pass over one slide: where its tissue, tiles and lesions are. No tile is read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pipeline import storage
from pipeline.annotations import measure_lesion_fractions, outline_lesions, parse_annotations
from pipeline.errors import SourceError
from pipeline.mpp import MppSource
from pipeline.records import Label, Slide
from pipeline.slide_review import draw_review
from pipeline.slide_settings import SlideSettings
from pipeline.slides import SlideReader, open_slide
from pipeline.staging import stage
from pipeline.thumbnails import read_thumbnail
from pipeline.tiling import PairYX, lay_tiles, measure_mask_fractions, measure_tile_extent_yx
from pipeline.tissue import MaskMethod, find_tissue

_MASK_SIDE_LIMIT_PX: Final = 8192
# A tile of pure glass is never a tile of tissue, even where the setting asks for no tissue.
_LEAST_TISSUE: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class SlideSurvey:
    """What the first pass found on one slide.

    Args:
        slide: The slide.
        mpp_yx: um per level-0 pixel.
        mpp_source: Where that is from.
        mask_method: How tissue was told from glass.
        origins_yx: (n, 2) int64, the tiles to read, level-0 pixels, row by row.
        tissue_fraction: (n,) float32.
        lesion_fraction: (n,) float32; NaN where nobody annotated.
        label: (n,) int8, of `records.Label`.
        tissue_um2: (n,) float64, tissue that each tile stands for in the account. Tiles that
            overlap share it, so that nothing counts twice.
        coverage: um^2 of tissue in all, and by fate: `tiled`, `below_min_tissue`,
            `not_sampled`, `outside_tiles`. The fates add up to `tissue`.
    """

    slide: Slide
    mpp_yx: tuple[float, float]
    mpp_source: MppSource
    mask_method: MaskMethod
    origins_yx: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    lesion_fraction: NDArray[np.float32]
    label: NDArray[np.int8]
    tissue_um2: NDArray[np.float64]
    coverage: dict[str, float]


def survey_slide(
    slide: Slide, settings: SlideSettings, *, review_url: str | None = None
) -> SlideSurvey:
    """Find the tissue of a slide, lay tiles over it and measure their lesion shares.

    Where the file is too corrupt to show whether there is tissue, the place counts as tissue:
    its tiles are attempted, and those that cannot be read are accounted for as unreadable.

    Args:
        slide: Which one.
        settings: How.
        review_url: Where to put the review picture (PNG), or None for none.

    Raises:
        SourceError: The slide or its annotations cannot be used.
        StorageError: One of them cannot be fetched.
    """
    with (
        stage(slide.url, slide.version) as path,
        open_slide(path, item=slide.url, mpp_override_um=settings.mpp_override_um) as reader,
    ):
        thumbnail = read_thumbnail(reader, _mask_side_px(reader, settings.mask_mpp_um))
        shape_yx, mpp_yx, mpp_source = reader.level_shapes_yx[0], reader.mpp_yx, reader.mpp_source
    extent_yx, stride_yx = _measure_grid(slide, mpp_yx, settings)
    found = find_tissue(thumbnail.pixels)
    mask = found.is_tissue | ~thumbnail.is_readable
    lesions = _read_lesions(slide, shape_yx, settings)
    grid = _lay_over_tissue(mask, shape_yx, extent_yx, stride_yx)
    holds_tissue = grid.tissue_fraction >= max(settings.min_tissue_fraction, _LEAST_TISSUE)
    chosen = _sample(np.flatnonzero(holds_tissue), slide.slide_id, settings)
    origins_yx = grid.origins_yx[chosen]
    lesion_fraction = _share_lesions(lesions, origins_yx, extent_yx)
    if review_url:
        picture = draw_review(thumbnail.pixels, mask, shape_yx, origins_yx, extent_yx, lesions)
        storage.write_bytes(review_url, picture)
    px_um2 = mpp_yx[0] * mpp_yx[1]
    return SlideSurvey(
        slide=slide,
        mpp_yx=mpp_yx,
        mpp_source=mpp_source,
        mask_method=found.method,
        origins_yx=origins_yx,
        tissue_fraction=grid.tissue_fraction[chosen].astype(np.float32),
        lesion_fraction=lesion_fraction,
        label=label_tiles(lesion_fraction, settings.lesion_threshold),
        tissue_um2=grid.tissue_px2[chosen] * px_um2,
        coverage={
            fate: float(area_px2 * px_um2)
            for fate, area_px2 in _account(mask, shape_yx, grid, holds_tissue, chosen).items()
        },
    )


def label_tiles(lesion_fraction: NDArray[np.float32], lesion_threshold: float) -> NDArray[np.int8]:
    """Normal without any lesion, anomalous above the threshold, else unknown.

    Args:
        lesion_fraction: (n,), NaN where nobody knows.
        lesion_threshold: Share above which a tile is anomalous.

    Returns:
        (n,) int8, of `records.Label`.
    """
    label = np.full(lesion_fraction.shape, Label.UNKNOWN, np.int8)
    label[lesion_fraction == 0.0] = Label.NORMAL
    label[lesion_fraction > lesion_threshold] = Label.ANOMALOUS
    return label


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Every tile of a slide; `tissue_px2` is the tissue that no earlier tile stands for."""

    origins_yx: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    tissue_px2: NDArray[np.float64]


def _lay_over_tissue(
    mask: NDArray[np.bool_], shape_yx: PairYX, extent_yx: PairYX, stride_yx: PairYX
) -> _Grid:
    origins_yx = lay_tiles(shape_yx, extent_yx, stride_yx)
    cell_yx = (min(extent_yx[0], stride_yx[0]), min(extent_yx[1], stride_yx[1]))
    cell_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, cell_yx)
    tissue_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, extent_yx)
    return _Grid(origins_yx, tissue_fraction, cell_fraction * cell_yx[0] * cell_yx[1])


def _account(
    mask: NDArray[np.bool_],
    shape_yx: PairYX,
    grid: _Grid,
    holds_tissue: NDArray[np.bool_],
    chosen: NDArray[np.int64],
) -> dict[str, float]:
    """Tissue in level-0 px^2, in all and by fate."""
    tissue = float(mask.mean()) * shape_yx[0] * shape_yx[1]
    tiled = float(grid.tissue_px2[chosen].sum())
    below = float(grid.tissue_px2[~holds_tissue].sum())
    not_sampled = float(grid.tissue_px2[holds_tissue].sum()) - tiled
    return {
        "tissue": tissue,
        "tiled": tiled,
        "below_min_tissue": below,
        "not_sampled": max(0.0, not_sampled),
        "outside_tiles": max(0.0, tissue - tiled - below - not_sampled),
    }


def _mask_side_px(reader: SlideReader, mask_mpp_um: float) -> int:
    sides_um = np.multiply(reader.level_shapes_yx[0], reader.mpp_yx)
    return min(_MASK_SIDE_LIMIT_PX, ceil(float(sides_um.max()) / mask_mpp_um))


def _measure_grid(
    slide: Slide, mpp_yx: tuple[float, float], settings: SlideSettings
) -> tuple[PairYX, PairYX]:
    """Extent and stride in level-0 pixels."""
    stride_px = settings.stride_px or settings.tile_size_px
    try:
        return (
            measure_tile_extent_yx(mpp_yx, settings.mpp_um, settings.tile_size_px),
            measure_tile_extent_yx(mpp_yx, settings.mpp_um, stride_px),
        )
    except ValueError as error:
        raise SourceError(slide.url, str(error), "Or leave the slide out") from error


def _read_lesions(slide: Slide, shape_yx: PairYX, settings: SlideSettings) -> BaseGeometry | None:
    """The lesions on a slide, empty for a normal one; None where nobody outlined them."""
    if slide.annotation_url is None:
        return shapely.Polygon() if slide.label is Label.NORMAL else None
    lesions = outline_lesions(
        parse_annotations(storage.read_bytes(slide.annotation_url), slide.annotation_url),
        lesion_groups=settings.lesion_groups,
        excluded_groups=settings.excluded_groups,
        item=slide.annotation_url,
    )
    if lesions.is_empty:
        return None if slide.label is Label.ANOMALOUS else lesions
    if slide.label is Label.NORMAL:
        raise SourceError(
            slide.annotation_url,
            f"outlines lesions on {slide.slide_id}, which is labelled normal",
            "Correct the label or remove the annotation",
        )
    if not lesions.intersects(shapely.box(0, 0, shape_yx[1], shape_yx[0])):
        left, top, right, bottom = lesions.bounds
        raise SourceError(
            slide.annotation_url,
            f"all lesions (y {top:.0f} to {bottom:.0f}, x {left:.0f} to {right:.0f}) lie outside "
            f"the slide of {shape_yx[0]} x {shape_yx[1]} px (y, x)",
            "Check that the annotation belongs to this slide",
        )
    return lesions


def _share_lesions(
    lesions: BaseGeometry | None, origins_yx: NDArray[np.int64], extent_yx: PairYX
) -> NDArray[np.float32]:
    if lesions is None:
        return np.full(len(origins_yx), np.nan, np.float32)
    return measure_lesion_fractions(lesions, origins_yx, extent_yx).astype(np.float32)


def _sample(
    candidates: NDArray[np.int64], slide_id: str, settings: SlideSettings
) -> NDArray[np.int64]:
    """At most `max_tiles_per_slide` of the candidates, in order; other slides change nothing."""
    limit = settings.max_tiles_per_slide
    if limit is None or len(candidates) <= limit:
        return candidates
    entropy = int.from_bytes(sha256(slide_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng([settings.seed, entropy])
    return np.sort(generator.choice(candidates, limit, replace=False))
