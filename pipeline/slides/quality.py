"""Measures the quality of tiles; what to do about it is the user's policy. Pure.

Tiles are uint8 (n, y, x, 3), RGB. The only importer of OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Self

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

_BLANK_BRIGHTNESS: Final = 215
_BLANK_CHROMA: Final = 16
_PEN_MARGIN: Final = 15
_RED_PEN_MARGIN: Final = 110
_BLACK_PEN_BRIGHTNESS: Final = 60
# Saturation less intensity, both 0 to 1: single layers of tissue stay below.
_FOLD_FROM: Final = 0.3

QUALITY_COLUMNS: Final = (
    "laplacian_variance",
    "saturation",
    "blank_fraction",
    "pen_fraction",
    "fold_fraction",
)

# OpenCV's thread count belongs to the process: threads that set and restore it take turns.
_THREAD_COUNT: Final = Lock()


def measure_quality(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure every attribute of tiles; a batch takes less time than its tiles one by one.

    - `laplacian_variance`: Variance of the four-neighbour Laplacian of the luma (ITU-R BT.601, in
      whole steps); low is blurred or featureless. Pech-Pacheco et al., Diatom autofocusing in
      brightfield microscopy, ICPR 2000.
    - `saturation`: Mean saturation of HSV, 0 to 1; black pixels have none.
    - `blank_fraction`: Share of pixels that are bare glass, bright and colourless.
    - `pen_fraction`: Share of pixels in colours that haematoxylin and eosin do not make: marker,
      ink, shadow. In both stains green is the weakest channel; where it beats red, the pen is
      green or blue. A red pen exceeds both other channels by more than eosin or blood does; a
      black one is dark without colour.
    - `fold_fraction`: Share of pixels that look like folded tissue. Two layers of stain are both
      darker and more saturated than one, so that the saturation of HSV exceeds the intensity, the
      mean of R, G and B, by more than 0.3; what looks like pen is left out. After Kothari et al.,
      Eliminating tissue-fold artifacts in histopathological whole-slide images, J Pathol Inform
      2013, 4:22, whose threshold adapts to the slide. For haematoxylin and eosin; dense lymphoid
      tissue comes close.

    The variance is measured at half the tile's size, each pixel the mean of 2 x 2 (an odd last row
    or column is left out), as the sensor's noise is no sharpness. The rest is measured at a
    quarter of it, as no pen and no glass is finer.

    Args:
        tiles: uint8 (n, y, x, 3), RGB, at least 4 px a side.

    Returns:
        (n, 5), in the order of `QUALITY_COLUMNS`.
    """
    with _one_thread():
        halves = _halve(tiles)
        quarters = _Colours.of(_halve(halves))
        measures = (_saturation, _blank_fraction, _pen_fraction, _fold_fraction)
        columns = [_laplacian_variance(halves), *(measure(quarters) for measure in measures)]
    return np.array(columns).T


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread: a worker has a core, and tiles are small."""
    with _THREAD_COUNT:
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield
        finally:
            cv2.setNumThreads(before)


@dataclass(frozen=True, slots=True, eq=False)
class _Colours:
    """Tiles that are stacked vertically: planes of (count * y, x), channels uint8.

    Saturation is float32, 0 to 1.
    """

    count: int
    red: MatLike
    green: MatLike
    blue: MatLike
    brightest: MatLike
    chroma: MatLike
    saturation: MatLike
    is_pen: NDArray[np.bool_]

    @classmethod
    def of(cls, tiles: NDArray[np.uint8]) -> Self:
        red, green, blue = cv2.split(_stack(tiles))
        brightest = np.maximum(np.maximum(red, green), blue)
        darkest = np.minimum(np.minimum(red, green), blue)
        chroma = brightest - darkest
        saturation = cv2.divide(chroma, np.maximum(brightest, 1), dtype=cv2.CV_32F)
        is_pen = _is_pen(red, green, blue, brightest, chroma)
        return cls(len(tiles), red, green, blue, brightest, chroma, saturation, is_pen)

    def cut(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Cut a plane into tiles, (count, y, x)."""
        return plane.reshape(self.count, -1, plane.shape[1])


def _stack(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stack tiles vertically: (n * y, x, 3)."""
    return tiles.reshape(-1, *tiles.shape[2:])


def _halve(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve the size of every tile, (n, y, x, 3)."""
    count, height, width = len(tiles), tiles.shape[1] // 2, tiles.shape[2] // 2
    whole_pairs = np.ascontiguousarray(tiles[:, : 2 * height, : 2 * width])
    shape = width, count * height
    halves = cv2.resize(_stack(whole_pairs), shape, interpolation=cv2.INTER_AREA)
    return np.asarray(halves, np.uint8).reshape(count, height, width, 3)


def _laplacian_variance(tiles: NDArray[np.uint8]) -> list[float]:
    luma = cv2.cvtColor(_stack(tiles), cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(luma, cv2.CV_16S).reshape(tiles.shape[:3])
    # At a tile's edges there are not four neighbours of its own.
    return [_variance(tile) for tile in laplacian[:, 1:-1, 1:-1]]


def _variance(values: NDArray[np.int16]) -> float:
    """Compute a variance from whole, exact sums: much faster than OpenCV's own."""
    mean = cv2.sumElems(values)[0] / values.size
    return cv2.norm(values, cv2.NORM_L2SQR) / values.size - mean**2


def _saturation(tiles: _Colours) -> list[float]:
    return [cv2.mean(tile)[0] for tile in tiles.cut(tiles.saturation)]


def _blank_fraction(tiles: _Colours) -> list[float]:
    is_blank = (tiles.brightest >= _BLANK_BRIGHTNESS) & (tiles.chroma < _BLANK_CHROMA)
    return _share(tiles.cut(is_blank))


def _pen_fraction(tiles: _Colours) -> list[float]:
    return _share(tiles.cut(tiles.is_pen))


def _fold_fraction(tiles: _Colours) -> list[float]:
    total = cv2.add(cv2.add(tiles.red, tiles.green, dtype=cv2.CV_32F), tiles.blue, dtype=cv2.CV_32F)
    excess = cv2.scaleAdd(total, -1 / (3 * 255), tiles.saturation)
    return _share(tiles.cut((excess > _FOLD_FROM) & ~tiles.is_pen))


def _is_pen(
    red: MatLike, green: MatLike, blue: MatLike, brightest: MatLike, chroma: MatLike
) -> NDArray[np.bool_]:
    # OpenCV's differences end at zero, whereas NumPy's unsigned ones wrap around.
    is_green_or_blue = cv2.subtract(green, red) > _PEN_MARGIN
    is_red = cv2.subtract(red, np.maximum(green, blue)) > _RED_PEN_MARGIN
    is_black = (brightest < _BLACK_PEN_BRIGHTNESS) & (chroma < _BLANK_CHROMA)
    return np.asarray(is_green_or_blue | is_red | is_black)


def _share(is_so: NDArray[np.bool_]) -> list[float]:
    """Count the share of each tile's pixels."""
    return [int(np.count_nonzero(tile)) / tile.size for tile in is_so]
