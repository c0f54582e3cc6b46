"""The ingest: every engine and store give the same dataset, whatever happened on the way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pytest
import xarray
import zarr

from pipeline.errors import SchemaError, SourceError, StorageError
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.progress import read_progress
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.runtime.engines import MapWork, dask_engine, map_serially
from pipeline.store.dataset import open_dataset
from pipeline.store.layout import sweep
from pipeline.store.spec import code_version
from tests.support.content import content_of, content_whatever_versions
from tests.support.made.datasets import (
    SHAPE,
    SPEC,
    MadeReader,
    ingest_made,
    write_sources,
)
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
    sources = write_sources(tmp_path / "in", CONTENTS)
    reference, url = str(tmp_path / "reference"), str(tmp_path / "out")
    expected = ingest_made(reference, sources)
    report = ingest_made(url, sources, map_work)
    assert report.fingerprint == expected.fingerprint
    assert content_of(url) == content_of(reference)
    assert report.parts_made == 3


def test_every_store_holds_the_same_dataset(tmp_path: Path, store_url: str) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    expected = ingest_made(str(tmp_path / "out"), sources)
    report = ingest_made(store_url, sources)
    assert report.fingerprint == expected.fingerprint
    assert content_of(store_url) == content_of(str(tmp_path / "out"))
    dataset = open_dataset(store_url)
    assert dataset.column("image_id").tolist()[6:9] == ["a-6", "b-0", "b-1"]
    assert dataset.read_images(2, 3)[0, 4, 0, 1] == ord("2")


def test_copies_of_files_give_the_same_dataset_but_for_their_versions(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    first = ingest_made(one, write_sources(tmp_path / "in", CONTENTS))
    copies = write_sources(tmp_path / "copies", CONTENTS)
    for copy in copies:
        os.utime(copy.url, ns=(0, 10**18))
    copies = [replace(copy, version=storage.describe(copy.url).version) for copy in copies]
    assert ingest_made(two, copies).fingerprint == first.fingerprint
    assert content_of(one) != content_of(two)
    # An unreadable row names its file.
    left, right = (
        repr(content_whatever_versions(url)).replace(str(tmp_path / folder), "")
        for url, folder in ((one, "in"), (two, "copies"))
    )
    assert left == right


def test_an_ingest_runs_inside_an_event_loop(tmp_path: Path) -> None:
    """As in a notebook."""
    sources = write_sources(tmp_path / "in", CONTENTS)

    async def run() -> str:
        return ingest_made(str(tmp_path / "out"), sources).fingerprint

    expected = ingest_made(str(tmp_path / "reference"), sources)
    assert asyncio.run(run()) == expected.fingerprint
    assert content_of(str(tmp_path / "out")) == content_of(str(tmp_path / "reference"))


def test_xarray_opens_a_part(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest_made(url, write_sources(tmp_path / "in", CONTENTS))
    opened = xarray.open_zarr(open_dataset(url).open_part(0).url)
    sizes = {"image": 7, "y": 5, "x": 3, "channel": 2, "yx": 2, "measure": 1}
    assert dict(opened.sizes) == sizes
    assert opened["image"][1, 1, 2, 0] == 7
    assert opened["measures"].sel(measure="blur")[5] == 5.0
    assert opened.attrs["facts"]["made_of"] == "a"


def test_unreadable_rows_are_marked_and_accounted_for(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    absent = ManifestEntry("d", "failed", "no such slide")
    url = str(tmp_path / "out")
    report = ingest_made(url, sources, rejected=(absent,))
    dataset = open_dataset(url)
    assert np.flatnonzero(~dataset.column("readable")).tolist() == [7, 8, 9, 10, 11, 12, 15]
    assert not dataset.read_images(7, 13).any()
    digests = dataset.column("pixel_digest")
    assert [digests[row] == "" for row in (6, 7, 13, 15)] == [False, True, False, True]
    assert [part.facts["unreadable_um2"] for part in dataset.parts] == [0.0, 12.0, 2.0]
    assert [part.unreadable_count for part in dataset.parts] == [0, 6, 1]
    assert [part.normal_count for part in dataset.parts] == [7, 0, 2]
    assert dataset.read_reasons()[15] == "marked x"
    assert [entry.state for entry in report.manifest] == ["done", "failed", "done", "failed"]
    assert "1 of 3" in report.manifest[2].reason
    assert read_manifest(storage.join(url, "manifest.json")) == report.manifest
    assert [entry.item for entry in report.failures] == [sources[1].url, "d"]


def test_interrupted_ingest_is_refused_then_finished_to_the_same_bytes(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    reference, url = str(tmp_path / "reference"), str(tmp_path / "out")
    ingest_made(reference, sources)
    with pytest.raises(StoppedError):
        ingest_made(url, sources, map_and_stop_after(2))
    left = tmp_path / "out" / "parts" / "c-of-another-run" / "image" / "c" / "3"
    left.mkdir(parents=True)
    (left / "left#1").write_bytes(b"by a killed writer")
    with pytest.raises(SchemaError, match="not sealed"):
        open_dataset(url)
    progress = read_progress(url) or {}
    assert (progress["state"], progress["made"], progress["items"]) == ("failed", 2, 3)
    (tmp_path / "out" / ".manifest.json.a1b2c3d4").write_bytes(b"by another")
    report = ingest_made(url, sources)
    assert (report.parts_made, report.parts_kept) == (1, 2)
    assert content_of(url) == content_of(reference)


def test_a_part_that_another_ingest_has_deleted_meanwhile_is_not_sealed(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)

    def map_beside_another(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        yield from map_serially(function, items)
        (swept,) = Path(url, "parts").glob("c-*")
        sweep(url, [f"parts/{swept.name}"], "")

    with pytest.raises(StorageError, match="part 'c' has been deleted by another ingest"):
        ingest_made(url, sources, map_beside_another)
    with pytest.raises(SchemaError, match="not sealed"):
        open_dataset(url)
    assert ingest_made(url, sources).parts_made == 1


@pytest.mark.parametrize(
    ("is_first", "problem"),
    [
        (True, "another ingest has sealed it meanwhile"),
        (False, "part 'a' has been deleted by another ingest"),
    ],
)
def test_what_another_ingest_has_sealed_meanwhile_stays(
    tmp_path: Path, is_first: bool, problem: str
) -> None:
    """The other ends before this one makes its parts, or afterwards, and then sweeps them."""
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)
    others = []

    def map_beside_another(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        if not is_first:
            yield from map_serially(function, items)
        others.append(ingest_made(url, sources, reader=MadeReader(gain=2)))
        if is_first:
            yield from map_serially(function, items)

    with pytest.raises(StorageError, match=problem):
        ingest_made(url, sources, map_beside_another)
    dataset = open_dataset(url)
    assert dataset.fingerprint == others[0].fingerprint
    assert dataset.read_images(0, 1)[0, 0, 0, 0] == 2 * ord("0")
    assert dataset.column("image_id").tolist()[-1] == "c-2"


def test_two_ingests_of_the_same_into_one_place_are_both_fine(tmp_path: Path) -> None:
    url, reference = str(tmp_path / "out"), str(tmp_path / "reference")
    sources = write_sources(tmp_path / "in", CONTENTS)

    def map_beside_another(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        found = map_serially(function, items)
        yield next(found)
        assert ingest_made(url, sources).parts_made == 2
        yield from found

    report = ingest_made(url, sources, map_beside_another)
    assert (report.parts_made, report.parts_kept) == (1, 2)
    ingest_made(reference, sources)
    assert content_of(url) == content_of(reference)


def test_a_part_that_lacks_an_object_is_not_taken_for_a_whole_one(store_url: str) -> None:
    """Another ingest swept it while it was written."""
    with TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), CONTENTS)
        with pytest.raises(StoppedError):
            ingest_made(store_url, sources, map_and_stop_after(2))
        found = [info.url for info in storage.list_objects(f"{store_url}/parts/")]
        storage.delete(next(url for url in found if url.endswith("/image/c/1/0/0/0")))
        report = ingest_made(store_url, sources)
        assert (report.parts_made, report.parts_kept) == (2, 1)
        ingest_made(f"{store_url}-reference", sources)
    assert content_of(store_url) == content_of(f"{store_url}-reference")


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)
    first = ingest_made(url, sources)
    assert ingest_made(url, sources).parts_made == 0
    changed = [*sources[:2], *write_sources(tmp_path / "in", {"c": b"89yz"})]
    second = ingest_made(url, changed)
    assert (second.parts_made, second.parts_kept) == (1, 2)
    assert second.fingerprint != first.fingerprint
    other = MadeReader(2)
    assert ingest_made(url, changed, reader=other).parts_made == 3
    stamped = replace(SPEC, stamp={"made format": "2"})
    assert ingest_made(url, changed, reader=other, spec=stamped).parts_made == 3


def test_a_shorter_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    url, reference = str(tmp_path / "out"), str(tmp_path / "reference")
    ingest_made(url, sources)
    (dropped,) = Path(url, "parts").glob("c-*")
    (dropped / "image" / "c" / "0" / "0" / "0" / ".0.half").write_bytes(b"of a killed writer")
    ingest_made(url, sources[:1])
    ingest_made(reference, sources[:1])
    assert content_of(url) == content_of(reference)
    assert open_dataset(url).image_count == 7
    assert len(list(Path(url, "parts").iterdir())) == 1


def test_a_source_that_vanished_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"01", "c": b"23456"})
    Path(sources[0].url).unlink()
    report = ingest_made(str(tmp_path / "out"), sources)
    assert "no such file" in report.failures[0].reason
    assert report.unreadable_count == 2
    assert open_dataset(report.url).read_images(2, 3)[0, 0, 0, 0] == ord("2")


def test_an_empty_plan_says_why(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"0"})
    with pytest.raises(SourceError, match="it is text"):
        ingest_made(
            str(tmp_path / "out"), [], rejected=(ManifestEntry("z", "failed", "it is text"),)
        )
    (entry,) = read_manifest(str(tmp_path / "out" / "manifest.json"))
    assert entry.item == "z"
    ingest_made(str(tmp_path / "out"), sources)  # which is no hindrance
    assert open_dataset(str(tmp_path / "out")).image_count == 1


def test_an_empty_plan_leaves_the_dataset_that_is_there(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest_made(url, write_sources(tmp_path / "in", CONTENTS))
    before = content_of(url), read_manifest(storage.join(url, "manifest.json"))
    with pytest.raises(SourceError, match="it is text"):
        ingest_made(url, [], rejected=(ManifestEntry("z", "failed", "it is text"),))
    assert (content_of(url), read_manifest(storage.join(url, "manifest.json"))) == before


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
        f"{url}: schema 99, this version reads schema 2. Make it again: "
        f"`normscope ingest {command} SOURCE {url}`"
    )


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_dataset_of_an_old_schema_is_replaced_whole(store_url: str, is_sealed: bool) -> None:
    """Arrays of schema 1 go; a run that was killed while they went is finished."""
    arrays = {name: {"node_type": "array"} for name in ("image", "label")}
    root = {
        "attributes": {"normscope_schema": 1, "modality": "image", "sealed": is_sealed},
        "consolidated_metadata": {"metadata": arrays},
    }
    storage.write_bytes(storage.join(store_url, "zarr.json"), json.dumps(root).encode())
    old = ("image/zarr.json", "image/c/0/0/0/0", "label/zarr.json", "survey/a.npz")
    for key in (*old[0 if is_sealed else 1 :], "notes.md"):
        storage.write_bytes(storage.join(store_url, key), b"of schema 1")
    with TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), CONTENTS)
        ingest_made(store_url, sources)
        ingest_made(f"{store_url}-reference", sources)
        assert open_dataset(store_url).image_count == 16
    assert content_of(store_url).pop("notes.md") == b"of schema 1"
    storage.delete(storage.join(store_url, "notes.md"))
    assert content_of(store_url) == content_of(f"{store_url}-reference")


def test_a_dataset_that_other_code_made_is_read_and_kept(tmp_path: Path) -> None:
    """Only formats and libraries remake a part, not a comment in our source."""
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)
    first = ingest_made(url, sources)
    zarr.open_group(url, mode="r+").attrs["code_version"] = "0.1.0+0123456789ab"
    assert open_dataset(url).fingerprint == first.fingerprint
    again = ingest_made(url, sources)
    assert (again.parts_made, again.fingerprint) == (0, first.fingerprint)
    assert open_dataset(url).attributes["code_version"] == code_version()


def test_an_unknown_column_names_those_there_are(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest_made(url, write_sources(tmp_path / "in", CONTENTS))
    dataset: Any = open_dataset(url)
    assert dataset.image_shape == SHAPE
    with pytest.raises(SchemaError, match="blur, group_id"):
        dataset.column("patient_name")


def test_temporary_files_of_a_killed_run_go_though_nothing_is_made(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", CONTENTS)
    ingest_made(url, sources)
    review = tmp_path / "out" / "review"
    review.mkdir(exist_ok=True)
    left = [
        review / ".sheet.png.0a1b2c3d",
        tmp_path / "out" / ".manifest.json.0a1b2c3d",
        tmp_path / "out" / ".parts-0123456789abcdef.parquet.0a1b2c3d",
    ]
    kept = [review / "sheet.png", review / ".notes"]
    for path in (*left, *kept):
        path.write_bytes(b"x")
    assert ingest_made(url, sources).parts_made == 0
    assert [path.exists() for path in (*left, *kept)] == [False] * 3 + [True] * 2
