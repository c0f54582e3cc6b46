"""Quality of a tile, as attributes: what to do about it is the user's policy. Pure.

Every function takes uint8 (n, y, x, 3), RGB, and gives float32 (n,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

# ITU-R BT.601 luma.
_LUMA: Final = (np.float32(0.299), np.float32(0.587), np.float32(0.114))
_BLANK_BRIGHTNESS: Final = 215
_BLANK_CHROMA: Final = 16
_PEN_MARGIN: Final = 15
_RED_PEN_MARGIN: Final = 110
_BLACK_PEN_BRIGHTNESS: Final = 60

# So many pixels at once: the arrays in between stay in a core's own cache.
_BATCH_PX: Final = 1 << 16

QUALITY_COLUMNS: Final = ("laplacian_variance", "saturation", "blank_fraction", "pen_fraction")


def measure_quality(tiles: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    """Measure every attribute, by the name of its column (`QUALITY_COLUMNS`)."""
    columns = {name: np.empty(len(tiles), np.float32) for name in QUALITY_COLUMNS}
    step = max(1, _BATCH_PX // max(1, tiles.shape[1] * tiles.shape[2]))
    for start in range(0, len(tiles), step):
        batch = slice(start, start + step)
        planes = _Planes.of(tiles[batch])
        columns["laplacian_variance"][batch] = _laplacian_variance(planes)
        columns["saturation"][batch] = _saturation(planes)
        columns["blank_fraction"][batch] = _blank_fraction(planes)
        columns["pen_fraction"][batch] = _pen_fraction(planes)
    return columns


def measure_laplacian_variance(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Variance of the four-neighbour Laplacian of the luma: low is blurred (or featureless).

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
    """
    return _laplacian_variance(_Planes.of(tiles))


def measure_saturation(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean saturation of HSV, 0 to 1; black pixels have none."""
    return _saturation(_Planes.of(tiles))


def measure_blank_fraction(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of pixels that are bare glass: bright and colourless."""
    return _blank_fraction(_Planes.of(tiles))


def measure_pen_fraction(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of pixels in colours that haematoxylin and eosin do not make: marker, ink, shadow.

    In both stains green is the weakest channel; where it beats red, the pen is green or blue.
    A red pen exceeds both other channels by more than eosin or blood does; a black one is dark
    without colour.
    """
    return _pen_fraction(_Planes.of(tiles))


@dataclass(frozen=True, slots=True, eq=False)
class _Planes:
    """Channels of tiles, brightest channel, and chroma (brightest less darkest): (n, y, x)."""

    red: NDArray[np.uint8]
    green: NDArray[np.uint8]
    blue: NDArray[np.uint8]
    brightest: NDArray[np.uint8]
    chroma: NDArray[np.uint8]

    @classmethod
    def of(cls, tiles: NDArray[np.uint8]) -> Self:
        red, green, blue = np.ascontiguousarray(np.moveaxis(tiles, -1, 0))
        brightest = np.maximum(np.maximum(red, green), blue)
        darkest = np.minimum(np.minimum(red, green), blue)
        return cls(red, green, blue, brightest, brightest - darkest)


def _laplacian_variance(planes: _Planes) -> NDArray[np.float32]:
    luma = np.multiply(planes.red, _LUMA[0], dtype=np.float32)
    luma += np.multiply(planes.green, _LUMA[1], dtype=np.float32)
    luma += np.multiply(planes.blue, _LUMA[2], dtype=np.float32)
    laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1]
    laplacian += luma[:, 1:-1, :-2]
    laplacian += luma[:, 1:-1, 2:]
    laplacian -= 4 * luma[:, 1:-1, 1:-1]
    values = laplacian.reshape(len(luma), -1)
    mean = values.mean(axis=1, dtype=np.float64)
    variance: NDArray[np.float64] = np.square(values).mean(axis=1, dtype=np.float64) - mean**2
    return variance.clip(0).astype(np.float32)


def _saturation(planes: _Planes) -> NDArray[np.float32]:
    saturation = np.divide(planes.chroma, np.maximum(planes.brightest, 1), dtype=np.float32)
    return np.asarray(saturation.mean(axis=(1, 2), dtype=np.float64), np.float32)


def _blank_fraction(planes: _Planes) -> NDArray[np.float32]:
    return _share((planes.brightest >= _BLANK_BRIGHTNESS) & (planes.chroma < _BLANK_CHROMA))


def _pen_fraction(planes: _Planes) -> NDArray[np.float32]:
    is_green_or_blue = _exceeds(planes.green, planes.red, _PEN_MARGIN)
    is_red = _exceeds(planes.red, np.maximum(planes.green, planes.blue), _RED_PEN_MARGIN)
    is_black = (planes.brightest < _BLACK_PEN_BRIGHTNESS) & (planes.chroma < _BLANK_CHROMA)
    return _share(is_green_or_blue | is_red | is_black)


def _exceeds(
    channel: NDArray[np.uint8], other: NDArray[np.uint8], margin: int
) -> NDArray[np.bool_]:
    """Whether a channel is larger by more than the margin, in unsigned bytes throughout."""
    return (channel > other) & (channel - other > margin)


def _share(is_so: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of the pixels of each tile."""
    counts = [np.count_nonzero(tile) for tile in is_so]
    return np.asarray(np.array(counts) / is_so[0].size, np.float32)
