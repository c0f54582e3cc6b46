from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom_files import parse_dicom
from pipeline.dicom_pixels import decode_dicom, describe_pixels, render_pixels
from pipeline.errors import SourceError
from tests.pipeline.made_dicom import SHAPE, make_dicom, make_lut, ramp, write_dicom

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


def render(dataset: Dataset, voi: int | str = 0) -> NDArray[np.uint8]:
    return render_pixels(dataset, "image", voi=voi)[0]


def scale(values: Any, low: float, high: float) -> NDArray[np.uint8]:
    """Grey of values between black and white."""
    unit = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
    return np.floor(unit * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("name", END_STATES)
def test_every_real_file_ends_in_its_state(shared_data: Path, name: str) -> None:
    data = (shared_data / "dicom" / name).read_bytes()
    expected = END_STATES[name]
    if isinstance(expected, str):
        with pytest.raises(SourceError, match=expected):
            decode_dicom(data, "image")
    else:
        assert decode_dicom(data, "image").shape == expected


def test_the_table_names_every_real_file(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "dicom").iterdir()} == set(END_STATES)


def test_monochrome1_and_its_monochrome2_twin_are_negatives(shared_data: Path) -> None:
    grey, negative = (
        decode_dicom((shared_data / "dicom" / name).read_bytes(), name) for name in TWINS
    )
    assert grey.std() > 10
    np.testing.assert_array_equal(grey, 255 - negative)


def render_by_dcmtk(dataset: Dataset, folder: Path, *options: str) -> NDArray[np.uint8]:
    """The grey that Debian's DICOM toolkit gives."""
    tool = shutil.which("dcmj2pnm")
    if tool is None:
        pytest.skip("dcmj2pnm is not installed: apt-get install dcmtk to run this test")
    file, picture = folder / "image.dcm", folder / "image.pgm"
    file.write_bytes(write_dicom(dataset))
    subprocess.run([tool, "+op", *options, file, picture], check=True, capture_output=True)
    with Image.open(picture) as image:
        return np.asarray(image)


def assert_agree(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1


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
    assert_agree(decode_dicom(data, name), render_by_dcmtk(dataset, tmp_path, *options))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_span_black_to_white(bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    stored = ramp(low, high, ("i" if signed else "u") + str(1 if bits == 8 else 2))
    image, facts = render_pixels(make_dicom(stored, bits_stored=bits), "image")
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
        stored, bits_stored=12, PhotometricInterpretation=photometric, PresentationLUTShape=shape,
        **window,
    )  # fmt: skip
    upright = make_dicom(stored, bits_stored=12, **window)
    image, facts = render_pixels(dataset, "image")
    assert facts.is_inverted == is_inverted
    np.testing.assert_array_equal(render(upright), scale(stored, 499.5, 2499.5))
    values, ends = (-stored.astype(float), (-2499.5, -499.5)) if is_inverted else (
        stored.astype(float), (499.5, 2499.5)
    )  # fmt: skip
    np.testing.assert_array_equal(image, scale(values, *ends))
    # Of the contradiction DCMTK believes the other half.
    if (photometric, shape) != ("MONOCHROME1", "IDENTITY"):
        assert_agree(image, render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))


@pytest.mark.parametrize("signed", [False, True])
def test_made_files_agree_with_a_second_implementation(tmp_path: Path, signed: bool) -> None:
    stored = ramp(-2048, 2047, "i2") if signed else ramp(0, 4095)
    dataset = make_dicom(
        stored, bits_stored=12, RescaleSlope="0.5", RescaleIntercept="-30", WindowCenter="310",
        WindowWidth="640", PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert_agree(render(dataset), render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))
    entries = [round(4095 * (i / 4095) ** 1.7) for i in range(4096)]
    lut = make_lut(entries, first=-2048 if signed else 0, bits=12)
    dataset = make_dicom(stored, bits_stored=12, VOILUTSequence=[lut])
    assert_agree(render(dataset), render_by_dcmtk(dataset, tmp_path, "+Wl", "1"))


def compress(stored: NDArray[Any], syntax: str, bits: int) -> bytes:
    if syntax == JPEGBaseline8Bit:
        return bytes(imagecodecs.jpeg8_encode(stored, level=95))
    if syntax == JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(stored, bitspersample=bits, codecformat="j2k"))
    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(stored))
    if syntax == HTJ2KLossless:
        return bytes(imagecodecs.htj2k_encode(stored))
    return bytes(imagecodecs.ljpeg_encode(stored, bitspersample=bits))


def make_compressed(stored: NDArray[Any], syntax: Any, bits: int) -> Dataset:
    dataset = make_dicom(stored, bits_stored=bits)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([compress(stored, syntax, bits)])
    dataset["PixelData"].VR = "OB"
    return dataset


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [
        (JPEG2000Lossless, 12), (JPEG2000Lossless, 8), (JPEGLSLossless, 16),
        (HTJ2KLossless, 16), (JPEGLosslessSV1, 12),
    ],
)  # fmt: skip
def test_lossless_syntaxes_give_the_stored_values(syntax: Any, bits: int) -> None:
    stored = ramp(0, 2**bits - 1, "u1" if bits == 8 else "u2")
    data = write_dicom(make_compressed(stored, syntax, bits))
    np.testing.assert_array_equal(decode_dicom(data, "image"), scale(stored, 0, 2**bits - 1))


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_uncompressed_deflated_and_run_length_syntaxes(syntax: Any) -> None:
    stored = ramp(0, 4095)
    lut = make_lut(list(range(4095, -1, -1)), first=0, bits=12)
    dataset = make_dicom(stored, bits_stored=12, VOILUTSequence=[lut])
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(">u2").tobytes() + b"\0" * (stored.nbytes % 2)
        lut.LUTData = np.frombuffer(lut.LUTData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    data = write_dicom(make_like(dataset))
    np.testing.assert_array_equal(decode_dicom(data, "image"), scale(4095 - stored, 0, 4095))


def make_like(dataset: Dataset) -> Dataset:
    """The same dataset without memory of another encoding."""
    fresh = Dataset(dict(dataset))
    fresh.file_meta = dataset.file_meta
    return fresh


def test_a_lossy_jpeg_comes_close() -> None:
    yx = np.indices((40, 56))
    stored = (yx[0] * 2 + yx[1]).astype("u1")
    image = decode_dicom(write_dicom(make_compressed(stored, JPEGBaseline8Bit, 8)), "image")
    assert np.abs(image.astype(int) - stored).max() <= 3


def test_twelve_bit_jpeg_is_decoded(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "dicom" / "RG2_JPLY_fixed.dcm").read_bytes()
    dataset = parse_dicom(data, "image")
    image = decode_dicom(data, "image")
    assert image.max() > 200
    assert_agree(image, render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))


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
        ({"WindowCenter": ["1", "2"], "WindowWidth": "3"}, "2 window centres, 1 widths"),
        ({"WindowCenter": "1", "WindowWidth": "0"}, "widths \\[0.0\\]"),
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


def test_damaged_files_are_refused_wherever_they_are_cut() -> None:
    whole = write_dicom(make_compressed(ramp(0, 4095), JPEG2000Lossless, 12))
    decode_dicom(whole, "image")
    for length in range(0, len(whole) - 16, 29):
        with pytest.raises(SourceError):
            decode_dicom(whole[:length], "image")


def test_a_codestream_larger_than_its_header_says_is_refused() -> None:
    dataset = make_compressed(np.zeros((300, 400), "u1"), JPEGBaseline8Bit, 8)
    dataset.Rows, dataset.Columns = SHAPE
    with pytest.raises(SourceError, match="is 400 x 300 pixels, the header says 23 x 17"):
        render(dataset)


def test_a_jpeg_without_its_end_is_not_painted() -> None:
    stored = np.tile(ramp(0, 255, "u1"), (5, 5))
    dataset = make_compressed(stored, JPEGBaseline8Bit, 8)
    frame = compress(stored, JPEGBaseline8Bit, 8)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    with pytest.raises(SourceError, match="no end marker"):
        render(dataset)


def test_a_deflate_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dicom_files.MAX_FILE_BYTES", 2**20)
    dataset = make_dicom(ramp(0, 9))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = write_dicom(make_like(dataset))
    end = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = data[:end] + deflater.compress(b"\0" * 2**22) + deflater.flush()
    assert len(bomb) < 2**13
    with pytest.raises(SourceError, match="inflates to more than"):
        decode_dicom(bomb, "image")


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
        assert decode_dicom(planted, "image").shape == SHAPE
    else:
        with pytest.raises(SourceError, match="damaged") as caught:
            decode_dicom(planted, "image")
        assert "Qx" not in str(caught.value)
    assert "Qx" not in caplog.text
