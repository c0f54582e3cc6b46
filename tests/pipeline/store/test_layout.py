"""A dataset touches nothing but what an ingest has written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import NormscopeError, SchemaError, SettingsError, StorageError
from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from pipeline.store.layout import require_destination
from tests.support.content import content_of
from tests.support.made.datasets import SPEC, ingest_made, write_sources

CONTENTS = {"a": b"0123456", "c": b"7890123456789"}


def write(url: str, key: str) -> None:
    storage.write_bytes(storage.join(url, key), b"of somebody")


def make(folder: Path, url: str, contents: dict[str, bytes] = CONTENTS) -> None:
    ingest_made(url, write_sources(folder / "in", contents))


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("notes.md", "notes.md"),
        ("image/1.png", "image/"),
        ("other.zarr/zarr.json", "other.zarr/"),
        ("zarr.json", "zarr.json"),
        ("parts/of a machine/drawing.pdf", "parts/"),
        ("review/paper.pdf", "review/"),
    ],
)
def test_a_place_that_holds_something_else_is_refused(
    key: str, shown: str, store_url: str, tmp_path: Path
) -> None:
    write(store_url, key)
    with pytest.raises(SettingsError, match=f"holds {shown}, which no ingest has written"):
        make(tmp_path, store_url)
    assert [info.url for info in storage.list_objects(store_url)] == [storage.join(store_url, key)]


def test_the_source_itself_and_the_folder_around_it_are_refused(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "project" / "in", CONTENTS)
    for folder in (tmp_path / "project" / "in", tmp_path / "project"):
        with pytest.raises(SettingsError, match="which no ingest has written"):
            ingest_made(str(folder), sources)


def test_another_zarr_group_is_refused(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "image.zarr", attributes={"ome": {"version": "0.5"}})
    group.create_array("0", data=np.arange(6).reshape(2, 3))
    with pytest.raises(SettingsError, match="which no ingest has written"):
        require_destination(str(tmp_path / "image.zarr"))


def test_what_an_unfinished_ingest_has_left_is_no_hindrance(store_url: str, tmp_path: Path) -> None:
    left = ("parts/a-0123/image/c/0/0/0/0", "parts-0123456789abcdef.parquet")
    for key in (*left, "review/slide.png", "manifest.json", "ingest.json"):
        write(store_url, key)
    make(tmp_path, store_url)
    assert open_dataset(store_url).image_count == 20
    assert storage.exists(f"{store_url}/review/slide.png")
    assert not any(storage.exists(f"{store_url}/{key}") for key in left)


def test_what_lies_in_a_dataset_outlives_its_making_anew(store_url: str, tmp_path: Path) -> None:
    make(tmp_path, store_url)
    foreign = ["notes.md", "other.zarr/zarr.json", "other.zarr/image/c/9/0/0/0", ".hidden"]
    for key in foreign:
        write(store_url, key)
    dropped = {part.place for part in open_dataset(store_url).parts}
    make(tmp_path, store_url, {"a": b"01"})
    assert all(storage.exists(storage.join(store_url, key)) for key in foreign)
    for place in dropped:
        assert not storage.list_objects(storage.join(store_url, place))


def test_columns_that_are_no_more_go_and_nothing_else(store_url: str, tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    columns = {**SPEC.columns, "weight_mg": np.dtype("float32"), "site": np.dtype("int64")}
    heavier = replace(SPEC, columns=columns, stamp={"made format": "2"})
    ingest_made(store_url, sources, spec=heavier)
    assert {"weight_mg", "site"} <= set(open_dataset(store_url).column_names)
    write(store_url, "extra/zarr.json")
    ingest_made(store_url, sources)
    assert not {"weight_mg", "site"} & set(open_dataset(store_url).column_names)
    ingest_made(f"{store_url}-reference", sources)
    storage.delete(f"{store_url}/extra/zarr.json")
    assert content_of(store_url) == content_of(f"{store_url}-reference")


def test_parts_that_are_no_more_go_where_none_has_to_be_made(
    store_url: str, tmp_path: Path
) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    ingest_made(store_url, sources)
    report = ingest_made(store_url, sources[1:])
    ingest_made(f"{store_url}-reference", sources[1:])
    assert (report.parts_made, report.parts_kept) == (0, 1)
    assert content_of(store_url) == content_of(f"{store_url}-reference")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(StorageError, match="file is a file"):
        require_destination(str(tmp_path / place))


def test_a_missing_bucket_is_named(s3_url: str) -> None:
    assert s3_url
    with pytest.raises(NormscopeError, match="no bucket"):
        require_destination("s3://no-such-bucket/x")


def test_a_damaged_root_document_is_written_again(store_url: str, tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", CONTENTS)
    ingest_made(store_url, sources)
    before = content_of(store_url)
    storage.write_bytes(storage.join(store_url, "zarr.json"), b"{damaged")
    ingest_made(store_url, sources)
    assert content_of(store_url) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_shape", "x"),
        ("image_shape", [5, 3]),
        ("chunk_images", 0),
        ("chunk_images", 3),
        ("columns", ["a"]),
        ("columns", {"a": "none"}),
        ("stamp", None),
        ("sealed", False),
        ("fingerprint", ["a"]),
        ("image_count", "many"),
        ("parts_table", ""),
        ("parts_table", "parts"),
        ("schema", "2"),
    ],
)
def test_an_attribute_that_no_ingest_has_written_is_named_and_written_again(
    tmp_path: Path, name: str, value: object
) -> None:
    url, sources = str(tmp_path / "out"), write_sources(tmp_path / "in", CONTENTS)
    ingest_made(url, sources)
    before = content_of(url)
    place = tmp_path / "out" / "zarr.json"
    root = json.loads(place.read_text())
    root["attributes"]["normscope_schema" if name == "schema" else name] = value
    place.write_text(json.dumps(root))
    shown = "data type 'none'" if value == {"a": "none"} else name
    with pytest.raises(SchemaError, match=rf"{shown}[^\n]*\. (Run the same|Make it|Run `norm)"):
        open_dataset(url)
    report = ingest_made(url, sources)
    assert (report.parts_made, report.parts_kept) == (0, 2)
    assert content_of(url) == before


@pytest.mark.parametrize("offset", [6, 300, -20])
def test_a_damaged_table_of_parts_is_refused_and_written_again(tmp_path: Path, offset: int) -> None:
    url, sources = str(tmp_path / "out"), write_sources(tmp_path / "in", CONTENTS)
    ingest_made(url, sources)
    before = content_of(url)
    table = next(Path(url).glob("parts-*.parquet"))
    data = bytearray(table.read_bytes())
    data[offset] ^= 1
    table.write_bytes(data)
    with pytest.raises(SchemaError, match=r"parts is damaged\. Run the same ingest"):
        open_dataset(url)
    ingest_made(url, sources)
    assert content_of(url) == before
