"""Pictures as DICOM secondary captures (PS3.3 A.8.1), for archives and viewers that take them.

Nothing of a person enters: patient and image are those of `sources.dicom`, pseudonyms, and every
UID is derived from them. The same picture of the same image gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from uuid import UUID

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from pipeline.dicom.header import BurnedInText


@dataclass(frozen=True)
class CaptureFacts:
    """What a capture says of itself.

    Args:
        image_id: Pseudonym of the image that the capture shows.
        group_id: Pseudonym of the patient.
        sex: `M`, `F` or empty.
        burned_in_text: Whether the image shows text, as `header.burned_in_text` judges.
        title: Description of the series, at most 64 characters.
        derivation: Text on how the picture was made, and what its reader must know.
        software: Name and version of what made it.
        made_at: Date and time of making, with a time zone.
    """

    image_id: str
    group_id: str
    sex: str
    burned_in_text: BurnedInText
    title: str
    derivation: str
    software: str
    made_at: datetime


def encode_capture(picture: NDArray[np.uint8], facts: CaptureFacts) -> bytes:
    """A colour picture as a DICOM file.

    Args:
        picture: uint8 (H, W, 3), red, green, blue.
        facts: Description of the capture, for its header.

    Returns:
        A file of PS3.10, explicit little endian, not compressed.
    """
    day, time = DA(facts.made_at.date()), TM(facts.made_at.time().replace(microsecond=0))
    capture = SCImage(
        picture,
        "RGB",
        8,
        "PATIENT",
        # One patient's captures make one study: the true one's UID is not kept.
        study_instance_uid=_derive_uid("study", facts.group_id),
        series_instance_uid=_derive_uid("series", facts.image_id, facts.software),
        series_number=1,
        sop_instance_uid=_derive_uid("capture", facts.image_id, facts.software, facts.derivation),
        instance_number=1,
        manufacturer="Normscope",
        manufacturer_model_name="Normscope",
        software_versions=facts.software[:64],
        patient_id=facts.group_id[:64],
        patient_sex=facts.sex if facts.sex in {"M", "F"} else None,
        patient_orientation=("L", "F"),
        series_description=facts.title[:64],
        content_date=day,
        content_time=time,
        specific_character_set="ISO_IR 192",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    _correct(capture, facts, day, time)
    file = BytesIO()
    capture.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _correct(capture: SCImage, facts: CaptureFacts, day: DA, time: TM) -> None:
    """Say what the library cannot be told, and take back what it makes up."""
    # Nothing is known of them; the standard wants them, and lets them be empty.
    capture.PatientOrientation, capture.Laterality = [], ""
    # The library takes the clock's time, which would give other bytes each time.
    capture.InstanceCreationDate = capture.DateOfSecondaryCapture = day
    capture.InstanceCreationTime = capture.TimeOfSecondaryCapture = time
    for equipment in capture.ContributingEquipmentSequence:
        del equipment.ContributionDateTime
    capture.DerivationDescription = facts.derivation[:1024]
    capture.ImageComments = f"Shows image {facts.image_id}"
    if facts.burned_in_text != "possible":
        capture.BurnedInAnnotation = "YES" if facts.burned_in_text == "stated" else "NO"
    capture.PatientIdentityRemoved = "YES"
    capture.DeidentificationMethod = "Made anew, with pseudonyms alone"


def _derive_uid(*names: str) -> str:
    """A UID below the root for UUIDs (PS3.5 B.2)."""
    digest = sha256("\0".join(names).encode()).digest()
    return f"2.25.{UUID(bytes=digest[:16], version=5).int}"
