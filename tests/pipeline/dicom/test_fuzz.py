"""Damaged bytes: whatever stands in a file, it is decoded or refused in one line.

`NORMSCOPE_TEST_FUZZ_S=300 pytest tests/pipeline/dicom/test_fuzz.py` looks for five minutes; another
`NORMSCOPE_TEST_FUZZ_SEED` tries other damage. The work is done in a process of its own, so that a
decoder that aborts is seen, and the damaged file is kept where it can be looked at.
"""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any, Final

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom.header import HEADER_TAGS
from pipeline.dicom.parse import parse_header
from pipeline.errors import SourceError
from pipeline.images.reader import decode_source
from tests.support.damaged import damage, read_seconds
from tests.support.made.dicom import make_dicom, make_lut, ramp, write_dicom

SECONDS: Final = read_seconds(1.5)
# Of many damaged files some must be decoded all the same, and some refused: else nothing is tried.
LEAST_OF_EACH: Final = 10


def make_films() -> list[bytes]:
    """Files of every encoding and with every attribute that is read."""
    deep, flat = ramp(0, 4095), np.tile(ramp(0, 255, "u1"), (2, 2))
    window = {"WindowCenter": ["1500", "9"], "WindowWidth": ["2001", "0"]}
    films = [
        make_dicom(deep, bits_stored=12, **window, PixelPaddingValue=7, PixelPaddingRangeLimit=9),
        make_dicom(
            ramp(-900, 900, "i2"),
            RescaleSlope="2",
            RescaleIntercept="-7",
            PhotometricInterpretation="MONOCHROME1",
            VOILUTSequence=[make_lut([1, 2, 300], first=-3, bits=12)],
        ),
        make_dicom(
            deep,
            bits_stored=12,
            ModalityLUTSequence=[make_lut(list(range(300)), first=9, bits=16)],
            ShutterShape=["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
            ShutterLeftVerticalEdge=2,
            ShutterRightVerticalEdge=20,
            ShutterUpperHorizontalEdge=3,
            ShutterLowerHorizontalEdge=15,
            CenterOfCircularShutter=[8, 9],
            RadiusOfCircularShutter=9,
            VerticesOfThePolygonalShutter=[1, 2, 3, 20, 15, 9],
            SmallestImagePixelValue=0,
            LargestImagePixelValue=4095,
        ),
    ]
    films += [compress(deep, syntax) for syntax in (JPEG2000Lossless, JPEGLSLossless)]
    films += [compress(deep, syntax) for syntax in (HTJ2KLossless, JPEGLosslessSV1)]
    films += [compress(deep, JPEGExtended12Bit), compress(flat, JPEGBaseline8Bit)]
    run_lengths = make_dicom(deep, bits_stored=12)
    run_lengths.compress(RLELossless, generate_instance_uid=False)
    films.append(run_lengths)
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        film = make_dicom(deep, bits_stored=12, **window)
        film.file_meta.TransferSyntaxUID = syntax
        films.append(film)
    return [write_dicom(film) for film in films]


def compress(stored: NDArray[Any], syntax: UID) -> Dataset:
    bits = 8 * stored.dtype.itemsize if stored.dtype.itemsize == 1 else 12
    encoded = {
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(
            stored, bitspersample=bits, codecformat="j2k"
        ),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(stored),
        HTJ2KLossless: lambda: imagecodecs.htj2k_encode(stored),
        JPEGLosslessSV1: lambda: imagecodecs.ljpeg_encode(stored, bitspersample=bits),
        JPEGExtended12Bit: lambda: imagecodecs.jpeg8_encode(stored, level=95, bitspersample=12),
        JPEGBaseline8Bit: lambda: imagecodecs.jpeg8_encode(stored, level=95),
    }[syntax]()
    film = make_dicom(stored, bits_stored=bits)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encapsulate([bytes(encoded)])
    film["PixelData"].VR = "OB"
    return film


def look(kept: Path) -> tuple[int, int]:
    """Decode damaged files for some seconds; how many were decoded, and how many refused."""
    decoded = refused = 0
    end = monotonic() + SECONDS
    for data in damage(make_films(), kept_bytes=132):
        kept.write_bytes(data)
        try:
            parse_header(BytesIO(data), "film", HEADER_TAGS)
            pixels, _ = decode_source(data, "film")
        except SourceError:
            refused += 1
        else:
            assert (str(pixels.dtype), pixels.ndim, pixels.shape[2]) == ("uint8", 3, 1)
            decoded += 1
        if monotonic() > end and min(decoded, refused) >= LEAST_OF_EACH:
            return decoded, refused
    raise AssertionError("endless")


def test_every_film_is_whole_before_it_is_damaged() -> None:
    for data in make_films():
        assert decode_source(data, "film").pixels.max() > 0


@pytest.mark.timeout(SECONDS + 120)
def test_damaged_bytes_are_decoded_or_refused(tmp_path: Path) -> None:
    kept = tmp_path / "damaged.dcm"
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(kept)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{kept} was not refused: {done.stderr[-3000:]}"


if __name__ == "__main__":
    sys.stdout.write("{} decoded, {} refused\n".format(*look(Path(sys.argv[1]))))
