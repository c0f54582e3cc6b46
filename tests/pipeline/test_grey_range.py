"""The range from black to white that a user chooses, in every kind of file that has none."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import SettingsError
from pipeline.grey_range import find_limits
from pipeline.images.plan import ImageSettings, make_image_settings, make_reader, plan_images
from pipeline.images.reader import decode_source
from pipeline.records import SourceImage
from tests.support.made.dicom import make_dicom, ramp, scale, write_dicom

STORED = ramp(100, 3000)
STORED[3, 4] = 65535  # a dead pixel


def encode(kind: str, stored: NDArray[Any], **attributes: Any) -> bytes:
    file = BytesIO()
    if kind == "dicom":
        return write_dicom(make_dicom(stored, **attributes))
    if kind == "png":
        Image.fromarray(stored).save(file, "PNG")
    else:
        photometric = "miniswhite" if kind == "white" else "minisblack"
        tifffile.imwrite(file, stored, photometric=photometric, metadata=None)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["dicom", "png", "tiff", "white"])
@pytest.mark.parametrize(
    ("grey_range", "limits"),
    [
        ("full", (0, 65535)),
        ("0,4095", (0, 4095)),
        ("-50.5,1e3", (-50.5, 1000)),
        ("percentiles", tuple(np.percentile(STORED, (0.5, 99.5), method="nearest"))),
    ],
)
def test_a_deep_file_without_a_window_shows_the_range_that_was_chosen(
    kind: str, grey_range: str, limits: tuple[float, float]
) -> None:
    data = encode(kind, STORED)
    pixels, remark = decode_source(data, "image", grey_range=grey_range)
    expected = scale(STORED, *limits)
    np.testing.assert_array_equal(pixels[..., 0], 255 - expected if kind == "white" else expected)
    assert remark == ""


def test_the_outer_half_percents_are_cut_off() -> None:
    values = np.arange(2000, dtype=np.uint16)[::-1].reshape(40, 50)
    assert find_limits("percentiles", values) == (10.0, 1989.0)
    flat = np.full((17, 23), 9)
    assert find_limits("percentiles", flat) is None
    flat[2, 3] = 11
    assert find_limits("percentiles", flat) == (9.0, 11.0)


@pytest.mark.parametrize("kind", ["dicom", "png", "tiff"])
def test_files_of_8_bits_without_a_window_and_windows(kind: str) -> None:
    shallow = ramp(10, 200, "u1")
    for grey_range in ("full", "0,100", "percentiles"):
        pixels = decode_source(encode(kind, shallow), "image", grey_range=grey_range).pixels
        if kind != "dicom" or grey_range == "full":
            np.testing.assert_array_equal(pixels[..., 0], shallow)
        else:
            assert pixels.max() == 255
    if kind == "dicom":
        window = encode(kind, STORED, WindowCenter="1500", WindowWidth="2001")
        pixels = decode_source(window, "image", grey_range="percentiles").pixels
        np.testing.assert_array_equal(pixels[..., 0], scale(STORED, 499.5, 2499.5))


def test_limits_of_dicom_files_are_of_rescaled_values() -> None:
    rescaled = {"RescaleSlope": "-2", "RescaleIntercept": "10", "PixelPaddingValue": 65535}
    data = encode("dicom", STORED, PhotometricInterpretation="MONOCHROME1", **rescaled)
    values = -2.0 * STORED + 10
    is_padding = STORED == 65535
    pixels = decode_source(data, "image", grey_range="-4000,-300").pixels[..., 0]
    np.testing.assert_array_equal(pixels, np.where(is_padding, 0, scale(-values, 300, 4000)))
    ends = np.percentile(values[~is_padding], (0.5, 99.5), method="nearest")
    pixels = decode_source(data, "image", grey_range="percentiles").pixels[..., 0]
    expected = scale(-values, -ends[1], -ends[0])
    assert np.abs(np.where(is_padding, 0, expected) - pixels.astype(int)).max() <= 1


def test_alpha_is_not_scaled() -> None:
    file = BytesIO()
    alpha = np.where(STORED > 2000, 65535, 0).astype(np.uint16)
    pixels = np.stack([STORED, alpha], axis=-1)
    tifffile.imwrite(file, pixels, photometric="minisblack", extrasamples=["unassalpha"])
    found = decode_source(file.getvalue(), "image", grey_range="0,4095").pixels[..., 0]
    np.testing.assert_array_equal(found, np.where(alpha > 0, scale(STORED, 0, 4095), 0))


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_the_remark_on_a_narrow_range_names_the_option(kind: str) -> None:
    data = encode(kind, ramp(0, 4095))
    assert "`--grey-range` chooses" in decode_source(data, "image").remark
    assert decode_source(data, "image", grey_range="0,4095").remark == ""


@pytest.mark.parametrize("wrong", ["half", "5", "9,3", "4,4", "1,2,3", "a,b", "", "0, 9", "nan,3"])
def test_what_is_no_range_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError):
        make_image_settings(grey_range=wrong)
    with pytest.raises(ValidationError):
        ImageSettings(grey_range=wrong)


def test_a_dataset_keeps_the_range_for_the_images_that_are_scored() -> None:
    settings = make_image_settings(grey_range="0,4095", colour="grey")
    image = SourceImage("a", "a", "/nowhere/a.dcm", "1")
    spec, _ = plan_images([image], settings, source="made")
    assert spec.parameters["grey_range"] == "0,4095"
    assert make_reader(spec).grey_range == "0,4095"
