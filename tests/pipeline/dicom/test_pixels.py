from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword

from pipeline.dicom.parse import parse_dicom
from pipeline.dicom.pixels import decode_dicom, describe_pixels
from pipeline.errors import SourceError
from tests.support.made.dicom import (
    SHAPE,
    assert_agree,
    make_dicom,
    make_lut,
    ramp,
    render,
    render_by_dcmtk,
    write_dicom,
)

# What becomes of the pixels of each real file: its shape, or why it has none.
END_STATES: dict[str, tuple[int, int] | str] = {
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": (1024, 1024),
    "CR1_6154_cspine_16x16_mono1": (16, 16),
    "CT_small.dcm": (128, 128),  # grey: the list of radiographs leaves it out, not the decoder
    "ExplVR_BigEnd.dcm": "colour",
    "Fake_MONOHR1.dcm": (1024, 1024),
    "MR_truncated.dcm": "cut off: 8130 of 8192 bytes",
    "RG1_J2KI.dcm": (1955, 1841),
    "RG2_JPLY.dcm": "damaged JPEG: a sequential scan of coefficients 0 to 0",
    "RG2_JPLY_fixed.dcm": (2140, 1760),
    "RG3_J2KI.dcm": (1760, 1760),
    "SC_rgb_jpeg_dcmtk.dcm": "colour",
    "SC_rgb_rle_16bit_2frame.dcm": "holds 2 frames",
    "SM_small_wsi.dcm": "holds 42 frames",
    "image_dfl.dcm": (512, 512),
    "meta_missing_tsyntax.dcm": "no transfer syntax",
    "no_meta.dcm": "no DICOM file",
}
TWINS = ("1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm", "Fake_MONOHR1.dcm")


@pytest.mark.parametrize("name", END_STATES)
def test_every_real_file_ends_in_its_state(shared_data: Path, name: str) -> None:
    data = (shared_data / "dicom" / name).read_bytes()
    expected = END_STATES[name]
    if isinstance(expected, str):
        with pytest.raises(SourceError, match=expected):
            decode_dicom(data, "image")
    else:
        assert decode_dicom(data, "image").pixels.shape == expected


def test_the_table_names_every_real_file(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "dicom").iterdir()} == set(END_STATES)


def test_monochrome1_and_its_monochrome2_twin_are_negatives(shared_data: Path) -> None:
    grey, negative = (
        decode_dicom((shared_data / "dicom" / name).read_bytes(), name).pixels for name in TWINS
    )
    assert grey.std() > 10
    np.testing.assert_array_equal(grey, 255 - negative)


@pytest.mark.parametrize(
    "name", [name for name, state in END_STATES.items() if not isinstance(state, str)]
)
def test_real_files_agree_with_a_second_implementation(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    data = (shared_data / "dicom" / name).read_bytes()
    dataset = parse_dicom(data, name)
    if "J2K" in name:  # DCMTK has no JPEG 2000: it gets the samples, and does the grey scale
        dataset.decompress(generate_instance_uid=False)
    options = ("+Wi", "1") if "WindowCenter" in dataset else ()
    assert_agree(decode_dicom(data, name).pixels, render_by_dcmtk(dataset, tmp_path, *options))


def test_facts_carry_orientation_in_lawful_words_only() -> None:
    lawful = make_dicom(ramp(0, 9), PatientOrientation=["L", "F"])
    assert describe_pixels(lawful, "image").orientation == "L\\F"
    named = make_dicom(ramp(0, 9), PatientOrientation=["DOE", "JOHN"])
    assert describe_pixels(named, "image").orientation == ""


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"NumberOfFrames": "3"}, "holds 3 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour image \\(RGB\\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": "DOE^JOHN"}, "unknown photometric"),
        ({"PhotometricInterpretation": None}, "no or an unknown photometric"),
        ({"Rows": None}, "no Rows"),
        ({"Rows": 1}, "a side needs at least"),
        ({"Rows": 60000, "Columns": 60000}, "at most"),
        ({"Rows": 18}, "cut off: 782 of 828 bytes"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits stored of 32"),
        ({"HighBit": 15}, "high bit 15"),
        ({"RescaleSlope": "0"}, "rescale slope 0"),
        ({"WindowCenter": "1", "WindowWidth": "-3"}, "a window of negative width"),
        ({"WindowCenter": "1", "WindowWidth": "2", "VOILUTFunction": "DOE"}, "unknown VOI LUT"),
        ({"VOILUTSequence": [make_lut([5000, 2], 0, 12)]}, "a LUT of 2 entries"),
        ({"VOILUTSequence": [make_lut([], 0, 12)]}, "grey-scale attributes are damaged|a LUT of 0"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_one_line(
    attributes: dict[str, Any], problem: str
) -> None:
    dataset = make_dicom(ramp(0, 4095), bits_stored=12, **{"HighBit": 11, **attributes})
    with pytest.raises(SourceError, match=problem) as caught:
        render(dataset)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "lawful"), [("NumberOfFrames", b"1 "), ("WindowWidth", b"77"), ("Modality", b"CR")]
)
def test_no_warning_or_message_quotes_the_file(
    caplog: pytest.LogCaptureFixture, keyword: str, lawful: bytes
) -> None:
    values = {"WindowCenter": "88", keyword: lawful.decode().strip()}
    data = write_dicom(make_dicom(ramp(0, 4095), bits_stored=12, **{"WindowWidth": "99", **values}))
    tag = tag_for_keyword(keyword)
    assert tag is not None
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    at = data.index(head, 132) + 8
    assert data[at : at + 2] == lawful
    planted = data[:at] + b"Qx" + data[at + 2 :]
    if keyword == "Modality":
        assert decode_dicom(planted, "image").pixels.shape == SHAPE
    else:
        with pytest.raises(SourceError, match="damaged") as caught:
            decode_dicom(planted, "image")
        assert "Qx" not in str(caught.value)
    assert "Qx" not in caplog.text
