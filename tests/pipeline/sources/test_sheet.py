"""Sample sheets of slides: what each column does, and what is refused."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import AbsentError, NormscopeError, SchemaError, SettingsError, SourceError
from pipeline.io.storage import write_bytes
from pipeline.records import Label, Slide, SlideListing
from pipeline.sources.sheet import encode_sheet, tabulate_slides
from pipeline.sources.slides import list_slides
from tests.support.files import touch

SLIDES = ("a/1.svs", "a/2.svs", "b/1.svs", "b/3.ndpi")


def list_with(tmp_path: Path, *lines: str, slides: tuple[str, ...] = SLIDES) -> SlideListing:
    """List slides below `in` with a sheet beside that folder."""
    url = touch(tmp_path / "in", *slides)
    (tmp_path / "sheet.csv").write_text("\n".join([*lines, ""]))
    return list_slides(url, sheet=str(tmp_path / "sheet.csv"))


def by_id(listing: SlideListing) -> dict[str, Slide]:
    return {slide.slide_id: slide for slide in listing.slides}


def test_a_row_says_all_that_can_be_known_of_a_slide(tmp_path: Path) -> None:
    touch(tmp_path, "in/masks/1.png", "outlines/1.xml")
    listing = list_with(
        tmp_path,
        "path,patient,split,label,mpp_um,mask,annotation,site,scanner,view",
        "a/1.svs,P7,Val,Tumour,0.2526,masks/1.png,outlines/1.xml,Uppsala,GT450,",
        "b/1.svs,P8,,negative,,,,,,",
    )
    slides = by_id(listing)
    first = slides["a/1.svs"]
    assert first.group_id == first.patient == "P7"
    assert (first.split, first.label, first.mpp_um) == ("validation", Label.ANOMALOUS, 0.2526)
    assert (first.site, first.scanner) == ("Uppsala", "GT450")
    assert first.mask_url == str(tmp_path / "in/masks/1.png")
    assert first.annotation_url == str(tmp_path / "outlines/1.xml")
    second, without_row = slides["b/1.svs"], slides["a/2.svs"]
    assert (second.label, second.split, second.group_id) == (Label.NORMAL, None, "P8")
    assert (second.mpp_um, second.mask_url, second.annotation_url) == (None, None, None)
    assert (without_row.label, without_row.group_id) == (Label.UNKNOWN, "a/2.svs")
    assert listing.rejected == ()


@pytest.mark.parametrize(
    "path",
    [
        *("a/1.svs", "./a/1.svs", "in/a/1.svs", "{}/in/a/1.svs", "file://{}/in/a/1.svs", "a/1"),
        *("a\\1.svs", ".\\in\\a\\1.svs", "b/../a/1.svs", "elsewhere/../in/a/1.svs"),
    ],
)
def test_a_path_may_be_given_in_several_ways(tmp_path: Path, path: str) -> None:
    listing = list_with(tmp_path, "path,patient", f"{path.format(tmp_path)},P7")
    assert [slide.slide_id for slide in listing.slides if slide.patient] == ["a/1.svs"]
    assert listing.rejected == ()


def test_paths_on_a_server_are_found_from_its_sheet_and_from_a_local_one(tmp_path: Path) -> None:
    for name in ("lake/in/a/1.svs", "lake/in/b/1.svs", "lake/masks/1.png"):
        write_bytes(f"memory://sheets/{name}", b"x")
    text = "path,mask,patient\nin/a/1.svs,masks/1.png,P7\n"
    write_bytes("memory://sheets/lake/s.csv.gz", gzip.compress(text.encode()))
    listing = list_slides("memory://sheets/lake/in", sheet="memory://sheets/lake/s.csv.gz")
    mask = "memory://sheets/lake/masks/1.png"
    assert [(slide.patient, slide.mask_url) for slide in listing.slides] == [
        ("P7", mask),
        ("", None),
    ]
    rows = f"b/1.svs,{mask},P8\nmemory://sheets/lake/in/a/1.svs,,P9\n"
    (tmp_path / "s.csv").write_text("path,mask,patient\n" + rows)
    local = list_slides("memory://sheets/lake/in", sheet=str(tmp_path / "s.csv"))
    assert [(slide.patient, slide.mask_url) for slide in local.slides] == [
        ("P9", None),
        ("P8", mask),
    ]


def test_the_folder_of_the_sheet_goes_before_the_source(tmp_path: Path) -> None:
    url = touch(tmp_path / "in", "in/1.svs", "1.svs", "in/m.png", "m.png")
    for home, slide_id in (("in", "1.svs"), (".", "1.svs"), ("in/in", "in/1.svs")):
        sheet = tmp_path / home / "sheet.csv"
        sheet.write_text("path,patient,mask\n1.svs,P7,m.png\n")
        (slide,) = (found for found in list_slides(url, sheet=str(sheet)).slides if found.patient)
        assert slide.slide_id == slide_id
        assert slide.mask_url == str(Path(slide.url).with_name("m.png"))


def test_a_name_with_a_comma_is_quoted(tmp_path: Path) -> None:
    listing = list_with(
        tmp_path, "path,label", '"a,b/1,2.svs",1', slides=("a,b/1,2.svs", "=1+2.svs")
    )
    assert by_id(listing)["a,b/1,2.svs"].label is Label.ANOMALOUS


def test_a_dicom_slide_is_named_by_its_folder(tmp_path: Path) -> None:
    slides = ("d/1.dcm", "d/2.dcm", "e/1.dcm")
    listing = list_with(tmp_path, "path,patient", "d,P7", "in/e,P8", slides=slides)
    assert [(slide.slide_id, slide.patient) for slide in listing.slides] == [
        ("d", "P7"),
        ("e", "P8"),
    ]
    url = touch(tmp_path / "alone", "1.dcm")
    for path in (".", "alone"):
        (tmp_path / "alone" / "s.csv").write_text(f"path,patient\n{path},P7\n")
        (slide,) = list_slides(url, sheet=f"{url}/s.csv").slides
        assert (slide.slide_id, slide.patient) == ("alone", "P7")


def test_a_german_spreadsheet_is_read(tmp_path: Path) -> None:
    url = touch(tmp_path, "Präparat 1.svs", "2.svs")
    text = "\ufeffPath;MPP;Patient;Label\r\nPräparat 1.svs;0,2526;Müller;normal\r\n;;;\r\n"
    (tmp_path / "s.csv").write_text(text, newline="")
    slide = by_id(list_slides(url, sheet=f"{url}/s.csv"))["Präparat 1.svs"]
    assert (slide.mpp_um, slide.patient, slide.label) == (0.2526, "Müller", Label.NORMAL)
    (tmp_path / "s.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(SourceError, match=r"s\.csv: not text in UTF-8 .* Save the table as CSV"):
        list_slides(url, sheet=f"{url}/s.csv")


@pytest.mark.parametrize("nobody", ["", "NA", "n/a", "NaN", "-", "?", "unknown", "Anonymous"])
def test_slides_of_nobody_are_not_all_of_one_patient(tmp_path: Path, nobody: str) -> None:
    rows = [f"{name},{nobody}" for name in SLIDES]
    listing = list_with(tmp_path, "path,patient", *rows)
    assert [slide.group_id for slide in listing.slides] == sorted(SLIDES)
    assert any("names no patient" in note for note in listing.notes)


def test_a_group_counts_as_the_patient_where_there_is_none(tmp_path: Path) -> None:
    rows = ["a/1.svs,P1,", "a/2.svs,,G2", "b/1.svs,P3,P3"]
    listing = list_with(tmp_path, "path,patient,group", *rows)
    assert [slide.group_id for slide in listing.slides] == ["P1", "G2", "P3", "b/3.ndpi"]
    with pytest.raises(SourceError, match=r"patient 'P1' and group 'G1' in row 2\. A split"):
        list_with(tmp_path, "path,patient,group", "a/1.svs,P1,G1")


def test_the_sheet_outweighs_official_names_and_an_empty_cell_does_not(tmp_path: Path) -> None:
    slides = ("normal_001.tif", "tumor_002.tif", "test_003.tif", "annotations/tumor_002.xml")
    touch(tmp_path / "in", "x.geojson")
    (tmp_path / "in" / "reference.csv").write_text("test_003,Tumor\n")
    listing = list_with(
        tmp_path,
        "path,split,label,annotation",
        "normal_001.tif,test,unknown,x.geojson",
        "tumor_002,,,none",
        "test_003,,normal,",
        slides=slides,
    )
    found = {
        name: (slide.split, slide.label, slide.annotation_url)
        for name, slide in by_id(listing).items()
    }
    assert found == {
        "normal_001.tif": ("test", Label.UNKNOWN, str(tmp_path / "in/x.geojson")),
        "tumor_002.tif": ("train", Label.ANOMALOUS, None),
        "test_003.tif": ("test", Label.NORMAL, None),
    }
    assert [entry.item for entry in listing.rejected] == []


def test_what_is_written_of_slides_is_read_back(tmp_path: Path) -> None:
    names = ("training/normal_001.tif", "training/tumor_002.tif", "testing/test_003.tif")
    odd = ("=1+1.svs", "@é, b.svs", "d/1.dcm", "d/2.dcm")
    url = touch(tmp_path / "in", *names, *odd, "outlines/tumor_002.xml", "-x.xml", "-x.tif")
    (tmp_path / "in" / "reference.csv").write_text("test_003,Tumor\n")
    plain = list_slides(url)
    (tmp_path / "s.csv").write_bytes(encode_sheet(tabulate_slides(plain.slides, url)))
    again = list_slides(url, sheet=str(tmp_path / "s.csv"))
    assert again.slides == plain.slides
    assert again.rejected == plain.rejected
    lines = (tmp_path / "s.csv").read_text("utf-8-sig").splitlines()
    assert lines[0] == "path,patient,split,label,mpp_um,mask,annotation,site,scanner"
    assert lines[1:4] == ["./-x.tif,,,,,,./-x.xml,,", "./=1+1.svs,,,,,,,,", '"./@é, b.svs",,,,,,,,']
    known = [
        replace(slide, mpp_um=0.25, patient="P", site="S", split="test") for slide in plain.slides
    ]
    (tmp_path / "s.csv").write_bytes(encode_sheet(tabulate_slides(known, url)))
    assert list(list_slides(url, sheet=str(tmp_path / "s.csv")).slides) == known


def test_masks_and_annotations_of_the_sheet_are_neither_slides_nor_beside_one(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "in", "a/1.geojson", "tissue/1.tif")
    listing = list_with(
        tmp_path,
        "path,mask,annotation",
        "a/1.svs,a/1.geojson,",
        "b/1.svs,tissue/1.tif,",
        slides=("a/1.svs", "b/1.svs"),
    )
    assert [(slide.slide_id, slide.annotation_url) for slide in listing.slides] == [
        ("a/1.svs", None),
        ("b/1.svs", None),
    ]
    assert listing.rejected == ()


def test_the_annotation_of_the_sheet_settles_which_of_two_it_is(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/1.xml", "a/1.geojson")
    assert "another annotation" in list_with(tmp_path, "path", "b/1.svs").rejected[0].reason
    listing = list_with(tmp_path, "path,annotation", "a/1.svs,a/1.geojson")
    assert by_id(listing)["a/1.svs"].annotation_url == str(tmp_path / "in/a/1.geojson")


def test_narrow_tables_and_the_sheet_add_up_and_must_not_contradict(tmp_path: Path) -> None:
    url = touch(tmp_path / "in", *SLIDES)
    for name, text in {
        "s": "path,patient,label\na/1.svs,P7,\na/2.svs,P7,normal\n",
        "l": "slide,label\na/1,tumor\n",
        "m": "slide,mpp_um\n2.svs,0.5\n",
        "wrong": "slide,label\na/2,tumor\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    sheet, labels, mpp, wrong = (str(tmp_path / f"{name}.csv") for name in ("s", "l", "m", "wrong"))
    slides = by_id(list_slides(url, sheet=sheet, labels=labels, mpp_table=mpp))
    assert slides["a/1.svs"].label is Label.ANOMALOUS
    assert (slides["a/2.svs"].label, slides["a/2.svs"].mpp_um) == (Label.NORMAL, 0.5)
    assert slides["a/1.svs"].patient == slides["a/2.svs"].patient == "P7"
    said = r"s\.csv: row 3 .* label 'normal', and row 2 of .*wrong\.csv, .* 'anomalous'\. Leave"
    with pytest.raises(SettingsError, match=said):
        list_slides(url, sheet=sheet, labels=wrong)


@pytest.mark.parametrize(
    ("lines", "kind", "said"),
    [
        (["path,label", "a/1.svs,1", "a/1.svs,1"], SettingsError, "rows 2 and 3 are of one slide"),
        (["path,site", "a/1.svs,x", "1.svs,x", "in/a/1,"], SettingsError, "rows 2 and 4 are of"),
        (["path,lable", "a/1.svs,1"], SourceError, "unknown column 'lable'; .* `label`. .*scanner"),
        (["path,stain", "a/1.svs,1"], SourceError, "unknown column 'stain'. .* path, and any of"),
        (["a/1.svs,normal"], SourceError, "unknown column 'a/1.svs'. The first line names"),
        (["patient,label", "P7,1"], SourceError, "no column for path; the table has: 'patient'"),
        (["path"], SourceError, "the table has no rows"),
        (["path,split", "a/1.svs,hold-out"], SourceError, "split 'hold-out' in row 2. Use one of"),
        (["path,label", "a/1.svs,benign"], SourceError, "label 'benign' in row 2. Use one of"),
        (["path,mpp_um", "a/1.svs,0"], SourceError, "mpp_um '0' of 'a/1.svs' in row 2. Give"),
        (["path,mpp_um", "a/1.svs,40"], SourceError, "mpp_um '40' of 'a/1.svs' in row 2. Give"),
        (["path,mpp_um", "a/1.svs,40x"], SourceError, "mpp_um '40x' of 'a/1.svs' in row 2. Give"),
        (["path,patient", ",P7"], SourceError, "no path in row 2"),
        (["path,patient", "a/1.svs,#REF!"], SourceError, "patient '#REF!' in row 2. Correct the"),
        (["path", "c/1.svs"], SourceError, "none of its 1 rows is a slide of '.*in', as 'c/1.svs'"),
        (["path,view", "a/1.svs,PA"], SourceError, "view 'PA' of 'a/1.svs' in row 2. A slide has"),
        (["path,label", "a,b/1.svs,1"], SourceError, "row 2 has the cell '1' in a column without"),
        (
            ["path,label,mpp_um", "a/1.svs,odd,", "a/2.svs,normal,9999", "b/1.svs,,0.25"],
            SourceError,
            "label 'odd' in row 2; 1 more cannot be used",
        ),
        (
            ["path,patient,split", "a/1.svs,P7,train", "b/1.svs,P7,test", "a/2.svs,P8,test"],
            SchemaError,
            r"1 of 2 groups .*: P7 \(test, train\)\. Give",
        ),
    ],
)
def test_a_wrong_sheet_is_refused_with_item_value_and_remedy(
    tmp_path: Path, lines: list[str], kind: type[NormscopeError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        list_with(tmp_path, *lines)
    assert caught.value.item == str(tmp_path / "sheet.csv")


def test_an_absent_sheet_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"no\.csv"):
        list_slides(touch(tmp_path, *SLIDES), sheet=str(tmp_path / "no.csv"))


def test_a_file_that_a_row_names_is_a_slide_whatever_its_name(tmp_path: Path) -> None:
    others = ("masks/1.svs", "liver_mask.tif", "c/4.png", "c/5.png", "c/6.vsi", "m.mrxs", "m/a.dat")
    touch(tmp_path / "in", *others)
    rows = ["masks/1.svs,P7", "liver_mask.tif,P7", "c/4.png,P8", "c\\6.vsi,P8", "m,P9"]
    slides = by_id(list_with(tmp_path, "path,patient", *rows))
    named = {"masks/1.svs": "P7", "liver_mask.tif": "P7", "c/4.png": "P8", "c/6.vsi": "P8"}
    assert {name: slide.patient for name, slide in slides.items() if name not in SLIDES} == {
        **named,
        "m.mrxs": "P9",
    }


def find_reasons(listing: SlideListing) -> Iterator[tuple[str, str, str]]:
    for entry in listing.rejected:
        yield Path(entry.item).name, entry.state, entry.reason


def test_a_row_without_a_slide_is_skipped_and_the_rest_goes_on(tmp_path: Path) -> None:
    listing = list_with(tmp_path, "path,label", "a/1.svs,1", "c/gone.svs,1")
    assert len(listing.slides) == 4
    assert list(find_reasons(listing)) == [
        ("gone.svs", "skipped", "in the sheet, but no such slide file"),
    ]
    rows = [f"gone/{number:02}.svs,1" for number in range(25)]
    *named, last = list_with(tmp_path, "path,label", *rows, "b/1.svs,").rejected
    assert (len(named), last.item) == (20, str(tmp_path / "sheet.csv"))
    assert last.reason == "5 more rows: in the sheet, but no such slide file"


def test_a_row_that_fits_two_slides_fails_both(tmp_path: Path) -> None:
    listing = list_with(tmp_path, "path,label", "1.svs,1", "a/2.svs,0")
    assert set(by_id(listing)) == {"a/2.svs", "b/3.ndpi"}
    assert {state for _, state, _ in find_reasons(listing)} == {"failed"}
    assert "row '1.svs' may be of a/1.svs or b/1.svs" in listing.rejected[0].reason


@pytest.mark.parametrize("column", ["mask", "annotation"])
def test_a_slide_whose_mask_or_annotation_is_absent_fails_alone(
    tmp_path: Path, column: str
) -> None:
    rows = ["a/1.svs,gone.png", "a/2.svs,none", "b/1.svs,"]
    listing = list_with(tmp_path, f"path,{column}", *rows)
    assert len(listing.slides) == 3
    ((name, state, reason),) = find_reasons(listing)
    assert (name, state) == ("1.svs", "failed")
    said = f"sheet.csv: no such file as the {column} 'gone.png' in row 2. Give its path below"
    assert said in reason
