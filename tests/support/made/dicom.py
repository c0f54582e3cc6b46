"""Small DICOM files written here, so that every attribute of a test is in plain sight."""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from pipeline.dicom.pixels import render_pixels

# Wider than high, and no two corners alike, so that a swapped or turned axis fails.
SHAPE = (17, 23)
NAME = "MUSTERFRAU ERIKA"


def ramp(low: int, high: int, dtype: str = "u2") -> NDArray[Any]:
    """Values from `low` to `high` inclusive, spread over the image in an order of no symmetry."""
    count = SHAPE[0] * SHAPE[1]
    values = np.round(np.linspace(low, high, count)).astype(dtype)
    return values[np.arange(count) * 7 % count].reshape(SHAPE)


def make_dicom(
    stored: NDArray[Any], *, bits_stored: int | None = None, **attributes: Any
) -> Dataset:
    """A Computed Radiography dataset, uncompressed, with these stored values.

    Any attribute may be given by its keyword, or taken away as None.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(
        attributes.get("SOPClassUID", ComputedRadiographyImageStorage)
    )
    meta.MediaStorageSOPInstanceUID = UID(attributes.get("SOPInstanceUID", "1.2.3.4.5"))
    dataset = Dataset()
    dataset.file_meta = meta
    bits_allocated = stored.dtype.itemsize * 8
    bits = bits_stored or bits_allocated
    patient = str(attributes.get("PatientID", "P1"))  # each has a study of its own
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyInstanceUID": "1.2.3.4" if patient == "P1" else f"1.2.3.4.{crc32(patient.encode())}",
        "Modality": "CR",
        "PatientID": "P1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": bits_allocated,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        **attributes,
    }
    with disable_value_validation():  # wrong values are made on purpose
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    dataset.add_new(0x7FE00010, "OW", pad_even(stored.tobytes()))
    return dataset


def make_lut(entries: list[int], first: int, bits: int, *, explanation: str = "") -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new(0x00283003, "LO", explanation)
    item.add_new(0x00283006, "OW", np.array(entries, "<u2").tobytes())
    return item


def write_dicom(dataset: Dataset) -> bytes:
    """The bytes of its file."""
    buffer = BytesIO()
    with disable_value_validation():
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def pad_even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def render(dataset: Dataset, voi: int | str = 0) -> NDArray[np.uint8]:
    return render_pixels(dataset, "image", voi=voi)[0]


def scale(values: Any, low: float, high: float) -> NDArray[np.uint8]:
    """Grey of values between black and white."""
    unit = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
    return np.floor(unit * 255 + 0.5).astype(np.uint8)


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


def write_films(folder: Path, count: int = 3) -> str:
    """DICOM files without a suffix, each of its own patient."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        film = make_dicom(
            ramp(0, 255, "u1"),
            SOPInstanceUID=f"1.2.{number}",
            PatientID=f"P{number}",
            ViewPosition="AP" if number == 1 else "PA",
        )
        (folder / f"{NAME} {number}").write_bytes(write_dicom(film))
    return str(folder)
