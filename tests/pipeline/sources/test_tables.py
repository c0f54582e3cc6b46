"""Tables: columns by any usual name, cells made sense of, unusable tables refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.errors import AbsentError, SourceError
from pipeline.sources.tables import Table, parse_sex, read_table

NAMES = {"path": ("path", "file_name"), "label": ("label", "class"), "sex": ("sex",)}


def read(path: Path) -> Table:
    return read_table(str(path), NAMES, needed=("path", "label"), remedy="Name them so")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_columns_are_found_by_other_names_in_any_order(tmp_path: Path, suffix: str) -> None:
    text = "\ufeffCLASS,other, File-Name \n1,x, a.png \n\n0,y\n0,z,b.png,beyond\n"
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    table = read(path)
    assert table.columns == {"path": " File-Name ", "label": "CLASS"}
    assert table.rows == (
        {"path": "a.png", "label": "1"},
        {"path": "", "label": "0"},
        {"path": "b.png", "label": "0"},
    )


def test_the_preferred_name_wins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("class,label,file_name,path\n9,1,worse,better\n")
    assert read(path).rows == ({"path": "better", "label": "1"},)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"image_url,truth\na.png,1\n", "no column for path and label; the table has: 'image_url'"),
        (b"path;label\na.png;1\n", "no column for path and label; the table has: 'path;label'"),
        (b"", "no column for path and label; the table has: none"),
        (b"path,label\n", "no rows"),
        (b"path,label\n\xff\xfe,1\n", "not text in UTF-8"),
        (b"\x1f\x8bnot really", "damaged gzip"),
        (gzip.compress(b"path,label\na.png,1\n" * 99, mtime=0)[:-20], "damaged gzip"),
        (b"path,label\n" + b"x" * 200_000, r"not a CSV table \(row 2 has"),
        (
            b'path,label\na.png,1\n"b.png,1\n',
            r"not a CSV table \(EOF inside string starting at row 3\)\. Close",
        ),
    ],
)
def test_an_unusable_table_is_refused_by_name(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=problem) as caught:
        read(path)
    assert caught.value.item == str(path)


def test_an_absent_table_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"no\.csv"):
        read(tmp_path / "no.csv")


def test_sexes_are_letters_or_unknown() -> None:
    assert [parse_sex(text) for text in ("M", "female", " f", "?", "")] == ["M", "F", "F", "", ""]
