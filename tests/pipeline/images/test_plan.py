"""Folders of images become sealed datasets: real bytes, real splits, bad files named."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.dicom.parse import MAX_FILE_BYTES
from pipeline.errors import SettingsError, SourceError
from pipeline.images.ingest import ImageIngestReport, ingest_images
from pipeline.images.plan import (
    ImageSettings,
    choose_part,
    make_image_settings,
    make_reader,
    plan_images,
)
from pipeline.images.reader import ImageReader, read_source
from pipeline.io.storage import describe, read_bytes, write_bytes
from pipeline.records import Array, ImageListing, Label, Scalar, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.sources.images import list_images
from pipeline.splits import prove_disjoint
from pipeline.store.dataset import Dataset, open_dataset
from tests.support.made.images import claim_png

SMALL = ImageSettings(size_px=16)


def write_image(path: Path, level: int, *, colour: bool = False, side: int = 20) -> SourceImage:
    """An image wider than high whose right half is brighter."""
    pixels = np.full((side, side + 12, 3), level, np.uint8)
    pixels[:, side:] = level + 40
    if colour:
        pixels[..., 0] = 250
    image = Image.fromarray(pixels)
    (image if colour else image.convert("L")).save(path)
    version = describe(str(path)).version
    return SourceImage(path.name, path.name, str(path), version, Label.NORMAL)


def write_images(folder: Path, count: int, **options: bool) -> list[SourceImage]:
    folder.mkdir(parents=True, exist_ok=True)
    return [write_image(folder / f"{n:03}.png", n * 5, **options) for n in range(count)]


def ingest_made(
    url: Path, images: Sequence[SourceImage], settings: ImageSettings = SMALL
) -> tuple[ImageIngestReport, Dataset]:
    listing = ImageListing(tuple(images))
    report = ingest_images(str(url), listing, settings, map_serially, source="made")
    return report, open_dataset(str(url))


def read_one(reader: ImageReader, image: SourceImage, side: int, channels: int) -> Array:
    """An image as its reader gives it: (H, W, C)."""
    images = np.zeros((1, side, side, channels), np.uint8)
    (found,) = reader.read(image, images)
    assert found.reasons == (None,)
    pixels: Array = images[0]
    return pixels


def test_every_image_lands_in_its_row(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 12)
    report, dataset = ingest_made(tmp_path / "out", images)
    assert dataset.image_shape == (16, 16, 1)
    assert dataset.attributes["modality"] == "image"
    assert report.failures == ()
    ids = dataset.column("image_id").tolist()
    assert sorted(ids) == [image.image_id for image in images]
    pixels = dataset.read_images(0, 12)
    for row, name in enumerate(ids):
        assert pixels[row, 8, 3, 0] == int(name[:3]) * 5
        assert pixels[row, 3, 14, 0] == int(name[:3]) * 5 + 40
    digests = [blake3((tmp_path / "in" / name).read_bytes()).hexdigest() for name in ids]
    assert dataset.column("source_digest").tolist() == digests


def test_rows_are_ordered_by_split_then_id_whatever_the_order_of_the_input(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 40)
    report, dataset = ingest_made(tmp_path / "out", images)
    again, _ = ingest_made(tmp_path / "again", images[::-1])
    assert report.fingerprint == again.fingerprint
    splits = dataset.column("split").tolist()
    assert [name for name, _ in Counter(splits).items()] == ["train", "validation", "test"]
    assert splits == sorted(splits, key=["train", "validation", "test"].index)
    for split in ("train", "test"):
        rows = [n for n, s in zip(dataset.column("image_id"), splits, strict=True) if s == split]
        assert rows == sorted(rows)


def test_one_bad_file_is_named_and_the_rest_is_whole(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 8)
    (tmp_path / "in" / "001.png").write_text("this is text")
    half = (tmp_path / "in" / "002.png").read_bytes()
    (tmp_path / "in" / "002.png").write_bytes(half[: len(half) // 2])
    Image.new("L", (1, 1)).save(tmp_path / "in" / "003.png")
    (tmp_path / "in" / "004.png").write_bytes(claim_png(30_000, 30_000))
    fresh = list_images(str(tmp_path / "in")).images
    # Gone and changed after they were listed.
    (tmp_path / "in" / "005.png").unlink()
    write_image(tmp_path / "in" / "006.png", 99, side=31)
    report, dataset = ingest_made(tmp_path / "out", list(fresh))
    assert len(images) == report.image_count == 8
    reasons = {Path(entry.item).name: entry.reason for entry in report.failures}
    assert sorted(reasons) == [f"00{n}.png" for n in range(1, 7)]
    assert "not a PNG" in reasons["001.png"]
    assert "cut off or damaged" in reasons["002.png"] or "not a PNG" in reasons["002.png"]
    assert "1 x 1 pixels" in reasons["003.png"]
    assert "pixels" in reasons["004.png"]
    assert "no such file" in reasons["005.png"]
    assert "changed since it was planned" in reasons["006.png"]
    readable = dataset.column("image_id")[dataset.column("readable")]
    assert sorted(readable.tolist()) == ["000.png", "007.png"]
    unreadable = dataset.read_images(0, 8)[~dataset.column("readable")]
    assert not unreadable.any()


def claim_bytes(path: Path, count: int) -> SourceImage:
    """A file of so many zeros, which take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(count)
    return SourceImage(path.name, path.name, str(path), describe(str(path)).version)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    slide = claim_bytes(tmp_path / "slide.tif", MAX_FILE_BYTES + 1)
    tracemalloc.start()
    with pytest.raises(SourceError, match="536870913 bytes, at most 536870912 are read"):
        read_source(slide)
    member = replace(slide, span_bytes=(512, MAX_FILE_BYTES + 513), name="a.tar/slide.tif")
    with pytest.raises(SourceError, match=r"a\.tar/slide\.tif: 536870913 bytes"):
        read_source(member)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_object_that_is_too_large_is_refused_before_it_is_read() -> None:
    write_bytes("memory://large/a.png", bytes(100))
    assert len(read_bytes("memory://large/a.png", max_bytes=100)) == 100
    with pytest.raises(SourceError, match="100 bytes, at most 99"):
        read_bytes("memory://large/a.png", max_bytes=99)


def test_no_large_file_is_read_to_tell_grey_from_colour(tmp_path: Path) -> None:
    small = write_images(tmp_path / "in", 3, colour=True)
    large = [claim_bytes(tmp_path / f"{n}.tif", 48 * 2**20) for n in range(9)]
    tracemalloc.start()
    spec, _ = plan_images([*large, *small], SMALL, source="made")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert spec.image_shape == (16, 16, 3)


def test_where_all_files_are_large_they_tell_grey_from_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.images.plan._SAMPLE_BYTES", 10)
    images = write_images(tmp_path / "in", 3, colour=True)
    assert plan_images(images, SMALL, source="made")[0].image_shape == (16, 16, 3)


def test_every_store_gives_the_same_dataset(tmp_path: Path, store_url: str) -> None:
    images = write_images(tmp_path / "in", 5)
    (tmp_path / "in" / "labels.csv").write_text("path,label\n001.png,1\n002.png,0\n003.png,0\n")
    for path in (tmp_path / "in").iterdir():
        write_bytes(f"{store_url}/in/{path.name}", path.read_bytes())
    fingerprints = set()
    for source, target in (
        (str(tmp_path / "in"), str(tmp_path / "out")),
        (f"{store_url}/in", f"{store_url}/out"),
    ):
        listing = list_images(source)
        report = ingest_images(target, listing, SMALL, map_serially, source="made")
        fingerprints.add(report.fingerprint)
        assert [entry.state for entry in report.manifest] == ["done"] * 3 + ["skipped"] * 2
    assert len(images) == 5
    assert len(fingerprints) == 1


def test_columns_get_their_types_and_unknown_values(tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "in", 2)
    known: dict[str, Scalar] = {
        "view_position": "PA",
        "age_years": 61,
        "is_portable": True,
        "dose": 0.5,
    }
    images = [
        SourceImage("a", "p1", first.url, first.version, Label.NORMAL, "train", known),
        SourceImage("b", "p2", second.url, second.version, Label.ANOMALOUS, "test"),
    ]
    _, dataset = ingest_made(tmp_path / "out", images)
    assert dataset.column("view_position").tolist() == ["PA", ""]
    assert dataset.column("age_years").dtype == np.int16
    assert dataset.column("age_years").tolist() == [61, -1]
    assert dataset.column("is_portable").tolist() == [True, False]
    assert dataset.column("dose")[0] == 0.5
    assert np.isnan(dataset.column("dose")[1])
    assert dataset.column("label").tolist() == [0, 1]
    assert dataset.column("group_id").tolist() == ["p1", "p2"]


@pytest.mark.parametrize(("coloured", "channels"), [(0, 1), (4, 1), (5, 3), (10, 3)])
def test_auto_declares_what_at_least_half_of_the_images_have(
    tmp_path: Path, coloured: int, channels: int
) -> None:
    images = [
        write_image(tmp_path / f"{n}.png", 50, colour=n < coloured, side=20) for n in range(10)
    ]
    spec, _ = plan_images(images, SMALL, source="made")
    assert spec.image_shape == (16, 16, channels)
    said = ImageSettings(size_px=16, colour="rgb" if channels == 3 else "grey")
    assert plan_images(images, said, source="made")[0] == spec


def test_grey_images_saved_as_colour_are_seen_to_be_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (90, 90, 90)).save(path)
    image = SourceImage("a", "a", str(path), describe(str(path)).version)
    spec, _ = plan_images([image], SMALL, source="made")
    assert spec.image_shape == (16, 16, 1)
    assert read_one(make_reader(spec), image, 16, 1)[5, 9, 0] == 90


def test_the_reader_follows_the_settings(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", 10, side=40)
    settings = ImageSettings(size_px=16, crop_px=16, colour="rgb")
    reader = make_reader(plan_images([image], settings, source="made")[0])
    assert reader == ImageReader(size_px=16, channels=3, crop_px=16)
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301 - our own bytes
    assert set(np.unique(read_one(reader, image, 16, 3))) == {10}  # the bright edge is cut off
    grey = ImageSettings(size_px=16, equalize=True)
    assert make_reader(plan_images([image], grey, source="made")[0]).equalize
    too_large, _ = plan_images([image], ImageSettings(crop_px=41), source="made")
    with pytest.raises(SourceError, match="smaller than the centre crop of 41"):
        read_one(make_reader(too_large), image, 64, 1)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="only grey images can be equalised"):
        ImageSettings(equalize=True, colour="rgb")
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        ImageSettings(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValidationError, match="colr"):
        ImageSettings(colr="grey")  # type: ignore[call-arg]  # on purpose
    with pytest.raises(SettingsError, match="settings: equalize with colour `rgb`: only grey"):
        make_image_settings(equalize=True, colour="rgb")
    with pytest.raises(SettingsError, match=r"crop_px: 0 is not allowed \(Input should be"):
        make_image_settings(crop_px=0)
    images = write_images(tmp_path, 3, colour=True)
    with pytest.raises(SettingsError, match="3 of 3 sampled images have colour"):
        plan_images(images, ImageSettings(equalize=True), source="made")
    with pytest.raises(ValueError, match=r"'000\.png' names 2 images"):
        plan_images([images[0], images[0]], SMALL, source="made")


@given(st.integers(64, 4096), st.sampled_from([1, 3]))
def test_parts_are_whole_chunks_and_fit_memory(side: int, channels: int) -> None:
    image_bytes = side * side * channels
    part, chunk = choose_part(image_bytes)
    assert part % chunk == 0
    assert 0 < part <= 512
    assert part * image_bytes <= 256 * 2**20 or part == chunk  # an image of 48 MiB: one chunk


@pytest.mark.parametrize(
    ("image_bytes", "part", "chunk"),
    [(4096, 512, 64), (12288, 512, 64), (2**18, 512, 64), (2**20, 256, 32), (3 * 2**20, 64, 32)],
)
def test_a_part_has_the_size_that_its_images_give(image_bytes: int, part: int, chunk: int) -> None:
    assert choose_part(image_bytes) == (part, chunk)


def make_sources(count: int, split: str = "train") -> list[SourceImage]:
    """Sources without a file."""
    return [
        SourceImage(f"{n:04}", f"p{n}", f"memory://none/{n}", "1", split=split)  # type: ignore[arg-type]  # a split
        for n in range(count)
    ]


def test_known_images_keep_their_part_and_place_and_new_ones_make_new_parts() -> None:
    grey = ImageSettings(size_px=16, colour="grey")
    images = make_sources(1100)
    _, first = plan_images(images[:600], grey, source="made")
    assert [(part.name, len(part.images)) for part in first] == [("000000", 512), ("000001", 88)]
    known = {part.name: [image.image_id for image in part.images] for part in first}
    _, second = plan_images(images[::-1], grey, source="made", known=known)
    assert second[:2] == first
    assert [(part.name, len(part.images)) for part in second[2:]] == [("000002", 500)]
    assert [image.image_id for image in second[2].images] == [f"{n:04}" for n in range(600, 1100)]
    _, third = plan_images(images[3:600], grey, source="made", known=known)
    assert [len(part.images) for part in third] == [509, 88]
    assert third[0].images == first[0].images[3:]
    # The number of a part that has gone whole is not given again while the dataset knows it.
    _, fourth = plan_images([*images[:512], images[700]], grey, source="made", known=known)
    assert [part.name for part in fourth] == ["000000", "000002"]


def test_real_radiographs_become_a_dataset(tmp_path: Path, shared_data: Path) -> None:
    listing = list_images(str(shared_data / "nih224"))
    settings = ImageSettings(modality="radiograph", seed=7)
    report, dataset = ingest_made(tmp_path / "out", list(listing.images), settings)
    assert report.failures == ()
    assert dataset.image_count == 709
    assert dataset.image_shape == (64, 64, 1)
    splits, labels = dataset.column("split"), dataset.column("label")
    prove_disjoint(dataset.column("group_id"), splits)
    assert not (labels[splits == "train"] == 1).any()
    assert (labels[splits == "validation"] == 0).any()
    assert set(labels[splits == "test"]) == {0, 1}
    assert 40 < dataset.read_images(0, 709).mean() < 200


def test_real_tiles_keep_their_colour_and_official_splits(
    tmp_path: Path, shared_data: Path
) -> None:
    listing = list_images(str(shared_data / "pcam" / "valid"))
    some = list(listing.images[::20])
    _, dataset = ingest_made(tmp_path / "out", some, ImageSettings(modality="histology"))
    assert dataset.image_shape == (64, 64, 3)
    assert set(dataset.column("split")) == {"test"}
    assert Counter(dataset.column("label").tolist()) == Counter(int(i.label) for i in some)
