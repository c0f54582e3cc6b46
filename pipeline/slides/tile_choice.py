"""Which tiles of a slide are taken, what they show, and what becomes of the other tissue. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pipeline.records import Label, Slide
from pipeline.slides.annotations import measure_lesion_fractions
from pipeline.slides.settings import SlideSettings
from pipeline.slides.tiling import PairYX, lay_tiles, measure_mask_fractions

# A tile of pure glass is never a tile of tissue, even where the setting asks for no tissue.
_LEAST_TISSUE: Final = 1e-9


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


def name_states(lesion_fraction: NDArray[np.float32], lesion_threshold: float) -> NDArray[Any]:
    """What a tile shows: `normal`, `tumour`, `mixed` between the two, or `unknown`.

    Args:
        lesion_fraction: (n,), NaN where nobody knows.
        lesion_threshold: Share above which a tile is `tumour`.

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
        origins_yx: (n, 2), level-0 pixels.
        tissue_fraction: (n,), 0 to 1.
        tissue_px2: (n,), tissue that no earlier tile stands for, level-0 px^2.
    """

    origins_yx: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    tissue_px2: NDArray[np.float64]


def lay_over_tissue(
    mask: NDArray[np.bool_], shape_yx: PairYX, extent_yx: PairYX, stride_yx: PairYX
) -> Grid:
    """Lay tiles side by side, or overlapping, over a whole slide and measure their tissue.

    Args:
        mask: bool (y, x), tissue, over the whole slide.
        shape_yx: Of the slide, level-0 pixels.
        extent_yx: Of a tile, level-0 pixels.
        stride_yx: From one tile to the next, level-0 pixels.
    """
    origins_yx = lay_tiles(shape_yx, extent_yx, stride_yx)
    cell_yx = (min(extent_yx[0], stride_yx[0]), min(extent_yx[1], stride_yx[1]))
    cell_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, cell_yx)
    tissue_fraction = measure_mask_fractions(mask, shape_yx, origins_yx, extent_yx)
    return Grid(origins_yx, tissue_fraction, cell_fraction * cell_yx[0] * cell_yx[1])


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Which tiles of a grid are taken, and why the others are not; all are indices of tiles.

    Args:
        chosen: (n,) taken.
        lesion_fraction: (n,) of these.
        below: Without enough tissue.
        outside: Outside lesions, where only lesions are wanted.
        not_sampled: Beyond the number of tiles wanted.
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
        slide: The slide.
        grid: All of its tiles.
        lesions: Their outlines, (x, y) in level-0 pixels; None where nobody knows.
        extent_yx: Of a tile, level-0 pixels.
        settings: How much tissue, how many tiles, lesions only or not.
        is_partly_annotated: Whether a tile without an outline may show a lesion all the same.
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
    """Tissue in level-0 px^2, in all and by fate."""
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
    """At most `max_tiles_per_slide` of the candidates, in order; other slides change nothing."""
    limit = settings.max_tiles_per_slide
    if limit is None or len(candidates) <= limit:
        return candidates
    entropy = int.from_bytes(sha256(slide_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng([settings.seed, entropy])
    return np.sort(generator.choice(candidates, limit, replace=False))
