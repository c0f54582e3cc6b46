"""Which entries of the manifest a removal takes out: those of what goes, and no namesake's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flows.commands.remove import remove
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.manifest import read_manifest
from pipeline.io import storage
from pipeline.records import ImageListing, ManifestEntry, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.sources.images import list_images
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from tests.support.made.companions import write_dicom_slide
from tests.support.made.images import make_image
from tests.support.made.slides import BOXES, SHAPE, ingest_made, paint_tissue, write_slide


def ingest_below(source: Path, url: Path) -> None:
    ingest_made(url, list_slides(str(source)).slides)


def write_slides(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_slide(folder, name)


def remove_slide(url: Path, slide: str) -> None:
    remove(str(url), slide=slide, name="A. Reader", reason="consent withdrawn")


def list_items(url: Path, source: Path) -> list[str]:
    """Items of the manifest, below their source."""
    entries = read_manifest(f"{url}/manifest.json")
    return [entry.item.removeprefix(f"{source}/") for entry in entries]


@pytest.mark.parametrize(
    ("slide", "left"), [("x.tif", ["sub/x.tif", "y.tif"]), ("sub/x.tif", ["x.tif", "y.tif"])]
)
def test_the_same_name_in_another_folder_stays(tmp_path: Path, slide: str, left: list[str]) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "x", "y")
    write_slides(source / "sub", "x")
    ingest_below(source, url)
    remove_slide(url, slide)
    assert list_items(url, source) == left


def test_the_same_name_with_another_suffix_stays(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "x", "y")
    (source / "x.svs").write_bytes(b"torn")
    ingest_below(source, url)
    remove_slide(url, "x.tif")
    assert list_items(url, source) == ["x.svs", "y.tif"]


def test_failed_namesakes_stay_in_the_manifest_and_in_the_progress(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "x", "y")
    (source / "sub").mkdir()
    for name in "xy":  # as many below `sub` as there are slides above
        (source / "sub" / f"{name}.tif").write_bytes(b"torn")
    ingest_below(source, url)
    remove_slide(url, "x.tif")
    assert list_items(url, source) == ["sub/x.tif", "sub/y.tif", "y.tif"]
    assert all(entry.reason for entry in read_manifest(f"{url}/manifest.json")[:2])
    failures = json.loads((url / "ingest.json").read_text())["failures"]
    assert [each["item"] for each in failures] == [f"{source}/sub/{n}.tif" for n in "xy"]


def test_a_folder_below_one_of_its_own_name_is_not_taken_for_the_source(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "z")
    write_slides(source / "in", "x")
    (source / "x.tif").write_bytes(b"torn")  # `in/x.tif` of the folder above
    ingest_below(source, url)
    remove_slide(url, "z.tif")
    assert list_items(url, source) == ["in/x.tif", "x.tif"]


def test_what_failed_and_left_a_part_goes_from_the_progress_too(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "x", "y")
    ingest_below(source, url)
    progress = json.loads((url / "ingest.json").read_text())
    failure = {"item": f"{source}/x.tif", "reason": "out of reach"}
    (url / "ingest.json").write_text(json.dumps({**progress, "failures": [failure]}))
    remove_slide(url, "x.tif")
    assert json.loads((url / "ingest.json").read_text())["failures"] == []


def test_the_files_of_a_dicom_slide_go_with_its_folder(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "y")
    for folder in ("p1/x", "p2/x"):
        write_dicom_slide(source / folder, paint_tissue(SHAPE, BOXES))
    ingest_below(source, url)
    assert list_items(url, source) == ["p1/x/0.dcm", "p2/x/0.dcm", "y.tif"]
    remove_slide(url, "p1/x")
    assert list_items(url, source) == ["p2/x/0.dcm", "y.tif"]


def test_a_folder_of_several_dicom_slides_is_named_as_long_as_one_stays(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_slides(source, "y")
    for number in range(2):
        folder = tmp_path / str(number)
        for path in write_dicom_slide(folder, paint_tissue(SHAPE, BOXES), series=f"1.2.{number}"):
            (source / "x").mkdir(exist_ok=True)
            path.rename(source / "x" / f"{number}{path.name}")
    ingest_below(source, url)
    assert [part.name for part in open_dataset(str(url)).parts] == ["x/1.2.0", "x/1.2.1", "y.tif"]
    remove_slide(url, "x/1.2.0")
    assert list_items(url, source) == ["x/00.dcm", "x/10.dcm", "y.tif"]
    remove_slide(url, "x/1.2.1")
    assert list_items(url, source) == ["y.tif"]


def write_images(source: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(number)[..., 0]).save(source / path)


def ingest_listed(url: Path, listing: ImageListing, source: str) -> None:
    settings = ImageSettings(size_px=16, colour="grey")
    ingest_images(str(url), listing, settings, map_serially, source=source)


def test_images_and_what_is_said_of_their_cells_go_and_files_without_a_row_stay(
    tmp_path: Path,
) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_images(source, "x.png", "y.png", "sub/x.png", "x.jpg")
    rows = ["path,label,group_id,age_years", "x.png,0,p0,old", "y.png,0,p1,older"]
    (source / "labels.csv").write_text("\n".join(rows))
    ingest_listed(url, list_images(str(source)), "in")
    assert {"x.png, age_years", "y.png, age_years"} <= {*list_items(url, source)}
    remove(str(url), patient="p0", name="A. Reader", reason="consent withdrawn")
    assert sorted(list_items(url, source)) == ["sub/x.png", "x.jpg", "y.png", "y.png, age_years"]


def test_chestxray14s_images_are_known_by_their_names_in_any_folder(tmp_path: Path) -> None:
    source, url = tmp_path / "in", tmp_path / "out"
    write_images(source, "images_001/0.png", "images_001/1.png", "images_002/2.png")
    images = tuple(
        SourceImage(path.name, f"p{path.stem}", str(path), storage.describe(str(path)).version)
        for path in sorted(source.glob("*/*.png"))
    )
    twin = ManifestEntry(f"{source}/images_003/2.png", "skipped", "has the same name")
    ingest_listed(url, ImageListing(images, (twin,)), "chestxray14")
    remove(str(url), patient="p2", name="A. Reader", reason="consent withdrawn")
    assert list_items(url, source) == ["images_001/0.png", "images_001/1.png"]
