"""Camelyon16: its layouts, names and errata."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.errors import SettingsError, SourceError
from pipeline.io.storage import write_bytes
from pipeline.records import Label
from pipeline.sources.camelyon16 import read_errata
from pipeline.sources.slides import list_slides
from tests.support.files import touch

TRAINING_AND_TESTING = (
    "training/normal/normal_001.tif",
    "training/tumor/tumor_001.tif",
    "training/lesion_annotations/tumor_001.xml",
    "testing/images/test_001.tif",
    "testing/images/test_002.tif",
    "testing/images/test_003.tif",
    "testing/lesion_annotations/test_001.xml",
)


def test_reads_the_official_layout(tmp_path: Path) -> None:
    url = touch(tmp_path, *TRAINING_AND_TESTING)
    reference = "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n"
    (tmp_path / "testing" / "reference.csv").write_text(reference)
    listing = list_slides(url)
    assert listing.source == "camelyon16"
    assert listing.rejected == ()
    facts = {slide.slide_id: (slide.label, slide.split) for slide in listing.slides}
    assert facts == {
        "training/normal/normal_001.tif": (Label.NORMAL, "train"),
        "training/tumor/tumor_001.tif": (Label.ANOMALOUS, "train"),
        "testing/images/test_001.tif": (Label.ANOMALOUS, "test"),
        "testing/images/test_002.tif": (Label.NORMAL, "test"),
        "testing/images/test_003.tif": (Label.UNKNOWN, "test"),
    }
    annotations = {
        slide.slide_id: Path(slide.annotation_url).relative_to(tmp_path).as_posix()
        for slide in listing.slides
        if slide.annotation_url
    }
    assert annotations == {
        "training/tumor/tumor_001.tif": "training/lesion_annotations/tumor_001.xml",
        "testing/images/test_001.tif": "testing/lesion_annotations/test_001.xml",
    }


def test_reads_the_other_official_layout_and_leaves_masks_out(tmp_path: Path) -> None:
    url = touch(
        tmp_path,
        "images/normal_007.tif",
        "images/tumor_009.tif",
        "annotations/tumor_009.xml",
        "masks/tumor_009_mask.tif",
        "masks/tumor_010.tif",
    )
    listing = list_slides(url)
    names = ["images/normal_007.tif", "images/tumor_009.tif"]
    assert [slide.slide_id for slide in listing.slides] == names
    assert listing.slides[0].annotation_url is None
    assert str(listing.slides[1].annotation_url).endswith("annotations/tumor_009.xml")


def test_reads_an_object_prefix() -> None:
    for name in TRAINING_AND_TESTING:
        write_bytes(f"memory://archive/camelyon/{name}", name.encode())
    listing = list_slides("memory://archive/camelyon")
    assert len(listing.slides) == 5
    assert listing.slides[0].url == "memory://archive/camelyon/testing/images/test_001.tif"
    assert listing.slides[0].slide_id == "testing/images/test_001.tif"


def test_reads_the_real_label_table(tmp_path: Path, shared_data: Path) -> None:
    url = touch(tmp_path, "tumor_111.tif", "normal_160.tif")
    table = shared_data / "annotations" / "camelyon16_slide_labels.csv"
    listing = list_slides(url, labels=str(table))
    assert [slide.label for slide in listing.slides] == [Label.NORMAL, Label.ANOMALOUS]
    *named, last = listing.rejected
    assert (len(named), last.item) == (20, str(table))
    assert last.reason.startswith(f"{399 - 2 - 20} more rows")


def test_errata_exclude_slides_and_say_why(tmp_path: Path) -> None:
    url = touch(
        tmp_path,
        "a/normal_027.tif",
        "a/Normal_086.tif",
        "a/normal_001.tif",
        "b/test_049.tif",
        "b/test_114.tif",
        "b/test_002.tif",
    )
    listing = list_slides(url)
    assert [slide.slide_id for slide in listing.slides] == ["a/normal_001.tif", "b/test_002.tif"]
    reasons = {Path(entry.item).stem: entry.reason for entry in listing.rejected}
    assert {entry.state for entry in listing.rejected} == {"skipped"}
    assert set(reasons) == {"normal_027", "Normal_086", "test_049", "test_114"}
    assert "tumor_111" in reasons["Normal_086"]
    assert all("https://" in reason for reason in reasons.values())


def list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_plain_folder_is_warned_of_names_that_mean_camelyon16(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = touch(tmp_path / "own", "tumor_7.tif", "normal_12.tif", "test_3.tif", "case.tif")
    label = {slide.slide_id: slide.label for slide in list_slides(url).slides}["tumor_7.tif"]
    assert label is Label.ANOMALOUS
    (said,) = list_warnings(caplog)
    assert "3 of 4 slides have names of Camelyon16's, as 'normal_12.tif'" in said
    assert "(`--sheet`), and no errata (`--errata none`)" in said
    caplog.clear()
    rows = "tumor_7.tif,unknown,train\nnormal_12.tif,1,test\ntest_3.tif,,test\n"
    (tmp_path / "s.csv").write_text(f"path,label,split\n{rows}")
    list_slides(url, sheet=str(tmp_path / "s.csv"))
    assert ["1 of 4 slides" in line for line in list_warnings(caplog)] == [True]


def test_the_published_layouts_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list_slides(touch(tmp_path / "a", *TRAINING_AND_TESTING))
    list_slides(touch(tmp_path / "b" / "images", "normal_007.tif", "tumor_009.tif"))
    assert list_warnings(caplog) == []


def test_the_published_errata_are_whole() -> None:
    errata = read_errata()
    excluded = {name for name, erratum in errata.items() if erratum.state == "excluded"}
    assert excluded == {
        *(f"normal_{number:03d}" for number in (27, 45, 86, 108, 144, 150, 158)),
        "test_049",
        "test_114",
    }
    assert len(errata) - len(excluded) == 20
    assert all(erratum.reason and "https://" in erratum.source for erratum in errata.values())


def test_a_user_overrides_the_errata(tmp_path: Path) -> None:
    url = touch(tmp_path / "slides", "normal_027.tif", "tumor_001.tif", "case_9.tif")
    table = tmp_path / "errata.csv"
    table.write_text(
        "slide,state,reason,source\ntumor_001,partly_annotated,two sections,us\n"
        "case_9,excluded,no official slide,us\n"
    )
    listing = list_slides(url, errata=str(table))
    names = ["case_9.tif", "normal_027.tif", "tumor_001.tif"]
    assert [slide.slide_id for slide in listing.slides] == names
    assert [slide.is_partly_annotated for slide in listing.slides] == [False, False, True]
    assert len(list_slides(url, errata="none").slides) == 3
    table.write_text("slide,state,reason,source\ntumor_001,odd,x,us\n")
    with pytest.raises(SourceError, match="'odd' of tumor_001"):
        list_slides(url, errata=str(table))
    rows = "tumor_001,excluded,x,us\nTumor_001,partly_annotated,x,us\n"
    table.write_text(f"slide,state,reason,source\n{rows}")
    with pytest.raises(SettingsError, match=r"errata\.csv: Tumor_001 is excluded in one row and"):
        list_slides(url, errata=str(table))
