"""Quality of a tile, as attributes: what to do about it is the user's policy. Pure.

Every function takes one tile, uint8 (y, x, 3), RGB. The only importer of OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

Tile: TypeAlias = NDArray[np.uint8]

_BLANK_BRIGHTNESS: Final = 215
_BLANK_CHROMA: Final = 16
_PEN_MARGIN: Final = 15
_RED_PEN_MARGIN: Final = 110
_BLACK_PEN_BRIGHTNESS: Final = 60

QUALITY_COLUMNS: Final = ("laplacian_variance", "saturation", "blank_fraction", "pen_fraction")


def measure_quality(tile: Tile) -> tuple[float, float, float, float]:
    """Measure every attribute, in the order of their columns (`QUALITY_COLUMNS`).

    They are those of the tile at half its size, each pixel the mean of 2 x 2 (an odd last row or
    column is left out): a quarter of the work, and the sensor's noise is no sharpness.
    """
    planes = _Planes.of(_halve(tile))
    return (
        _laplacian_variance(planes),
        _saturation(planes),
        _blank_fraction(planes),
        _pen_fraction(planes),
    )


def measure_laplacian_variance(tile: Tile) -> float:
    """Variance of the four-neighbour Laplacian of the luma: low is blurred (or featureless).

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000. Luma is that of
    ITU-R BT.601, in whole steps.
    """
    return _laplacian_variance(_Planes.of(tile))


def measure_saturation(tile: Tile) -> float:
    """Mean saturation of HSV, 0 to 1; black pixels have none."""
    return _saturation(_Planes.of(tile))


def measure_blank_fraction(tile: Tile) -> float:
    """Share of pixels that are bare glass: bright and colourless."""
    return _blank_fraction(_Planes.of(tile))


def measure_pen_fraction(tile: Tile) -> float:
    """Share of pixels in colours that haematoxylin and eosin do not make: marker, ink, shadow.

    In both stains green is the weakest channel; where it beats red, the pen is green or blue.
    A red pen exceeds both other channels by more than eosin or blood does; a black one is dark
    without colour.
    """
    return _pen_fraction(_Planes.of(tile))


@dataclass(frozen=True, slots=True, eq=False)
class _Planes:
    """Luma, channels, brightest channel, and chroma (brightest less darkest)."""

    luma: MatLike
    red: MatLike
    green: MatLike
    blue: MatLike
    brightest: MatLike
    chroma: MatLike

    @classmethod
    def of(cls, tile: MatLike) -> Self:
        red, green, blue = cv2.split(tile)
        brightest = np.maximum(np.maximum(red, green), blue)
        darkest = np.minimum(np.minimum(red, green), blue)
        luma = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
        return cls(luma, red, green, blue, brightest, brightest - darkest)


def _halve(tile: Tile) -> MatLike:
    height, width = (max(1, side // 2) for side in tile.shape[:2])
    return cv2.resize(
        tile[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA
    )


def _laplacian_variance(planes: _Planes) -> float:
    laplacian = cv2.Laplacian(planes.luma, cv2.CV_16S)
    # At the edges there are not four neighbours.
    _, deviation = cv2.meanStdDev(laplacian[1:-1, 1:-1])
    return float(deviation[0, 0]) ** 2


def _saturation(planes: _Planes) -> float:
    lit = np.maximum(planes.brightest, 1)
    return cv2.mean(cv2.divide(planes.chroma, lit, dtype=cv2.CV_32F))[0]


def _blank_fraction(planes: _Planes) -> float:
    return _share((planes.brightest >= _BLANK_BRIGHTNESS) & (planes.chroma < _BLANK_CHROMA))


def _pen_fraction(planes: _Planes) -> float:
    # OpenCV's differences end at zero, whereas NumPy's of unsigned bytes wrap round.
    is_green_or_blue = cv2.subtract(planes.green, planes.red) > _PEN_MARGIN
    others = np.maximum(planes.green, planes.blue)
    is_red = cv2.subtract(planes.red, others) > _RED_PEN_MARGIN
    is_black = (planes.brightest < _BLACK_PEN_BRIGHTNESS) & (planes.chroma < _BLANK_CHROMA)
    return _share(is_green_or_blue | is_red | is_black)


def _share(is_so: NDArray[np.bool_]) -> float:
    """Share of the pixels."""
    return int(np.count_nonzero(is_so)) / is_so.size
