"""Headers that break the grey-scale rules of the standard and are understood, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pipeline.dicom.pixels import Rendered, render_pixels
from pipeline.errors import SourceError
from tests.support.made.dicom import make_dicom, make_lut, ramp, render, scale

WINDOW = {"WindowCenter": "1500", "WindowWidth": "2001"}
STORED = ramp(0, 4095)
WINDOWED = scale(STORED, 499.5, 2499.5)
WHOLE = scale(STORED, 0, 4095)


def render_12(**attributes: Any) -> Rendered:
    return render_pixels(make_dicom(STORED, bits_stored=12, **attributes), "image")


def cut_lut(entries: int, described: int, bits: int = 12) -> Dataset:
    lut = make_lut(list(range(entries)), first=0, bits=bits)
    lut.LUTDescriptor = [described, 0, bits]
    return lut


@pytest.mark.parametrize(
    ("declared", "used", "white"), [(16, 12, 12), (16, 14, 14), (12, 10, 10), (16, 9, 10)]
)
def test_a_lut_that_declares_more_bits_than_it_uses_ends_where_its_entries_do(
    declared: int, used: int, white: int
) -> None:
    top = 2**used - 1
    entries = [round(i / 4095 * top) for i in range(4096)]
    pixels, _, remark = render_12(VOILUTSequence=[make_lut(entries, first=0, bits=declared)])
    np.testing.assert_array_equal(pixels, scale(np.array(entries)[STORED], 0, 2**white - 1))
    assert remark == f"its LUT declares {declared} bits and uses {used}: {2**white - 1} is white"


@pytest.mark.parametrize(("top", "bits"), [(40000, 16), (3000, 12), (150, 8)])
def test_a_lut_that_needs_its_bits_keeps_them(top: int, bits: int) -> None:
    entries = [round(i / 4095 * top) for i in range(4096)]
    pixels, _, remark = render_12(VOILUTSequence=[make_lut(entries, first=0, bits=bits)])
    np.testing.assert_array_equal(pixels, scale(np.array(entries)[STORED], 0, 2**bits - 1))
    assert remark == ""


def test_a_modality_lut_that_declares_too_many_bits_is_not_nearly_black() -> None:
    lut = make_lut(list(range(4096)), first=0, bits=16)
    pixels, _, remark = render_12(ModalityLUTSequence=[lut])
    np.testing.assert_array_equal(pixels, WHOLE)
    assert "4095 is white" in remark
    windowed = render_12(ModalityLUTSequence=[lut], **WINDOW)
    np.testing.assert_array_equal(windowed.pixels, WINDOWED)
    assert windowed.remark == ""


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_lut_with_too_few_entries_is_refused_and_not_read_as_bytes(bits: int) -> None:
    for entries in (255, 130, 1):
        with pytest.raises(SourceError, match=f"a LUT of {entries} entries, described as 256"):
            render_12(VOILUTSequence=[cut_lut(entries, 256, bits)])


def test_a_good_window_or_lut_beside_a_bad_lut_is_used() -> None:
    short = cut_lut(4095, 4096)
    pixels, _, remark = render_12(VOILUTSequence=[short], **WINDOW)
    np.testing.assert_array_equal(pixels, WINDOWED)
    assert remark == ("a LUT of 4095 entries, described as 4096 of 12 bits, which is passed over")
    flat = make_lut([7] * 3, first=0, bits=8, explanation="FLAT")
    np.testing.assert_array_equal(render_12(VOILUTSequence=[short, flat]).pixels, 7)
    dataset = make_dicom(STORED, bits_stored=12, VOILUTSequence=[flat, short], **WINDOW)
    np.testing.assert_array_equal(render(dataset), 7)
    with pytest.raises(SourceError, match="a LUT of 4095 entries"):
        render(dataset, 1)  # who names it, gets no other
    np.testing.assert_array_equal(render(dataset, 2), WINDOWED)


def test_a_lut_with_more_entries_than_it_describes_gives_the_first() -> None:
    pixels, _, remark = render_12(VOILUTSequence=[cut_lut(4097, 4096, 16)])
    np.testing.assert_array_equal(pixels, WHOLE)
    assert "4097 entries, of which the first 4096" in remark


@pytest.mark.parametrize("attributes", [WINDOW, {}])
def test_an_empty_lut_says_nothing(attributes: dict[str, Any]) -> None:
    pixels, _, remark = render_12(VOILUTSequence=[Dataset()], **attributes)
    np.testing.assert_array_equal(pixels, WINDOWED if attributes else WHOLE)
    assert remark == "an empty VOI LUT, which is passed over"


def test_a_lut_without_data_is_damaged() -> None:
    lut = make_lut([0, 1], first=0, bits=8)
    del lut.LUTData
    with pytest.raises(SourceError, match="a damaged VOI LUT"):
        render_12(VOILUTSequence=[lut])
    np.testing.assert_array_equal(render_12(VOILUTSequence=[lut], **WINDOW).pixels, WINDOWED)


@pytest.mark.parametrize(
    ("center", "width"),
    [("0", "0"), ("NaN", "NaN"), ("100", "inf"), ("-inf", "9"), ("7", "0"), ("7", ""), ("", "7")],
)
def test_a_window_that_says_nothing_is_none(center: str, width: str) -> None:
    pixels, _, remark = render_12(WindowCenter=center, WindowWidth=width)
    np.testing.assert_array_equal(pixels, WHOLE)
    assert "says nothing" in remark
    beside = {"WindowCenter": [center, "1500"], "WindowWidth": [width, "2001"]}
    np.testing.assert_array_equal(render_12(**beside).pixels, WINDOWED)


@pytest.mark.parametrize(
    ("centers", "widths"),
    [(["1500", "9"], "2001"), ("1500", ["2001", "9"]), (["1500", "NaN"], ["2001", "0"])],
)
def test_the_first_whole_window_counts(centers: Any, widths: Any) -> None:
    pixels, _, remark = render_12(WindowCenter=centers, WindowWidth=widths)
    np.testing.assert_array_equal(pixels, WINDOWED)
    assert remark == ""


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_a_window_narrower_than_one_is_exact(function: str | None) -> None:
    rescaled: dict[str, Any] = {"RescaleSlope": "0.0005", "RescaleIntercept": "-1"}
    pixels, _, remark = render_12(
        **rescaled, WindowCenter="0.1", WindowWidth="0.75", VOILUTFunction=function
    )
    np.testing.assert_array_equal(pixels, scale(STORED * 0.0005 - 1, 0.1 - 0.375, 0.1 + 0.375))
    assert bool(remark) == (function != "LINEAR_EXACT")


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (100, 3000), (7, 9)])
@pytest.mark.parametrize("signed", [False, True])
def test_without_a_window_a_small_part_of_the_range_is_spoken_of(
    signed: bool, low: int, high: int
) -> None:
    stored = ramp(low, high, "i2" if signed else "u2")
    limits = (-32768, 32767) if signed else (0, 65535)
    pixels, _, remark = render_pixels(make_dicom(stored), "image")
    np.testing.assert_array_equal(pixels, scale(stored, *limits))
    assert f"its pixels use {low} to {high} of 65536 values" in remark
    stated = {"SmallestImagePixelValue": low, "LargestImagePixelValue": high + 50}
    pixels, _, remark = render_pixels(make_dicom(stored, **stated), "image")
    np.testing.assert_array_equal(pixels, scale(stored, low, high + 50))
    assert f"black and white are the {low} and {high + 50}" in remark


@pytest.mark.parametrize(
    "stated",
    [
        {"SmallestImagePixelValue": 101, "LargestImagePixelValue": 4095},
        {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 2999},
        {"SmallestImagePixelValue": 0},
        {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 0},
    ],
)
def test_an_impossible_least_or_greatest_value_is_no_range(stated: dict[str, int]) -> None:
    stored = ramp(100, 3000)
    pixels, _, remark = render_pixels(make_dicom(stored, **stated), "image")
    np.testing.assert_array_equal(pixels, scale(stored, 0, 65535))
    assert "it may look black" in remark


def test_a_window_or_enough_values_need_no_remark() -> None:
    stated = {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 1300}
    quarter = ramp(0, 1300)
    pixels, _, remark = render_pixels(make_dicom(quarter, bits_stored=12, **stated), "image")
    np.testing.assert_array_equal(pixels, scale(quarter, 0, 4095))
    assert remark == ""
    narrow = make_dicom(ramp(0, 4095), bits_stored=None, **stated, **WINDOW)
    np.testing.assert_array_equal(render(narrow), WINDOWED)
    assert render_pixels(narrow, "image").remark == ""
