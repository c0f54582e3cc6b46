"""What a DICOM header says of a radiograph, in the standard's own words only. Pure.

A header's free text may name a person, so no text gets through that is not in a list here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import Final, Literal, TypeAlias

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

BurnedInText: TypeAlias = Literal["stated", "possible", "denied"]
# Ages above 89 are one class, as 45 CFR 164.514(b)(2)(i)(C) wants it.
OLDEST_YEARS: Final = 90
# Projections by PS3.3 C.8.1.1.3 (View Position), and `LAT`, which is common.
_VIEWS: Final = frozenset({"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT"})
_VIEW_CODES: Final[tuple[tuple[Code, str], ...]] = (
    (codes.cid4010.AnteroPosterior, "AP"),
    (codes.cid4010.PosteroAnterior, "PA"),
    (codes.cid4010.LeftLateral, "LL"),
    (codes.cid4010.RightLateral, "RL"),
)
_RADIOGRAPHS: Final = frozenset(
    {ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation}
)
SECONDARY_CAPTURES: Final = frozenset(
    {
        SecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    }
)
_CAPTURED_MODALITIES: Final = frozenset({"", "CR", "DX", "RG", "OT"})
_MODALITIES: Final = frozenset(
    {*_CAPTURED_MODALITIES, "CT", "MG", "MR", "NM", "PT", "RF", "SM", "US", "XA"}
)
_AGE: Final = re.compile(r"(\d{1,3})(?:\.0+)?([YMWD]?)")  # PS3.5, value representation AS
_PER_YEAR: Final[Mapping[str, int]] = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
_LONGEST_LIFE_YEARS: Final = 120
HEADER_TAGS: Final = [
    Tag(keyword)
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "PatientID",
        "PatientAge",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "Modality",
        "ViewPosition",
        "ViewCodeSequence",
        "PatientOrientation",
        "BurnedInAnnotation",
        "PresentationLUTShape",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
    )
]


def name_other_kind(header: Dataset) -> str:
    """What a file is that is no radiograph, in the standard's words; empty for a radiograph."""
    sop_class = UID(
        str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    )
    modality = str(header.get("Modality") or "").strip().upper()
    if sop_class in _RADIOGRAPHS:
        return ""
    if sop_class in SECONDARY_CAPTURES:
        if modality in _CAPTURED_MODALITIES:
            return ""
        return f"a capture of modality {modality if modality in _MODALITIES else 'unknown'}"
    if sop_class == DigitalXRayImageStorageForProcessing:
        return "raw detector values, not for presentation"
    # A UID that the standard does not know is not quoted: anything may stand there.
    return "unknown SOP class" if sop_class.name == str(sop_class) else sop_class.name


def read_view(header: Dataset) -> str:
    """The projection; empty where it is unknown."""
    word = str(header.get("ViewPosition") or "").strip().upper()
    if word in _VIEWS:
        return word
    with suppress(Exception):  # foreign bytes: a damaged sequence leaves the view unknown
        for item in header.get("ViewCodeSequence") or ():
            given = Code(str(item.get("CodeValue")), str(item.get("CodingSchemeDesignator")), "")
            for code, view in _VIEW_CODES:
                if given == code:
                    return view
    return ""


def burned_in_text(header: Dataset) -> BurnedInText:
    """Judge from the header alone whether text may be burned into the pixels.

    Returns:
        `stated` where the file says so; `denied` where it says there is none; `possible` where it
        says nothing, and for any secondary capture that does not state it: a capture takes
        whatever was on a screen.
    """
    word = str(header.get("BurnedInAnnotation") or "").strip().upper()
    if word == "YES":
        return "stated"
    is_capture = str(header.get("SOPClassUID") or "") in SECONDARY_CAPTURES
    return "denied" if word == "NO" and not is_capture else "possible"


def parse_age(text: str) -> int:
    """Read whole years from `58`, `058Y`, `011M` or `20D`; -1 where unknown or impossible."""
    match = _AGE.fullmatch(text.strip().upper())
    if not match:
        return -1
    years = int(match[1]) // _PER_YEAR[match[2]]
    return years if years <= _LONGEST_LIFE_YEARS else -1


def read_age(header: Dataset) -> int:
    """Whole years at the study, at most `OLDEST_YEARS`; -1 where unknown."""
    text = str(header.get("PatientAge") or "").strip()
    years = parse_age(text) if text else _count_years(header)
    return min(years, OLDEST_YEARS)


def _count_years(header: Dataset) -> int:
    try:
        born, seen = (
            date.fromisoformat(str(header.get(keyword)).strip())
            for keyword in ("PatientBirthDate", "StudyDate")
        )
    except ValueError:
        return -1
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return parse_age(str(years))
