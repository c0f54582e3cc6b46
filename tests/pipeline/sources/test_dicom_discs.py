"""What else lies on a patient's CD is skipped; what may be a damaged radiograph has failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from pipeline.privacy.key import PseudonymKey
from pipeline.sources.dicom import list_radiographs
from tests.support.made.dicom import make_dicom, ramp, write_dicom

KEY = PseudonymKey(bytes(range(32)))
FILM = write_dicom(make_dicom(ramp(0, 4095), bits_stored=12))


def examine(folder: Path, name: str, content: bytes) -> list[tuple[str, str]]:
    """State and reason of a file beside a good radiograph."""
    (folder / "IM0001").write_bytes(FILM)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    listing = list_radiographs(str(folder), KEY)
    assert len(listing.images) == 1
    return [(entry.state, entry.reason) for entry in listing.rejected]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("AUTORUN.INF", b"[autorun]\r\nopen=VIEWER\\viewer.exe\r\n"),
        ("VIEWER/viewer.exe", b"MZ" + bytes(400)),
        ("VIEWER/codec.dll", b"MZ" + bytes(9)),
        ("VIEWER/viewer.ini", b"[a]\nb=1\n"),
        ("VIEWER/viewer.jar", b"PK\x03\x04" + bytes(300)),
        ("VIEWER/Main.class", b"\xca\xfe\xba\xbe" + bytes(300)),
        ("VIEWER/page.xhtml", b""),
        ("VIEWER/viewer", b"\x7fELF" + bytes(300)),
        ("LICENSE", b"You may look at the pictures.\n"),
        ("report", b"%PDF-1.4\n\x80"),
        ("catalog.db", bytes(300)),
    ],
)
def test_what_a_viewer_needs_is_skipped(tmp_path: Path, name: str, content: bytes) -> None:
    assert examine(tmp_path, name, content) == [
        ("skipped", "no DICOM file: `DICM` is not at byte 128")
    ]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DICOMDIR;1", ".hidden"])
def test_the_index_of_a_disc_is_no_item(tmp_path: Path, name: str) -> None:
    assert examine(tmp_path, name, bytes(300)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("IM0002", b""),
        ("IM0002", bytes(4000)),
        ("IM0002", FILM[132:]),  # without its preamble
        ("film.dat", FILM[132:]),
        ("2.16.840.1.113", bytes(300)),
        ("a.dcm", b"a note"),
        ("A.IMA", b"MZ"),
        ("scan.exe", FILM[:300]),  # it says that it is DICOM
        ("scan.jpg", FILM[:300]),
    ],
)
def test_what_may_be_a_damaged_radiograph_has_failed(
    tmp_path: Path, name: str, content: bytes
) -> None:
    ((state, reason),) = examine(tmp_path, name, content)
    assert state == "failed", reason


def make_dose_report(**attributes: Any) -> Dataset:
    pixels = np.zeros((17, 23 * 3), "u1")
    values = {
        "Columns": 23,
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "PhotometricInterpretation": "RGB",
        "SOPInstanceUID": "1.2.9",
        **attributes,
    }
    return make_dicom(pixels, **values)


def test_a_capture_in_colour_is_skipped_and_a_radiograph_in_colour_has_failed(
    tmp_path: Path,
) -> None:
    dose = make_dose_report(SOPClassUID=SecondaryCaptureImageStorage)
    assert examine(tmp_path, "DOSE", write_dicom(dose)) == [
        ("skipped", "no radiograph: a capture in colour")
    ]
    ((state, reason),) = examine(tmp_path, "DOSE", write_dicom(make_dose_report()))
    assert (state, reason[:14]) == ("failed", "a colour image")


def test_several_frames_have_failed(tmp_path: Path) -> None:
    frames: dict[str, Any] = {"SOPClassUID": SecondaryCaptureImageStorage, "NumberOfFrames": "2"}
    for film in (make_dose_report(**frames), make_dicom(ramp(0, 9), **frames)):
        ((state, reason),) = examine(tmp_path, "CINE", write_dicom(film))
        assert (state, reason[:14]) == ("failed", "holds 2 frames")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (EncapsulatedPDFStorage, "Encapsulated PDF"),
        (XRayRadiationDoseSRStorage, "Dose SR"),
        (GrayscaleSoftcopyPresentationStateStorage, "Presentation State"),
        (MediaStorageDirectoryStorage, "Media Storage Directory"),
    ],
)
def test_other_objects_are_skipped_by_their_names(tmp_path: Path, kind: str, said: str) -> None:
    other = Dataset()
    other.file_meta = make_dicom(ramp(0, 9), SOPClassUID=kind).file_meta
    other.SOPClassUID, other.SOPInstanceUID, other.PatientID = kind, "1.2.9", "P1"
    ((state, reason),) = examine(tmp_path, "OTHER", write_dicom(other))
    assert state == "skipped"
    assert said in reason
