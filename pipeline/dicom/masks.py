"""Pixels of a DICOM file that show nothing: padding and what a display shutter covers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from pipeline.dicom.grey import StoredForm

Mask: TypeAlias = NDArray[np.bool_]
_NOT_APPLIED: Final = "its display shutter is not applied"


def read_padding(dataset: Dataset, form: StoredForm) -> tuple[int, int] | None:
    """Read the values of pixels that only fill the rectangle (PS3.3 C.7.5.1.1.2).

    Args:
        dataset: Header with Pixel Padding Value and, where there is one, its Range Limit.
        form: Bits and sign of the stored values.

    Returns:
        The least and the greatest such value; None where there is none that can be stored.
    """
    if "PixelPaddingValue" not in dataset:
        return None
    with suppress(TypeError, ValueError):  # a damaged attribute is as good as none
        value = form.read(int(dataset.PixelPaddingValue))
        end = form.read(int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)))
        # Either may be the greater one, as padding may be white or black.
        if value is not None and end is not None:
            return min(value, end), max(value, end)
    return None


def draw_shutter(dataset: Dataset, shape_yx: tuple[int, int]) -> tuple[Mask | None, str]:
    """Draw what a display shutter leaves visible (PS3.3 C.7.6.11).

    Args:
        dataset: Header with the attributes of the shutter.
        shape_yx: Rows and columns of the image.

    Returns:
        bool (H, W), True where the image is visible, or None where there is no shutter or it
        cannot be applied; and words for the manifest in the latter case, else "".
    """
    given = dataset.get("ShutterShape")
    shapes = [given] if isinstance(given, str) else list(given or ())
    words = {str(shape).strip().upper() for shape in shapes} - {""}
    if not words:
        return None, ""
    if unknown := words - set(_DRAWERS):
        called = "BITMAP" if unknown == {"BITMAP"} else "unknown"
        return None, f"{_NOT_APPLIED}: its shape is {called}"
    try:
        masks = [_DRAWERS[word](dataset, shape_yx) for word in sorted(words)]
    except Exception as error:  # noqa: BLE001 - foreign bytes may raise anything
        return None, f"{_NOT_APPLIED}: it is damaged ({type(error).__name__})"
    visible: Mask = np.logical_and.reduce(masks)
    if not visible.any():
        return None, f"{_NOT_APPLIED}: it would cover the whole image"
    return visible, ""


def _draw_rectangle(dataset: Dataset, shape_yx: tuple[int, int]) -> Mask:
    """Rows and columns count from 1, and the edges are visible."""
    left, right = int(dataset.ShutterLeftVerticalEdge), int(dataset.ShutterRightVerticalEdge)
    top, bottom = (
        int(dataset.ShutterUpperHorizontalEdge),
        int(dataset.ShutterLowerHorizontalEdge),
    )
    y, x = np.ogrid[1 : shape_yx[0] + 1, 1 : shape_yx[1] + 1]
    mask: Mask = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
    return mask


def _draw_circle(dataset: Dataset, shape_yx: tuple[int, int]) -> Mask:
    centre_y, centre_x = (int(number) for number in dataset.CenterOfCircularShutter)
    radius = int(dataset.RadiusOfCircularShutter)
    y, x = np.ogrid[1 : shape_yx[0] + 1, 1 : shape_yx[1] + 1]
    mask: Mask = (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radius**2
    return mask


def _draw_polygon(dataset: Dataset, shape_yx: tuple[int, int]) -> Mask:
    numbers = [int(number) - 1 for number in dataset.VerticesOfThePolygonalShutter]
    corners_xy = list(zip(numbers[1::2], numbers[::2], strict=True))
    canvas = Image.new("1", (shape_yx[1], shape_yx[0]))
    ImageDraw.Draw(canvas).polygon(corners_xy, fill=1, outline=1)
    return np.asarray(canvas, np.bool_)


_DRAWERS: Final[Mapping[str, Callable[[Dataset, tuple[int, int]], Mask]]] = {
    "RECTANGULAR": _draw_rectangle,
    "CIRCULAR": _draw_circle,
    "POLYGONAL": _draw_polygon,
}
