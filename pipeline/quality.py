"""Quality of a tile, as attributes: what to do about it is the user's policy. Pure.

Every function takes uint8 (n, y, x, 3), RGB, and gives float32 (n,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# ITU-R BT.601 luma.
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_BLANK_BRIGHTNESS: Final = 215
_BLANK_CHROMA: Final = 16
_PEN_MARGIN: Final = 15
_RED_PEN_MARGIN: Final = 110
_BLACK_PEN_BRIGHTNESS: Final = 60

QUALITY_COLUMNS: Final = ("laplacian_variance", "saturation", "blank_fraction", "pen_fraction")


def measure_quality(tiles: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    """Measure every attribute, by the name of its column (`QUALITY_COLUMNS`)."""
    return {
        "laplacian_variance": measure_laplacian_variance(tiles),
        "saturation": measure_saturation(tiles),
        "blank_fraction": measure_blank_fraction(tiles),
        "pen_fraction": measure_pen_fraction(tiles),
    }


def measure_laplacian_variance(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Variance of the four-neighbour Laplacian of the luma: low is blurred (or featureless).

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
    """
    luma = tiles @ _LUMA
    centre = luma[:, 1:-1, 1:-1]
    laplacian = (
        luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    ) - 4 * centre
    variance: NDArray[np.float64] = laplacian.var(axis=(1, 2), dtype=np.float64)
    return variance.astype(np.float32)


def measure_saturation(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean saturation of HSV, 0 to 1; black pixels have none."""
    brightest, chroma = _split(tiles)
    return _mean(chroma / np.maximum(brightest, 1))


def measure_blank_fraction(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of pixels that are bare glass: bright and colourless."""
    brightest, chroma = _split(tiles)
    return _mean((brightest >= _BLANK_BRIGHTNESS) & (chroma < _BLANK_CHROMA))


def measure_pen_fraction(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of pixels in colours that haematoxylin and eosin do not make: marker, ink, shadow.

    In both stains green is the weakest channel; where it beats red, the pen is green or blue.
    A red pen exceeds both other channels by more than eosin or blood does; a black one is dark
    without colour.
    """
    red, green, blue = (tiles[..., channel].astype(np.int16) for channel in range(3))
    brightest, chroma = _split(tiles)
    is_green_or_blue = green - red > _PEN_MARGIN
    is_red = red - np.maximum(green, blue) > _RED_PEN_MARGIN
    is_black = (brightest < _BLACK_PEN_BRIGHTNESS) & (chroma < _BLANK_CHROMA)
    return _mean(is_green_or_blue | is_red | is_black)


def _split(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Brightest channel, and chroma (brightest less darkest), each (n, y, x)."""
    brightest = tiles.max(axis=-1).astype(np.int16)
    return brightest, brightest - tiles.min(axis=-1)


def _mean(values: NDArray[np.bool_ | np.floating]) -> NDArray[np.float32]:
    return np.asarray(values.mean(axis=(1, 2), dtype=np.float64), np.float32)
