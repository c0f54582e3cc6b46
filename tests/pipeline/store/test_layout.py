"""A dataset touches nothing but what an ingest has written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import NormscopeError, SettingsError, StorageError
from pipeline.ingest.plan import Plan
from pipeline.ingest.run import ingest
from pipeline.io import storage
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
from pipeline.store.layout import require_destination
from tests.support.content import content_of
from tests.support.made.datasets import MadeReader, plan_made, write_sources

CONTENTS = {"a": b"0123456", "c": b"7890123456789"}  # five shards of four images


def write(url: str, key: str) -> None:
    storage.write_bytes(storage.join(url, key), b"of somebody")


def make(folder: Path, url: str, contents: dict[str, bytes] = CONTENTS) -> Plan:
    plan = plan_made(write_sources(folder / "in", contents))
    ingest(url, plan, MadeReader(), map_serially)
    return plan


@pytest.mark.parametrize("key", ["notes.md", "image/1.png", "other.zarr/zarr.json", "zarr.json"])
def test_a_place_that_holds_something_else_is_refused(
    key: str, store_url: str, tmp_path: Path
) -> None:
    write(store_url, key)
    with pytest.raises(SettingsError, match=f"holds {key}, which no ingest has written"):
        make(tmp_path, store_url)
    assert [info.url for info in storage.list_objects(store_url)] == [storage.join(store_url, key)]


def test_the_source_itself_and_the_folder_around_it_are_refused(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "project" / "in", CONTENTS))
    for folder in (tmp_path / "project" / "in", tmp_path / "project"):
        with pytest.raises(SettingsError, match="which no ingest has written"):
            ingest(str(folder), plan, MadeReader(), map_serially)


def test_another_zarr_group_is_refused(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "image.zarr", attributes={"ome": {"version": "0.5"}})
    group.create_array("0", data=np.arange(6).reshape(2, 3))
    with pytest.raises(SettingsError, match="which no ingest has written"):
        require_destination(str(tmp_path / "image.zarr"))


def test_what_planning_has_kept_is_no_hindrance(store_url: str, tmp_path: Path) -> None:
    for key in ("survey/slide.npz", "review/slide.png", "manifest.json"):
        write(store_url, key)
    make(tmp_path, store_url)
    assert open_dataset(store_url).image_count == 20
    assert storage.exists(f"{store_url}/survey/slide.npz")


def test_what_lies_in_a_dataset_outlives_its_making_anew(store_url: str, tmp_path: Path) -> None:
    make(tmp_path, store_url)
    foreign = ["notes.md", "other.zarr/zarr.json", "other.zarr/image/c/9/0/0/0", ".hidden"]
    for key in foreign:
        write(store_url, key)
    make(tmp_path, store_url, {"a": b"01"})
    assert all(storage.exists(storage.join(store_url, key)) for key in foreign)
    assert not storage.exists(f"{store_url}/image/c/1/0/0/0")


def test_columns_that_are_no_more_go_and_nothing_else(store_url: str, tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", CONTENTS))
    weight_mg = np.arange(plan.spec.image_count, dtype=np.float32)
    columns = {**plan.spec.columns, "weight_mg": weight_mg.dtype}
    heavier = replace(
        plan,
        spec=replace(plan.spec, columns=columns),
        columns={**plan.columns, "weight_mg": weight_mg},
    )
    ingest(store_url, heavier, MadeReader(), map_serially)
    write(store_url, "extra/zarr.json")
    ingest(store_url, plan, MadeReader(), map_serially)
    ingest(f"{store_url}-reference", plan, MadeReader(), map_serially)
    storage.delete(f"{store_url}/extra/zarr.json")
    assert content_of(store_url) == content_of(f"{store_url}-reference")


def test_shards_beyond_the_end_go_where_none_has_to_be_made(tmp_path: Path) -> None:
    url, reference = str(tmp_path / "out"), str(tmp_path / "reference")
    plan = make(tmp_path, url, {"a": b"01234567"})
    half = replace(
        plan,
        spec=replace(plan.spec, image_count=4),
        source_index=plan.source_index[:4],
        columns={name: values[:4] for name, values in plan.columns.items()},
        area=None if plan.area is None else plan.area[:4],
    )
    report = ingest(url, half, MadeReader(), map_serially)
    ingest(reference, half, MadeReader(), map_serially)
    assert (report.shards_made, report.shards_kept) == (0, 1)
    assert content_of(url) == content_of(reference)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(StorageError, match="file is a file"):
        require_destination(str(tmp_path / place))


def test_a_missing_bucket_is_named(s3_url: str) -> None:
    assert s3_url
    with pytest.raises(NormscopeError, match="no bucket"):
        require_destination("s3://no-such-bucket/x")
