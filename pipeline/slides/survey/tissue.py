"""Finds a slide's tissue: thumbnail in, mask out. Pure.

Each method measures one signal per pixel, which is low on the background and high on tissue:

- `chroma`, for haematoxylin and eosin: the spread between the strongest and the weakest of R, G
  and B. Glass is white or grey and a scanner's border is black: neither has any. Saturation (chroma
  over brightness) would instead be noise wherever it is dark, and brightness alone takes shadow
  for tissue.
- `ihc`, for pale haematoxylin with brown DAB or another chromogen: the absorbance (optical
  density, the logarithm of glass over pixel, Beer and Lambert) of the channel that absorbs most,
  against the slide's own glass. A pale blue-grey counterstain absorbs and has hardly any chroma.
- `dark-background`, for fluorescence: the brightness of the strongest channel, as a dye shines in
  one of them.

Otsu's threshold (1979) is computed on the logarithm of the signal, so that pale tissue stays on the
side of dark tissue, and kept between two limits: on a slide with hardly any background it would
split the tissue, on one with hardly any tissue the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from skimage.filters import threshold_otsu

TissueMethod: TypeAlias = Literal["chroma", "ihc", "dark-background"]
MaskMethod: TypeAlias = Literal["otsu", "fixed"]

# Smallest island that is tissue, and largest hole that is filled, where the user gives no area.
LEAST_ISLAND_PX: Final = 17
LARGEST_HOLE_PX: Final = 16

_BLACK_BELOW: Final = 30
# DAB may be as dark as a scanner's border, but it is brown.
_BORDER_CHROMA_BELOW: Final = 16
# Where nothing was scanned a slide is pure white; no dye saturates all three channels.
_UNSCANNED_FROM: Final = 250
# Glass is colourless and bright; where a slide shows next to none it is taken to be this bright.
_GLASS_CHROMA_BELOW: Final = 8
_GLASS_FROM: Final = 215
_GLASS_SHARE: Final = 0.001
_GLASS_PERCENTILE: Final = 90
_USUAL_GLASS: Final = 243
_ABSORBANCE_STEP: Final = 0.005
# Rows of an image that are counted at once, as NumPy counts in 8 bytes a pixel.
_BAND_ROWS: Final = 256

_Plane: TypeAlias = NDArray[np.uint8]
_Measured: TypeAlias = tuple[_Plane, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class _Method:
    """A signal, and where the threshold on it may lie.

    Args:
        measure: Function from RGB pixels to the signal, uint8 (y, x), and to where there may be
            tissue at all, bool (y, x).
        limits: Signal below which nothing is tissue, and above which everything is.
        fixed: Threshold where Otsu's is meaningless.
        least_separation: Class means closer than this are one class that Otsu cut in two.
    """

    measure: Callable[[NDArray[np.uint8]], _Measured]
    limits: tuple[float, float]
    fixed: float
    least_separation: float


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue on a thumbnail.

    Args:
        is_tissue: bool (y, x), True for tissue.
        method: Threshold used: `otsu`, or `fixed` where Otsu's is meaningless.
    """

    is_tissue: NDArray[np.bool_]
    method: MaskMethod


def find_tissue(
    pixels: NDArray[np.uint8],
    method: TissueMethod = "chroma",
    *,
    min_island_px: float = LEAST_ISLAND_PX,
    max_hole_px: float = LARGEST_HOLE_PX,
) -> TissueMask:
    """Find the tissue on a thumbnail.

    Args:
        pixels: uint8 (y, x, 3), RGB.
        method: Signal that tells tissue from background: `chroma` for haematoxylin and eosin,
            `ihc` for pale counterstains with a chromogen, `dark-background` for fluorescence.
        min_island_px: Area of the smallest island that is tissue, in pixels of the thumbnail.
        max_hole_px: Area of the largest hole that is filled, in pixels of the thumbnail.

    Returns:
        The mask; empty for a slide of background alone.
    """
    found = _METHODS[method]
    signal, may_be_tissue = found.measure(pixels)
    # A median keeps edges where they are; a mean would carry tissue out onto the glass.
    signal = np.asarray(cv2.medianBlur(signal, 3), np.uint8)
    threshold, used = _choose_threshold(_count(signal, may_be_tissue), found)
    is_tissue = (np.arange(256) > threshold)[signal]
    is_tissue &= may_be_tissue
    _clear_islands(is_tissue, lambda area_px: area_px < min_island_px)
    np.logical_not(is_tissue, out=is_tissue)
    _clear_islands(is_tissue, lambda area_px: area_px <= max_hole_px)
    return TissueMask(np.logical_not(is_tissue, out=is_tissue), used)


def _measure_chroma(pixels: NDArray[np.uint8]) -> _Measured:
    brightest, chroma = _find_chroma(pixels)
    return chroma, brightest >= _BLACK_BELOW


def _measure_absorbance(pixels: NDArray[np.uint8]) -> _Measured:
    brightest, chroma = _find_chroma(pixels)
    is_glass = (chroma < _GLASS_CHROMA_BELOW) & (brightest >= _GLASS_FROM)
    shows_glass = np.count_nonzero(is_glass) > _GLASS_SHARE * is_glass.size
    absorbance = np.zeros_like(chroma)
    for channel in np.moveaxis(pixels, -1, 0):
        glass = _USUAL_GLASS
        if shows_glass:
            glass = int(np.percentile(channel[is_glass], _GLASS_PERCENTILE))
        density = np.log10(glass / np.maximum(np.arange(256), 1))
        steps = np.clip(np.rint(density / _ABSORBANCE_STEP), 0, 255).astype(np.uint8)
        np.maximum(absorbance, steps[channel], out=absorbance)
    return absorbance, (brightest >= _BLACK_BELOW) | (chroma >= _BORDER_CHROMA_BELOW)


def _measure_brightness(pixels: NDArray[np.uint8]) -> _Measured:
    return pixels.max(axis=-1), pixels.min(axis=-1) < _UNSCANNED_FROM


_METHODS: Final[Mapping[TissueMethod, _Method]] = MappingProxyType(
    {
        # JPEG noise on glass stays below 6; pale fat has about 10; stained tissue 30 to 120.
        "chroma": _Method(_measure_chroma, (8.0, 24.0), 12.0, 10.0),
        # In steps of 0.005: unevenly lit glass has up to 4, a pale counterstain 10, DAB 40 to 200.
        "ihc": _Method(_measure_absorbance, (6.0, 16.0), 8.0, 8.0),
        # A camera's noise stays below 8; tissue without dye shines with 15 to 40 by itself.
        "dark-background": _Method(_measure_brightness, (10.0, 40.0), 16.0, 10.0),
    }
)


def _find_chroma(pixels: NDArray[np.uint8]) -> tuple[_Plane, _Plane]:
    """Return each pixel's strongest channel, and by how much it exceeds the weakest."""
    brightest = pixels.max(axis=-1)
    return brightest, brightest - pixels.min(axis=-1)


def _count(signal: _Plane, is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the pixels of each value, (256,)."""
    counts = np.zeros(256, np.int64)
    for band in _bands(len(signal)):
        counts += np.bincount(signal[band][is_counted[band]], minlength=256)
    return counts


def _choose_threshold(counts: NDArray[np.int64], method: _Method) -> tuple[float, MaskMethod]:
    values = np.flatnonzero(counts)
    if len(values) == 0 or values[-1] - values[0] < method.least_separation:
        return method.fixed, "fixed"
    histogram, edges = np.histogram(
        np.log1p(values.astype(np.float32)), 256, weights=counts[values]
    )
    centres = (edges[:-1] + edges[1:]) / 2
    log_otsu = threshold_otsu(hist=(histogram, centres))  # type: ignore[no-untyped-call]  # skimage has none
    otsu = float(np.expm1(log_otsu))
    above, below = (values[side] for side in (values > otsu, values <= otsu))
    separation = np.average(above, weights=counts[above]) - np.average(below, weights=counts[below])
    if separation < method.least_separation:
        return method.fixed, "fixed"
    return float(np.clip(otsu, *method.limits)), "otsu"


def _clear_islands(
    mask: NDArray[np.bool_], is_small: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> None:
    """Clear the islands of small area from a mask, in place; pixels touch by their edges."""
    islands, count = label(mask)
    areas_px = np.zeros(count + 1, np.int64)
    for band in _bands(len(mask)):
        areas_px += np.bincount(islands[band].ravel(), minlength=count + 1)
    is_kept = ~is_small(areas_px)
    for band in _bands(len(mask)):
        mask[band] &= is_kept[islands[band]]


def _bands(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BAND_ROWS):
        yield slice(start, start + _BAND_ROWS)
