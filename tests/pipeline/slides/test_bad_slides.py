"""Whatever an archive of slides holds: a clear state for each, and the rest of the batch whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pipeline.ingest.run import IngestReport
from pipeline.records import Label, ManifestEntry, Slide
from pipeline.slides import visit
from pipeline.slides.survey.measure import SlideSurvey, survey_slide
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import Dataset
from tests.support.made.slides import (
    BOMB,
    BOXES,
    SHAPE,
    corrupt_tile,
    coverage_of,
    expect_balance,
    ingest_made,
    paint_tissue,
    write_asap,
    write_pyramid,
    write_slide,
)

BOW_TIE = [(128.0, 64.0), (192.0, 128.0), (192.0, 64.0), (128.0, 128.0)]  # half of one tile
FAR_AWAY = [(x + 9000.0, y) for x, y in BOW_TIE]


def write_aperio(path: Path) -> None:
    """A slide that states its objective power and nothing else."""
    description = "Aperio Image Library v11.2.1\r\n1152x640 (256x256) JPEG/RGB Q=30|AppMag = 20"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            paint_tissue(SHAPE, BOXES),
            photometric="rgb",
            tile=(256, 256),
            compression="jpeg",
            description=description,
            metadata=None,
        )


def write_archive(folder: Path) -> None:
    """Every kind of slide that has ever been met."""
    for name in ("x", "y"):
        (folder / name).mkdir(parents=True)
        write_slide(folder / name, "same")
    write_slide(folder, "good")
    write_pyramid(folder / "black.tif", np.zeros((*SHAPE, 3), np.uint8))
    write_pyramid(folder / "white.tif", np.full((*SHAPE, 3), 255, np.uint8))
    with tifffile.TiffWriter(folder / "mpp_0.tif") as tiff:
        tiff.write(
            paint_tissue(SHAPE, BOXES),
            photometric="rgb",
            tile=(64, 64),
            metadata=None,
            resolution=((0, 1), (0, 1)),
            resolutionunit="CENTIMETER",
        )
    write_aperio(folder / "power.svs")
    outlines = {"outside": FAR_AWAY, "crossing": BOW_TIE, "bomb": BOW_TIE, "two": BOW_TIE}
    for name, outline in {**outlines, "nested": [], "line": BOW_TIE[:2]}.items():
        write_slide(folder, name)
        write_asap(folder / f"{name}.xml", [("Tumor", outline)])
    (folder / "bomb.xml").write_bytes(BOMB)
    (folder / "nested.xml").write_bytes(b"[" * 200_000)
    (folder / "two.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    torn = write_slide(folder, "torn")
    torn.write_bytes(torn.read_bytes()[:4000])
    corrupt_tile(write_slide(folder, "spoilt"), row=1, column=2)
    without_level = write_slide(folder, "without_level")
    for row in range(3):
        for column in range(5):
            corrupt_tile(without_level, row, column, level=1)
    write_slide(folder, "changing")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[IngestReport, Dataset]:
    """The whole archive's ingest, in which one slide changes after it was listed."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder / "in")
    listing = list_slides(str(folder / "in"))
    write_slide(folder / "in", "changing", boxes=[(64, 64, 320, 320)])
    return ingest_made(folder / "out", listing.slides, rejected=listing.rejected)


def find(entries: Sequence[ManifestEntry], name: str) -> ManifestEntry:
    (found,) = (entry for entry in entries if Path(entry.item).name == name)
    return found


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("good.tif", "done", ""),
        ("crossing.tif", "done", ""),
        ("spoilt.tif", "done", "1 of 42 tiles unreadable"),
        ("black.tif", "skipped", "no tissue found"),
        ("white.tif", "skipped", "no tissue found"),
        ("mpp_0.tif", "failed", "mpp"),
        ("power.svs", "failed", "only an objective power of 20"),
        ("outside.tif", "failed", "lie outside the slide"),
        ("bomb.tif", "failed", "hostile XML"),
        ("nested.tif", "failed", "malformed JSON"),
        ("line.tif", "failed", "points and lines outline nothing"),
        ("two.tif", "failed", "another annotation of the same slide"),
        ("torn.tif", "failed", "truncated"),
        ("without_level.tif", "failed", "of level 1"),
        ("changing.tif", "failed", "changed since it was listed"),
    ],
)
def test_each_has_its_state(
    outcome: tuple[IngestReport, Dataset], name: str, state: str, said: str
) -> None:
    entry = find(outcome[0].manifest, name)
    assert entry.state == state, entry.reason
    assert said in entry.reason
    assert bool(said) == bool(entry.reason)


def test_nothing_goes_unmentioned(outcome: tuple[IngestReport, Dataset]) -> None:
    report, dataset = outcome
    assert len(report.manifest) == 17
    tiled = {"good", "crossing", "spoilt", "x/same", "y/same"}
    assert set(dataset.column("group_id")) == {f"{name}.tif" for name in tiled}
    same = [entry for entry in report.manifest if Path(entry.item).name == "same.tif"]
    assert [entry.state for entry in same] == ["done", "done"]


def test_only_what_is_readable_is_there(outcome: tuple[IngestReport, Dataset]) -> None:
    dataset = outcome[1]
    lost = ~dataset.column("readable")
    assert set(dataset.column("slide_id")[lost]) == {"spoilt.tif"}
    assert lost.sum() == 1
    images = dataset.read_images(0, dataset.image_count)
    assert not images[lost].any()
    assert images[~lost].any(axis=(1, 2, 3)).all()
    accounts = {part.name: coverage_of(part) for part in dataset.parts}
    assert accounts["black.tif"]["tissue"] == accounts["white.tif"]["tissue"] == 0
    for account in accounts.values():
        expect_balance(account)


def test_an_outline_that_crosses_itself_counts_by_the_even_odd_rule(
    outcome: tuple[IngestReport, Dataset],
) -> None:
    dataset = outcome[1]
    is_hit = dataset.column("lesion_fraction") > 0
    assert dataset.column("image_id")[is_hit].tolist() == ["crossing.tif_y64_x128"]
    assert dataset.column("lesion_fraction")[is_hit] == pytest.approx(0.5)
    assert dataset.column("label")[is_hit].tolist() == [Label.ANOMALOUS]


def test_what_a_survey_should_not_have_raised_fails_its_slide_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "odd"):
        write_slide(tmp_path, name)

    def survey(slide: Slide, *args: Any, **settings: Any) -> SlideSurvey:
        if slide.slide_id == "odd.tif":
            raise TypeError("'>' not supported between 'tuple' and 'int'")
        return survey_slide(slide, *args, **settings)

    monkeypatch.setattr(visit, "survey_slide", survey)
    report, dataset = ingest_made(tmp_path / "out", list_slides(str(tmp_path)).slides)
    (entry,) = report.failures
    assert (entry.state, entry.item) == ("failed", str(tmp_path / "odd.tif"))
    assert "raised TypeError" in entry.reason
    assert set(dataset.column("slide_id")) == {"good.tif"}
