from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.pixels.processing import apply_windowing

from pipeline.dicom.pixels import render_pixels
from pipeline.errors import SourceError
from tests.support.made.dicom import (
    SHAPE,
    assert_agree,
    make_dicom,
    make_lut,
    ramp,
    render,
    render_by_dcmtk,
    scale,
)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_span_black_to_white(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    stored = ramp(low, high, ("i" if signed else "u") + str(1 if bits == 8 else 2))
    image, facts, _ = render_pixels(make_dicom(stored, bits_stored=bits), "image")
    np.testing.assert_array_equal(image, scale(stored, low, high))
    assert (facts.shape_yx, facts.bits_stored, facts.is_signed) == (SHAPE, bits, signed)


def test_what_stands_in_the_unused_bits_does_not_matter() -> None:
    stored = ramp(0, 4095)
    plain = make_dicom(stored, bits_stored=12)
    overlaid = make_dicom(stored | 0xA000, bits_stored=12)
    np.testing.assert_array_equal(render(overlaid), render(plain))


RESCALED = {"RescaleSlope": "-0.5", "RescaleIntercept": "100"}


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_acts_on_rescaled_values(function: str) -> None:
    stored = ramp(0, 4095)
    window = {"WindowCenter": "-700", "WindowWidth": "899", "VOILUTFunction": function}
    values = stored * -0.5 + 100
    if function == "LINEAR":
        expected = scale(values, -700.5 - 449, -700.5 + 449)
    elif function == "LINEAR_EXACT":
        expected = scale(values, -1149.5, -250.5)
    else:
        expected = scale(1 / (1 + np.exp(-4 * (values + 700) / 899)), 0, 1)
    image = render(make_dicom(stored, bits_stored=12, **RESCALED, **window))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("width", ["1", "2", "800.5"])
def test_linear_windows_agree_with_pydicom(width: str) -> None:
    stored = ramp(0, 1023)
    dataset = make_dicom(stored, bits_stored=10, WindowCenter="300", WindowWidth=width)
    np.testing.assert_array_equal(render(dataset), scale(apply_windowing(stored, dataset), 0, 1023))


def test_luts_come_in_order_and_clip_at_their_ends() -> None:
    stored = ramp(0, 255, "u1")
    modality = make_lut([1000, 1200, 1300, 4000], first=100, bits=12)
    voi = make_lut([0, 50, 255], first=1200, bits=8)
    dataset = make_dicom(stored, ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    values = np.array([1000, 1200, 1300, 4000])[np.clip(stored.astype(int) - 100, 0, 3)]
    expected = np.array([0, 50, 255])[np.clip(values - 1200, 0, 2)]
    np.testing.assert_array_equal(render(dataset), expected)
    assert set(np.unique(expected)) == {0, 255}


def test_a_lut_of_8_bits_may_have_more_than_256_entries_packed_or_not() -> None:
    stored = ramp(0, 4095)
    entries = [i % 251 for i in range(4000)]
    expected = np.array(entries)[np.clip(stored, 0, 3999)]
    plain = make_lut(entries, first=0, bits=8)
    packed = make_lut(entries, first=0, bits=8)
    packed.LUTData = bytes(entries)
    for lut in (plain, packed):
        dataset = make_dicom(stored, bits_stored=12, VOILUTSequence=[lut])
        np.testing.assert_array_equal(render(dataset), expected)


def test_a_slope_needs_no_intercept() -> None:
    stored = ramp(0, 255, "u1")
    dataset = make_dicom(stored, RescaleSlope="2", WindowCenter="200.5", WindowWidth="129")
    np.testing.assert_array_equal(render(dataset), scale(2.0 * stored, 136, 264))


def test_a_lut_may_begin_below_zero() -> None:
    stored = ramp(-128, 127, "i1")
    voi = make_lut(list(range(0, 250, 10)), first=-12, bits=8)
    expected = 10 * np.clip(stored.astype(int) + 12, 0, 24)
    np.testing.assert_array_equal(render(make_dicom(stored, VOILUTSequence=[voi])), expected)


def test_the_voi_is_the_first_or_the_one_named() -> None:
    stored = ramp(0, 255, "u1")
    voi: dict[str, Any] = {
        "VOILUTSequence": [make_lut([7] * 3, first=0, bits=8, explanation="FLAT")],
        "WindowCenter": ["100", "200"],
        "WindowWidth": ["51", "11"],
        "WindowCenterWidthExplanation": ["LUNG", "BONE"],
    }
    dataset = make_dicom(stored, **voi)
    np.testing.assert_array_equal(render(dataset), np.full(SHAPE, 7))
    bone = scale(stored, 199.5 - 5, 199.5 + 5)
    np.testing.assert_array_equal(render(dataset, "bone"), bone)
    np.testing.assert_array_equal(render(dataset, 2), bone)
    np.testing.assert_array_equal(render(dataset, 1), scale(stored, 99.5 - 25, 99.5 + 25))
    for absent in ("SOFT TISSUE", 3, -1):
        with pytest.raises(SourceError, match="it has 3 VOI LUTs and windows"):
            render(dataset, absent)


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # both say the same: once
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),  # a contradiction: what every image must state wins
    ],
)
def test_inversion_happens_once(
    tmp_path: Path, photometric: str, shape: str | None, is_inverted: bool
) -> None:
    stored = ramp(0, 4095)
    window = {"WindowCenter": "1500", "WindowWidth": "2001"}
    dataset = make_dicom(
        stored,
        bits_stored=12,
        PhotometricInterpretation=photometric,
        PresentationLUTShape=shape,
        **window,
    )
    upright = make_dicom(stored, bits_stored=12, **window)
    image, facts, _ = render_pixels(dataset, "image")
    assert facts.is_inverted == is_inverted
    np.testing.assert_array_equal(render(upright), scale(stored, 499.5, 2499.5))
    values, ends = (
        (-stored.astype(float), (-2499.5, -499.5))
        if is_inverted
        else (stored.astype(float), (499.5, 2499.5))
    )
    np.testing.assert_array_equal(image, scale(values, *ends))
    # Of the contradiction DCMTK believes the other half.
    if (photometric, shape) != ("MONOCHROME1", "IDENTITY"):
        assert_agree(image, render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))


@pytest.mark.parametrize("signed", [False, True])
def test_made_files_agree_with_a_second_implementation(tmp_path: Path, signed: bool) -> None:
    stored = ramp(-2048, 2047, "i2") if signed else ramp(0, 4095)
    dataset = make_dicom(
        stored,
        bits_stored=12,
        RescaleSlope="0.5",
        RescaleIntercept="-30",
        WindowCenter="310",
        WindowWidth="640",
        PhotometricInterpretation="MONOCHROME1",
    )
    assert_agree(render(dataset), render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))
    entries = [round(4095 * (i / 4095) ** 1.7) for i in range(4096)]
    lut = make_lut(entries, first=-2048 if signed else 0, bits=12)
    dataset = make_dicom(stored, bits_stored=12, VOILUTSequence=[lut])
    assert_agree(render(dataset), render_by_dcmtk(dataset, tmp_path, "+Wl", "1"))


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_every_voi_that_can_be_chosen_agrees_with_a_second_implementation(
    tmp_path: Path, function: str
) -> None:
    luts = [
        make_lut([round(255 * (i / 4095) ** power) for i in range(4096)], first=0, bits=8)
        for power in (0.6, 2.2)
    ]
    windows = {"WindowCenter": ["310", "2900.5"], "WindowWidth": ["640", "333.25"]}
    dataset = make_dicom(
        ramp(0, 4095), bits_stored=12, VOILUTSequence=luts, VOILUTFunction=function, **windows
    )
    options = [("+Wl", "1"), ("+Wl", "2"), ("+Wi", "1"), ("+Wi", "2")]
    pictures = [render(dataset, voi) for voi in range(4)]
    for picture, chosen in zip(pictures, options, strict=True):
        assert_agree(picture, render_by_dcmtk(dataset, tmp_path, *chosen))
    assert len({picture.tobytes() for picture in pictures}) == 4
