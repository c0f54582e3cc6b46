"""Tables: columns by any usual name, cells made sense of, unusable tables refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.errors import AbsentError, SourceError
from pipeline.records import Label
from pipeline.sources.tables import Table, parse_label, parse_sex, read_table

NAMES = {"path": ("path", "file_name"), "label": ("label", "class"), "sex": ("sex",)}


def read(path: Path) -> Table:
    return read_table(str(path), NAMES, needed=("path", "label"), remedy="Name them so")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_columns_are_found_by_other_names_in_any_order(tmp_path: Path, suffix: str) -> None:
    text = "\ufeffCLASS,other, File-Name \n1,x, a.png \n\n0,y\n0,z,b.png,beyond\n"
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    table = read(path)
    assert table.columns == {"path": "File-Name", "label": "CLASS"}
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
        (b"path:label\na.png:1\n", "no column for path and label; the table has: 'path:label'"),
        (b"", "no column for path and label; the table has: none"),
        (b"path,label\n", "no rows"),
        (b"path,label\nb,1\n\xff\xfe,1\n", r"not text in UTF-8 \(byte ff in line 3\)\. Save"),
        ("path,label\na,1\n".encode("utf-16"), "not text in UTF-8 .* Save the table as CSV in UTF"),
        ("path,label\na,1\n".encode("utf-16-le"), r"not text in UTF-8 \(byte 00 in line 1\)"),
        ("path,label\nGröße,1\n".encode("latin-1"), r"not text in UTF-8 \(byte f6 in line 2\)"),
        (b"PK\x03\x04\x14\0\x06\0", "a workbook or another zip archive. Save the table as CSV"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Log in", "a web page"),
        (b'path,label\n"a"b,1\n', r"not a CSV table \(',' expected after '\"', in row 2\)"),
        (b"\x1f\x8bnot really", "damaged gzip"),
        (gzip.compress(b"path,label\na.png,1\n" * 99, mtime=0)[:-20], "damaged gzip"),
        (b"path,label\n" + b"x" * 200_000, r"not a CSV table \(field larger .*, in row 2\)"),
        (
            b'path,label\na.png,1\n"b.png,1\n',
            r"not a CSV table \(the quotation mark there is never closed, in row 3\)\. Close",
        ),
        (
            b'path,label\n"a\nb.png",1\n\nc.png,"1\nd.png,0\n',
            r"the quotation mark there is never closed, in row 4, line 5\)\. Close",
        ),
        (b'path,label\na.png,"5 cm,0\nb.png,"3 cm,1\n', "not a CSV table .* in row 2"),
        (
            b"path,label,Label\na.png,1,1\nb.png,0,\nc.png,0,1\n",
            "2 columns are called 'label', and differ in row 4. Leave the one that is right",
        ),
    ],
)
def test_an_unusable_table_is_refused_by_name(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=problem) as caught:
        read(path)
    assert caught.value.item == str(path)


@pytest.mark.parametrize(
    "text",
    [
        'path,label\n"a,b.png",1\n',
        'path;label\n"a,b.png";1\n',
        "path\tlabel\na,b.png\t1\n",
        'path,label\r\n"a,b.png",1\r\n',
        'path,label\r"a,b.png",1\r',
        '"path","label"\n\n"a,b.png","1"\n,\n',
        '"pa;th",path,label\n,"a,b.png",1\n',
        'path|label\n"a,b.png"|1\n',
        'path;label;"length, cm"\n"a,b.png";1;5,2\n',
        "path;label;length, cm\na,b.png;1;5,2\n",
        "sep=|\npath|label\na,b.png|1\n",
        'path, label\n"a,b.png", "1"\n',
        'path,\u200blabel\u00a0\n"a,b.png",\u00a01\u2060\n',
        "path;label\n\ufeff\u200b a,b.png\u00a0;\u20681\u2069\n \u00a0\n\u200b;\u2003\n",
        'label,path,Label\n1,"a,b.png",\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_line_ends_are_those_that_spreadsheets_write(
    tmp_path: Path, text: str, encoding: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    assert read(path).rows == ({"path": "a,b.png", "label": "1"},)


def test_a_cell_is_text_whatever_a_spreadsheet_would_make_of_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('path,label\n"=HYPERLINK(""x"")",1\n-1+2.png,1\n@a.png,007\n')
    assert [row["path"] for row in read(path).rows] == ['=HYPERLINK("x")', "-1+2.png", "@a.png"]
    assert read(path).rows[2]["label"] == "007"


def test_a_column_without_content_is_no_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,file_name,label,sex\n,a.png,,\n,b.png,,\n")
    table = read(path)
    assert table.columns == {"path": "file_name", "label": "label"}  # which is needed
    assert table.rows == ({"path": "a.png", "label": ""}, {"path": "b.png", "label": ""})


def test_rows_are_numbered_as_a_spreadsheet_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('path,label\n\n"a\nb",1\n,\nc,0\n')
    assert [number for number, _ in read(path).number_rows()] == [3, 5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,lable\na,1\n", "unknown column 'lable'; the nearest known one is `label`. Name"),
        ("path,label,zzz\na,1,\n", r"unknown column 'zzz'\. Name"),
        ("path,label,class\na,1,\n", "the columns 'label' and 'class' mean the same"),
        ("path,label\na,b.png,1\n", "row 2 has the cell '1' in a column without a name"),
        (",path,label\n0,a.png,1\n", "row 2 has the cell '0' in a column without a name"),
    ],
)
def test_a_closed_table_refuses_what_would_be_left_out(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=problem):
        read_table(
            str(path), NAMES, needed=("path", "label"), remedy="Name them so", is_closed=True
        )
    path.write_text("path,label,,\na,1,,\n")
    read_table(str(path), NAMES, needed=("path", "label"), remedy="Name them so", is_closed=True)


def test_an_absent_table_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"no\.csv"):
        read(tmp_path / "no.csv")


def test_sexes_are_letters_or_unknown() -> None:
    assert [parse_sex(text) for text in ("M", "female", " f", "?", "")] == ["M", "F", "F", "", ""]


@pytest.mark.parametrize(
    ("cells", "label"),
    [
        (("0", "0.0", "0,0", "-0.0", "0.000", "Normal", "FALSE"), Label.NORMAL),
        (("1", "1.0", "1,0", "+1", "1.00", "1e0", "Tumour", "true"), Label.ANOMALOUS),
        (("", "-1", "-1.0", "-1,0", "NaN", "n/a", "?", "unknown"), Label.UNKNOWN),
        (("2", "0.5", "-2", "1.1", "007", "yes", "no", "inf", "1,0,0", "0x1"), None),
    ],
)
def test_a_label_is_what_any_program_writes_for_it(
    cells: tuple[str, ...], label: Label | None
) -> None:
    assert {cell: parse_label(cell) for cell in cells} == dict.fromkeys(cells, label)


def test_given_words_for_labels_outweigh_the_usual_ones() -> None:
    given = {"1": Label.NORMAL, "0.0": Label.ANOMALOUS, "Yes": Label.ANOMALOUS, "na": Label.NORMAL}
    cells = ("1.0", "1", "0", "0,00", "YES", "NA", "-1", "normal", "2")
    assert [parse_label(cell, given) for cell in cells] == [0, 0, 1, 1, 1, 0, -1, 0, None]
