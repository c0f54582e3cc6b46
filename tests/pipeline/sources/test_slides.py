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
    assert labels == {"normal_001.tif": Label.ANOMALOUS, "case.12.svs": Label.NORMAL}
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
        "cmu-1-small-region.svs",
        Label.UNKNOWN,
        None,
    )


def test_a_slide_is_named_by_its_path_below_the_source(tmp_path: Path) -> None:
    names = ["a/b/x.tif", "a/x.tif", "a_b/x.tif", "b/x.svs", "x.svs", "x.tif"]
    url = touch(tmp_path, *names, "d/1.dcm", "d/2.dcm", "a/m.mrxs", "a/m/Data0001.dat")
    slides = list_slides(url).slides
    assert [slide.slide_id for slide in slides] == sorted([*names, "d", "a/m.mrxs"])


def test_a_namesake_that_is_added_renames_no_slide(tmp_path: Path) -> None:
    url = touch(tmp_path, "b/slide.svs", "c/slide.svs")
    before = {slide.url: slide.slide_id for slide in list_slides(url).slides}
    touch(tmp_path, "a/slide.svs", "b/slide.tif", "slide.svs")
    after = {slide.url: slide.slide_id for slide in list_slides(url).slides}
    assert len(after) == len(set(after.values())) == 5
    assert {url: after[url] for url in before} == before


def test_a_dicom_slide_directly_in_the_source_has_the_folders_name(tmp_path: Path) -> None:
    url = touch(tmp_path / "case 7", "1.dcm", "2.dcm")
    for source in (url, f"{url}/1.dcm"):
        (slide,) = list_slides(source).slides
        assert slide.slide_id == "case 7"


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
    assert {slide.slide_id: slide.mpp_um for slide in listing.slides} == {
        "a/x.svs": 0.243,
        "b/y.svs": None,
    }
    (entry,) = listing.rejected
    assert (entry.item, entry.reason) == ("z", "in the mpp table, but no such slide file")


@pytest.mark.parametrize("value", ["0", "nan", "-0.25", "20x", ""])
def test_refuses_an_impossible_mpp(tmp_path: Path, value: str) -> None:
    url = touch(tmp_path / "slides", "x.svs")
    (tmp_path / "mpp.csv").write_text(f"slide,mpp_um\nx,{value}\n")
    with pytest.raises(SourceError, match=rf"mpp\.csv: mpp_um '{value}' of 'x' in row 2\."):
        list_slides(url, mpp_table=str(tmp_path / "mpp.csv"))
