"""Listed images become a dataset that one can look at before training."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.conform import ingest_alike
from pipeline.errors import SchemaError, SettingsError
from pipeline.images.contact_sheet import Strip, choose_strips, draw_contact_sheet
from pipeline.images.ingest import CONTACT_SHEET, DUPLICATES, ImageIngestReport, ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.verify import verify_dataset
from pipeline.io.storage import describe, read_bytes
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing, Label, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.sources.xrays import list_xrays
from pipeline.store.dataset import open_dataset
from tests.support.content import content_of
from tests.support.made.dicom import NAME, write_films
from tests.support.made.images import make_image, recompress
from tests.support.threads import thread_engine

KEY = PseudonymKey(bytes(range(32)))
XRAYS = ImageSettings(modality="radiograph", size_px=64, colour="grey")


def write_listing(folder: Path) -> ImageListing:
    """Six patients; `copy` is b's film again, `like` is c's after a JPEG, `torn` is no image."""
    folder.mkdir()
    films = {name: make_image(seed) for seed, name in enumerate("abcd")}
    films |= {"copy": films["b"], "like": recompress(films["c"])}
    images = []
    for name, pixels in films.items():
        Image.fromarray(pixels[..., 0]).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG and nothing more")
    for number, path in enumerate(sorted(folder.iterdir())):
        split = "test" if path.stem in {"copy", "d", "torn"} else "train"
        split = "validation" if path.stem == "a" else split
        version = describe(str(path)).version
        label = Label.ANOMALOUS if path.stem == "d" else Label.NORMAL
        images.append(
            SourceImage(path.stem, f"p{number}", str(path), version, label, split)  # type: ignore[arg-type]  # a split
        )
    return ImageListing(tuple(images), (), ("read with care",))


def ingest_made(url: Path, listing: ImageListing) -> ImageIngestReport:
    return ingest_images(str(url), listing, XRAYS, map_serially, source="made")


def test_duplicates_are_found_reported_and_kept(tmp_path: Path) -> None:
    report = ingest_made(tmp_path / "out", write_listing(tmp_path / "in"))
    assert report.unreadable_count == 1
    assert [(d.kind, d.crosses_splits, ids) for d, ids in report.duplicates] == [
        ("exact", True, ("b", "copy")),
        ("near", False, ("c", "like")),
    ]
    lines = report.describe_review()
    assert lines[0] == "read with care"
    assert "1 exact, 1 near, 1 of them across splits" in lines[1]
    assert lines[2] == "exact duplicates, across splits: b, copy"
    kept = json.loads((tmp_path / "out" / DUPLICATES).read_bytes())
    assert [[image["image_id"] for image in each["images"]] for each in kept] == [
        ["b", "copy"],
        ["c", "like"],
    ]
    assert kept[0]["images"][1]["split"] == "test"


def test_the_review_is_the_same_from_any_engine_and_order(tmp_path: Path) -> None:
    listing = write_listing(tmp_path / "in")
    ingest_made(tmp_path / "one", listing)
    turned = replace(listing, images=listing.images[::-1])
    with thread_engine(2) as map_work:
        ingest_images(str(tmp_path / "two"), turned, XRAYS, map_work, source="made")
    ingest_made(tmp_path / "two", listing)  # again, over what is there
    assert content_of(str(tmp_path / "one")) == content_of(str(tmp_path / "two"))


def test_the_contact_sheet_shows_each_split_and_label(tmp_path: Path) -> None:
    report = ingest_made(tmp_path / "out", write_listing(tmp_path / "in"))
    dataset = open_dataset(report.url)
    strips = choose_strips(*(dataset.column(name) for name in ("split", "label", "readable")))
    assert [strip.caption for strip in strips] == [
        "train, normal: 3 of 3",
        "validation, normal: 1 of 1",
        "test, normal: 1 of 1, 1 unreadable",
        "test, anomalous: 1 of 1",
    ]
    with Image.open(BytesIO(read_bytes(f"{report.url}/{CONTACT_SHEET}"))) as sheet:
        seen = np.asarray(sheet)
    assert seen.shape == (4 + len(strips) * 116, 1204, 3)
    top = 4 + (len(strips) - 1) * 116 + 16
    shown = dataset.read_images(strips[-1].rows[0], strips[-1].rows[0] + 1)[0, ..., 0]
    expected = np.asarray(Image.fromarray(shown).resize((96, 96)))
    np.testing.assert_array_equal(seen[top : top + 96, 4:100, 1], expected)


@pytest.mark.parametrize("key", ["image/c/0/0/0/0", "label/c/0"])
def test_an_ingest_over_a_damaged_part_says_how_to_mend_it(tmp_path: Path, key: str) -> None:
    listing = write_listing(tmp_path / "in")
    dataset = open_dataset(ingest_made(tmp_path / "out", listing).url)
    damaged = tmp_path / "out" / dataset.parts[0].place / key
    damaged.write_bytes(damaged.read_bytes()[:10])
    with pytest.raises(SchemaError, match=r"verify DATASET --repair`, then the same ingest"):
        ingest_made(tmp_path / "out", listing)
    verify_dataset(dataset.url, map_serially, repair=True)
    assert ingest_made(tmp_path / "out", listing).fingerprint == dataset.fingerprint
    assert verify_dataset(dataset.url, map_serially).findings == ()


def test_a_sheet_holds_twelve_of_many_and_colour_stays() -> None:
    labels = np.zeros(30, np.int8)
    readable = np.arange(30) != 5
    (strip,) = choose_strips(np.full(30, "train", object), labels, readable)
    assert strip.caption == "train, normal: 12 of 29, 1 unreadable"
    assert (strip.rows[0], strip.rows[-1], len(strip.rows)) == (0, 29, 12)
    red = np.zeros((8, 6, 3), np.uint8)
    red[..., 0] = 200
    pair = Strip("red", (3, 9), (False, True))
    with Image.open(BytesIO(draw_contact_sheet([(pair, [red, red])]))) as sheet:
        assert sheet.getpixel((150, 60)) == (200, 0, 0)
        assert sheet.getpixel((2, 60)) == (255, 255, 255)
        assert sheet.getpixel((102, 60)) == (210, 0, 0)  # the frame of the second


def test_what_may_have_text_burned_in_comes_first_and_framed() -> None:
    labels = np.array([0, 0, 1, -1], np.int8)
    flags = np.array(["denied", "possible", "stated", "possible"], object)
    strips = choose_strips(
        np.array(["train", "train", "test", "test"], object), labels, np.arange(4) != 3, flags
    )
    assert [(strip.caption, strip.rows, strip.is_marked) for strip in strips] == [
        ("text burned in, as the files say: 1 of 1", (2,), (True,)),
        ("text may be burned in: 1 of 1, 1 unreadable", (1,), (True,)),
        ("train, normal: 2 of 2", (0, 1), (False, True)),
        ("test, anomalous: 1 of 1", (2,), (True,)),
        ("test, unknown: 0 of 0, 1 unreadable", (), ()),
    ]


def test_boxes_can_be_placed_since_the_files_size_is_kept(tmp_path: Path) -> None:
    dataset = open_dataset(ingest_made(tmp_path / "out", write_listing(tmp_path / "in")).url)
    readable = dataset.column("readable")
    assert dataset.column("file_shape_yx")[readable].tolist() == [[64, 96]] * 6


def test_dicom_is_ingested_and_scored_alike(tmp_path: Path) -> None:
    folder = write_films(tmp_path / "films")
    _, listing = list_xrays(folder, key=KEY)
    report = ingest_images(str(tmp_path / "one"), listing, XRAYS, map_serially, source="dicom")
    assert report.failures == ()
    with Image.open(BytesIO(read_bytes(f"{report.url}/{CONTACT_SHEET}"))) as sheet:
        assert sheet.getpixel((2, 60)) == (210, 0, 0)  # the headers do not say that there is none
    assert {entry.item for entry in report.manifest} == {i.image_id for i in listing.images}
    parameters = open_dataset(report.url).attributes["parameters"]
    with pytest.raises(SettingsError, match="NORMSCOPE_PSEUDONYM_KEY"):
        ingest_alike(folder, str(tmp_path / "two"), parameters, map_serially, name="new")
    alike = ingest_alike(
        folder, str(tmp_path / "two"), parameters, map_serially, name="new", key=KEY
    )
    ours, theirs = open_dataset(report.url), open_dataset(alike.url)
    assert ours.image_count == theirs.image_count == 3
    assert theirs.attributes["source"] == "dicom"
    np.testing.assert_array_equal(ours.read_images(0, 3), theirs.read_images(0, 3))
    assert ours.column("group_id").tolist() == theirs.column("group_id").tolist()
    for path in tmp_path.rglob("*.json"):
        assert NAME not in path.read_text()


def test_every_real_dicom_file_is_in_the_manifest(tmp_path: Path, shared_data: Path) -> None:
    _, listing = list_xrays(str(shared_data / "dicom"), key=KEY)
    report = ingest_images(str(tmp_path / "out"), listing, XRAYS, map_serially, source="dicom")
    assert len(report.manifest) == len(list((shared_data / "dicom").iterdir())) == 16
    assert Counter(entry.state for entry in report.manifest) == {
        "done": 7,
        "failed": 4,
        "skipped": 5,
    }
    assert all(entry.reason for entry in report.manifest if entry.state != "done")
    dataset = open_dataset(report.url)
    assert dataset.column("readable").tolist().count(True) == 7
    assert set(dataset.column("photometric")) == {"MONOCHROME1", "MONOCHROME2"}


def test_pngs_to_be_scored_get_pseudonyms_where_there_is_a_key(tmp_path: Path) -> None:
    listing = write_listing(tmp_path / "in")
    parameters = XRAYS.model_dump(mode="json")
    url = str(tmp_path / "out")
    ingest_alike(str(tmp_path / "in"), url, parameters, map_serially, name="new", key=KEY)
    ids = set(open_dataset(url).column("image_id"))
    assert ids == {KEY.pseudonym("image", f"{image.image_id}.png") for image in listing.images}
    source = open_dataset(url).attributes["source"]
    assert source == f"source-{KEY.pseudonym('source', 'new')[:12]}"
    ingest_alike(str(tmp_path / "in"), f"{url}-plain", parameters, map_serially, name="new")
    assert open_dataset(f"{url}-plain").attributes["source"] == "new"
