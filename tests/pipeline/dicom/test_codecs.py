from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
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

from pipeline.dicom.parse import parse_dicom
from pipeline.dicom.pixels import decode_dicom, render_pixels
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
    write_dicom,
)


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
        (JPEG2000Lossless, 12),
        (JPEG2000Lossless, 8),
        (JPEGLSLossless, 16),
        (HTJ2KLossless, 16),
        (JPEGLosslessSV1, 12),
    ],
)
def test_lossless_syntaxes_give_the_stored_values(syntax: Any, bits: int) -> None:
    stored = ramp(0, 2**bits - 1, "u1" if bits == 8 else "u2")
    data = write_dicom(make_compressed(stored, syntax, bits))
    np.testing.assert_array_equal(decode_dicom(data, "image").pixels, scale(stored, 0, 2**bits - 1))


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
    np.testing.assert_array_equal(decode_dicom(data, "image").pixels, scale(4095 - stored, 0, 4095))


def make_like(dataset: Dataset) -> Dataset:
    """The same dataset without memory of another encoding."""
    fresh = Dataset(dict(dataset))
    fresh.file_meta = dataset.file_meta
    return fresh


def test_a_lossy_jpeg_comes_close() -> None:
    yx = np.indices((40, 56))
    stored = (yx[0] * 2 + yx[1]).astype("u1")
    image = decode_dicom(write_dicom(make_compressed(stored, JPEGBaseline8Bit, 8)), "image").pixels
    assert np.abs(image.astype(int) - stored).max() <= 3


def test_twelve_bit_jpeg_is_decoded(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "dicom" / "RG2_JPLY_fixed.dcm").read_bytes()
    dataset = parse_dicom(data, "image")
    image = decode_dicom(data, "image").pixels
    assert image.max() > 200
    assert_agree(image, render_by_dcmtk(dataset, tmp_path, "+Wi", "1"))


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


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("stream", "header"), [(12, 16), (8, 12), (10, 12), (12, 10), (12, 8)])
def test_the_stream_is_right_about_its_bits(
    syntax: Any, signed: bool, stream: int, header: int
) -> None:
    low = -(2 ** (stream - 1)) if signed else 0
    stored = ramp(low, low + 2**stream - 1, "i2" if signed else "u2")
    dataset = make_dicom(stored, bits_stored=header)
    dataset.file_meta.TransferSyntaxUID = syntax
    words = stored if syntax == JPEG2000Lossless else stored.view("u2") & (2**stream - 1)
    if stream == 8:
        words = words.astype("i1" if words.dtype.kind == "i" else "u1")
    dataset.PixelData = encapsulate([compress(words, syntax, stream)])
    dataset["PixelData"].VR = "OB"
    rendered = render_pixels(dataset, "image")
    np.testing.assert_array_equal(rendered.pixels, scale(stored, low, low + 2**stream - 1))
    assert f"{stream} bits, its header says {header}" in rendered.remark
    assert rendered.facts.bits_stored == stream


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_words_of_16_bits_may_hold_the_fewer_bits_that_the_header_says(syntax: Any) -> None:
    stored = ramp(0, 4095)
    dataset = make_compressed(stored, syntax, 16)
    dataset.BitsStored, dataset.HighBit = 12, 11
    rendered = render_pixels(dataset, "image")
    np.testing.assert_array_equal(rendered.pixels, scale(stored, 0, 4095))
    assert rendered.remark == ""


@pytest.mark.parametrize(
    "tail", [bytes(32), bytes(4001), b"\xff" * 20, b" ", b"\0MARK", bytes(5) + b"\xff\0"]
)
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
def test_padding_behind_the_end_marker_does_not_matter(syntax: Any, tail: bytes) -> None:
    stored = np.tile(ramp(0, 255, "u1"), (2, 2))
    dataset = make_compressed(stored, syntax, 8)
    whole = render(dataset)
    dataset.PixelData = encapsulate([compress(stored, syntax, 8) + tail])
    np.testing.assert_array_equal(render(dataset), whole)


def test_anything_else_behind_the_end_marker_is_refused() -> None:
    stored = np.tile(ramp(0, 255, "u1"), (5, 5))
    dataset = make_compressed(stored, JPEGBaseline8Bit, 8)
    frame = compress(stored, JPEGBaseline8Bit, 8)
    middle = len(frame) // 2
    dataset.PixelData = encapsulate([frame[:middle] + b"\xff\xd9" + frame[middle:-2]])
    with pytest.raises(SourceError, match="no end marker"):
        render(dataset)


def test_a_stream_in_colour_under_a_grey_header_is_refused() -> None:
    stored = np.repeat(np.tile(ramp(0, 255, "u1"), (2, 2))[..., None], 3, axis=2)
    dataset = make_dicom(stored[..., 0])
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(stored))])
    dataset["PixelData"].VR = "OB"
    with pytest.raises(SourceError, match="3 samples a pixel"):
        render(dataset)


def test_a_deflate_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dicom.parse.MAX_FILE_BYTES", 2**20)
    dataset = make_dicom(ramp(0, 9))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = write_dicom(make_like(dataset))
    end = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = data[:end] + deflater.compress(b"\0" * 2**22) + deflater.flush()
    assert len(bomb) < 2**13
    with pytest.raises(SourceError, match="inflates to more than"):
        decode_dicom(bomb, "image")


def test_signed_jpeg_2000_gives_the_stored_values() -> None:
    stored = ramp(-2048, 2047, "i2")
    dataset = make_compressed(stored, JPEG2000Lossless, 12)
    np.testing.assert_array_equal(render(dataset), scale(stored, -2048, 2047))


@pytest.mark.parametrize("name", ["RG1_J2KI.dcm", "RG3_J2KI.dcm"])
def test_jpeg_2000_agrees_with_a_second_decoder(shared_data: Path, name: str) -> None:
    data = (shared_data / "dicom" / name).read_bytes()
    dataset = parse_dicom(data, name)
    dataset.decompress(decoding_plugin="gdcm", generate_instance_uid=False)
    np.testing.assert_array_equal(decode_dicom(data, name).pixels, render(dataset))
