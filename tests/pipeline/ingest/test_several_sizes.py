"""Several sizes from one decode of each file: the same datasets as from an ingest of each."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings, make_reader, plan_images, resize_plan
from pipeline.images.reader import DecodedImage, ImageReader
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.plan import Plan
from pipeline.ingest.preflight import measure_worker_bytes
from pipeline.ingest.run import IngestReport, Target, ingest, ingest_together
from pipeline.io.archives import list_members
from pipeline.io.storage import describe, list_objects
from pipeline.records import ImageListing, SourceImage
from pipeline.runtime.engines import MapWork, Workers, dask_engine, map_serially
from pipeline.store.dataset import open_dataset
from tests.pipeline.ingest.test_run import content_of
from tests.pipeline.io.test_archives import pack
from tests.support.made.dicom import make_dicom, ramp, write_dicom

SETTINGS = ImageSettings(modality="radiograph", colour="grey", equalize=True)
# Images a shard of each size, so that hardly any two shards end at the same row.
SHARDS = {24: 6, 40: 4}
PREFLIGHT = 2  # it reads one image to see that it can, and again to see how fast


@dataclass(frozen=True)
class CountingReader(ImageReader):
    """Notes every file that it decodes; told so, it fails or dies at one of them.

    Args:
        log: Where the notes go: one file for every process.
        stops_at: The image that the run is interrupted at.
        dies_of: The image that kills the process.
    """

    log: Path = field(default=Path(), repr=False)
    stops_at: str = field(default="", repr=False)
    dies_of: str = field(default="", repr=False)

    def decode(self, source: SourceImage) -> DecodedImage:
        if source.image_id == self.stops_at:
            raise KeyboardInterrupt
        if source.image_id == self.dies_of:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.log.open("a") as log:
            log.write(f"{source.image_id}\n")
        return super().decode(source)


def count_decodes(log: Path) -> Counter[str]:
    return Counter(log.read_text().split())


def encode_png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[SourceImage]:
    """Twenty: `a` are PNGs, of which the fourth is torn, `b` in an archive, `c` DICOM."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(11):
        (folder / f"a{number:02}.png").write_bytes(
            encode_png(number)[: 60 if number == 3 else None]
        )
    for number in range(3):
        film = make_dicom(ramp(9 * number, 4000), SOPInstanceUID=f"1.2.{number}")
        (folder / f"c{number}.dcm").write_bytes(write_dicom(film))
    archive = folder / "b.tar"
    archive.write_bytes(
        pack({f"b{number}": encode_png(20 + number) for number in range(6)}, mode="w")
    )
    info = describe(str(archive))
    files = [describe(str(path)) for path in folder.iterdir() if path != archive]
    return [
        *(SourceImage(Path(f.url).stem, "p", f.url, f.version, split="train") for f in files),
        *(
            SourceImage(
                each.name,
                "p",
                info.url,
                info.version,
                split="train",
                name=each.name,
                span_bytes=each.span_bytes,
            )
            for each in list_members(info)
        ),
    ]


def plan_sizes(images: Sequence[SourceImage]) -> dict[int, Plan]:
    plan = plan_images(images, SETTINGS, source="made")
    sizes = {size: resize_plan(plan, size) for size in SHARDS}
    return {
        size: replace(each, spec=replace(each.spec, shard_images=SHARDS[size], chunk_images=2))
        for size, each in sizes.items()
    }


def make_counting_reader(plan: Plan, log: Path, **options: str) -> CountingReader:
    plain = make_reader(plan)
    known: dict[str, Any] = {each.name: getattr(plain, each.name) for each in fields(plain)}
    return CountingReader(**known | options, log=log)


def ingest_alone(folder: Path, images: Sequence[SourceImage]) -> dict[int, IngestReport]:
    log = folder.with_name("alone.log")
    return {
        size: ingest(f"{folder}/{size}", plan, make_counting_reader(plan, log), map_serially)
        for size, plan in plan_sizes(images).items()
    }


def ingest_at_once(
    folder: Path, images: Sequence[SourceImage], log: Path, map_work: MapWork, **options: str
) -> tuple[IngestReport, ...]:
    targets = [
        Target(str(folder / f"{size}"), plan, make_counting_reader(plan, log, **options))
        for size, plan in plan_sizes(images).items()
    ]
    return ingest_together(targets, map_work)


@pytest.mark.parametrize("engine", ["serial", "dask"])
def test_one_decode_gives_what_an_ingest_of_each_size_gives(
    tmp_path: Path, images: list[SourceImage], engine: str, request: pytest.FixtureRequest
) -> None:
    expected = ingest_alone(tmp_path / "alone", images)
    log, together = tmp_path / "log", tmp_path / "together"
    if engine == "serial":
        reports = ingest_at_once(together, images, log, map_serially)
    else:
        address = request.getfixturevalue("mending_cluster").scheduler_address
        with dask_engine(address=address) as map_work:
            reports = ingest_at_once(together, images, log, map_work)
    names = Counter(image.image_id for image in images)
    assert count_decodes(log) == names + Counter({"a00": PREFLIGHT})
    for size, report in zip(SHARDS, reports, strict=True):
        alone = expected[size]
        assert content_of(report.url) == content_of(alone.url)
        assert report.fingerprint == alone.fingerprint
        manifests = [read_manifest(f"{each.url}/manifest.json") for each in (report, alone)]
        assert manifests[0] == manifests[1]
        assert [Path(entry.item).name for entry in report.failures] == ["a03.png"]
        assert open_dataset(report.url).image_shape == (size, size, 1)


def test_an_interrupted_run_is_finished_with_what_is_missing(
    tmp_path: Path, images: list[SourceImage]
) -> None:
    expected = ingest_alone(tmp_path / "alone", images)
    out, log = tmp_path / "out", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        ingest_at_once(out, images, log, map_serially, stops_at="a09")
    log.unlink()
    reports = ingest_at_once(out, images, log, map_serially)
    # Rows 0 to 5 of one size were there, and rows 0 to 7 of the other.
    assert [report.shards_kept for report in reports] == [1, 2]
    missing = Counter(sorted(image.image_id for image in images)[6:])
    assert count_decodes(log) == missing + Counter({"a06": PREFLIGHT})
    for size, report in zip(SHARDS, reports, strict=True):
        assert content_of(report.url) == content_of(expected[size].url)
    log.unlink()
    again = ingest_at_once(out, images, log, map_serially)
    assert [report.shards_made for report in again] == [0, 0]
    assert not log.exists()


def test_a_file_that_kills_its_worker_is_quarantined_at_every_size(
    tmp_path: Path, images: list[SourceImage], mending_cluster: LocalCluster
) -> None:
    log = tmp_path / "log"
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        reports = ingest_at_once(tmp_path / "out", images[-6:], log, engine, dies_of="b4")
    for report in reports:
        assert [entry.item for entry in report.failures] == ["b4"]
        assert "every worker that took it up has died" in report.failures[0].reason
        assert open_dataset(report.url).column("readable").tolist() == [True] * 4 + [False, True]


def test_a_further_size_makes_no_other_again(tmp_path: Path, images: list[SourceImage]) -> None:
    listing, url = ImageListing(tuple(images)), str(tmp_path / "at-{size_px}")

    def run(*sizes_px: int, to: str = url) -> dict[str, bytes]:
        report = ingest_images(to, listing, SETTINGS, map_serially, source="x", sizes_px=sizes_px)
        assert len(report.further) == len(sizes_px) - 1
        made = [each.shards_made for each in (report, *report.further)]
        assert made == [int(size not in already) for size in sizes_px]
        already.update(sizes_px)
        return content_of(report.url)

    already: set[int] = set()
    small = run(24)
    assert run(24, 40, 64) == small
    already.clear()
    assert run(40, to=str(tmp_path / "alone")) == content_of(url.format(size_px=40))


def test_several_sizes_need_a_place_each(tmp_path: Path, images: list[SourceImage]) -> None:
    url = str(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"out: one place for 2 sizes.*Put `\{size_px\}` into"):
        ingest_images(
            url, ImageListing(tuple(images)), SETTINGS, map_serially, source="x", sizes_px=(24, 40)
        )
    assert not list_objects(url)


def test_sizes_that_do_not_fit_a_worker_together_are_refused(
    tmp_path: Path, images: list[SourceImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [plan.spec for plan in plan_sizes(images).values()]
    needed = measure_worker_bytes(*specs)
    assert all(measure_worker_bytes(spec) < needed for spec in specs)
    small: Callable[[MapWork], Workers] = lambda _: Workers(2, needed - 1)  # noqa: E731
    monkeypatch.setattr("pipeline.ingest.preflight.describe_workers", small)
    with pytest.raises(SettingsError, match=r"2 datasets at once needs .* Make fewer datasets"):
        ingest_at_once(tmp_path / "out", images, tmp_path / "log", map_serially)
    assert not (tmp_path / "out").exists()


def test_progress_tells_of_all_sizes(tmp_path: Path, images: list[SourceImage]) -> None:
    told: list[tuple[int, int]] = []
    ingest_images(
        str(tmp_path / "{size_px}"),
        ImageListing(tuple(images)),
        SETTINGS,
        map_serially,
        source="x",
        sizes_px=(24, 40),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 40), (40, 40)]
