"""Pixels that show nothing are black, and do not count where a range is looked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.dicom.pixels import render_pixels
from tests.support.made.dicom import SHAPE, make_dicom, ramp, scale

Y, X = np.indices(SHAPE)


@pytest.mark.parametrize(
    "inverse", [{"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}]
)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("limit", [None, 300, -300])
def test_padding_stays_black_though_the_presentation_inverts(
    inverse: dict[str, str], signed: bool, limit: int | None
) -> None:
    low = -2048 if signed else 0
    stored = ramp(low, low + 4095, "i2" if signed else "u2")
    value = low if limit is None else low + 500
    ends = sorted((value, value + (limit or 0)))
    attributes: dict[str, Any] = {"PixelPaddingValue": value, **inverse}
    if limit is not None:
        attributes["PixelPaddingRangeLimit"] = value + limit
    pixels, _, remark = render_pixels(make_dicom(stored, bits_stored=12, **attributes), "image")
    is_padding = (stored >= ends[0]) & (stored <= ends[1])
    expected = scale(-stored.astype(float), -(low + 4095), -low)
    assert is_padding.sum() > 0
    np.testing.assert_array_equal(pixels, np.where(is_padding, 0, expected))
    assert remark == ""


def test_padding_may_be_written_with_the_other_sign() -> None:
    stored = ramp(-2048, 2047, "i2")
    for written in (2048, 63488):  # -2048 in 12 and in 16 bits
        dataset = make_dicom(stored, bits_stored=12, PhotometricInterpretation="MONOCHROME1")
        dataset.add_new(0x00280120, "US", written)
        pixels = render_pixels(dataset, "image").pixels
        assert (pixels[stored == -2048] == 0).all()
        assert (pixels[stored < -2000] > 200).sum() > 1


@pytest.mark.parametrize("value", [5000, -1])
def test_padding_that_cannot_be_stored_is_none(value: int) -> None:
    dataset = make_dicom(ramp(0, 4095), bits_stored=12, PhotometricInterpretation="MONOCHROME1")
    whole = render_pixels(dataset, "image")
    dataset.add_new(0x00280120, "SS", value)
    np.testing.assert_array_equal(render_pixels(dataset, "image").pixels, whole.pixels)


def test_padding_does_not_count_as_used_range() -> None:
    stored = ramp(100, 3000)
    stored[2, 3] = 65535
    assert render_pixels(make_dicom(stored), "image").remark == ""
    pixels, _, remark = render_pixels(
        make_dicom(stored, PixelPaddingValue=65535, LargestImagePixelValue=3000), "image"
    )
    assert "its pixels use 100 to 3000" in remark
    assert pixels[2, 3] == 0
    assert pixels.max() == 255


def test_padding_that_would_leave_nothing_is_shown() -> None:
    dataset = make_dicom(ramp(0, 255, "u1"))
    whole = render_pixels(dataset, "image").pixels
    dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 0, 255
    pixels, _, remark = render_pixels(dataset, "image")
    np.testing.assert_array_equal(pixels, whole)
    assert "its padding is shown" in remark


RECTANGLE = {
    "ShutterLeftVerticalEdge": 4,
    "ShutterRightVerticalEdge": 15,
    "ShutterUpperHorizontalEdge": 3,
    "ShutterLowerHorizontalEdge": 9,
}
IN_RECTANGLE = (Y >= 2) & (Y <= 8) & (X >= 3) & (X <= 14)
CIRCLE = {"CenterOfCircularShutter": [9, 6], "RadiusOfCircularShutter": 5}
IN_CIRCLE = (Y - 8) ** 2 + (X - 5) ** 2 <= 25
# A triangle with a right angle at the top left, rows before columns.
POLYGON = {"VerticesOfThePolygonalShutter": [3, 5, 3, 15, 13, 5]}
IN_POLYGON = (Y >= 2) & (X >= 4) & (Y - 2 + X - 4 <= 10)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("presented", [None, 0, 65535])
@pytest.mark.parametrize(
    ("shape", "attributes", "visible"),
    [
        ("RECTANGULAR", RECTANGLE, IN_RECTANGLE),
        ("circular ", CIRCLE, IN_CIRCLE),
        ("POLYGONAL", POLYGON, IN_POLYGON),
        (["RECTANGULAR", "CIRCULAR"], {**RECTANGLE, **CIRCLE}, IN_RECTANGLE & IN_CIRCLE),
    ],
)
def test_what_lies_outside_a_shutter_is_black(
    shape: str, attributes: dict[str, Any], visible: Any, presented: int | None, photometric: str
) -> None:
    stored = ramp(900, 4095)
    kind = {"PhotometricInterpretation": photometric, "ShutterPresentationValue": presented}
    whole = render_pixels(make_dicom(stored, bits_stored=12, **kind), "image").pixels
    dataset = make_dicom(stored, bits_stored=12, ShutterShape=shape, **kind, **attributes)
    pixels, _, remark = render_pixels(dataset, "image")
    np.testing.assert_array_equal(pixels, np.where(visible, whole, 0))
    assert remark == ""


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"ShutterShape": "BITMAP"}, "its shape is BITMAP"),
        ({"ShutterShape": "DOE"}, "its shape is unknown"),
        ({"ShutterShape": "CIRCULAR"}, "damaged"),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3]}, "damaged"),
        ({"ShutterShape": "RECTANGULAR", **RECTANGLE, "ShutterRightVerticalEdge": 2}, "cover"),
    ],
)
def test_a_shutter_that_cannot_be_is_left_open_and_spoken_of(
    attributes: dict[str, Any], said: str
) -> None:
    whole = render_pixels(make_dicom(ramp(0, 255, "u1")), "image").pixels
    pixels, _, remark = render_pixels(make_dicom(ramp(0, 255, "u1"), **attributes), "image")
    np.testing.assert_array_equal(pixels, whole)
    assert said in remark
    assert "DOE" not in remark


def test_what_a_shutter_covers_does_not_count_as_used_range() -> None:
    stored = np.where(IN_RECTANGLE, ramp(0, 4095), 65535).astype("u2")
    dataset = make_dicom(stored, ShutterShape="RECTANGULAR", **RECTANGLE)
    assert "no window" in render_pixels(dataset, "image").remark
