"""Keys that S3 allows and a path does not, folder markers, and servers without ETags."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DeniedError, StorageError
from pipeline.io import storage
from pipeline.io.s3_client import connect_s3
from pipeline.sources.images import list_images

ODD = ("in//b.png", "in/../c.png", "in/./d.png", "in/e//")


def put(url: str, *keys: str, body: bytes = b"x") -> None:
    for key in keys:
        connect_s3().put_object(Bucket=storage.parse(url).root, Key=key, Body=body)


def test_a_key_that_is_no_path_is_named_and_the_others_are_listed(s3_url: str) -> None:
    put(s3_url, "in/a.png", "in/sub/f.png", "inside/g.png", *ODD)
    with pytest.raises(DeniedError, match=r"its key has an empty segment, .* to another key"):
        storage.list_objects(f"{s3_url}/in")
    refused: list[StorageError] = []
    found = storage.list_objects(f"{s3_url}/in", refused.append)
    assert [info.url for info in found] == [f"{s3_url}/in/a.png", f"{s3_url}/in/sub/f.png"]
    assert sorted(error.item for error in refused) == sorted(f"{s3_url}/{key}" for key in ODD)
    # What is found by the one way of listing is what the other says of it.
    assert found[0] == storage.describe(found[0].url)


def test_the_batch_goes_on_without_such_a_key(moto_url: str) -> None:
    content = BytesIO()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(content, "PNG")
    put(moto_url, "in/a.png", "in//b.png", body=content.getvalue())
    listing = list_images(f"{moto_url}/in")
    assert [image.image_id for image in listing.images] == ["a.png"]
    assert [(e.item, e.state) for e in listing.rejected] == [(f"{moto_url}/in//b.png", "failed")]


def test_markers_of_folders_are_no_files(s3_url: str) -> None:
    put(s3_url, "in/0.dcm")
    put(s3_url, "in/", "in/sub/", "in/empty.dcm", body=b"")
    found = storage.list_objects(f"{s3_url}/in")
    assert [info.url for info in found] == [f"{s3_url}/in/0.dcm", f"{s3_url}/in/empty.dcm"]
    assert storage.list_objects(f"{s3_url}/in/sub") == []


@pytest.mark.parametrize("name", ["a#b.png", "50%41.png", "q?x.png", "p+q r.png", "~(*)'!.png"])
def test_odd_characters_name_one_object(s3_url: str, name: str) -> None:
    put(s3_url, f"in/{name}", "in/aA.png", body=b"mine")
    put(s3_url, "in/50A.png", "in/q", body=b"another's")
    url = f"{s3_url}/in/{name}"
    assert url in [info.url for info in storage.list_objects(f"{s3_url}/in")]
    assert storage.read_bytes(url) == b"mine"


def test_without_an_etag_size_and_time_are_the_version() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, 800_000, UTC)
    version = storage.choose_version(None, 12, moment)
    assert version == storage.choose_version("", 12, moment.replace(microsecond=0))
    others = {
        storage.choose_version(None, 13, moment),
        storage.choose_version(None, 12, moment.replace(second=8)),
    }
    assert version not in others
    assert storage.choose_version('"e"', 12, moment) == '"e"'
