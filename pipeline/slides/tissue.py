"""Finds a slide's tissue: thumbnail in, mask out. Pure.

Tissue is recognised by its chroma, the spread between the strongest and the weakest of R, G and B.
Glass is white or grey and a scanner's border is black: neither has any. Saturation (chroma over
brightness) would instead be noise wherever it is dark, and brightness alone takes shadow for
tissue. Otsu's threshold (1979) is computed on the logarithm, so that pale fat stays on the side of
dark stroma, and kept between two limits: on a slide with hardly any glass it would split the
tissue, on one with hardly any tissue the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

MaskMethod: TypeAlias = Literal["otsu", "fixed"]

# Chroma (0-255) below which nothing is tissue, and above which everything is: JPEG noise on glass
# stays below 6; pale fat has about 10; stained tissue 30 to 120.
_CHROMA_LIMITS: Final = (8.0, 24.0)
_FIXED_CHROMA: Final = 12.0
_BLACK_BELOW: Final = 30
# Islands and holes up to this area are dropped and filled.
_SPECK_PX: Final = 16
# Class means closer than this are one class that Otsu cut in two.
_LEAST_SEPARATION: Final = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue on a thumbnail.

    Args:
        is_tissue: bool (y, x), True for tissue.
        method: Threshold used: `otsu`, or `fixed` where Otsu's is meaningless.
    """

    is_tissue: NDArray[np.bool_]
    method: MaskMethod


def find_tissue(pixels: NDArray[np.uint8]) -> TissueMask:
    """Find the tissue on a thumbnail.

    Args:
        pixels: uint8 (y, x, 3), RGB.

    Returns:
        The mask; empty for an all-white or all-black slide.
    """
    brightest = pixels.max(axis=-1)
    # A median keeps edges where they are; a mean would carry tissue out onto the glass.
    chroma = median_filter(brightest - pixels.min(axis=-1), size=3).astype(np.float32)
    is_lit = brightest >= _BLACK_BELOW
    threshold, method = _choose_threshold(chroma[is_lit])
    is_tissue = is_lit & (chroma > threshold)
    is_tissue = remove_small_objects(is_tissue, max_size=_SPECK_PX)
    is_tissue = remove_small_holes(is_tissue, max_size=_SPECK_PX)
    return TissueMask(is_tissue, method)


def _choose_threshold(chroma: NDArray[np.float32]) -> tuple[float, MaskMethod]:
    if chroma.size == 0 or np.ptp(chroma) < _LEAST_SEPARATION:
        return _FIXED_CHROMA, "fixed"
    log_otsu = threshold_otsu(np.log1p(chroma))  # type: ignore[no-untyped-call]  # skimage has none
    otsu = float(np.expm1(log_otsu))
    above = chroma > otsu
    if float(chroma[above].mean() - chroma[~above].mean()) < _LEAST_SEPARATION:
        return _FIXED_CHROMA, "fixed"
    return float(np.clip(otsu, *_CHROMA_LIMITS)), "otsu"
