"""Scans brought into another dataset's form: all of them, or those of a period."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from pipeline.conform import ingest_alike
from pipeline.errors import SettingsError, SourceError
from pipeline.images.plan import ImageSettings
from pipeline.privacy.key import PseudonymKey
from pipeline.records import Label
from pipeline.runtime.engines import map_serially
from pipeline.sources.modified_range import ModifiedRange
from pipeline.store.dataset import open_dataset
from tests.support.made.companions import write_dicom_slide
from tests.support.made.dicom import write_films
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    paint_tissue,
    write_asap,
    write_pyramid,
    write_slide,
)

KEY = PseudonymKey(bytes(range(32)))
FILMS = ImageSettings(modality="radiograph", size_px=64, colour="grey").model_dump(mode="json")
TILES = ImageSettings(size_px=64, colour="rgb").model_dump(mode="json")
SINCE = ModifiedRange.of(datetime(2020, 1, 1, tzinfo=UTC), None)


def age(*paths: Path) -> None:
    """Let files be of 2001."""
    for path in paths:
        os.utime(path, (1e9, 1e9))


def test_of_slides_those_of_the_period_are_tiled(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    age(write_slide(folder, "old"), write_slide(folder, "older"))
    write_slide(folder, "new")
    parameters = SETTINGS.model_dump(mode="json")
    report = ingest_alike(
        folder.as_uri(), str(tmp_path / "out"), parameters, map_serially, name="x", period=SINCE
    )
    assert set(open_dataset(report.url).column("group_id").tolist()) == {"new.tif"}
    left_out = [entry for entry in report.manifest if entry.state == "skipped"]
    assert [entry.reason[:11] for entry in left_out] == ["2 left out:"]


def test_um_px_of_other_slides_hold_only_where_a_new_one_does_not_say(tmp_path: Path) -> None:
    pixels = paint_tissue(SHAPE, BOXES)
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "silent.tif", pixels, mpp_yx=None)
    write_pyramid(tmp_path / "in" / "stating.tif", pixels, mpp_yx=(1.0, 0.5))
    settings = SETTINGS.model_copy(update={"mpp_override_um": 0.25})
    report = ingest_alike(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        settings.model_dump(mode="json"),
        map_serially,
        name="x",
    )
    assert not report.failures
    dataset = open_dataset(report.url)
    found = {
        (group, source, *mpp_yx)
        for group, source, mpp_yx in zip(
            dataset.column("group_id"),
            dataset.column("mpp_source"),
            zip(dataset.column("mpp_y_um"), dataset.column("mpp_x_um"), strict=True),
            strict=True,
        )
    }
    assert found == {
        ("silent.tif", "fallback", 0.25, 0.25),
        ("stating.tif", "TIFF resolution tags", 1.0, 0.5),
    }


def test_a_slide_is_as_new_as_the_last_of_its_files(tmp_path: Path) -> None:
    pixels = paint_tissue(SHAPE, BOXES)
    age(*write_dicom_slide(tmp_path / "in" / "old", pixels))
    age(write_dicom_slide(tmp_path / "in" / "grown", pixels, series="1.2.3.2")[0])
    parameters = SETTINGS.model_dump(mode="json")
    report = ingest_alike(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        parameters,
        map_serially,
        name="x",
        period=SINCE,
    )
    assert set(open_dataset(report.url).column("group_id").tolist()) == {"grown"}


def test_tiles_beside_the_outlines_of_a_partly_annotated_slide_are_unknown(tmp_path: Path) -> None:
    for name in ("tumor_010", "tumor_011"):  # the published errata speak of the first
        write_slide(tmp_path, name)
        write_asap(tmp_path / f"{name}.xml", [("Tumor", [(64, 64), (192, 64), (192, 192)])])
    report = ingest_alike(
        str(tmp_path),
        str(tmp_path / "out"),
        SETTINGS.model_dump(mode="json"),
        map_serially,
        name="x",
    )
    made = open_dataset(report.url)
    is_partly = made.column("group_id") == "tumor_010.tif"
    assert Label.NORMAL not in made.column("label")[is_partly]
    assert Label.NORMAL in made.column("label")[~is_partly]


def test_a_sheet_of_new_slides_says_whose_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_slide(tmp_path / "in", name)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("path,patient,mpp_um\na.tif,P7,0.25\nb.tif,P7,\n")
    parameters, out = SETTINGS.model_dump(mode="json"), str(tmp_path / "out")
    report = ingest_alike(
        str(tmp_path / "in"), out, parameters, map_serially, name="x", sheet=str(sheet)
    )
    groups = open_dataset(report.url).column("group_id").tolist()
    mpps = open_dataset(report.url).column("mpp_y_um").tolist()
    assert set(zip(groups, mpps, strict=True)) == {("P7", 0.25), ("P7", 0.5), ("c.tif", 0.5)}
    with pytest.raises(SettingsError, match=r"sheet\.csv: a sheet of slides, but these are images"):
        ingest_alike(str(tmp_path), out, TILES, map_serially, name="x", sheet=str(sheet))


def test_an_mpp_table_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mpp\.csv: a table of um/px is for slides"):
        ingest_alike(
            str(tmp_path),
            str(tmp_path / "out"),
            TILES,
            map_serially,
            name="x",
            mpp_table="mpp.csv",
        )


def test_rows_of_images_outside_the_period_are_not_called_absent(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 80), (200, 90, ord(name))).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("path,label\na.png,1\nb.png,0\nc.png,1\n")
    age(folder / "a.png", folder / "labels.csv")
    report = ingest_alike(
        str(folder), str(tmp_path / "out"), TILES, map_serially, name="x", period=SINCE
    )
    dataset = open_dataset(report.url)
    found = dict(zip(dataset.column("image_id"), dataset.column("label").tolist(), strict=True))
    assert found == {"b.png": 0, "c.png": 1}
    left_out = [entry.reason for entry in report.manifest if entry.state == "skipped"]
    assert left_out == ["1 left out: only what was last modified since 2020-01-01 is taken"]


def test_of_dicom_only_files_of_the_period_are_looked_at(tmp_path: Path) -> None:
    folder = Path(write_films(tmp_path / "films"))
    first, *others = sorted(folder.iterdir())
    copy = folder / "a copy"  # listed before the file that it is a copy of
    copy.write_bytes(first.read_bytes())
    age(copy, *others)
    report = ingest_alike(
        str(folder), str(tmp_path / "out"), FILMS, map_serially, name="x", key=KEY, period=SINCE
    )
    assert [entry.state for entry in report.manifest] == ["done", "skipped"]
    assert report.manifest[1].reason.startswith("3 left out:")


def test_a_period_that_holds_nothing_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (64, 80)).save(folder / "a.png")
    age(folder / "a.png")
    with pytest.raises(SourceError, match="1 left out: only what was last modified since"):
        ingest_alike(
            str(folder), str(tmp_path / "out"), TILES, map_serially, name="x", period=SINCE
        )
