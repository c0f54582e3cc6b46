"""Slides of any source: ids, labels from tables, and what cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.records import Label
from pipeline.sources.slides import list_slides
from tests.support.files import touch


def test_a_label_table_outweighs_names_and_absent_slides_are_counted(tmp_path: Path) -> None:
    url = touch(tmp_path / "slides", "normal_001.tif", "case.12.svs")
    table = tmp_path / "labels.csv"
    table.write_text("label,slide\ntumor,normal_001\nnormal,case.12\nnormal,normal_400.tif\n")
    listing = list_slides(url, labels=str(table))
    labels = {slide.slide_id: slide.label for slide in listing.slides}
    assert labels == {"normal_001": Label.ANOMALOUS, "case.12": Label.NORMAL}
    (entry,) = listing.rejected
    assert (entry.item, entry.state) == ("normal_400.tif", "skipped")


@pytest.mark.parametrize("header", ["Slide, LABEL\n", ""])
@pytest.mark.parametrize("words", [("Normal", "tumour"), ("0", "1"), ("negative", "True")])
def test_a_label_table_has_any_usual_words_with_or_without_a_header_gzipped_or_not(
    tmp_path: Path, header: str, words: tuple[str, str]
) -> None:
    url = touch(tmp_path / "slides", "a.svs", "b.svs", "c.svs")
    text = f"{header}a,{words[0]},None\nb,{words[1]}\nc,unknown\n"
    (tmp_path / "labels.csv").write_text(text)
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("labels.csv", "labels.csv.gz"):
        listing = list_slides(url, labels=str(tmp_path / name))
        assert [slide.label for slide in listing.slides] == [0, 1, -1]
        assert listing.rejected == ()


def test_takes_a_single_slide(shared_data: Path) -> None:
    listing = list_slides(str(shared_data / "slides" / "cmu-1-small-region.svs"))
    assert listing.source == "cmu-1-small-region"
    (slide,) = listing.slides
    assert (slide.slide_id, slide.label, slide.split) == (
        "cmu-1-small-region",
        Label.UNKNOWN,
        None,
    )


def test_slides_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    url = touch(tmp_path, "a/x.svs", "b/y.svs")
    assert name_slides(url) == {"a/x.svs": "x", "b/y.svs": "y"}
    touch(tmp_path, "b/x.svs")  # changes no name of those that are there
    assert name_slides(url) == {"a/x.svs": "x", "b/x.svs": "b_x.svs", "b/y.svs": "y"}


def test_no_two_slides_share_an_id_whatever_their_folders_are_called(tmp_path: Path) -> None:
    url = touch(tmp_path, "a/b/x.tif", "a/x.tif", "a_b/x.tif", "c/a_b_x.tif.svs")
    assert name_slides(url) == {
        "a/b/x.tif": "x",
        "a/x.tif": "a_x.tif",
        "a_b/x.tif": "a_b_x.tif",
        "c/a_b_x.tif.svs": "c_a_b_x.tif.svs",
    }
    touch(tmp_path, "a/a/x.tif")
    assert len(set(name_slides(url).values())) == 5
    assert name_slides(url)["a_b/x.tif"] == "a_b_x.tif_2"


def name_slides(url: str) -> dict[str, str]:
    """Path below the source -> id."""
    slides = list_slides(url).slides
    return {Path(slide.url).relative_to(url).as_posix(): slide.slide_id for slide in slides}


def test_an_annotation_without_a_slide_is_listed(tmp_path: Path) -> None:
    url = touch(tmp_path, "images/tumor_001.tif", "annotations/tumor_002.xml")
    (entry,) = list_slides(url).rejected
    assert entry.item.endswith("tumor_002.xml")
    assert entry.state == "skipped"


def test_refuses_a_folder_without_slides(tmp_path: Path) -> None:
    url = touch(tmp_path, "readme.txt", "image.png")
    with pytest.raises(SourceError, match=r"no slide among 2 files.*\.svs"):
        list_slides(url)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("slide,grade\na,2\n", "no column for label; the table has: 'slide', 'grade'"),
        ("", "no column for slide and label; the table has: none"),
        ("slide,label\nx,normal\ny,benign\n", "label 'benign' in row 3"),
        ("slide,label\nx\n", "label '' in row 2"),
    ],
)
def test_refuses_a_bad_label_table(tmp_path: Path, table: str, said: str) -> None:
    url = touch(tmp_path / "slides", "x.svs")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(SourceError, match=rf"labels\.csv: {said}"):
        list_slides(url, labels=str(tmp_path / "labels.csv"))


def test_refuses_a_label_table_that_is_no_text(tmp_path: Path) -> None:
    url = touch(tmp_path / "slides", "x.svs")
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SourceError, match=r"labels\.csv: not text in UTF-8"):
        list_slides(url, labels=str(tmp_path / "labels.csv"))


def test_reads_a_table_of_mpp(tmp_path: Path) -> None:
    url = touch(tmp_path / "slides", "a/x.svs", "b/y.svs")
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp_um\nx.svs,0.243\nz,0.5\n")
    listing = list_slides(url, mpp_table=str(table))
    assert {slide.slide_id: slide.mpp_um for slide in listing.slides} == {"x": 0.243, "y": None}
    (entry,) = listing.rejected
    assert (entry.item, entry.reason) == ("z", "in the mpp table, but no such slide file")


@pytest.mark.parametrize("value", ["0", "nan", "-0.25", "20x", ""])
def test_refuses_an_impossible_mpp(tmp_path: Path, value: str) -> None:
    url = touch(tmp_path / "slides", "x.svs")
    (tmp_path / "mpp.csv").write_text(f"slide,mpp_um\nx,{value}\n")
    with pytest.raises(SourceError, match=r"mpp\.csv, x: "):
        list_slides(url, mpp_table=str(tmp_path / "mpp.csv"))
