"""Parts of images: kept while their files are what they were, and grown day by day."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DeniedError, SettingsError, SourceError
from pipeline.images.ingest import DUPLICATES, ImageIngestReport, ingest_images
from pipeline.images.plan import ImageSettings, make_reader, plan_images
from pipeline.images.reader import read_source
from pipeline.images.visit import ImageVisit
from pipeline.io.archives import list_members
from pipeline.io.scratch import Scratch
from pipeline.io.storage import describe, list_objects, read_bytes
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.sources.xrays import list_xrays
from pipeline.store.dataset import Dataset, open_dataset
from tests.support import hospital
from tests.support.content import content_of
from tests.support.made.archives import pack

SETTINGS = ImageSettings(size_px=16, colour="grey")


def write_noise(path: Path, seed: int) -> SourceImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 31), np.uint8)
    Image.fromarray(pixels).save(path)
    return describe_image(path)


def describe_image(path: Path) -> SourceImage:
    return SourceImage(path.stem, f"p-{path.stem}", str(path), describe(str(path)).version)


def write_folder(folder: Path, count: int) -> list[SourceImage]:
    folder.mkdir()
    return [write_noise(folder / f"{number:02}.png", number) for number in range(count)]


def run(
    url: Path,
    images: list[SourceImage],
    *,
    trusts_times: bool = False,
    scratch: Scratch | None = None,
) -> tuple[ImageIngestReport, Dataset]:
    report = ingest_images(
        str(url),
        ImageListing(tuple(images)),
        SETTINGS,
        map_serially,
        source="made",
        trusts_times=trusts_times,
        scratch=scratch,
    )
    return report, open_dataset(str(url))


def pixels_of(dataset: Dataset) -> Mapping[str, bytes]:
    images = dataset.read_images(0, dataset.image_count)
    ids = dataset.column("image_id")
    return {name: image.tobytes() for name, image in zip(ids, images, strict=True)}


def test_a_second_run_keeps_every_object(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "in", 7)
    (tmp_path / "in" / "03.png").write_bytes(b"no image")
    images[3] = describe_image(tmp_path / "in" / "03.png")
    first, dataset = run(tmp_path / "out", images)
    before = content_of(str(tmp_path / "out"))
    again, _ = run(tmp_path / "out", images)
    assert (first.parts_made, again.parts_made, again.parts_kept) == (1, 0, 1)
    assert again.manifest == first.manifest  # with the reason of the one that failed
    assert again.failures[0].reason
    assert content_of(str(tmp_path / "out")) == before
    assert dataset.parts[0].unreadable_count == 1


def test_day_by_day_old_rows_keep_their_part_and_their_place(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "in", 9)
    _, first = run(tmp_path / "out", images[3:6])
    place = f"{tmp_path}/out/{first.parts[0].place}/"
    old = {info.url: read_bytes(info.url) for info in list_objects(place)}
    report, second = run(tmp_path / "out", images[::-1])
    assert (report.parts_made, report.parts_kept) == (1, 1)
    assert second.parts[0] == first.parts[0]
    assert second.column("image_id")[:3].tolist() == first.column("image_id").tolist()
    assert {url: read_bytes(url) for url in old} == old
    assert sorted(second.column("image_id")) == [image.image_id for image in images]
    report, third = run(tmp_path / "out", images[:5] + images[6:])  # 05 is withdrawn
    assert (report.parts_made, report.parts_kept) == (1, 1)
    assert third.parts[1] == second.parts[1]
    assert set(pixels_of(third)) == {image.image_id for image in images} - {"05"}
    _, whole = run(tmp_path / "whole", images[:5] + images[6:])
    assert pixels_of(third) == pixels_of(whole)
    left = {f"parts/{path.name}" for path in (tmp_path / "out" / "parts").iterdir()}
    assert left == {part.place for part in third.parts}


def test_duplicates_are_found_across_parts(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "in", 4)
    run(tmp_path / "out", images)
    copy = tmp_path / "in" / "copy.png"
    copy.write_bytes((tmp_path / "in" / "02.png").read_bytes())
    report, dataset = run(tmp_path / "out", [*images, describe_image(copy)])
    assert [part.image_count for part in dataset.parts] == [4, 1]
    assert [(found.kind, ids) for found, ids in report.duplicates] == [("exact", ("02", "copy"))]
    (kept,) = json.loads(read_bytes(f"{report.url}/{DUPLICATES}"))
    assert [image["image_id"] for image in kept["images"]] == ["02", "copy"]


def test_other_bytes_of_the_same_size_and_time_are_noticed_unless_times_are_trusted(
    tmp_path: Path,
) -> None:
    images = write_folder(tmp_path / "in", 4)
    _, first = run(tmp_path / "out", images)
    digests = first.column("source_digest").tolist()
    path = tmp_path / "in" / "02.png"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1  # in the checksum of the pixels
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert describe_image(path) == images[2]
    trusting, dataset = run(tmp_path / "out", images, trusts_times=True)
    assert trusting.parts_kept == 1
    assert dataset.attributes["source_identity"] == "size and time"
    report, dataset = run(tmp_path / "out", images)
    assert (report.parts_made, report.parts_kept) == (1, 0)
    assert dataset.attributes["source_identity"] == "bytes"
    assert dataset.column("source_digest").tolist() != digests


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_an_archive_are_told_by_their_own_bytes(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "in"
    sources = write_folder(folder, 4)
    archive = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    archive.write_bytes(
        pack({f"{i.image_id}.png": Path(i.url).read_bytes() for i in sources}, mode=mode)
    )
    info = describe(str(archive))
    scratch = Scratch(tmp_path / "scratch")
    images = [
        SourceImage(
            each.name, each.name, info.url, info.version, name=each.name, span_bytes=each.span_bytes
        )
        for each in list_members(info, scratch=scratch)
    ]
    assert len(images) == 4
    first, dataset = run(tmp_path / "out", images, scratch=scratch)
    assert first.failures == ()
    again, _ = run(tmp_path / "out", images, scratch=scratch)
    assert (again.parts_made, again.parts_kept) == (0, 1)
    _, plain = run(tmp_path / "plain", sources)
    assert sorted(pixels_of(dataset).values()) == sorted(pixels_of(plain).values())
    assert sorted(dataset.column("source_digest")) == sorted(plain.column("source_digest"))


def test_a_visit_travels_and_a_worker_of_another_stamp_refuses(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "in", 2)
    spec, (part,) = plan_images(images, SETTINGS, source="made")
    visit = ImageVisit(str(tmp_path / "out"), spec, make_reader(spec))
    assert pickle.loads(pickle.dumps(visit)) == visit  # noqa: S301  # our own bytes
    other = replace(visit, spec=replace(spec, stamp={**spec.stamp, "pillow": "0.0.1"}))
    with pytest.raises(SettingsError, match=r"pillow \S+, the driver has 0\.0\.1"):
        other(part)


def test_no_part_table_or_progress_names_a_person(tmp_path: Path) -> None:
    films = hospital.write_films(tmp_path / "films")
    planted = hospital.find_planted(hospital.read_folder(films))
    assert planted == set(hospital.PLANTED) - {"1958-03-12"}
    source, listing = list_xrays(str(films), key=PseudonymKey(bytes(range(32))))
    settings = ImageSettings(modality="radiograph", size_px=16, colour="grey")
    out = tmp_path / "out"
    report = ingest_images(str(out), listing, settings, map_serially, source=source)
    assert report.failures  # whose reasons are in the part, the manifest and the progress
    progress = json.loads((out / "ingest.json").read_text())
    assert progress["failures"]
    for folder in (out, out / "parts"):
        assert hospital.find_planted(hospital.read_folder(folder)) == set()
    assert hospital.find_planted(repr(report), repr(open_dataset(str(out)))) == set()


def test_a_local_file_that_may_not_be_read_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_folder(tmp_path / "in", 3)

    def deny(url: str, **options: int) -> bytes:
        if url.endswith("01.png"):
            raise DeniedError(url, "access denied", "Check the credentials and their rights")
        return read_bytes(url, **options)

    monkeypatch.setattr("pipeline.images.reader.read_bytes", deny)
    with pytest.raises(SourceError, match=r"01\.png: access denied\. Give the right to read it"):
        read_source(images[1])
    report, dataset = run(tmp_path / "out", images)
    readable = dict(zip(dataset.column("image_id"), dataset.column("readable"), strict=True))
    assert readable == {"00": True, "01": False, "02": True}
    assert [entry.item for entry in report.failures] == [images[1].url]
    with pytest.raises(DeniedError):  # of a bucket the next would fail too
        read_source(replace(images[1], url="s3://bucket/01.png"))
