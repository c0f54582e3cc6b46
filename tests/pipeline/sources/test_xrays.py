"""Radiographs of either form through one door, and nothing of a person through it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage

from pipeline.errors import NormscopeError, SettingsError, SourceError
from pipeline.privacy.key import PseudonymKey
from pipeline.records import Label
from pipeline.sources.xrays import list_xrays, recognise_format
from tests.support.made.chestxray14 import NAMES, ROWS, table_text, write_lists, write_set
from tests.support.made.dicom import NAME, make_dicom, ramp, write_dicom, write_films

KEY = PseudonymKey(bytes(range(32)))


def test_the_format_is_recognised(tmp_path: Path, shared_data: Path) -> None:
    assert recognise_format(write_films(tmp_path / "dicom")) == "dicom"
    assert recognise_format(str(shared_data / "dicom")) == "dicom"
    assert recognise_format(str(shared_data / "nih64")) == "chestxray14"
    pngs = write_set(tmp_path / "pngs", table_text())
    assert recognise_format(f"{pngs}/images") == "chestxray14"
    (tmp_path / "pngs" / "odd.dcm").write_bytes(b"beside its table")
    assert recognise_format(pngs) == "chestxray14"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.dcm").write_bytes(b"no DICOM")
    assert recognise_format(str(tmp_path / "broken")) == "dicom"


def test_dicom_needs_a_key_and_knows_no_experiment(tmp_path: Path) -> None:
    folder = write_films(tmp_path)
    with pytest.raises(SettingsError, match=r"NORMSCOPE_PSEUDONYM_KEY: no key.*openssl rand"):
        list_xrays(folder)
    with pytest.raises(SettingsError, match="findings: DICOM files do not say"):
        list_xrays(folder, key=KEY, findings=["Mass"])
    with pytest.raises(SettingsError, match="experiment: DICOM files do not say"):
        list_xrays(folder, key=KEY, experiment="PA")


def test_views_are_chosen_in_dicom_too(tmp_path: Path) -> None:
    name, listing = list_xrays(write_films(tmp_path), key=KEY, views="PA")
    assert name == "dicom"
    assert [image.columns["view_position"] for image in listing.images] == ["PA", "PA"]
    assert listing.rejected[-1].reason == "1 images: the view position is not PA"


def test_a_table_labels_dicom_files_and_is_not_quoted(tmp_path: Path) -> None:
    folder = write_films(tmp_path / "films", 4)
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,sop_instance_uid,label,split,patient\n"
        f"{NAME} 0,,normal,train,{NAME}\n"
        f",1.2.1,1,valid,{NAME}\n"
        f"{NAME} 2,,0,,\n"
        f"{NAME} 2,,1,,\n"
        f"{NAME} 9,,0,,\n"
        f"{NAME} 3,,{NAME},,\n"
    )
    _, listing = list_xrays(folder, key=KEY, table_url=str(table))
    found = {image.image_id: (image.label, image.split) for image in listing.images}
    assert found == {
        KEY.map_uid("1.2.0"): (Label.NORMAL, "train"),
        KEY.map_uid("1.2.1"): (Label.ANOMALOUS, "validation"),
        KEY.map_uid("1.2.2"): (Label.UNKNOWN, None),
        KEY.map_uid("1.2.3"): (Label.UNKNOWN, None),
    }
    states = {entry.item: entry.state for entry in listing.rejected}
    assert states == {"row-4": "failed", "row-5": "skipped", "row-6": "failed"}
    assert listing.notes[-1] == "the table labels 2 of 4 images"
    assert "MUSTER" not in repr(listing)
    table.write_text("label\n1\n")
    with pytest.raises(SourceError, match="no column that names the images"):
        list_xrays(folder, key=KEY, table_url=str(table))


def test_a_table_without_a_header_is_refused_unquoted(tmp_path: Path) -> None:
    films = write_films(tmp_path / "films")
    pngs = write_set(tmp_path / "set", f"{NAME} O'Hara,1958,HN-4711\n")
    table = f"{pngs}/Data_Entry_2017.csv"
    for url in (films, pngs):
        with pytest.raises(SourceError, match=r"no column for .*\(withheld\)") as caught:
            list_xrays(url, key=KEY, table_url=table)
        assert not re.search("MUSTER|Hara|4711", repr(caught.value))


def test_an_experiment_is_found_beside_the_images(tmp_path: Path) -> None:
    rows = [("a.png", *ROWS[0][1:]), ("d.png", *ROWS[1][1:3], "7", *ROWS[1][4:])]
    url = write_set(tmp_path, table_text(rows), ["a.png", "d.png"])
    with pytest.raises(SettingsError, match=r"experiment: no dpa_nih_folds\.tar\.gz"):
        list_xrays(url, experiment="PA")
    lists = write_lists(tmp_path / "lists")
    _, listing = list_xrays(url, experiment="PA", lists_url=lists)
    assert [(image.image_id, image.split) for image in listing.images] == [
        ("a.png", "train"),
        ("d.png", "test"),
    ]


def test_real_experiments_start_from_the_authors_archive(shared_data: Path) -> None:
    table = str(shared_data / "nih" / "Data_Entry_2017_v2020.csv.gz")
    _, listing = list_xrays(str(shared_data / "nih64"), table_url=table, experiment="PA")
    assert {image.columns["view_position"] for image in listing.images} == {"PA"}
    counts = Counter((image.split, int(image.label)) for image in listing.images)
    assert counts == {("train", 0): 217, ("test", 0): 13, ("test", 1): 33}


def test_published_names_stay_and_all_others_become_pseudonyms(tmp_path: Path) -> None:
    rows = [
        *ROWS[:2],
        (f"{NAME}.png", f"Mass|{NAME}", "0", NAME, "112Y", "F", NAME),
        (f"{NAME} 2.png", "No Finding", "0", NAME, f"{NAME}", "F", "PA"),
        (f"../{NAME}.png", "No Finding", "0", NAME, "50", "F", "PA"),
        (f"{NAME} 3.png", "No Finding", "0", NAME, "50", "F", "PA"),
        ("00000009_000.png", "No Finding", "0", "4711", "50", "F", "PA"),
    ]
    names = [*NAMES[:2], f"{NAME}.png", f"{NAME} 2.png", f"{NAME} 4.png", "00000009_000.png"]
    url = write_set(tmp_path, table_text(rows), names, folders=(f"films of {NAME}",))
    (tmp_path / f"{NAME} again").mkdir()
    (tmp_path / f"{NAME} again" / f"{NAME}.png").write_bytes(b"x")
    _, listing = list_xrays(url, key=KEY)
    by_id = {image.image_id: image for image in listing.images}
    assert by_id[NAMES[0]].group_id == "1"
    assert by_id[NAMES[0]].public_name == NAMES[0]
    hers = by_id[KEY.pseudonym("image", f"{NAME}.png")]
    assert hers.group_id == KEY.pseudonym("patient", NAME)
    assert hers.columns == {
        "view_position": "",
        "findings": "Mass",
        "age_years": 90,
        "sex": "F",
    }
    # Its number is not the one that its published name states.
    assert "00000009_000.png" not in by_id
    shown = repr([(image.public_name, image) for image in listing.images])
    shown += repr(listing.rejected) + repr(listing.notes)
    assert "MUSTER" not in shown.upper()
    assert "4711" not in shown
    states = Counter(entry.state for entry in listing.rejected)
    assert states["failed"] == 1  # the row that leaves the folder
    assert states["skipped"] >= 5
    assert len({entry.item for entry in listing.rejected}) == len(listing.rejected)


def spoil_table(folder: Path) -> None:
    (folder / "Data_Entry_2017.csv").write_text(table_text([("x.png", *ROWS[0][1:])]))


def spoil_lists(folder: Path) -> None:
    for name in ("train_val_list.txt", "test_list.txt"):
        (folder / name).write_text(f"{NAME}.png\n")


def spoil_archive(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.unlink()
    (folder / "images_001.tar.gz").write_bytes(b"no archive")


def lock_table(folder: Path) -> None:
    (folder / "Data_Entry_2017.csv").unlink()
    (folder / "Data_Entry_2017.csv").symlink_to("/proc/self/mem")  # not to be read from its start


@pytest.mark.parametrize("spoil", [spoil_table, spoil_lists, spoil_archive, lock_table])
def test_no_error_quotes_a_file_or_a_folder(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = tmp_path / f"films {NAME} at last"
    write_set(folder, table_text())
    spoil(folder)
    with pytest.raises(NormscopeError, match=f"^{tmp_path}: ") as caught:
        list_xrays(str(tmp_path), key=KEY)
    assert not re.search("MUSTER|ERIKA|at last", str(caught.value))
    with pytest.raises(NormscopeError, match="ERIKA at last"):
        list_xrays(str(tmp_path))


def test_a_capture_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    folder = write_films(tmp_path, 1)
    other = make_dicom(ramp(0, 255, "u1"), SOPClassUID=CTImageStorage)
    (tmp_path / "z").write_bytes(write_dicom(other))
    _, listing = list_xrays(folder, key=KEY, source_format="dicom")
    assert [entry.reason for entry in listing.rejected] == ["no radiograph: CT Image Storage"]
