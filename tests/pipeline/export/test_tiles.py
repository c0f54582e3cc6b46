"""Exported tiles, read back by readers that are not ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyfive
import pytest
import shapely

from pipeline.errors import SchemaError
from pipeline.export.tiles import export_tiles, name_files
from pipeline.records import Slide, SlideListing
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.synthetic.slides import write_slides
from tests.support.toys import make_dataset

SETTINGS = SlideSettings(tile_size_px=48, mpp_um=1.0, stride_px=40)
EXTENT_PX = 96  # at 0.5 um/px


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("export")
    counts = {"normal_count": 1, "tumor_count": 1, "test_count": 1}
    write_slides(str(folder / "in"), seed=5, shape_yx=(768, 1152), **counts)
    ingest_slides(str(folder / "out"), list_slides(str(folder / "in")), SETTINGS, map_serially)
    return open_dataset(str(folder / "out"))


def origins_xy_of(dataset: Dataset, number: int) -> list[list[int]]:
    origins: list[list[int]] = dataset.open_part(number).column("origin_yx")[:, ::-1].tolist()
    return origins


def test_geojson_outlines_each_tile_in_x_and_y(dataset: Dataset, tmp_path: Path) -> None:
    report = export_tiles(dataset.url, str(tmp_path), "geojson")
    assert report.tile_count == dataset.image_count
    found = json.loads((tmp_path / "tumor_001.geojson").read_text())
    outlines = shapely.from_geojson(json.dumps(found))
    number = ["tumor_001" in part.name for part in dataset.parts].index(True)
    expected = [(x, y, x + EXTENT_PX, y + EXTENT_PX) for x, y in origins_xy_of(dataset, number)]
    assert [each.bounds for each in shapely.get_parts(outlines)] == expected
    lesions = dataset.open_part(number).column("lesion_fraction")
    assert [f["properties"]["measurements"]["lesion_fraction"] for f in found["features"]] == (
        lesions.tolist()
    )
    assert {f["properties"]["objectType"] for f in found["features"]} == {"tile"}


def test_clam_finds_coordinates_and_the_side_in_level_0_pixels(
    dataset: Dataset, tmp_path: Path
) -> None:
    export_tiles(dataset.url, str(tmp_path), "clam")
    for number, part in enumerate(dataset.parts):
        file = pyfive.File(str(tmp_path / f"{Path(part.name).stem}.h5"))
        coords = file["coords"]
        assert coords[:].tolist() == origins_xy_of(dataset, number)
        assert coords.attrs["patch_size"] == EXTENT_PX
        assert coords.attrs["patch_level"] == 0
        assert coords.attrs["level_dim"].tolist() == [1152, 768]


def test_trident_finds_both_sides_and_magnifications(dataset: Dataset, tmp_path: Path) -> None:
    export_tiles(dataset.url, str(tmp_path), "trident")
    attributes = pyfive.File(str(tmp_path / "normal_001_patches.h5"))["coords"].attrs
    expected = {
        "patch_size": 48,
        "patch_size_level0": EXTENT_PX,
        "level0_magnification": 20,
        "target_magnification": 10,
        "overlap": 8,
        "level0_width": 1152,
        "level0_height": 768,
    }
    assert {name: attributes[name] for name in expected} == expected


def test_parquet_has_every_column_and_the_extent(dataset: Dataset, tmp_path: Path) -> None:
    export_tiles(dataset.url, str(tmp_path), "parquet")
    found = pd.concat(pd.read_parquet(path) for path in sorted(tmp_path.glob("*.parquet")))
    whole = dataset.to_frame()
    assert set(whole.columns) < set(found.columns)
    found = found.set_index("image_id").loc[whole["image_id"]]
    assert found["origin_x"].tolist() == whole["origin_x"].tolist()
    assert set(found["tile_width_px"]) == {EXTENT_PX}


def test_exporting_again_writes_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    for export_format in ("parquet", "geojson", "clam", "trident"):
        for folder in ("one", "two"):
            export_tiles(dataset.url, str(tmp_path / folder / export_format), export_format)
    files = sorted((tmp_path / "one").rglob("*.*"))
    assert len(files) == 4 * len(dataset.parts)
    for file in files:
        twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == twin.read_bytes(), file


def test_slides_of_one_stem_get_files_of_their_own() -> None:
    assert name_files(["a/x.svs", "b/x.svs", "b/y.svs"]) == {
        "a/x.svs": "a__x.svs",
        "b/x.svs": "b__x.svs",
        "b/y.svs": "y",
    }


def test_an_oblong_tile_fails_in_formats_of_squares_and_the_others_go_on(
    dataset: Dataset, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.zarr"
    slide = next(iter(list_slides(str(Path(dataset.url).parent / "in")).slides))
    ingest_slides(str(odd), SlideListing("odd", (_name(slide),), ()), SETTINGS, map_serially)
    opened = open_dataset(str(odd))
    assert [part.name for part in opened.parts] == ["a.tif"]
    object.__setattr__(opened, "parts", tuple(_stretch(part) for part in opened.parts))
    from pipeline.export import tiles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "open_dataset", lambda _: opened)
        report = export_tiles(str(odd), str(tmp_path / "out"), "clam")
    assert [entry.item for entry in report.failures] == ["a.tif"]
    assert "96 x 48 px of level 0 (y, x)" in report.failures[0].reason


def _name(slide: Slide) -> Slide:
    from dataclasses import replace

    return replace(slide, slide_id="a.tif")


def _stretch(part: object) -> object:
    from dataclasses import replace

    from pipeline.store.part import Part

    assert isinstance(part, Part)
    return replace(part, facts={**part.facts, "mpp_x_um": 1.0})


def test_a_dataset_of_images_is_refused(tmp_path: Path) -> None:
    made = make_dataset(str(tmp_path / "toys"))
    with pytest.raises(SchemaError, match="no tiles of slides"):
        export_tiles(made.url, str(tmp_path / "out"), "parquet")
    assert not (tmp_path / "out").exists()


def test_no_tile_moves_by_an_axis(dataset: Dataset, tmp_path: Path) -> None:
    export_tiles(dataset.url, str(tmp_path), "clam")
    file = pyfive.File(str(tmp_path / "test_001.h5"))
    largest = np.asarray(file["coords"][:]).max(axis=0) + EXTENT_PX
    assert largest[0] <= 1152
    assert largest[1] <= 768
    assert largest[0] > 768  # x goes beyond the slide's height: the axes cannot be swapped
