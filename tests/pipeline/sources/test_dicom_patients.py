"""Who belongs together: studies, character sets, issuers and ids that stand for nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.dicom.parse import parse_dicom
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing
from pipeline.sources.dicom import list_radiographs
from tests.support.made.dicom import make_dicom, ramp, write_dicom

KEY = PseudonymKey(bytes(range(32)))


def list_films(folder: Path, *films: dict[str, Any] | bytes) -> tuple[list[str], ImageListing]:
    """The group of each film in the order given, and the listing."""
    for number, film in enumerate(films):
        data = (
            film
            if isinstance(film, bytes)
            else write_dicom(make_dicom(ramp(0, 9), SOPInstanceUID=f"1.9.{number}", **film))
        )
        (folder / f"{number}.dcm").write_bytes(data)
    listing = list_radiographs(str(folder), KEY)
    groups = {Path(image.url).stem: image.group_id for image in listing.images}
    assert len(groups) == len(films)
    return [groups[str(number)] for number in range(len(films))], listing


def swap_id(number: int, charset: str, patient: bytes, study: str = "") -> bytes:
    """A film whose patient id has these bytes, whatever its character set."""
    placeholder = "Q" * len(patient)
    film = make_dicom(
        ramp(0, 9),
        SOPInstanceUID=f"1.9.{number}",
        PatientID=placeholder,
        SpecificCharacterSet=charset,
        StudyInstanceUID=study or f"1.8.{number}",
    )
    data = write_dicom(film)
    assert data.count(placeholder.encode()) == 1
    return data.replace(placeholder.encode(), patient)


def test_patients_that_share_a_study_are_one(tmp_path: Path) -> None:
    groups, listing = list_films(
        tmp_path,
        {"PatientID": "local", "StudyInstanceUID": "1.1"},
        {"PatientID": "merged", "StudyInstanceUID": "1.1"},
        {"PatientID": "merged", "StudyInstanceUID": "1.2"},
        {"PatientID": "further", "StudyInstanceUID": "1.2"},
        {"PatientID": "other", "StudyInstanceUID": "1.3"},
    )
    assert len(set(groups[:4])) == 1
    assert groups[4] == KEY.pseudonym("patient", "other") != groups[0]
    assert groups[0] in {KEY.pseudonym("patient", name) for name in ("local", "merged", "further")}
    assert "2 studies have more than one patient id: their patients are taken as one" in (
        listing.notes
    )


def test_a_film_without_a_patient_is_of_the_patient_of_its_study(tmp_path: Path) -> None:
    for known in ("a", "b", "c", "d"):  # whichever pseudonym comes first by name
        folder = tmp_path / known
        folder.mkdir()
        groups, listing = list_films(
            folder,
            {"PatientID": "", "StudyInstanceUID": "1.1"},
            {"PatientID": known, "StudyInstanceUID": "1.1"},
            {"PatientID": "", "StudyInstanceUID": "1.2"},
        )
        assert groups == [KEY.pseudonym("patient", known)] * 2 + [KEY.map_uid("1.2")]
        assert not any("more than one patient" in note for note in listing.notes)


@pytest.mark.parametrize("charsets", [("GB18030", "ISO_IR 100", "ISO_IR 192"), ("", "ISO_IR 144")])
def test_the_same_bytes_are_one_patient_whatever_the_character_set(
    tmp_path: Path, charsets: tuple[str, ...]
) -> None:
    patient = "张三丰".encode("gbk")
    films = [swap_id(number, charset, patient) for number, charset in enumerate(charsets)]
    groups, listing = list_films(tmp_path, *films, swap_id(9, charsets[0], patient[::-1]))
    assert len(set(groups[:-1])) == 1
    assert groups[-1] != groups[0]
    assert any("1 patient ids stand under several character sets" in n for n in listing.notes)


def test_the_same_text_is_one_patient_whatever_its_bytes(tmp_path: Path) -> None:
    name = "Müller7"
    films = [swap_id(0, "ISO_IR 100", name.encode("latin-1") + b" ")]
    films += [swap_id(1, "ISO_IR 192", name.encode("utf-8"))]
    groups, listing = list_films(tmp_path, *films)
    assert set(groups) == {KEY.pseudonym("patient", name)}
    assert not any("character sets" in note for note in listing.notes)


def test_numbers_that_cannot_be_read_as_text_are_told_apart(tmp_path: Path) -> None:
    broken = [b"\xe9\xe8\xff1", b"\xe8\xe9\xff1"]  # no UTF-8: the text of both is the same
    films = [swap_id(number, "ISO_IR 192", patient) for number, patient in enumerate(broken)]
    with pytest.warns(UserWarning, match="replacement characters"):
        read = [str(parse_dicom(film, "film").PatientID) for film in films]
    assert read[0] == read[1]
    groups, _ = list_films(tmp_path, *films)
    assert groups[0] != groups[1]


def test_blanks_around_a_number_do_not_matter(tmp_path: Path) -> None:
    films = [swap_id(0, "", b" 77-P  "), swap_id(1, "", b"77-P"), swap_id(2, "", b"77-P\0\0")]
    groups, _ = list_films(tmp_path, *films)
    assert set(groups) == {KEY.pseudonym("patient", "77-P")}


@pytest.mark.parametrize(
    ("keyword", "values", "said"),
    [
        ("IssuerOfPatientID", ("NORTH", "SOUTH"), "1 patient ids have several issuers"),
        ("PatientSex", ("M", "F"), "1 patient ids stand on images of both sexes"),
    ],
)
def test_an_id_that_may_be_of_two_patients_is_spoken_of(
    tmp_path: Path, keyword: str, values: tuple[str, str], said: str
) -> None:
    films = [
        {"PatientID": "7", keyword: value, "StudyInstanceUID": f"1.{number}"}
        for number, value in enumerate((*values, ""))
    ]
    groups, listing = list_films(tmp_path, *films, {"PatientID": "8", keyword: values[0]})
    assert len(set(groups)) == 2
    assert any(note.startswith(said) for note in listing.notes)
    assert not any("NORTH" in note for note in listing.notes)


def test_an_id_on_most_images_is_spoken_of(tmp_path: Path) -> None:
    many = [{"PatientID": "ANON", "StudyInstanceUID": f"1.{number}"} for number in range(3)]
    _, listing = list_films(tmp_path, *many, {"PatientID": "8"})
    (note,) = (note for note in listing.notes if "one patient id" in note)
    assert note.startswith("one patient id stands on 3 of 4 images, of 3 studies")


def test_usual_patients_need_no_note(tmp_path: Path) -> None:
    films = [
        {"PatientID": patient, "StudyInstanceUID": f"1.{patient}.{study}", "PatientSex": sex}
        for patient, sex in (("1", "M"), ("2", "F"), ("3", ""))
        for study in range(3)
    ]
    groups, listing = list_films(tmp_path, *films)
    assert len(set(groups)) == 3
    assert len(listing.notes) == 1  # on burned-in text
