"""Listed slides become a dataset: every slide accounted for, splits right, again and again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import SourceError
from pipeline.ingest.manifest import read_manifest
from pipeline.records import Label, ManifestEntry, SlideListing
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings
from pipeline.slides.visit import name_review
from pipeline.sources.slides import list_slides
from pipeline.splits import prove_disjoint
from pipeline.store.dataset import Dataset, open_dataset
from tests.support.content import content_of
from tests.support.made.slides import (
    SETTINGS,
    SHAPE,
    coverage_of,
    ingest_made,
    list_slide,
    paint_tissue,
    write_asap,
    write_pyramid,
    write_slide,
)
from tests.support.threads import thread_engine


def splits_of(dataset: Dataset) -> dict[str, str]:
    """Name of each slide that has tiles -> its split."""
    return {part.name: part.split for part in dataset.parts if part.image_count}


def places_of(dataset: Dataset) -> dict[str, str]:
    return {part.name: part.place for part in dataset.parts}


def test_one_bad_slide_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = list_slide(write_slide(tmp_path, "good"))
    torn = tmp_path / "torn.tif"
    torn.write_bytes(Path(good.url).read_bytes()[:3000])
    empty = list_slide(write_slide(tmp_path, "empty", boxes=[]))
    small = list_slide(write_slide(tmp_path, "small", boxes=[(100, 300, 130, 330)]))
    gone = replace(good, slide_id="gone", url=str(tmp_path / "gone.tif"))
    changed = replace(list_slide(write_slide(tmp_path, "changed")), version="another")
    listed = ManifestEntry("x.xml", "skipped", "orphan")
    slides = [good, list_slide(torn), empty, small, gone, changed]
    report, dataset = ingest_made(tmp_path / "out", slides, rejected=(listed,))
    assert set(dataset.column("slide_id")) == {"good"}
    assert report.image_count == dataset.image_count == 42
    states = {Path(entry.item).stem: (entry.state, entry.reason) for entry in report.manifest}
    assert len(report.manifest) == len(states) == 7
    assert states["x"] == ("skipped", "orphan")
    assert states["good"] == ("done", "")
    assert states["torn"][0] == states["gone"][0] == states["changed"][0] == "failed"
    assert "truncated" in states["torn"][1]
    assert "changed since" in states["changed"][1]
    assert states["empty"] == ("skipped", "no tissue found")
    assert states["small"][0] == "skipped"
    assert "holds enough" in states["small"][1]
    assert read_manifest(f"{report.url}/manifest.json") == report.manifest
    parts = {part.name: part for part in dataset.parts}
    assert sorted(parts) == ["empty", "good", "small"]
    assert coverage_of(parts["empty"])["tissue"] == 0
    assert coverage_of(parts["small"])["below_min_tissue"] > 0
    assert (parts["small"].place, parts["small"].image_count) == ("", 0)


def test_where_no_slide_can_be_used_there_is_a_manifest_and_no_dataset(tmp_path: Path) -> None:
    empty = list_slide(write_slide(tmp_path, "empty", boxes=[]))
    with pytest.raises(SourceError, match=r"none of 1 items gives one.*no tissue found"):
        ingest_made(tmp_path / "out", [empty])
    (entry,) = read_manifest(str(tmp_path / "out" / "manifest.json"))
    assert (entry.item, entry.state) == (empty.url, "skipped")
    with pytest.raises(SourceError, match="nothing was listed"):
        ingest_made(tmp_path / "other", [])


def test_two_slides_of_one_id_are_refused(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    with pytest.raises(ValueError, match="make ids unique"):
        ingest_made(tmp_path / "out", [slide, slide])


def test_splits_never_divide_a_slide_and_keep_the_official_one(tmp_path: Path) -> None:
    names = [f"normal_{number}" for number in range(5)]
    slides = [
        list_slide(write_slide(tmp_path, name), label=Label.NORMAL, split="train") for name in names
    ]
    slides.append(list_slide(write_slide(tmp_path, "test_1"), label=Label.NORMAL, split="test"))
    report, dataset = ingest_made(tmp_path / "out", slides)
    prove_disjoint(dataset.column("group_id"), dataset.column("split"))
    splits = splits_of(dataset)
    assert splits["test_1"] == "test"
    assert {splits[name] for name in names} == {"train", "validation"}
    moved = [entry.item for entry in report.manifest if "official split is train" in entry.reason]
    assert moved == [str(tmp_path / f"{n}.tif") for n in names if splits[n] == "validation"]


def test_a_dataset_is_the_same_in_any_order_and_on_threads(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "bca"]
    expected, _ = ingest_made(tmp_path / "one", slides)
    with thread_engine(3) as map_work:
        found, _ = ingest_made(tmp_path / "two", slides[::-1], map_work=map_work)
    assert found.manifest == expected.manifest
    assert content_of(found.url) == content_of(expected.url)


def test_writes_a_review_picture_of_each_slide_and_reports_progress(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "ab"]
    seen: list[tuple[int, int]] = []

    def run(count: int) -> list[str]:
        url, listing = str(tmp_path / "out"), SlideListing("made", tuple(slides[:count]), ())
        report = lambda done, total: seen.append((done, total))  # noqa: E731
        ingest_slides(url, listing, SETTINGS, map_serially, on_progress=report)
        return sorted(f"review/{path.name}" for path in (tmp_path / "out" / "review").iterdir())

    assert run(2) == sorted(name_review(name) for name in "ab")
    assert seen == [(0, 2), (1, 2), (2, 2)]
    review = str(open_dataset(str(tmp_path / "out")).parts[1].facts["review"])
    with Image.open(tmp_path / "out" / review) as picture:
        assert picture.size == (1024, round(1024 * SHAPE[0] / SHAPE[1]))
    assert run(1) == [name_review("a")]  # that of a slide which is gone is gone too


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SlideSettings(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValidationError, match="not a multiple"):
        SlideSettings(shard_images=100, chunk_images=64)
    with pytest.raises(ValidationError, match="both name _2"):
        SlideSettings(lesion_groups=("Tumor", "_2"))
    with pytest.raises(ValidationError, match="lesion_groups"):
        SlideSettings(lesion_groups=())
    with pytest.raises(ValidationError):
        SlideSettings.model_validate({"tile_px": 64})


def test_slides_of_the_same_bytes_name_each_other(tmp_path: Path) -> None:
    first = write_slide(tmp_path, "first")
    for name in ("copy", "again"):
        (tmp_path / f"{name}.tif").write_bytes(first.read_bytes())
    other = write_slide(tmp_path, "other")
    paths = [first, other, tmp_path / "again.tif", tmp_path / "copy.tif"]
    report, _ = ingest_made(tmp_path / "out", [list_slide(path) for path in paths])
    notes = {entry.item: entry.reason for entry in report.manifest}
    assert {item for item, note in notes.items() if not note} == {str(other)}
    assert (
        f"the same bytes as {tmp_path / 'copy.tif'} and 1 more"
        in notes[str(tmp_path / "again.tif")]
    )


def test_copies_of_a_slide_share_its_split(tmp_path: Path) -> None:
    slides = []
    for number in range(6):
        slide = write_slide(tmp_path, f"slide_{number}")
        copy = tmp_path / f"again_{number}.tif"
        copy.write_bytes(slide.read_bytes())
        slides += [list_slide(slide), list_slide(copy)]
    fractions = {"validation_fraction": 0.4, "test_fraction": 0.3}
    _, dataset = ingest_made(tmp_path / "out", slides, SETTINGS.model_copy(update=fractions))
    split_of = splits_of(dataset)
    assert len(set(split_of.values())) > 1
    assert all(split_of[f"slide_{n}"] == split_of[f"again_{n}"] for n in range(6))


def test_copies_of_official_slides_take_the_official_split(tmp_path: Path) -> None:
    """The copies lie in another folder, by other names and without an official split."""
    for name in (
        "training/normal/normal_001",
        "training/normal/normal_002",
        "testing/images/test_001",
    ):
        (tmp_path / "official" / name).parent.mkdir(parents=True, exist_ok=True)
        write_slide((tmp_path / "official" / name).parent, Path(name).name)
    official = list_slides(str(tmp_path / "official"))
    assert {slide.split for slide in official.slides} == {"train", "test"}
    (tmp_path / "own").mkdir()
    copies = {}
    for number in range(12):  # by its name alone, one of these would be drawn into every split
        source = next(slide for slide in official.slides if slide.split == "test")
        copies[f"own_{number}"] = tmp_path / "own" / f"own_{number}.tif"
        copies[f"own_{number}"].write_bytes(Path(source.url).read_bytes())
    own = list_slides(str(tmp_path / "own"))
    slides = (*official.slides, *own.slides)
    report, dataset = ingest_made(tmp_path / "out", slides)
    splits = splits_of(dataset)
    assert {splits[slide.slide_id] for slide in own.slides} == {"test"}
    assert {splits[slide.slide_id] for slide in official.slides if slide.split == "test"} == {
        "test"
    }
    notes = {entry.item: entry.reason for entry in report.manifest}
    assert all("the same bytes as" in notes[str(path)] for path in copies.values())


def test_a_copy_of_an_official_test_slide_takes_a_training_slide_out_of_training(
    tmp_path: Path,
) -> None:
    held = list_slide(write_slide(tmp_path, "held"), label=Label.NORMAL, split="test")
    (tmp_path / "twin.tif").write_bytes(Path(held.url).read_bytes())
    twin = list_slide(tmp_path / "twin.tif", label=Label.NORMAL, split="train")
    rest = [
        list_slide(write_slide(tmp_path, f"n{number}"), label=Label.NORMAL, split="train")
        for number in range(3)
    ]
    report, dataset = ingest_made(tmp_path / "out", [held, twin, *rest])
    assert splits_of(dataset)["twin"] == "test"
    (note,) = (entry.reason for entry in report.manifest if entry.item == twin.url)
    assert "its official split is train, but it is in test: held has the same bytes" in note


def test_two_slides_of_a_patient_are_never_divided(tmp_path: Path) -> None:
    slides = []
    for patient in range(8):
        for block in "AB":
            slide = list_slide(write_slide(tmp_path, f"s{patient}{block}"), label=Label.NORMAL)
            slides.append(replace(slide, patient=f"patient-{patient}", site="here", scanner="x7"))
    fractions = {"validation_fraction": 0.3, "test_fraction": 0.3}
    settings = SETTINGS.model_copy(update=fractions)
    _, dataset = ingest_made(tmp_path / "out", slides, settings)
    groups, splits = dataset.column("group_id"), dataset.column("split")
    assert set(groups) == {f"patient-{number}" for number in range(8)}
    assert set(splits) == {"train", "validation", "test"}
    prove_disjoint(groups, splits)
    assert set(dataset.column("site")) == {"here"}
    assert set(dataset.column("scanner")) == {"x7"}
    alone, without = ingest_made(
        tmp_path / "out", [replace(slide, patient="") for slide in slides], settings
    )
    of_patient = defaultdict(set)
    for name, split in splits_of(without).items():
        of_patient[name[:2]].add(split)
    assert any(len(found) > 1 for found in of_patient.values())  # without a patient they may be
    assert (alone.parts_made, alone.parts_kept) == (0, 16)  # and no tile is read for that


def test_of_two_hundred_slides_of_small_lesions_none_is_trained_on(tmp_path: Path) -> None:
    """Each lesion is too small for any tile to count as anomalous."""
    archive = tmp_path / "in"
    archive.mkdir()
    outline = [(10.0, 8.0), (13.0, 8.0), (13.0, 11.0)]
    for number in range(200):
        pixels = paint_tissue((32, 192), [(0, 0, 32, 192)])
        pixels[:, :, 1] -= np.uint8(number // 2)
        pixels[::3, ::5] -= 20
        write_pyramid(archive / f"s{number:03}.tif", pixels)
        write_asap(archive / f"s{number:03}.xml", [("Tumor", outline)])
    clean = write_slide(archive, "clean")
    (tmp_path / "labels.csv").write_text(f"slide,label\n{clean.stem},normal\n")
    listing = list_slides(str(archive), labels=str(tmp_path / "labels.csv"))
    assert len(listing.slides) == 201
    settings = SETTINGS.model_copy(update={"tile_size_px": 16, "min_tissue_fraction": 0.0})
    _, dataset = ingest_made(tmp_path / "out", listing.slides, settings)
    is_sick = dataset.column("has_lesion")
    assert is_sick.sum() == 200 * 6
    assert Label.ANOMALOUS not in dataset.column("label")[is_sick]
    assert "train" not in dataset.column("split")[is_sick]
    assert {"validation", "test"} == set(dataset.column("split")[is_sick])


def test_a_corrected_mpp_makes_that_slide_again_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_slide(tmp_path / "in", name)
    table = tmp_path / "mpp.csv"

    def run(mpp_um: float) -> Dataset:
        table.write_text(f"slide,mpp_um\na,{mpp_um}\n")
        listing = list_slides(str(tmp_path / "in"), mpp_table=str(table))
        report, dataset = ingest_made(tmp_path / "out", listing.slides)
        made.append((report.parts_made, report.parts_kept))
        return dataset

    made: list[tuple[int, int]] = []
    before = run(0.25)
    old = {part.name: part for part in before.parts}
    digests = set(before.column("pixel_digest")[before.column("slide_id") == "a.tif"])
    after = run(0.5)
    new = {part.name: part for part in after.parts}
    assert made == [(2, 0), (1, 1)]
    assert new["b.tif"] == old["b.tif"]
    assert new["a.tif"].place != old["a.tif"].place
    assert not (tmp_path / "out" / old["a.tif"].place).exists()
    assert (old["a.tif"].facts["mpp_y_um"], new["a.tif"].facts["mpp_y_um"]) == (0.25, 0.5)
    assert new["a.tif"].facts["mpp_source"] == "user table"
    is_own = after.column("slide_id") == "a.tif"
    assert is_own.sum() > len(digests)  # a tile covers less of the slide
    assert not digests & set(after.column("pixel_digest")[is_own])


def test_a_namesake_that_is_added_renames_and_remakes_nothing(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / "in" / folder).mkdir(parents=True)
    first = write_slide(tmp_path / "in" / "a", "x")
    _, before = ingest_made(tmp_path / "out", list_slides(str(tmp_path / "in")).slides)
    second = write_slide(tmp_path / "in" / "b", "x", boxes=[(64, 64, 320, 448)])
    listing = list_slides(str(tmp_path / "in"))
    report, after = ingest_made(tmp_path / "out", listing.slides)
    ids = {slide.url: slide.slide_id for slide in listing.slides}
    assert (report.parts_made, report.parts_kept) == (1, 1)
    (name,) = places_of(before)
    assert name == ids[str(first)] != ids[str(second)]
    assert places_of(after)[name] == places_of(before)[name]
    is_old = after.column("slide_id") == name
    assert after.column("image_id")[is_old].tolist() == before.column("image_id").tolist()
    assert (~is_old).sum() == 24
    assert len(set(after.column("image_id"))) == after.image_count
