"""A dataset that grows: what is there stays as it is, and only what changed is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SchemaError, SettingsError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.preflight import check_before_spending, measure_worker_bytes
from pipeline.ingest.progress import read_progress
from pipeline.ingest.run import IngestReport
from pipeline.io import storage
from pipeline.records import Slide, SlideListing
from pipeline.runtime.engines import MapWork, Workers, map_serially
from pipeline.slides.ingest import ingest_slides, specify_slides
from pipeline.slides.settings import SlideSettings
from pipeline.slides.visit import name_review
from pipeline.sources.images import list_images
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from pipeline.store.part import Part
from tests.support.content import content_of, content_whatever_versions
from tests.support.made.slides import SETTINGS, SHAPE, list_slide, write_asap, write_slide
from tests.support.peak_memory import run_measured
from tests.support.watched import watched

OUTLINE = [(128.0, 64.0), (192.0, 64.0), (192.0, 128.0)]
WHOLE = {"zarr.json", "manifest.json", "ingest.json"}
SMALL = [(64, 64, 256, 320)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def ingest_again(
    source: Path, url: str, settings: SlideSettings = SETTINGS, *, trusts_times: bool = False
) -> IngestReport:
    listing = list_slides(str(source))
    return ingest_slides(url, listing, settings, map_serially, trusts_times=trusts_times)


def parts_of(url: str) -> dict[str, Part]:
    return {part.name: part for part in open_dataset(url).parts}


def names_made(url: str, before: dict[str, Part]) -> set[str]:
    return {name for name, part in parts_of(url).items() if before.get(name) != part}


def is_table(key: str) -> bool:
    return key.startswith("parts-") and key.endswith(".parquet")


def test_each_day_touches_the_slides_of_the_day_alone(source: Path, store_url: str) -> None:
    for name in ("a", "b", "d"):
        write_slide(source, name, boxes=SMALL)
    ingest_again(source, store_url)
    first = parts_of(store_url)

    write_slide(source, "c", boxes=SMALL)
    with watched(store_url) as new:
        report = ingest_again(source, store_url)
    assert (report.parts_made, report.parts_kept) == (1, 3)
    second = parts_of(store_url)
    assert list(second) == ["a.tif", "b.tif", "c.tif", "d.tif"]
    assert {name: second[name].place for name in first} == {n: p.place for n, p in first.items()}
    assert new.places == {second["c.tif"].place}
    beside = {key for key in new.all if not key.startswith("parts/") and not is_table(key)}
    assert beside == {*WHOLE, name_review("c.tif")}

    write_slide(source, "b", boxes=[(64, 64, 320, 320)])
    with watched(store_url) as other:
        report = ingest_again(source, store_url)
    assert (report.parts_made, report.parts_kept) == (1, 3)
    third = parts_of(store_url)
    assert other.places == {second["b.tif"].place, third["b.tif"].place}
    assert all(key.startswith(third["b.tif"].place) for key in other.made if "parts/" in key)
    assert all(key.startswith(second["b.tif"].place) for key in other.gone if "parts/" in key)
    beside = {key for key in other.all if not key.startswith("parts/") and not is_table(key)}
    assert beside == {*WHOLE, name_review("b.tif")}

    (source / "a.tif").unlink()
    with watched(store_url) as fewer:
        report = ingest_again(source, store_url)
    assert (report.parts_made, report.parts_kept) == (0, 3)
    assert fewer.places == {first["a.tif"].place}
    assert not any(key.startswith("parts/") for key in fewer.made | fewer.changed)
    beside = {key for key in fewer.all if not key.startswith("parts/") and not is_table(key)}
    assert beside == {*WHOLE, name_review("a.tif")}

    with watched(store_url) as nothing:
        ingest_again(source, store_url)
    assert nothing.all == {"manifest.json", "ingest.json"}
    ingest_again(source, f"{store_url}-reference")
    assert content_of(store_url) == content_of(f"{store_url}-reference")


def paint(folder: Path, *numbers: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        y, x = np.mgrid[0:20, 0:17]
        pixels = (number * 9 + y * 5 + x * (number % 7)) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")


def test_each_day_puts_new_images_into_parts_of_their_own(
    source: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.images.plan.choose_part", lambda _: (8, 4))
    settings = ImageSettings(size_px=16, colour="grey")

    def ingest_day() -> IngestReport:
        listing = list_images(str(source))
        return ingest_images(store_url, listing, settings, map_serially, source="made")

    paint(source, *range(100, 112))
    ingest_day()
    first = parts_of(store_url)
    assert [part.image_count for part in first.values()] == [8, 4]
    paint(source, *range(90, 100))  # whose names come first
    with watched(store_url) as new:
        report = ingest_day()
    second = parts_of(store_url)
    assert (report.parts_made, report.parts_kept) == (2, 2)
    assert {name: second[name] for name in first} == first
    assert new.places == {part.place for name, part in second.items() if name not in first}
    assert sorted(part.image_count for part in second.values()) == [2, 4, 8, 8]

    (source / "095.png").unlink()
    dataset = open_dataset(store_url)
    row = next(row for row, name in enumerate(dataset.column("image_id")) if "095" in name)
    name = dataset.parts[int(np.searchsorted(dataset.starts, row, side="right")) - 1].name
    with watched(store_url) as fewer:
        report = ingest_day()
    third = parts_of(store_url)
    assert (report.parts_made, report.parts_kept) == (1, 3)
    assert {key for key in third if third[key] != second[key]} == {name}
    assert fewer.places == {second[name].place, third[name].place}
    with watched(store_url) as nothing:
        ingest_day()
    assert not nothing.places
    assert not nothing.made


def test_a_part_deleted_by_hand_is_an_error_and_then_made_again(
    source: Path, store_url: str
) -> None:
    for name in ("a", "b"):
        write_slide(source, name, boxes=SMALL)
    ingest_again(source, store_url)
    content, place = content_of(store_url), parts_of(store_url)["b.tif"].place
    for info in storage.list_objects(storage.join(store_url, place)):
        storage.delete(info.url)
    dataset = open_dataset(store_url)
    for read in (lambda: dataset.column("label"), lambda: dataset.read_images(0, 10_000)):
        with pytest.raises(SchemaError, match=r"part 'b.tif' is gone.*run the same ingest again"):
            read()
    assert len(dataset.column("split")) == dataset.image_count  # facts stand in the table
    with watched(store_url) as again:
        report = ingest_again(source, store_url)
    assert (report.parts_made, report.parts_kept) == (1, 1)
    assert again.places == {place}
    assert content_of(store_url) == content


def write_mask(path: Path, *, bottom: int) -> None:
    """A mask of a quarter of the slide's size, tissue down to a row of level 0."""
    pixels = np.zeros((SHAPE[0] // 4, SHAPE[1] // 4), np.uint8)
    pixels[: bottom // 4] = 255
    Image.fromarray(pixels).save(path)


def change_slide(source: Path, name: str, kind: str) -> Slide:
    """The slide, changed in one way; what a listing says of it, where that is what changed."""
    slide = list_slide(source / f"{name}.tif", annotation=source / f"{name}.xml")
    slide = replace(slide, mask_url=str(source / f"{name}-mask.png"))
    if kind == "slide":
        write_slide(source, name, boxes=[(64, 64, 320, 320)])
        return replace(slide, version=storage.describe(slide.url).version)
    if kind == "annotation":
        write_asap(source / f"{name}.xml", [("Tumor", [*OUTLINE, (128.0, 128.0)])])
    if kind == "mask":
        write_mask(source / f"{name}-mask.png", bottom=SHAPE[0] // 2)
    return replace(slide, mpp_um=0.4) if kind == "um/px" else slide


@pytest.mark.parametrize("kind", ["slide", "annotation", "mask", "um/px", "settings", "nothing"])
def test_only_the_slides_concerned_are_made_again(source: Path, tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "out")
    for name in ("a", "b"):
        write_slide(source, name, boxes=SMALL)
        write_asap(source / f"{name}.xml", [("Tumor", OUTLINE)])
        write_mask(source / f"{name}-mask.png", bottom=SHAPE[0])
    slides = [change_slide(source, name, "nothing") for name in ("a", "b")]
    first = ingest_slides(url, SlideListing("made", tuple(slides), ()), SETTINGS, map_serially)
    assert [entry.state for entry in first.manifest] == ["done", "done"]
    before = parts_of(url)
    settings = SETTINGS
    if kind == "settings":
        settings = SETTINGS.model_copy(update={"lesion_threshold": 0.9})
    slides[1] = change_slide(source, "b", kind)
    listing = SlideListing("made", tuple(slides), ())
    ingest_slides(url, listing, settings, map_serially)
    expected = {"settings": {"a", "b"}, "nothing": set()}.get(kind, {"b"})
    assert names_made(url, before) == expected


def test_other_splits_and_patients_make_no_part_again(source: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    slides = [list_slide(write_slide(source, name, boxes=SMALL)) for name in ("a", "b")]
    ingest_slides(url, SlideListing("made", tuple(slides), ()), SETTINGS, map_serially)
    slides = [replace(slide, patient="p", split="test") for slide in slides]
    settings = SETTINGS.model_copy(update={"test_fraction": 0.5})
    listing = SlideListing("made", tuple(slides), ())
    assert ingest_slides(url, listing, settings, map_serially).parts_made == 0
    dataset = open_dataset(url)
    assert set(dataset.column("group_id")) == {"p"}
    assert set(dataset.column("split")) == {"test"}


@pytest.mark.parametrize("trusts_times", [False, True])
def test_a_touched_file_of_the_same_bytes_is_kept(
    source: Path, tmp_path: Path, trusts_times: bool
) -> None:
    url = str(tmp_path / "out")
    path = write_slide(source, "a", boxes=SMALL)
    first = ingest_again(source, url, trusts_times=trusts_times)
    os.utime(path, ns=(0, 10**18))
    with watched(url) as touched:
        again = ingest_again(source, url, trusts_times=trusts_times)
    assert (again.parts_made, again.parts_kept) == (0, 1)
    assert again.fingerprint == first.fingerprint
    assert not touched.places
    assert parts_of(url)["a.tif"].source_version.endswith(f"-{10**18}")


@pytest.mark.parametrize("trusts_times", [False, True])
def test_bytes_that_change_behind_size_and_time_are_noticed_unless_these_are_trusted(
    source: Path, tmp_path: Path, trusts_times: bool
) -> None:
    url = str(tmp_path / "out")
    path = write_slide(source, "a", boxes=SMALL)
    ingest_again(source, url, trusts_times=trusts_times)
    place, status, data = parts_of(url)["a.tif"].place, path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = ingest_again(source, url, trusts_times=trusts_times)
    identity = open_dataset(url).attributes["source_identity"]
    assert identity == ("size and time" if trusts_times else "bytes")
    assert (again.parts_made, again.parts_kept) == ((0, 1) if trusts_times else (1, 0))
    # Whoever reads the sealed dataset meanwhile is not disturbed: the part has another folder.
    assert (parts_of(url)["a.tif"].place == place) == trusts_times
    kept = ingest_again(source, url, trusts_times=trusts_times)
    assert (kept.parts_made, kept.fingerprint) == (0, again.fingerprint)


def test_images_whose_bytes_change_behind_size_and_time_are_made_again(
    source: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "out")
    settings = ImageSettings(size_px=16, colour="grey")

    def run(*, trusts_times: bool = False) -> IngestReport:
        listing = list_images(str(source))
        return ingest_images(
            url, listing, settings, map_serially, source="made", trusts_times=trusts_times
        )

    for number in range(3):
        Image.fromarray(np.full((17, 20), 50 * number, np.uint8)).save(source / f"{number}.bmp.tif")
    run()
    place = open_dataset(url).parts[0].place
    path = source / "1.bmp.tif"
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(bytes([50]) * 8, bytes([51]) * 8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(trusts_times=True).parts_made == 0
    assert run().parts_made == 1
    dataset = open_dataset(url)
    assert dataset.parts[0].place != place
    assert 51 in dataset.read_images(0, 3)


def test_a_slide_that_vanishes_before_its_visit_fails_and_the_rest_goes_on(
    source: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "out")
    slides = [list_slide(write_slide(source, name, boxes=SMALL)) for name in ("a", "b", "c")]
    Path(slides[1].url).unlink()
    report = ingest_slides(url, SlideListing("made", tuple(slides), ()), SETTINGS, map_serially)
    assert [entry.state for entry in report.manifest] == ["done", "failed", "done"]
    assert "b.tif" in report.failures[0].reason
    assert list(parts_of(url)) == ["a", "c"]
    write_slide(source, "b", boxes=SMALL)
    slides[1] = list_slide(Path(slides[1].url))
    again = ingest_slides(url, SlideListing("made", tuple(slides), ()), SETTINGS, map_serially)
    assert (again.parts_made, again.parts_kept, again.failures) == (1, 2, ())


def test_copies_of_slides_give_the_same_content(source: Path, tmp_path: Path) -> None:
    copies, one, two = tmp_path / "copies" / "in", str(tmp_path / "one"), str(tmp_path / "two")
    copies.mkdir(parents=True)
    for name in ("a", "b"):
        path = write_slide(source, name, boxes=SMALL)
        (copies / path.name).write_bytes(path.read_bytes())
        os.utime(copies / path.name, ns=(0, 10**18))
    assert ingest_again(source, one).fingerprint == ingest_again(copies, two).fingerprint
    assert content_whatever_versions(one) == content_whatever_versions(two)


def test_the_preflight_says_what_there_is_to_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    spec = specify_slides(SETTINGS, "made")
    check_before_spending("out", spec, range(42), map_serially)
    assert "out: 42 items to visit; 1 workers" in caplog.text
    assert f"each needs {measure_worker_bytes(spec) / 2**20:.0f} of its" in caplog.text


def test_what_cannot_fit_is_refused_before_it_is_begun(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slide(source, "a")
    needed = measure_worker_bytes(specify_slides(SETTINGS, "made"))
    small: Callable[[MapWork], Workers] = lambda _: Workers(2, needed - 1)  # noqa: E731
    monkeypatch.setattr("pipeline.ingest.preflight.describe_workers", small)
    with pytest.raises(SettingsError, match=r"of 32 images needs .* Lower shard_images to 16"):
        ingest_again(source, str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ingest.json"]
    progress = read_progress(str(tmp_path / "out")) or {}
    assert (progress["state"], progress["made"]) == ("refused", 0)


MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from pipeline.ingest.parts import Draft, make_part
from pipeline.ingest.preflight import _BASE_BYTES, measure_worker_bytes
from pipeline.ingest.sources import SourceRead
from tests.support.made.datasets import SPEC
from tests.support.peak_memory import peak_bytes

def read(start, stop, images):
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    yield SourceRead((None,) * len(images), {})

spec = replace(SPEC, image_shape=(160, 192, 3), shard_images=640, chunk_images=64)
columns = {"image_id": np.array([str(row) for row in range(3 * 640)], object)}
before = peak_bytes()
make_part(sys.argv[1], spec, Draft("a", "parts/a", "key", columns), read)
print(peak_bytes() - before, measure_worker_bytes(spec) - _BASE_BYTES)
"""


def test_a_worker_stays_within_the_memory_that_is_stated(tmp_path: Path) -> None:
    """However many shards the part has."""
    used, stated = run_measured(MEMORY, tmp_path)
    assert 0.3 * stated < used < stated
