"""Slides of which a part is scanned, marks of unknown meaning, um/px that contradict the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pipeline.export.tiles import export_tiles
from pipeline.records import Label, ManifestEntry, Slide
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.settings import SlideSettings
from pipeline.store.dataset import Dataset
from tests.support.made.scn_slides import write_scn
from tests.support.made.slides import (
    SETTINGS,
    ingest_made,
    list_slide,
    paint_tissue,
    write_asap,
    write_slide,
)

TILE = 64  # level-0 pixels of a tile of SETTINGS
CORNER = (192, 448)  # y, x of the scanned part
SQUARE = (128, 64, 256, 320)  # top, left, bottom, right on the scanned part: two tiles by four


def paint_scan() -> NDArray[np.uint8]:
    pixels = paint_tissue((512, 640), [(64, 64, 448, 512)])
    pixels[::3, ::5] -= 20
    return pixels


def write_scan(folder: Path) -> Path:
    return write_scn(folder / "a.scn", paint_scan(), corner_yx=CORNER, canvas_yx=(1280, 1536))


def ring(top: float, left: float, bottom: float, right: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def write_geojson(path: Path, *outlines: tuple[str, Sequence[Sequence[float]]]) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, corners in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def ingest_one(
    folder: Path, slide: Slide, settings: SlideSettings = SETTINGS
) -> tuple[Dataset, ManifestEntry]:
    report, dataset = ingest_made(folder / "out", [slide], settings)
    (entry,) = report.manifest
    return dataset, entry


def origins_with(dataset: Dataset, label: Label) -> set[tuple[int, int]]:
    return {(y, x) for y, x in dataset.column("origin_yx")[dataset.column("label") == label]}


def tiles_on(top: int, left: int, bottom: int, right: int) -> set[tuple[int, int]]:
    """Tiles of the grid of the canvas that lie on a box."""
    return {(y, x) for y in range(top, bottom, TILE) for x in range(left, right, TILE)}


def on_canvas(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = box
    return top + CORNER[0], left + CORNER[1], bottom + CORNER[0], right + CORNER[1]


def test_openslide_states_the_scanned_part(tmp_path: Path) -> None:
    with open_slide(write_scan(tmp_path)) as reader:
        assert reader.level_shapes_yx == ((1280, 1536),)
        assert reader.bounds_yxhw == (*CORNER, 512, 640)
    with open_slide(write_slide(tmp_path, "b")) as reader:
        assert reader.bounds_yxhw == (0, 0, *reader.level_shapes_yx[0])


@pytest.mark.parametrize("origin", ["auto", "bounds"])
def test_geojson_counts_from_the_scanned_part(tmp_path: Path, origin: str) -> None:
    annotation = write_geojson(tmp_path / "a.geojson", ("Tumor", ring(*SQUARE)))
    slide = list_slide(write_scan(tmp_path), annotation=annotation)
    settings = SlideSettings.model_validate({**SETTINGS.model_dump(), "annotation_origin": origin})
    dataset, entry = ingest_one(tmp_path, slide, settings)
    assert origins_with(dataset, Label.ANOMALOUS) == tiles_on(*on_canvas(SQUARE))
    assert "y 192 and x 448 px have been added" in entry.reason
    (part,) = dataset.parts
    assert (part.facts["bounds_y_px"], part.facts["bounds_x_px"]) == CORNER


@pytest.mark.parametrize("form", ["xml", "geojson"])
def test_the_canvas_counts_for_xml_and_where_it_is_asked_for(tmp_path: Path, form: str) -> None:
    corners = ring(*on_canvas(SQUARE))
    path = tmp_path / f"a.{form}"
    if form == "xml":
        write_asap(path, [("Tumor", [(x, y) for x, y in corners[:-1]])])
    else:
        write_geojson(path, ("Tumor", corners))
    origin = "auto" if form == "xml" else "canvas"
    settings = SlideSettings.model_validate({**SETTINGS.model_dump(), "annotation_origin": origin})
    slide = list_slide(write_scan(tmp_path), annotation=path)
    dataset, entry = ingest_one(tmp_path, slide, settings)
    assert origins_with(dataset, Label.ANOMALOUS) == tiles_on(*on_canvas(SQUARE))
    assert entry.reason == ""


def test_geojson_that_leaves_the_scanned_part_is_refused(tmp_path: Path) -> None:
    corners = ring(*on_canvas((128, 64, 256, 320)))
    annotation = write_geojson(tmp_path / "a.geojson", ("Tumor", corners))
    slides = [
        list_slide(write_scan(tmp_path), annotation=annotation),
        list_slide(write_slide(tmp_path, "good")),
    ]
    report, _ = ingest_made(tmp_path / "out", slides)
    (failed,) = report.failures
    assert "leave that part of 512 x 640 px (y, x)" in failed.reason
    assert "--annotation-origin canvas" in failed.reason


def test_a_hand_that_slips_over_the_edge_is_no_other_corner(tmp_path: Path) -> None:
    annotation = write_geojson(tmp_path / "a.geojson", ("Tumor", ring(64, -100, 192, 192)))
    dataset, _ = ingest_one(tmp_path, list_slide(write_scan(tmp_path), annotation=annotation))
    assert origins_with(dataset, Label.ANOMALOUS) == tiles_on(*on_canvas((64, 64, 192, 192)))


def test_a_mask_of_outlines_counts_from_the_same_corner(tmp_path: Path) -> None:
    mask = write_geojson(tmp_path / "mask.geojson", ("Tissue", ring(*SQUARE)))
    slide = replace(list_slide(write_scan(tmp_path)), mask_url=str(mask))
    dataset, entry = ingest_one(tmp_path, slide)
    assert origins_with(dataset, Label.UNKNOWN) == tiles_on(*on_canvas(SQUARE))
    assert "its mask counts from the corner" in entry.reason


def test_exported_squares_lie_where_qupath_shows_the_tiles(tmp_path: Path) -> None:
    slides = [list_slide(write_scan(tmp_path)), list_slide(write_slide(tmp_path, "whole"))]
    _, dataset = ingest_made(tmp_path / "out", slides)
    export_tiles(dataset.url, str(tmp_path / "squares"), "geojson")
    for number, (name, corner) in enumerate([("a", CORNER), ("whole", (0, 0))]):
        features = json.loads((tmp_path / "squares" / f"{name}.geojson").read_text())["features"]
        corners = [feature["geometry"]["coordinates"][0][0] for feature in features]
        origins = dataset.open_part(number).column("origin_yx") - corner
        assert corners == origins[:, ::-1].tolist()
    assert len(dataset.to_frame()) == dataset.image_count


def test_exported_squares_come_back_to_their_tiles(tmp_path: Path) -> None:
    """As if a reader had given them a class in QuPath."""
    path = write_scan(tmp_path)
    dataset, _ = ingest_one(tmp_path, list_slide(path))
    export_tiles(dataset.url, str(tmp_path), "geojson")
    squares = json.loads((tmp_path / "a.geojson").read_text())
    for feature in squares["features"][:3]:
        feature["properties"]["classification"] = {"name": "Tumor"}
    (tmp_path / "a.geojson").write_text(json.dumps(squares))
    slide = list_slide(path, annotation=tmp_path / "a.geojson")
    _, again = ingest_made(tmp_path / "again", [slide])
    chosen = {(y, x) for y, x in dataset.column("origin_yx")[:3]}
    assert origins_with(again, Label.ANOMALOUS) == chosen
    assert len(origins_with(again, Label.NORMAL)) == dataset.image_count - 3


def ingest_marked(folder: Path, *outlines: tuple[str, Sequence[Sequence[float]]]) -> Any:
    annotation = write_geojson(folder / "b.geojson", *outlines)
    return ingest_one(folder, list_slide(write_slide(folder, "b"), annotation=annotation))


def test_tiles_under_other_classes_have_no_label(tmp_path: Path) -> None:
    tumor = ("Tumor", ring(64, 64, 128, 192))
    dataset, entry = ingest_marked(tmp_path, tumor, ("Stroma", ring(130, 70, 180, 250)))
    assert origins_with(dataset, Label.ANOMALOUS) == tiles_on(64, 64, 128, 192)
    assert origins_with(dataset, Label.UNKNOWN) == tiles_on(128, 64, 192, 256)
    assert "1 of 'Stroma'" in entry.reason
    is_unknown = dataset.column("label") == Label.UNKNOWN
    assert np.isnan(dataset.column("lesion_fraction")[is_unknown]).all()


def test_a_lesion_counts_whatever_else_covers_it(tmp_path: Path) -> None:
    box = ring(64, 64, 128, 192)
    dataset, _ = ingest_marked(tmp_path, ("Tumor", box), ("Stroma", box))
    assert origins_with(dataset, Label.ANOMALOUS) == tiles_on(64, 64, 128, 192)
    assert not origins_with(dataset, Label.UNKNOWN)


def write_svs(folder: Path, name: str, power: float, mpp: float) -> Path:
    path = folder / f"{name}.svs"
    pixels = paint_scan()
    pixels[-1, -1] = len(name)  # no two are of the same bytes
    described = f"Aperio Image Library\r\n640x512 (64x64)|AppMag = {power:g}|MPP = {mpp:g}"
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        description=described,
        metadata=None,
        software=False,
    )
    return path


@pytest.mark.parametrize(("power", "mpp"), [(40, 0.025), (40, 2.5), (20, 0.05), (5, 0.25)])
def test_power_and_um_per_px_that_contradict_each_other_are_spoken_of(
    tmp_path: Path, power: float, mpp: float
) -> None:
    slides = [
        list_slide(write_svs(tmp_path, "odd", power, mpp)),
        list_slide(write_slide(tmp_path, "good")),
    ]
    report, _ = ingest_made(tmp_path / "out", slides)
    (reason,) = (entry.reason for entry in report.manifest if "odd" in entry.item)
    assert f"power of {power:g} and its {mpp:g} um/px contradict each other" in reason
    table = [replace(slides[0], mpp_um=0.5), slides[1]]
    report, _ = ingest_made(tmp_path / "told", table)
    assert {entry.reason for entry in report.manifest} == {""}


@pytest.mark.parametrize(("power", "mpp"), [(20, 0.5), (40, 0.2), (20, 0.2), (40, 0.46)])
def test_usual_cameras_are_not(tmp_path: Path, power: float, mpp: float) -> None:
    slide = list_slide(write_svs(tmp_path, "usual", power, mpp))
    _, entry = ingest_one(tmp_path, slide)
    assert "contradict" not in entry.reason


def test_um_per_px_that_stand_out_from_the_batch_are_spoken_of(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "abc"]
    slides[1] = replace(slides[1], mpp_um=0.05)
    report, _ = ingest_made(tmp_path / "out", slides)
    said = {Path(entry.item).stem: entry.reason for entry in report.manifest}
    assert said["a"] == said["c"] == ""
    assert "0.05 um/px stand out from the batch, whose median is 0.5 um/px" in said["b"]
    slides[1] = replace(slides[1], mpp_um=0.25)
    report, _ = ingest_made(tmp_path / "usual", slides)
    assert {entry.reason for entry in report.manifest} == {""}
