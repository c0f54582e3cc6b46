"""Slides on S3: fetched in ranges, checked, whatever the server does on the way."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import boto3
import numpy as np
import pytest
from boto3.s3.transfer import TransferConfig

from pipeline.errors import DeniedError, SettingsError, StorageError
from pipeline.io import storage
from pipeline.io.scratch import Scratch
from pipeline.io.staging import require_reachable, stage
from pipeline.sources.slides import list_slides
from tests.conftest import S3Server
from tests.support.flaky_s3 import FlakyS3, flaky_s3
from tests.support.made.slides import ingest_made, write_slide

MIB = 1 << 20


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", max_bytes=200 * MIB)


@pytest.fixture
def proxy(
    moto_url: str, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlakyS3]:
    with flaky_s3(moto_server.endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found


def upload(url: str, data: bytes, *, part_bytes: int) -> None:
    """Upload in parts, so that the ETag is the MD5 of their MD5s."""
    place = storage.parse(url)
    config = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes)
    boto3.Session().client("s3").upload_fileobj(BytesIO(data), place.root, place.key, Config=config)


def test_a_large_object_comes_in_ranges_and_whole(s3_url: str, scratch: Scratch) -> None:
    data = np.random.default_rng(1).bytes(23 * MIB + 5)
    url = f"{s3_url}/slides/a.tif"
    upload(url, data, part_bytes=6 * MIB)
    version = storage.describe(url).version
    assert "-" in version
    with stage(url, version, scratch=scratch) as path:
        assert path.read_bytes() == data
        assert path.is_relative_to(scratch.folder)


@pytest.mark.parametrize("part_bytes", [None, 5 * MIB])
def test_a_damaged_download_is_not_used(
    moto_url: str, proxy: FlakyS3, scratch: Scratch, part_bytes: int | None
) -> None:
    url = f"{moto_url}/a.tif"
    data = bytes(11 * MIB)
    if part_bytes:
        upload(url, data, part_bytes=part_bytes)
    else:
        storage.write_bytes(url, data)
    proxy.damage = lambda body: body[:-1] + b"\x01"
    version = storage.describe(url).version
    with (
        pytest.raises(StorageError, match="download is damaged"),
        stage(url, version, scratch=scratch),
    ):
        pass
    assert not list(scratch.folder.glob("*/*"))
    proxy.damage = bytes
    with stage(url, version, scratch=scratch) as path:
        assert path.read_bytes() == data


def test_a_staged_object_is_not_fetched_again(
    moto_url: str, proxy: FlakyS3, scratch: Scratch
) -> None:
    url = f"{moto_url}/a.tif"
    storage.write_bytes(url, b"pixels")
    for _ in range(3):
        with stage(url, storage.describe(url).version, scratch=scratch) as path:
            assert path.read_bytes() == b"pixels"
    assert [method for method, _ in proxy.requests].count("GET") == 1


def test_a_server_that_is_away_now_and_then_changes_nothing(
    moto_url: str, proxy: FlakyS3, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    paths = [write_slide(tmp_path / "in", name) for name in ("a", "b")]
    for path in paths:
        storage.write_bytes(f"{moto_url}/in/{path.name}", path.read_bytes())
    local = list_slides(str(tmp_path / "in")).slides
    expected, _ = ingest_made(tmp_path / "out", local)
    proxy.every = 7
    scratch = Scratch(tmp_path / "scratch")
    slides = list_slides(f"{moto_url}/in").slides
    report, _ = ingest_made(f"{moto_url}/out", slides, scratch=scratch)
    assert proxy.refused > 5
    assert report.fingerprint == expected.fingerprint
    assert [entry.state for entry in report.manifest] == ["done", "done"]


def test_a_slide_larger_than_the_scratch_folder_is_listed_and_the_rest_goes_on(
    moto_url: str, tmp_path: Path
) -> None:
    small, large = write_slide(tmp_path, "small", boxes=[(0, 0, 256, 256)]), tmp_path / "large.tif"
    large.write_bytes(small.read_bytes() + bytes(2 * MIB))
    for path in (small, large):
        storage.write_bytes(f"{moto_url}/in/{path.name}", path.read_bytes())
    scratch = Scratch(tmp_path / "scratch", max_bytes=MIB)
    slides = list_slides(f"{moto_url}/in").slides
    report, _ = ingest_made(tmp_path / "out", slides, scratch=scratch)
    states = {entry.item.rpartition("/")[2]: entry for entry in report.manifest}
    assert states["small.tif"].state == "done"
    assert states["large.tif"].state == "failed"
    assert "more than the scratch folder may hold" in states["large.tif"].reason
    (big,) = (s for s in list_slides(f"{moto_url}/in").slides if s.slide_id == "large.tif")
    with pytest.raises(SettingsError), stage(big.url, big.version, scratch=scratch):
        pass


def test_a_name_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match=r"aa: cannot be made \(File name too long\)"):
        require_reachable(str(tmp_path / ("a" * 300)))
