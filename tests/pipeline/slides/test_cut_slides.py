"""Several workers on one slide: the part is the same, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.io.storage import describe, list_objects, read_bytes
from pipeline.records import Slide, SlideListing
from pipeline.runtime.engines import DaskMap, MapWork, dask_engine, engine_of_worker, map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings
from pipeline.store.dataset import open_dataset
from pipeline.synthetic.slides import write_slides

SETTINGS = SlideSettings(tile_size_px=64, mpp_um=0.5, shard_images=32, chunk_images=16)


@pytest.fixture(scope="module", name="engine")
def _engine() -> Iterator[MapWork]:
    with dask_engine(workers=2) as engine:
        yield engine


def list_one(folder: Path) -> SlideListing:
    write_slides(str(folder), normal_count=1, tumor_count=0, test_count=0, shape_yx=(1024, 1536))
    path = str(next(folder.rglob("*.tif")))
    return SlideListing("made", (Slide("one", path, describe(path).version),), ())


def read_parts(url: str) -> dict[str, bytes]:
    found = list_objects(f"{url}/parts/")
    return {info.url.removeprefix(url): read_bytes(info.url) for info in found}


def test_a_slide_cut_for_two_workers_gives_the_same_part(tmp_path: Path, engine: MapWork) -> None:
    listing = list_one(tmp_path / "slides")
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    expected = ingest_slides(whole, listing, SETTINGS, map_serially)
    found = ingest_slides(cut, listing, SETTINGS, engine)
    assert found.fingerprint == expected.fingerprint
    assert found.image_count > 2 * SETTINGS.shard_images
    assert read_parts(cut) == read_parts(whole)
    assert open_dataset(cut).parts == open_dataset(whole).parts


def _list_processes(count: int) -> set[int]:
    with engine_of_worker() as map_work:
        return set(map_work(_name_process, range(count)))


def _name_process(_: int) -> int:
    np.linalg.norm(np.random.default_rng(0).random((400, 400)), 2)  # long enough for the other
    return os.getpid()


def test_pieces_of_a_task_go_to_all_workers(engine: MapWork) -> None:
    assert isinstance(engine, DaskMap)
    (processes,) = engine(_list_processes, [40])
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_a_worker_killed_at_a_piece_leaves_no_part_until_the_slide_begins_anew(
    tmp_path: Path, engine: MapWork
) -> None:
    listing = list_one(tmp_path / "slides")
    killing = SETTINGS.model_copy(update={"seed": 1})
    url, mark = str(tmp_path / "dataset"), tmp_path / "killed"
    assert isinstance(engine, DaskMap)
    engine.client.run(_kill_once, str(mark))
    report = ingest_slides(url, listing, killing, engine)
    assert mark.exists()
    expected = ingest_slides(str(tmp_path / "whole"), listing, killing, map_serially)
    assert report.fingerprint == expected.fingerprint
    assert read_parts(url) == read_parts(str(tmp_path / "whole"))


def _kill_once(mark: str) -> None:
    """Make the worker die at the end of its second shard, if none has died yet."""
    from pipeline.slides import visit

    make: Any = getattr(visit, "make_shard")  # noqa: B009 - another module's
    made: list[object] = []

    def kill(*args: object) -> object:
        made.append(make(*args))
        if len(made) == 2:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return made[-1]
            os._exit(9)
        return made[-1]

    setattr(visit, "make_shard", kill)  # noqa: B010 - as above
