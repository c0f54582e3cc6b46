"""What a dry run says comes true, within stated factors; and it writes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images.estimate import estimate_images
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest import estimate
from pipeline.io import storage
from pipeline.records import ImageListing, SlideListing, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.survey.estimate import estimate_slides
from pipeline.sources.slides import list_slides
from pipeline.synthetic import write_slides
from tests.support.made.slides import SETTINGS, SHAPE, ingest_made, list_slide, write_slide


def objects_of(url: str) -> dict[str, tuple[int, str]]:
    return {i.url: (i.size_bytes, i.version) for i in storage.list_objects(f"{url}/")}


def test_surveyed_slides_are_estimated_exactly(tmp_path: Path) -> None:
    listed = [list_slide(write_slide(tmp_path, name)) for name in "abc"]
    (tmp_path / "torn.tif").write_text("no slide")
    listing = SlideListing("made", (*listed, list_slide(tmp_path / "torn.tif")), ())
    url = str(tmp_path / "out")
    found = estimate_slides(url, listing, SETTINGS, map_serially)
    assert not (tmp_path / "out").exists()
    assert found.counts == {"new": 3}
    assert [entry.item for entry in found.rejected] == [str(tmp_path / "torn.tif")]
    report, dataset = ingest_made(url, listing.slides)
    assert (found.image_count, found.is_exact) == (dataset.image_count, True)
    assert found.read_bytes == sum(Path(slide.url).stat().st_size for slide in listed)
    stored = sum(part.stored_bytes for part in dataset.parts)
    assert found.stored_bytes == pytest.approx(stored, rel=0.5)
    written = [name for name in objects_of(url) if "/parts/" in name or "/review/" in name]
    assert found.object_count == len(written)
    assert found.seconds is not None
    assert 0 < found.seconds < 60 * report.seconds


def test_slides_beyond_the_sample_are_scaled_by_their_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slides(str(tmp_path / "in"), normal_count=4, tumor_count=2, test_count=0, shape_yx=SHAPE)
    listing = list_slides(str(tmp_path / "in"))
    monkeypatch.setattr(estimate.choose_sample, "__defaults__", (2,))
    found = estimate_slides(str(tmp_path / "out"), listing, SETTINGS, map_serially)
    report = ingest_slides(str(tmp_path / "out"), listing, SETTINGS, map_serially)
    assert (found.is_exact, found.sampled_count) == (False, 2)
    assert found.image_count is not None
    assert report.image_count / 1.5 < found.image_count < report.image_count * 1.5


@pytest.mark.parametrize("trusts_times", [False, True])
def test_an_estimate_tells_new_changed_and_kept_and_touches_nothing(
    store_url: str, tmp_path: Path, trusts_times: bool
) -> None:
    paths = [write_slide(tmp_path, name) for name in "abcd"]
    url = f"{store_url}/out"
    ingest_made(url, [list_slide(path) for path in paths[:3]])
    before = objects_of(url)
    write_slide(tmp_path, "b", boxes=[(64, 64, 320, 320)])
    listed = tuple(list_slide(path) for path in paths[1:])  # `a` is gone, `d` is new
    listing = SlideListing("made", listed, ())
    found = estimate_slides(url, listing, SETTINGS, map_serially, trusts_times=trusts_times)
    assert found.counts == {"new": 1, "changed": 1, "kept": 1}
    assert found.removed_count == 1
    read = paths[1:2] + paths[3:] if trusts_times else paths[1:]
    assert found.read_bytes == sum(path.stat().st_size for path in read)
    assert objects_of(url) == before


def test_slides_on_s3_alone_are_not_fetched(moto_url: str, tmp_path: Path) -> None:
    data = write_slide(tmp_path, "a").read_bytes()
    storage.write_bytes(f"{moto_url}/in/a.tif", data)
    listing = list_slides(f"{moto_url}/in")
    found = estimate_slides(f"{moto_url}/out", listing, SETTINGS, map_serially)
    assert found.read_bytes == len(data)
    assert (found.image_count, found.seconds, found.stored_bytes) == (None, None, None)


def test_images_are_counted_and_their_cost_is_scaled(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    listed = []
    for number in range(40):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 31), np.uint8)).save(path)
        version = storage.describe(str(path)).version
        listed.append(SourceImage(path.stem, f"p{number // 2}", str(path), version))
    settings, url = ImageSettings(size_px=16, colour="grey"), str(tmp_path / "out")

    def look(count: int) -> estimate.Estimate:
        listing = ImageListing(tuple(listed[:count]))
        (found,) = estimate_images(url, listing, settings, map_serially, source="made")
        return found

    first = look(30)
    assert not (tmp_path / "out").exists()
    report = ingest_images(
        url, ImageListing(tuple(listed[:30])), settings, map_serially, source="made"
    )
    assert (first.counts, first.image_count) == ({"new": 1}, report.image_count)
    assert first.read_bytes == pytest.approx(30 * (tmp_path / "00.png").stat().st_size, rel=0.1)
    before = objects_of(url)
    assert len([name for name in before if "/parts/" in name]) == first.object_count
    second = look(40)
    assert (second.counts, second.image_count) == ({"kept": 1, "new": 1}, 10)
    assert objects_of(url) == before
