"""A dataset that grows: what is there stays as it is, and only what changed is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.errors import SettingsError
from pipeline.ingest.plan import Plan
from pipeline.ingest.preflight import check_before_spending, measure_worker_bytes
from pipeline.ingest.run import IngestReport, ingest
from pipeline.ingest.shards import cut_shards
from pipeline.runtime.engines import MapWork, Workers, map_serially
from pipeline.slides.plan import plan_slides
from pipeline.slides.reader import make_tile_reader
from pipeline.slides.settings import SlideSettings
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset, read_group_order
from tests.support.made.slides import SETTINGS, list_slide, plan_of, write_asap, write_slide
from tests.support.peak_memory import run_measured

T = TypeVar("T")
R = TypeVar("R")


def plan_again(source: Path, url: str, settings: SlideSettings, surveyed: list[str]) -> Plan:
    listing = list_slides(str(source))
    before = {path.name: path.stat().st_mtime_ns for path in Path(url).glob("survey/*")}
    plan = plan_slides(
        listing.slides,
        settings,
        map_serially,
        source="made",
        rejected=listing.rejected,
        known_order=read_group_order(url),
        survey_url=f"{url}/survey",
    )
    surveyed[:] = [
        path.stem
        for path in sorted(Path(url).glob("survey/*"))
        if before.get(path.name) != path.stat().st_mtime_ns
    ]
    return plan


def ingest_again(
    source: Path, url: str, settings: SlideSettings = SETTINGS
) -> tuple[IngestReport, list[str]]:
    """Ingest, and say which slides were surveyed for it."""
    surveyed: list[str] = []
    plan = plan_again(source, url, settings, surveyed)
    return ingest(url, plan, make_tile_reader(settings), map_serially), surveyed


def test_a_new_slide_in_the_midst_makes_only_what_is_new(tmp_path: Path) -> None:
    source, url = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    for name in ("a", "b", "d"):
        write_slide(source, name)
    first, surveyed = ingest_again(source, url)
    assert surveyed == ["a.tif", "b.tif", "d.tif"]
    assert first.shards_made == 4  # 126 rows of 32
    images = open_dataset(url).read_images(0, 96)
    again, surveyed = ingest_again(source, url)
    assert (again.shards_made, surveyed, again.fingerprint) == (0, [], first.fingerprint)

    write_slide(source, "c")
    grown, surveyed = ingest_again(source, url)
    assert surveyed == ["c.tif"]
    assert (grown.shards_kept, grown.shards_made) == (3, 3)  # the half shard, and two more
    dataset = open_dataset(url)
    assert list(dict.fromkeys(dataset.column("group_id"))) == [f"{name}.tif" for name in "abdc"]
    assert (dataset.read_images(0, 96) == images).all()
    again, surveyed = ingest_again(source, url)
    assert (again.shards_made, surveyed, again.fingerprint) == (0, [], grown.fingerprint)


def test_a_killed_growth_keeps_the_order(tmp_path: Path) -> None:
    source, url = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    for name in ("b", "d"):
        write_slide(source, name)
    ingest_again(source, url)
    write_slide(source, "a")

    def stop_at_once(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        if len(items) > 1:
            raise KeyboardInterrupt
        return map_serially(function, items)

    plan = plan_again(source, url, SETTINGS, [])
    with pytest.raises(KeyboardInterrupt):
        ingest(url, plan, make_tile_reader(SETTINGS), stop_at_once)
    assert read_group_order(url) == ("b.tif", "d.tif", "a.tif")
    ingest_again(source, url)
    dataset = open_dataset(url)
    assert list(dict.fromkeys(dataset.column("group_id"))) == ["b.tif", "d.tif", "a.tif"]


@pytest.mark.parametrize("change", ["slide", "annotation", "settings", "survey"])
def test_what_changed_is_surveyed_again(tmp_path: Path, change: str) -> None:
    source, url = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    outline = [(128.0, 64.0), (192.0, 64.0), (192.0, 128.0)]
    for name in ("a", "b"):
        write_slide(source, name)
        write_asap(source / f"{name}.xml", [("Tumor", outline)])
    first, _ = ingest_again(source, url)
    settings = SETTINGS
    if change == "slide":
        write_slide(source, "b", boxes=[(64, 64, 320, 320)])
    elif change == "annotation":
        write_asap(source / "b.xml", [("Tumor", [*outline, (128.0, 128.0)])])
    elif change == "settings":
        settings = SETTINGS.model_copy(update={"min_tissue_fraction": 0.1})
    else:
        Path(url, "survey", "b.tif.npz").write_bytes(b"PK damaged")
    second, surveyed = ingest_again(source, url, settings)
    assert surveyed == (["a.tif", "b.tif"] if change == "settings" else ["b.tif"])
    assert (second.fingerprint == first.fingerprint) == (change == "survey")


def test_other_settings_make_only_the_shards_whose_rows_they_change(tmp_path: Path) -> None:
    source, url = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    outline = [(128.0, 64.0), (200.0, 64.0), (200.0, 150.0), (128.0, 150.0)]
    for name in ("a", "b"):
        write_slide(source, name)
    write_asap(source / "b.xml", [("Tumor", outline)])
    first, _ = ingest_again(source, url)
    strict = SETTINGS.model_copy(update={"lesion_threshold": 0.9})
    second, _ = ingest_again(source, url, strict)
    alone, _ = ingest_again(source, str(tmp_path / "alone"), strict)
    assert (first.shards_made, second.shards_made + second.shards_kept) == (3, 3)
    assert second.shards_kept >= 1  # the first holds rows of `a` alone
    assert second.shards_made >= 1
    assert second.fingerprint == alone.fingerprint != first.fingerprint


def test_the_preflight_says_what_there_is_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    plan = plan_of([list_slide(write_slide(tmp_path, "a"))])
    reader = make_tile_reader(SETTINGS)
    check_before_spending("out", list(cut_shards(plan, reader)), map_serially)
    assert f"42 images in 2 shards to make ({42 * 32 * 32 * 3 / 2**20:.1f} MiB raw)" in caplog.text
    assert f"each needs {measure_worker_bytes(plan.spec) / 2**20:.0f} of its" in caplog.text


def test_what_cannot_fit_is_refused_before_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of([list_slide(write_slide(tmp_path, "a"))])
    needed = measure_worker_bytes(plan.spec)
    small: Callable[[MapWork], Workers] = lambda _: Workers(2, needed - 1)  # noqa: E731
    monkeypatch.setattr("pipeline.ingest.preflight.describe_workers", small)
    with pytest.raises(SettingsError, match=r"of 32 images needs .* Lower shard_images to 16"):
        ingest(str(tmp_path / "out"), plan, make_tile_reader(SETTINGS), map_serially)
    assert not (tmp_path / "out").exists()


MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from pipeline.ingest.plan import SourceRead
from pipeline.ingest.preflight import _BASE_BYTES, measure_worker_bytes
from pipeline.store.spec import write_documents
from pipeline.ingest.shards import cut_shards, make_shard
from pipeline.io.storage import join, write_bytes
from tests.support.made.datasets import plan_made, write_sources
from tests.support.peak_memory import peak_bytes

class Noise:
    def read(self, source, rows, images):
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
        yield SourceRead((None,) * len(images), {}, "")

url = sys.argv[1]
plan = plan_made(write_sources(Path(url, "in"), {"a": bytes(640)}))
spec = replace(plan.spec, image_shape=(160, 192, 3), shard_images=640, chunk_images=64)
for key, data in write_documents(spec, None).items():
    write_bytes(join(url, "out", key), data)
(task,) = cut_shards(replace(plan, spec=spec), Noise())
before = peak_bytes()
make_shard(join(url, "out"), Noise(), task)
print(peak_bytes() - before, measure_worker_bytes(spec) - _BASE_BYTES)
"""


def test_a_worker_stays_within_the_memory_that_is_stated(tmp_path: Path) -> None:
    used, stated = run_measured(MEMORY, tmp_path)
    assert 0.3 * stated < used < stated
