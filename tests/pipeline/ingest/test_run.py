"""The ingest: every engine and store give the same dataset, whatever happened on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import xarray
import zarr

from pipeline.errors import SchemaError, SourceError, StorageError
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.run import ingest
from pipeline.ingest.shards import cut_shards, make_shard
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.runtime.engines import MapWork, dask_engine, map_serially
from pipeline.store.dataset import open_dataset
from tests.support.content import content_of
from tests.support.made.datasets import SHAPE, MadeReader, plan_made, write_sources
from tests.support.threads import thread_engine

T = TypeVar("T")
R = TypeVar("R")
CONTENTS = {"a": b"0123456", "b": b"broken", "c": b"89x"}


@pytest.fixture(params=["serial", "threads", "dask"])
def map_work(request: pytest.FixtureRequest) -> Iterator[MapWork]:
    if request.param == "serial":
        yield map_serially
    else:
        context = thread_engine(2) if request.param == "threads" else dask_engine(workers=2)
        with context as engine:
            yield engine


class StoppedError(Exception):
    """The kill of a driver."""


def map_and_stop_after(count: int) -> MapWork:
    def map_some(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        for item in items[:count]:
            yield function(item)
        raise StoppedError

    return map_some


def test_every_engine_writes_the_same_bytes(tmp_path: Path, map_work: MapWork) -> None:
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    reference, url = str(tmp_path / "reference"), str(tmp_path / "out")
    expected = ingest(reference, plan, MadeReader(), map_serially)
    report = ingest(url, plan, MadeReader(), map_work)
    assert report.fingerprint == expected.fingerprint
    assert content_of(url) == content_of(reference)
    assert report.shards_made == 4


def test_every_store_holds_the_same_dataset(tmp_path: Path, store_url: str) -> None:
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    expected = ingest(str(tmp_path / "out"), plan, MadeReader(), map_serially)
    report = ingest(store_url, plan, MadeReader(), map_serially)
    assert report.fingerprint == expected.fingerprint
    assert content_of(store_url) == content_of(str(tmp_path / "out"))
    dataset = open_dataset(store_url)
    assert dataset.column("image_id").tolist()[6:9] == ["a-6", "b-0", "b-1"]
    assert dataset.read_images(2, 3)[0, 4, 0, 1] == ord("2")


def test_an_ingest_runs_inside_an_event_loop(tmp_path: Path) -> None:
    """As in a notebook."""
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))

    async def run() -> str:
        return ingest(str(tmp_path / "out"), plan, MadeReader(), map_serially).fingerprint

    expected = ingest(str(tmp_path / "reference"), plan, MadeReader(), map_serially)
    assert asyncio.run(run()) == expected.fingerprint
    assert content_of(str(tmp_path / "out")) == content_of(str(tmp_path / "reference"))


def test_xarray_opens_a_dataset(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(url, plan_made(write_sources(tmp_path / "in", CONTENTS)), MadeReader(), map_serially)
    opened = xarray.open_zarr(url)
    assert dict(opened.sizes) == {"image": 16, "y": 5, "x": 3, "channel": 2, "yx": 2, "shard": 4}
    assert opened["image"][1, 1, 2, 0] == 7
    assert opened.attrs["mpp_um"] == 0.5


def test_unreadable_rows_are_marked_and_accounted_for(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    absent = ManifestEntry("d", "failed", "no such slide")
    url = str(tmp_path / "out")
    report = ingest(url, plan_made(sources, rejected=(absent,)), MadeReader(), map_serially)
    dataset = open_dataset(url)
    assert np.flatnonzero(~dataset.column("readable")).tolist() == [7, 8, 9, 10, 11, 12, 15]
    assert not dataset.read_images(7, 13).any()
    assert dataset.column("source_digest")[7] == ""
    assert dataset.coverage["b"] == {"tiled": 0.0, "excluded": 1.0, "unreadable": 12.0}
    assert dataset.coverage["c"] == {"tiled": 4.0, "excluded": 1.0, "unreadable": 2.0}
    assert [entry.state for entry in report.manifest] == ["done", "failed", "done", "failed"]
    assert "1 of 3" in report.manifest[2].reason
    assert read_manifest(storage.join(url, "manifest.json")) == report.manifest
    assert [entry.item for entry in report.failures] == [sources[1].url, "d"]


def test_interrupted_ingest_is_refused_then_finished_to_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    reference, url = str(tmp_path / "reference"), str(tmp_path / "out")
    ingest(reference, plan, MadeReader(), map_serially)
    with pytest.raises(StoppedError):
        ingest(url, plan, MadeReader(), map_and_stop_after(2))
    (tmp_path / "out" / "image" / "c" / "3").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / "image" / "c" / "3" / "left#1").write_bytes(b"by a killed writer")
    with pytest.raises(SchemaError, match="not sealed"):
        open_dataset(url)
    (tmp_path / "out" / ".manifest.json.a1b2c3d4").write_bytes(b"by another")
    report = ingest(url, plan, MadeReader(), map_serially)
    assert (report.shards_made, report.shards_kept) == (2, 2)
    assert content_of(url) == content_of(reference)


def test_what_another_ingest_has_written_meanwhile_is_not_sealed(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    reader = MadeReader(gain=2)

    def map_beside_another(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        yield from map_serially(function, items)
        if len(items) > 1:  # a worker of the other, whose driver was killed
            late = next(task for task in cut_shards(plan, reader) if task.shard == 2)
            make_shard(url, reader, late)

    with pytest.raises(StorageError, match="shard 2 has been written by another ingest"):
        ingest(url, plan, MadeReader(), map_beside_another)
    with pytest.raises(SchemaError, match="not sealed"):
        open_dataset(url)
    assert ingest(url, plan, MadeReader(), map_serially).shards_made == 1


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)
    first = ingest(url, plan_made(sources), MadeReader(), map_serially)
    assert ingest(url, plan_made(sources), MadeReader(), map_serially).shards_made == 0
    changed = write_sources(tmp_path / "in", {"c": b"89y"})
    second = ingest(url, plan_made([*sources[:2], *changed]), MadeReader(), map_serially)
    assert second.shards_made == 1
    assert second.fingerprint != first.fingerprint
    assert (
        ingest(url, plan_made(sources[:2] + changed), MadeReader(2), map_serially).shards_made == 4
    )
    assert (
        ingest(
            url, plan_made(sources[:2] + changed, code="2"), MadeReader(2), map_serially
        ).shards_made
        == 4
    )


def test_a_shorter_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    url, reference = str(tmp_path / "out"), str(tmp_path / "reference")
    ingest(url, plan_made(sources), MadeReader(), map_serially)
    Path(url, "image", "c", "0", "0", "0", ".0.half").write_bytes(b"of a killed writer")
    ingest(url, plan_made(sources[:1]), MadeReader(), map_serially)
    ingest(reference, plan_made(sources[:1]), MadeReader(), map_serially)
    assert content_of(url) == content_of(reference)
    assert open_dataset(url).image_count == 7


def test_a_source_that_vanished_is_listed(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"01", "c": b"23456"})
    plan = plan_made(sources)
    Path(sources[0].url).unlink()
    report = ingest(str(tmp_path / "out"), plan, MadeReader(), map_serially)
    assert "no such file" in report.failures[0].reason
    assert report.unreadable_count == 2


def test_an_empty_plan_says_why(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"0"}))
    empty = replace(
        plan,
        spec=replace(plan.spec, image_count=0),
        rejected=(ManifestEntry("z", "failed", "it is text"),),
    )
    with pytest.raises(SourceError, match="it is text"):
        ingest(str(tmp_path / "out"), empty, MadeReader(), map_serially)
    (entry,) = read_manifest(str(tmp_path / "out" / "manifest.json"))
    assert entry.item == "z"
    ingest(str(tmp_path / "out"), plan, MadeReader(), map_serially)  # which is no hindrance
    assert open_dataset(str(tmp_path / "out")).image_count == 1


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no dataset here"):
        open_dataset(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("modality", "command"), [("histology", "slides"), ("radiograph", "xrays"), ("image", "images")]
)
def test_an_old_dataset_is_refused_with_the_command_that_makes_it_again(
    tmp_path: Path, modality: str, command: str
) -> None:
    url = str(tmp_path / "old")
    zarr.create_group(url, attributes={"normscope_schema": 99, "modality": modality})
    with pytest.raises(SchemaError) as caught:
        open_dataset(url)
    assert str(caught.value) == (
        f"{url}: schema 99, this version reads schema 1. Make it again: "
        f"`normscope ingest {command} SOURCE {url}`"
    )


def test_a_dataset_of_an_old_release_is_refused_until_it_is_made_again(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    ingest(url, plan, MadeReader(), map_serially)
    zarr.open_group(url, mode="r+").attrs["code_version"] = "0.1.0+0123456789ab"
    made_by = r"made by Normscope 0\.1\.0, .*`normscope ingest \w+ SOURCE"
    with pytest.raises(SchemaError, match=made_by):
        open_dataset(url)
    report = ingest(url, plan, MadeReader(), map_serially)
    assert (report.shards_kept, open_dataset(url).image_count) == (0, plan.spec.image_count)


def test_an_unknown_column_names_those_there_are(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(url, plan_made(write_sources(tmp_path / "in", CONTENTS)), MadeReader(), map_serially)
    dataset: Any = open_dataset(url)
    assert dataset.image_shape == SHAPE
    with pytest.raises(SchemaError, match="blur, group_id"):
        dataset.column("patient_name")


def test_temporary_files_of_a_killed_run_go_though_nothing_is_made(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    ingest(url, plan, MadeReader(), map_serially)
    review = tmp_path / "out" / "review"
    review.mkdir(exist_ok=True)
    left = [review / ".sheet.png.0a1b2c3d", tmp_path / "out" / ".manifest.json.0a1b2c3d"]
    kept = [review / "sheet.png", review / ".notes"]
    for path in (*left, *kept):
        path.write_bytes(b"x")
    assert ingest(url, plan, MadeReader(), map_serially).shards_made == 0
    assert [path.exists() for path in (*left, *kept)] == [False, False, True, True]
