"""`normscope sheet`: what it writes, and that nothing filled in is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import launch
from pipeline.io.storage import read_bytes
from pipeline.records import Label
from pipeline.sources.images import list_images
from pipeline.sources.slides import list_slides
from tests.support.files import touch


def test_a_sheet_of_slides_is_filled_in_and_ingested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "my slides", "a/1.svs", "a/tumor_002.tif", "a/tumor_002.xml", "a/gone.xml")
    assert launch("sheet", "my slides") == 0
    said = capsys.readouterr().out
    assert "Wrote my slides.csv: 2 slides, 1 with split, 1 with label, 1 with annotation." in said
    assert "Left out: " in said
    assert "normscope ingest slides 'my slides' DATASET --sheet 'my slides.csv'" in said
    text = Path("my slides.csv").read_text()
    assert text.splitlines()[1:] == [
        "a/1.svs,,,,,,,,",
        "a/tumor_002.tif,,train,anomalous,,,a/tumor_002.xml,,",
    ]
    Path("my slides.csv").write_text(text.replace("a/1.svs,,", "a/1.svs,P7,"))
    assert [slide.patient for slide in list_slides("my slides", sheet="my slides.csv").slides] == [
        "P7",
        "",
    ]


def test_a_sheet_says_whose_labels_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = touch(tmp_path / "own", "tumor_7.tif", "case.tif")
    assert launch("sheet", source, str(tmp_path / "s.csv")) == 0
    assert "1 of 2 slides have names of Camelyon16's, as 'tumor_7.tif'" in caplog.text


def test_an_existing_sheet_is_kept_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, table = touch(tmp_path / "in", "1.svs"), tmp_path / "s.csv"
    table.write_text("filled in")
    assert launch("sheet", source, str(table)) == 2
    assert (
        "s.csv: the file exists. Name another file, or give --overwrite" in capsys.readouterr().err
    )
    assert table.read_text() == "filled in"
    assert launch("sheet", source, str(table), "--overwrite") == 0
    assert "1.svs" in table.read_text()


def test_a_sheet_of_images_lies_anywhere_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = touch(tmp_path / "in", "a/1.png", "b/2.jpg", "3.tif")
    table = tmp_path / "in.csv"  # above the images, whose paths are below `in`
    assert launch("sheet", url, str(table)) == 0
    assert f"ingest images {url} DATASET --labels {table}" in capsys.readouterr().out
    assert table.read_text().splitlines()[0] == "path,patient,split,label,site,scanner,view"
    assert list_images(url, labels_url=str(table)).images == list_images(url).images
    table.write_text(table.read_text().replace("a/1.png,,,,,,", "a/1.png,P7,test,1,Uppsala,GT,pa"))
    first = list_images(url, labels_url=str(table)).images[1]
    assert (first.image_id, first.group_id, first.split) == ("a/1.png", "P7", "test")
    assert first.label is Label.ANOMALOUS
    assert first.columns == {"site": "Uppsala", "scanner": "GT", "view_position": "PA"}


def test_what_a_table_beside_the_images_says_is_in_the_sheet(tmp_path: Path) -> None:
    url = touch(tmp_path / "in", "1.png", "2.png")
    rows = "1.png,1,P1,63,AP\n2.png,,unknown,,\n"
    (tmp_path / "in" / "manifest.csv").write_text(f"path,label,patient,age,view\n{rows}")
    assert launch("sheet", url, str(tmp_path / "s.csv")) == 0
    assert (tmp_path / "s.csv").read_text().splitlines() == [
        "path,patient,split,label,site,scanner,view,age_years",
        "1.png,P1,,anomalous,,,AP,63",
        "2.png,,,,,,,",
    ]


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (["1.svs", "1.png"], "auto", "1 slides"),
        (["1.svs", "1.png", "2.jpg"], "auto", "2 images"),
        (["1.svs", "1.png", "2.jpg"], "slides", "1 slides"),
        (["1.tif", "2.tif"], "auto", "2 slides"),
        (["1.tif", "2.tif"], "images", "2 images"),
    ],
)
def test_slides_are_told_from_images_by_most_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    kind: str,
    expected: str,
) -> None:
    url = touch(tmp_path / "in", *names)
    assert launch("sheet", url, str(tmp_path / "s.csv"), "--kind", kind) == 0
    assert f": {expected}, of which nothing is known yet." in capsys.readouterr().out


def test_a_sheet_may_lie_on_a_server(s3_url: str, tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "1.svs")
    assert launch("sheet", source, f"{s3_url}/s.csv") == 0
    assert launch("sheet", source, f"{s3_url}/s.csv") == 2
    assert read_bytes(f"{s3_url}/s.csv").startswith(b"path,patient")


def test_a_folder_without_scans_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("sheet", touch(tmp_path, "read.me"), str(tmp_path / "s.csv")) == 2
    assert "no slide among 1 files" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
