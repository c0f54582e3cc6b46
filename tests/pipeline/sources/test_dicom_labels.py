"""Paths of a table of labels, however a program has spelt them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from pipeline.errors import SourceError
from pipeline.privacy.key import PseudonymKey
from pipeline.records import Label
from pipeline.sources.xrays import list_xrays
from tests.support.made.dicom import make_dicom, ramp, write_dicom

Form: TypeAlias = Literal["NFC", "NFD"]
KEY = PseudonymKey(bytes(range(32)))
NAMES = ("a/größe 1.dcm", "a/2.dcm", "3.dcm")


def write_films(folder: Path, form: Form) -> list[Path]:
    paths = []
    for number, name in enumerate(NAMES):
        path = folder / unicodedata.normalize(form, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        film = make_dicom(ramp(0, 9), SOPInstanceUID=f"1.9.{number}", PatientID=f"P{number}")
        path.write_bytes(write_dicom(film))
        paths.append(path)
    return paths


def label_films(folder: Path, cells: list[str], table: Path) -> list[Label]:
    """Labels of the films in order, where a table calls the first anomalous, the others normal."""
    rows = "".join(f'"{cell}",{int(at == 0)}\n' for at, cell in enumerate(cells))
    table.write_text(f"path,label\n{rows}", "utf-8")
    _, listing = list_xrays(str(folder), source_format="dicom", key=KEY, table_url=str(table))
    labels = {image.image_id: image.label for image in listing.images}
    return [labels[KEY.map_uid(f"1.9.{number}")] for number in range(len(cells))]


@pytest.mark.parametrize("of_files", ["NFC", "NFD"])
@pytest.mark.parametrize("of_table", ["NFC", "NFD"])
@pytest.mark.parametrize("spelling", ["{}", "./{}", ".\\{}", "x/../{}", "{folder}/{}", "films/{}"])
def test_every_spelling_of_a_path_finds_its_file(
    tmp_path: Path, of_files: Form, of_table: Form, spelling: str
) -> None:
    folder = tmp_path / "films"
    write_films(folder, of_files)
    cells = [
        unicodedata.normalize(of_table, spelling.format(name, folder=folder)) for name in NAMES
    ]
    if "\\" in spelling:
        cells = [cell.replace("/", "\\") for cell in cells]
    found = label_films(folder, cells, tmp_path / "labels.csv")
    assert found == [Label.ANOMALOUS, Label.NORMAL, Label.NORMAL]


def test_a_file_url_finds_its_file(tmp_path: Path) -> None:
    paths = write_films(tmp_path / "films", "NFC")
    found = label_films(tmp_path / "films", [path.as_uri() for path in paths], tmp_path / "l.csv")
    assert found == [Label.ANOMALOUS, Label.NORMAL, Label.NORMAL]


def test_of_two_files_alike_only_the_one_spelt_so_is_found(tmp_path: Path) -> None:
    composed, decomposed = write_films(tmp_path, "NFC")[0], write_films(tmp_path, "NFD")[0]
    if composed.samefile(decomposed):
        pytest.skip("this file system takes both names for one")
    decomposed.unlink()
    film = make_dicom(ramp(0, 9), SOPInstanceUID="1.9.9", PatientID="P9")
    decomposed.write_bytes(write_dicom(film))
    cells = [unicodedata.normalize("NFC", NAMES[0])]
    assert label_films(tmp_path, cells, tmp_path / "labels.csv") == [Label.ANOMALOUS]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("b.dcm,0\nMUSTERFRAU,1\n", "none of its 2 rows .*row-1: names no radiograph"),
        ("3.dcm,MUSTERFRAU\n", "none of its 1 rows .*row-1: unknown word"),
        ("C:\\films\\3.dcm,1\nhttp://x/3.dcm,1\n", "none of its 2 rows"),
        ("../3.dcm,1\n/3.dcm,0\n,1\n", "none of its 3 rows"),
    ],
)
def test_a_table_that_labels_nothing_is_refused_unquoted(
    tmp_path: Path, rows: str, said: str
) -> None:
    write_films(tmp_path / "films", "NFC")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + rows)
    with pytest.raises(SourceError, match=said) as caught:
        list_xrays(str(tmp_path / "films"), source_format="dicom", key=KEY, table_url=str(table))
    assert "MUSTER" not in repr(caught.value)


def test_numbers_of_a_spreadsheet_are_labels(tmp_path: Path) -> None:
    write_films(tmp_path / "films", "NFC")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n3.dcm,1.00\na/2.dcm,-1.0\n")
    _, listing = list_xrays(str(tmp_path / "films"), key=KEY, table_url=str(table))
    labels = sorted(int(image.label) for image in listing.images)
    assert labels == [-1, -1, 1]
