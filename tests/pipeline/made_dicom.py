"""Small DICOM files written here, so that every attribute of a test is in plain sight."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

# Wider than high, and no two corners alike, so that a swapped or turned axis fails.
SHAPE = (17, 23)


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
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyInstanceUID": "1.2.3.4",
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
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def pad_even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
