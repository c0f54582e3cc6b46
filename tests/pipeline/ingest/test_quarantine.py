"""Who is in quarantine is one image, called by its public name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings, make_reader, plan_images
from pipeline.images.reader import ImageReader
from pipeline.images.visit import ImageVisit, visit_without_killers
from pipeline.ingest.quarantine import Quarantine
from pipeline.ingest.run import Work, ingest
from pipeline.ingest.sources import SourceRead
from pipeline.io.storage import read_bytes
from pipeline.records import SourceImage
from pipeline.runtime.engines import dask_engine, map_serially
from pipeline.sources.images import list_images
from pipeline.store.dataset import open_dataset

SETTINGS = ImageSettings(size_px=16, colour="grey")
COUNT = 5


def test_one_member_of_an_archive_is_refused_and_no_url_is_shown() -> None:
    archive = "memory://quarantine/MUSTERFRAU.tar"
    deadly, other = (
        SourceImage(name, "p", archive, "1", name=name, span_bytes=(0, 9)) for name in ("ab", "cd")
    )
    reader = Quarantine(ImageReader(16, 1), frozenset({deadly.public_name}))
    assert "MUSTERFRAU" not in repr(reader)
    images = np.zeros((1, 16, 16, 1), np.uint8)
    with pytest.raises(SourceError, match=r"^ab: every worker"):
        list(reader.read(deadly, images))
    with pytest.raises(SourceError, match=r"^cd: the file cannot be read \(AbsentError\)"):
        list(reader.read(other, images))


class BrokenReader:
    def read(self, *_: Any) -> Any:
        raise TypeError


@dataclass(frozen=True)
class FragileReader:
    """Reads as another, but dies of a file that says `deadly`."""

    reader: ImageReader

    def read(self, source: SourceImage, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        if b"deadly" in read_bytes(source.url):
            os.kill(os.getpid(), signal.SIGKILL)
        yield from self.reader.read(source, images)


def write_images(folder: Path) -> None:
    folder.mkdir()
    for number in range(COUNT):
        grey = np.full((20, 17), 40 * number, np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
    with (folder / "3.png").open("ab") as file:
        file.write(b"deadly")  # after its end, which no decoder reads


def visit_of(folder: Path, url: str) -> tuple[ImageVisit, list[Any]]:
    spec, parts = plan_images(list_images(str(folder)).images, SETTINGS, source="made")
    return ImageVisit(url, spec, make_reader(spec)), parts


def test_a_source_whose_reader_raises_anything_is_no_killer(tmp_path: Path) -> None:
    write_images(tmp_path / "in")
    visit, (part,) = visit_of(tmp_path / "in", str(tmp_path / "out"))
    outcome = visit_without_killers(map_serially, replace(visit, reader=BrokenReader()), part)
    assert outcome.part is not None
    assert outcome.part.key == ""
    assert outcome.part.unreadable_count == COUNT
    assert all("TypeError" in entry.reason for entry in outcome.entries)


def test_an_image_that_kills_every_worker_is_left_out_until_it_does_not(
    tmp_path: Path, mending_cluster: LocalCluster
) -> None:
    write_images(tmp_path / "in")
    url, reference = str(tmp_path / "out"), str(tmp_path / "reference")
    visit, parts = visit_of(tmp_path / "in", url)
    visit = replace(visit, reader=FragileReader(make_reader(visit.spec)))
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        work = Work(
            spec=visit.spec,
            items=parts,
            visit=visit,
            give_up=partial(visit_without_killers, engine, visit),
            arrange=lambda parts: (parts, {}),
            weigh=lambda part: len(part.images),
        )
        report = ingest(url, work, engine)
    assert [entry.state for entry in report.manifest].count("failed") == 1
    (failure,) = report.failures
    assert failure.item.endswith("3.png")
    assert "every worker that took it up has died" in failure.reason
    dataset = open_dataset(url)
    ids = dataset.column("image_id")
    assert ids[~dataset.column("readable")].tolist() == [i for i in ids if "3" in i]
    listing = list_images(str(tmp_path / "in"))
    again = ingest_images(url, listing, SETTINGS, map_serially, source="made")
    assert (again.parts_made, again.failures) == (1, ())
    expected = ingest_images(reference, listing, SETTINGS, map_serially, source="made")
    assert again.fingerprint == expected.fingerprint
