"""Names alike but for suffix, case or Unicode's form; files that nobody reads; dots in folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unicodedata import normalize

import pytest

from pipeline.errors import SourceError
from pipeline.records import Label, SlideListing
from pipeline.sources.slides import list_slides
from tests.support.files import touch

SMALL = "größe.svs"


def find_annotations(listing: SlideListing) -> Mapping[str, str]:
    """Slide id -> name of its annotation, "" for none."""
    return {slide.slide_id: Path(slide.annotation_url or "").name for slide in listing.slides}


@pytest.mark.parametrize(
    ("slide", "annotation"),
    [
        ("x.ome.tif", "x.geojson"),
        ("x.ome.tiff", "x.xml"),
        ("x.OME.TIF", "X.geojson"),
        ("x.ome.tif", "x.ome.geojson"),
        ("x.ome.tif", "x.ome.tif.geojson"),
        ("a.svs", "a.svs.geojson"),
        ("a.tif", "a.svs.geojson"),
        ("a.SVS", "A.svs.XML"),
        ("Tumor_9.svs", "tumor_9.xml"),
        (normalize("NFC", SMALL), normalize("NFD", "größe.geojson")),
        (normalize("NFD", SMALL), normalize("NFC", "größe.svs.xml")),
    ],
)
def test_an_annotation_is_called_as_its_slide(tmp_path: Path, slide: str, annotation: str) -> None:
    listing = list_slides(touch(tmp_path, slide, annotation, "other.svs"), errata="none")
    assert find_annotations(listing) == {slide: annotation, "other.svs": ""}
    assert listing.rejected == ()


def test_to_the_letter_goes_before_alike(tmp_path: Path) -> None:
    names = ["a.svs", "A.svs", "a.ome.tif", "b.tif", "b.ome.tif"]
    url = touch(tmp_path, *names, "a.xml", "A.geojson", "a.ome.xml", "b.geojson", "b.ome.tif.xml")
    assert find_annotations(list_slides(url)) == {
        "a.svs": "a.xml",
        "A.svs": "A.geojson",
        "a.ome.tif": "a.ome.xml",
        "b.tif": "b.geojson",
        "b.ome.tif": "b.ome.tif.xml",
    }


def test_the_nearest_goes_before_the_likest(tmp_path: Path) -> None:
    url = touch(tmp_path, "one/Case.svs", "one/case.xml", "two/case.svs")
    assert find_annotations(list_slides(url)) == {"one/Case.svs": "case.xml", "two/case.svs": ""}


def test_two_annotations_of_one_slide_are_refused_however_they_are_called(tmp_path: Path) -> None:
    url = touch(tmp_path, "a.svs", "b.svs", "a.xml", "A.svs.geojson")
    listing = list_slides(url)
    (entry,) = listing.rejected
    assert (Path(entry.item).name, entry.state) == ("a.svs", "failed")
    assert "a.xml" in entry.reason
    assert "A.svs.geojson" in entry.reason


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Case 1.SVS", "case 1"),
        ("x.ome.tif", "x"),
        ("x.ome.tif", "X.ome"),
        ("x.tif", "x.ome.tif"),
        (normalize("NFD", SMALL), normalize("NFC", SMALL)),
        (f"Dépôt/{SMALL}", normalize("NFD", f"dépôt/{SMALL}")),
    ],
)
def test_a_row_is_called_as_its_slide(tmp_path: Path, name: str, row: str) -> None:
    url = touch(tmp_path / "in", name, "other.svs")
    table = tmp_path / "labels.csv"
    table.write_text(f"slide,label\n{row},tumor\n", "utf-8")
    listing = list_slides(url, labels=str(table))
    labels = {slide.slide_id: slide.label for slide in listing.slides}
    assert labels == {name: Label.ANOMALOUS, "other.svs": Label.UNKNOWN}


def test_a_row_to_the_letter_goes_before_one_alike(tmp_path: Path) -> None:
    url = touch(tmp_path / "in", "p/a/x.svs", "p/A/x.svs", "y.tif", "y.ome.tif", "Y.tif")
    table = tmp_path / "labels.csv"
    table.write_text("slide,label\na/x,tumor\ny,tumor\nY,normal\n")
    labels = {s.slide_id: s.label for s in list_slides(url, labels=str(table)).slides}
    assert labels == {"p/a/x.svs": 1, "p/A/x.svs": -1, "y.tif": 1, "y.ome.tif": -1, "Y.tif": 0}


def test_a_sheet_names_masks_and_annotations_alike(tmp_path: Path) -> None:
    url = touch(tmp_path, "a.svs", "Masks/A_mask.png", normalize("NFD", "ä.xml"))
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(f"path,mask,annotation\na.svs,masks/a_mask.PNG,{normalize('NFC', 'ä.xml')}\n")
    listing = list_slides(url, sheet=str(sheet))
    (slide,) = listing.slides
    assert (slide.mask_url, slide.annotation_url) == (
        f"{url}/Masks/A_mask.png",
        f"{url}/{normalize('NFD', 'ä.xml')}",
    )
    assert listing.rejected == ()


def test_files_that_nobody_reads_are_counted_by_suffix(tmp_path: Path) -> None:
    kinds = [f"{number}.vsi" for number in range(50)]
    masks = ["a_mask.tif", "MASKS/b.tif", "x_mask.ome.tif"]
    junk = ["._a.svs", ".DS_Store", "Thumbs.db", "@eaDir/a.svs/t.jpg", "__MACOSX/a.svs"]
    url = touch(tmp_path, "a.svs", "m.mrxs", "m/Slidedat.ini", *kinds, "b.isyntax", *masks, *junk)
    listing = list_slides(url)
    assert [slide.slide_id for slide in listing.slides] == ["a.svs", "m.mrxs"]
    said = {entry.item: entry.reason for entry in listing.rejected}
    assert said.keys() == {"*.vsi", "*.isyntax", "*.tif"}
    assert said["*.vsi"] == "50 files .vsi: not read"
    assert said["*.tif"].startswith("3 files .tif: taken for masks")


def test_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.svs")
    (tmp_path / "in" / "sheet.csv").write_text("path,label\na.svs,normal\n")
    monkeypatch.chdir(tmp_path)
    assert list_slides("in", sheet="in/sheet.csv").rejected == ()
    (entry,) = list_slides("in").rejected
    assert entry.reason == "1 file .csv: not read"


def test_a_source_without_slides_says_what_is_there(tmp_path: Path) -> None:
    url = touch(tmp_path, "a.vsi", "b.vsi", "._c.svs")
    with pytest.raises(SourceError, match=r"no slide among 3 files; 2 files \.vsi: not read"):
        list_slides(url)


@pytest.mark.parametrize("junk", ["._1.dcm", ".DS_Store", "Thumbs.db"])
def test_junk_is_no_part_of_a_slide(tmp_path: Path, junk: str) -> None:
    url = touch(tmp_path, "m.mrxs", "m/Slidedat.ini", f"m/{junk}")
    (slide,) = list_slides(url).slides
    assert slide.companions == (f"{url}/m/Slidedat.ini",)
    (alone,) = list_slides(f"{url}/m.mrxs").slides
    assert alone.companions == slide.companions


def test_a_dot_in_a_folders_name_is_part_of_it(tmp_path: Path) -> None:
    names = ["site.A", "site.B", "site.A.svs"]
    url = touch(tmp_path, "site.A/one.tif", "site.B/one.tif", "site.A.svs")
    assert [list_slides(f"{url}/{name}").source for name in names] == ["site.A", "site.B", "site.A"]
    assert list_slides(f"{url}/site.B/").source == "site.B"


def test_links_to_nowhere_are_spoken_of(tmp_path: Path) -> None:
    url = touch(tmp_path / "in", "a.svs", "sub/b.svs")
    for link in ("c.svs", "sub/d.xml", ".#a.svs"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "gone" / link)
    listing = list_slides(url)
    assert [slide.slide_id for slide in listing.slides] == ["a.svs", "sub/b.svs"]
    said = {entry.item: (entry.state, entry.reason) for entry in listing.rejected}
    expected = ("failed", "a link to what is not there. Mend the link, or remove it")
    assert said == {f"{url}/c.svs": expected, f"{url}/sub/d.xml": expected}
