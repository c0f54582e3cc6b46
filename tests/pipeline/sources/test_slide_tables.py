"""Rows and annotations find their slide, and where two could be meant neither gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.io.storage import write_bytes
from pipeline.records import Label, SlideListing
from pipeline.sources.slides import list_slides
from tests.support.files import touch


def label_slides(tmp_path: Path, slides: list[str], rows: list[str]) -> SlideListing:
    """List slides below `in` with a table of labels."""
    url = touch(tmp_path / "in", *slides)
    (tmp_path / "t.csv").write_text("\n".join(["slide,label", *rows, ""]))
    return list_slides(url, labels=str(tmp_path / "t.csv"))


def facts_of(listing: SlideListing) -> dict[str, tuple[Label, str | None]]:
    """By the last two parts of its path: label, and the same of its annotation."""

    def end(url: str) -> str:
        return "/".join(Path(url).parts[-2:])

    return {
        end(slide.url): (slide.label, slide.annotation_url and end(slide.annotation_url))
        for slide in listing.slides
    }


def failures_of(listing: SlideListing) -> dict[str, str]:
    failed = [entry for entry in listing.rejected if entry.state == "failed"]
    return {"/".join(Path(entry.item).parts[-2:]): entry.reason for entry in failed}


@pytest.mark.parametrize("form", ["{}.tif", "{}", "in/{}.tif", "./{}.tif", "{whole}/in/{}"])
def test_rows_with_folders_tell_slides_of_one_name_apart(tmp_path: Path, form: str) -> None:
    rows = [
        f"{form.format(name, whole=tmp_path)},{label}"
        for name, label in (("a/s", "tumor"), ("b/s", "normal"))
    ]
    listing = label_slides(tmp_path, ["a/s.tif", "b/s.tif"], rows)
    assert facts_of(listing) == {
        "a/s.tif": (Label.ANOMALOUS, None),
        "b/s.tif": (Label.NORMAL, None),
    }
    assert listing.rejected == ()


def test_a_table_of_mpp_does_so_too() -> None:
    for name in ("a/s.tif", "b/s.tif", "m.csv"):
        write_bytes(f"memory://matches/{name}", b"slide,mpp_um\na/s.tif,0.25\nb/s.tif,0.5\n")
    listing = list_slides("memory://matches", mpp_table="memory://matches/m.csv")
    assert {s.slide_id: s.mpp_um for s in listing.slides} == {"a/s.tif": 0.25, "b/s.tif": 0.5}


def test_a_relative_source_knows_its_slides_by_their_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "in", "a/s.tif")
    (tmp_path / "t.csv").write_text(f"slide,label\n{tmp_path}/in/a/s.tif,normal\n")
    monkeypatch.chdir(tmp_path)
    (slide,) = list_slides("in", labels="t.csv").slides
    assert slide.url == "in/a/s.tif"
    assert slide.label is Label.NORMAL


def test_a_row_of_another_folder_says_nothing_of_a_slide(tmp_path: Path) -> None:
    listing = label_slides(tmp_path, ["b/s.tif"], ["a/s.tif,normal"])
    assert facts_of(listing) == {"b/s.tif": (Label.UNKNOWN, None)}
    (entry,) = listing.rejected
    assert (entry.item, entry.state) == ("a/s.tif", "skipped")


def test_a_mere_name_of_two_slides_is_refused_for_both(tmp_path: Path) -> None:
    slides = ["a/s.tif", "b/s.tif", "b/t.tif"]
    listing = label_slides(tmp_path, slides, ["s,normal", "t,normal"])
    assert facts_of(listing) == {"b/t.tif": (Label.NORMAL, None)}
    failures = failures_of(listing)
    assert set(failures) == {"a/s.tif", "b/s.tif"}
    for reason in failures.values():
        assert "t.csv: row 's' may be of a/s.tif or b/s.tif. Give its path" in reason


def test_what_fits_to_the_letter_goes_first(tmp_path: Path) -> None:
    slides = ["a/s.tif", "b/t.svs", "b/t.tif", "s.tif"]
    listing = label_slides(tmp_path, slides, ["s,tumor", "t.tif,normal"])
    labels = {slide.slide_id: slide.label for slide in listing.slides}
    assert labels == {
        "a/s.tif": Label.UNKNOWN,
        "b/t.svs": Label.UNKNOWN,
        "b/t.tif": Label.NORMAL,
        "s.tif": Label.ANOMALOUS,
    }


def test_rows_may_repeat_but_not_contradict_each_other(tmp_path: Path) -> None:
    slides = ["a/s.tif", "a/t.tif"]
    same = label_slides(tmp_path, slides, ["s,tumor", "a/s.tif,tumour"])
    assert facts_of(same)["a/s.tif"] == (Label.ANOMALOUS, None)
    said = r"t\.csv: row 2 \('s'\) gives label 'anomalous', and row 4 of .* 'normal'\. Leave"
    with pytest.raises(SettingsError, match=said):
        label_slides(tmp_path, slides, ["s,tumor", "t,normal", "a/s.tif,normal"])
    (tmp_path / "m.csv").write_text("slide,mpp_um\ns,0.25\ns,0.5\n")
    with pytest.raises(
        SettingsError, match=r"m\.csv: row 2 \('s'\) gives mpp_um 0\.25, and row 3 .* 0\.5\."
    ):
        list_slides(str(tmp_path / "in"), mpp_table=str(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (["a/x.xml", "b/x.xml"], {"a": "a/x.xml", "b": "b/x.xml"}),
        (["a/xml/x.xml", "b/xml/x.geojson"], {"a": "xml/x.xml", "b": "xml/x.geojson"}),
        (["a/x.xml"], {"a": "a/x.xml", "b": None}),
        (["b/x.xml"], {"a": None, "b": "b/x.xml"}),
    ],
)
def test_an_annotation_belongs_to_the_nearest_slide_alone(
    tmp_path: Path, annotations: list[str], expected: dict[str, str | None]
) -> None:
    listing = list_slides(touch(tmp_path, "a/x.svs", "b/x.svs", *annotations))
    found = {path[0]: annotation for path, (_, annotation) in facts_of(listing).items()}
    assert found == expected
    assert listing.rejected == ()


def test_a_slide_in_the_annotations_own_folder_goes_before_one_below_it(tmp_path: Path) -> None:
    listing = list_slides(touch(tmp_path, "a/below/x.svs", "a/x.svs", "a/x.xml"))
    assert facts_of(listing) == {
        "below/x.svs": (Label.UNKNOWN, None),
        "a/x.svs": (Label.UNKNOWN, "a/x.xml"),
    }


def test_an_annotation_as_near_to_two_slides_is_refused_for_both(tmp_path: Path) -> None:
    listing = list_slides(touch(tmp_path, "a/x.svs", "b/x.svs", "b/y.svs", "annotations/x.xml"))
    assert set(facts_of(listing)) == {"b/y.svs"}
    failures = failures_of(listing)
    assert set(failures) == {"a/x.svs", "b/x.svs"}
    assert "annotations/x.xml: it may be of a/x.svs or b/x.svs. Put" in failures["a/x.svs"]


@pytest.mark.parametrize("other", ["a/x.geojson", "elsewhere/x.xml"])
def test_a_slide_with_two_annotations_is_refused_and_both_are_named(
    tmp_path: Path, other: str
) -> None:
    listing = list_slides(touch(tmp_path, "a/x.svs", "a/y.svs", "a/x.xml", other))
    assert set(facts_of(listing)) == {"a/y.svs"}
    (reason,) = failures_of(listing).values()
    assert "a/x.xml" in reason
    assert other in reason
