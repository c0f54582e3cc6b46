from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import SecondaryCaptureImageStorage

from pipeline.dicom.parse import parse_dicom
from pipeline.errors import SettingsError
from pipeline.privacy.key import PseudonymKey, burned_in_text, deidentify
from tests.support.made.dicom import make_dicom, ramp, write_dicom

KEY = PseudonymKey(bytes(range(32)))
OTHER_KEY = PseudonymKey(bytes(range(1, 33)))
NAME, NUMBER, DAY = "MUSTERFRAU^ERIKA", "HN-4711", "19580312"
PLANTED = (NAME, NUMBER, DAY, "1.2.840.99.7", "Musterklinik")


def make_named() -> Dataset:
    """A radiograph with a person in every kind of place."""
    dataset = make_dicom(
        ramp(0, 255, "u1"),
        PatientName=NAME,
        PatientID=NUMBER,
        PatientBirthDate=DAY,
        StudyDate=DAY,
        AccessionNumber=NUMBER,
        InstitutionName="Musterklinik",
        StudyInstanceUID="1.2.840.99.7.1",
        SOPInstanceUID="1.2.840.99.7.2",
        PatientAge="064Y",
        PatientSex="F",
        StudyDescription=f"Thorax {NAME}",
        OtherPatientIDs=[NUMBER, NUMBER],
        OperatorsName=[NAME, NAME],
        ViewPosition="PA",
    )
    inner = Dataset()
    inner.PatientName, inner.PatientID = NAME, NUMBER
    inner.ReferencedSOPInstanceUID = "1.2.840.99.7.3"
    inner.ReferencedSOPClassUID = SecondaryCaptureImageStorage
    inner.add_new(0x00091001, "LO", NUMBER)
    middle = Dataset()
    middle.ReferencedImageSequence = Sequence([inner])
    middle.RequestingPhysician = NAME
    # A sequence that the table does not list, so that only going into it finds the names.
    middle.CodeValue = "T-1"
    dataset.AnatomicRegionSequence = Sequence([middle])
    dataset.ReferencedImageSequence = Sequence([inner])
    dataset.RequestAttributesSequence = Sequence([middle])
    dataset.private_block(0x0019, "ACME " + NUMBER, create=True).add_new(1, "PN", NAME)
    dataset.add_new(0x60003000, "OW", NAME.encode())
    dataset.add_new(0x50003000, "OW", NAME.encode())
    dataset.add_new(0x00081234, "UN", NAME.encode())  # no element of the standard
    dataset.file_meta.SourceApplicationEntityTitle = NUMBER
    return dataset


def clean_bytes(*, keeps_characteristics: bool) -> bytes:
    whole = write_dicom(make_named())
    parsed = parse_dicom(b"Erika Musterfrau".ljust(128) + whole[128:], "image")
    return write_dicom(
        deidentify(parsed, KEY, "image", keeps_characteristics=keeps_characteristics)
    )


def test_no_planted_word_survives() -> None:
    before, after = write_dicom(make_named()), clean_bytes(keeps_characteristics=True)
    for word in (*PLANTED, "Erika", "ERIKA"):
        assert word == "Erika" or word.encode() in before
        assert word.encode() not in after, word


def test_what_is_no_persons_stays() -> None:
    clean = pydicom.dcmread(BytesIO(clean_bytes(keeps_characteristics=True)))
    named = make_named()
    assert (clean.ViewPosition, clean.PatientAge, clean.PatientSex) == ("PA", "064Y", "F")
    assert clean.SOPClassUID == named.SOPClassUID
    assert clean.AnatomicRegionSequence[0].CodeValue == "T-1"
    reference = clean.AnatomicRegionSequence[0].ReferencedImageSequence[0]
    assert reference.ReferencedSOPClassUID == SecondaryCaptureImageStorage
    assert clean.pixel_array.tolist() == named.pixel_array.tolist()


def test_it_says_what_was_done() -> None:
    for keeps, expected in ((False, ["113100"]), (True, ["113100", "113108"])):
        clean = pydicom.dcmread(BytesIO(clean_bytes(keeps_characteristics=keeps)))
        assert clean.PatientIdentityRemoved == "YES"
        assert clean.LongitudinalTemporalInformationModified == "REMOVED"
        assert [item.CodeValue for item in clean.DeidentificationMethodCodeSequence] == expected
        assert ("PatientAge" in clean) == keeps
        assert bool(clean.PatientSex) == keeps


def test_uids_and_patients_stay_consistent() -> None:
    dataset = make_named()
    clean, again = (deidentify(dataset, KEY, "image") for _ in range(2))
    assert write_dicom(clean) == write_dicom(again)
    assert clean.SOPInstanceUID == clean.file_meta.MediaStorageSOPInstanceUID
    nested = clean.ReferencedImageSequence[0]
    assert nested.PatientID == clean.PatientID == KEY.pseudonym("patient", NUMBER)
    assert nested.ReferencedSOPInstanceUID == KEY.map_uid("1.2.840.99.7.3")
    other = deidentify(dataset, OTHER_KEY, "image")
    assert other.PatientID != clean.PatientID
    assert other.StudyInstanceUID != clean.StudyInstanceUID
    assert dataset.PatientName == NAME  # the original is left alone


def test_an_element_that_cannot_be_read_is_removed() -> None:
    data = write_dicom(make_dicom(ramp(0, 255, "u1"), NumberOfFrames="1", SeriesNumber="77"))
    planted = data.replace(b"IS\x02\x0077", b"IS\x02\x00Qx")
    assert planted != data
    clean = deidentify(parse_dicom(planted, "image"), KEY, "image")
    assert "SeriesNumber" not in clean
    assert clean.NumberOfFrames == 1


def test_pseudonyms_are_keyed_and_told_apart_by_kind() -> None:
    pseudonym = KEY.pseudonym("patient", "P1")
    assert pseudonym == KEY.pseudonym("patient", " P1\0")
    assert (
        len(
            {
                pseudonym,
                KEY.pseudonym("study", "P1"),
                KEY.pseudonym("patient", "P2"),
                OTHER_KEY.pseudonym("patient", "P1"),
            }
        )
        == 4
    )
    assert len(pseudonym) == 32
    assert pydicom.uid.UID(KEY.map_uid("1.2.3")).is_valid


def test_a_key_never_shows() -> None:
    key = PseudonymKey.parse(" " + "0a" * 32 + "\n")
    assert key.secret == b"\n" * 32
    assert "0a0a" not in repr(key)
    assert "\\n" not in repr(key)
    assert pickle.loads(pickle.dumps(key)) == key  # noqa: S301 - its own bytes


@pytest.mark.parametrize("text", [None, "", "  ", "secret word", "0a" * 31])
def test_a_missing_or_weak_key_is_refused_with_a_remedy(text: str | None) -> None:
    with pytest.raises(SettingsError, match="openssl rand -hex 32") as caught:
        PseudonymKey.parse(text)
    assert not text or not text.strip() or text not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, "stated"),
        ({"BurnedInAnnotation": "NO"}, "denied"),
        ({}, "possible"),
        ({"BurnedInAnnotation": "NO", "SOPClassUID": SecondaryCaptureImageStorage}, "possible"),
        ({"BurnedInAnnotation": "YES", "SOPClassUID": SecondaryCaptureImageStorage}, "stated"),
    ],
)
def test_burned_in_text_is_flagged(attributes: dict[str, Any], expected: str) -> None:
    assert burned_in_text(make_dicom(ramp(0, 9), **attributes)) == expected
