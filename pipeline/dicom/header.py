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
# Codes of CID 4010 (PS3.16), today's and those from before SNOMED CT.
_VIEW_CODES: Final[Mapping[str, str]] = {
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-10214": "PA",
    "R-40888": "PA",  # what the tables of SNOMED map the former to
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LAT",
    "R-102CD": "LAT",
}
# Names of one scheme after another; the last three are the same one (PS3.16, 8.1).
_VIEW_SCHEMES: Final = frozenset({"SCT", "SRT", "SNM3", "99SDM"})
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
COLOURS: Final = frozenset(
    {"RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"}
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
        "IssuerOfPatientID",
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
            return "a capture in colour" if _is_single_in_colour(header) else ""
        return f"a capture of modality {modality if modality in _MODALITIES else 'unknown'}"
    if sop_class == DigitalXRayImageStorageForProcessing:
        return "raw detector values, not for presentation"
    # A UID that the standard does not know is not quoted: anything may stand there.
    return "unknown SOP class" if sop_class.name == str(sop_class) else sop_class.name


def _is_single_in_colour(header: Dataset) -> bool:
    """Whether it is one frame in colour: a dose report or a drawing, and no radiograph."""
    photometric = str(header.get("PhotometricInterpretation") or "").strip().upper()
    return photometric in COLOURS and int(header.get("NumberOfFrames") or 1) == 1


def read_patient_id(header: Dataset) -> tuple[str, bytes]:
    """Read the patient's number as text and as it stands in the file; a number may be a name.

    The character set that a header names may not be that of its bytes. So of one patient either
    the texts are equal or the bytes.

    Returns:
        The text, whatever the bytes can be read as; and the bytes without padding. Both are empty
        where there is none.
    """
    element = header.get_item("PatientID")
    raw = element.value if element is not None else b""
    text = str(header.get("PatientID") or "").strip(" \0")
    if not isinstance(raw, bytes):
        return text, text.encode("utf-8", "surrogateescape")
    raw = raw.strip(b" \0")
    # A text with replacement characters is that of many numbers.
    return (raw.hex() if "\ufffd" in text else text), raw


def read_view(header: Dataset) -> str:
    """The projection; empty where it is unknown."""
    word = str(header.get("ViewPosition") or "").strip().upper()
    if word in _VIEWS:
        return word
    with suppress(Exception):  # foreign bytes: a damaged sequence leaves the view unknown
        for item in header.get("ViewCodeSequence") or ():
            scheme, code = (
                str(item.get(keyword) or "").strip().upper()
                for keyword in ("CodingSchemeDesignator", "CodeValue")
            )
            if scheme in _VIEW_SCHEMES and code in _VIEW_CODES:
                return _VIEW_CODES[code]
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
