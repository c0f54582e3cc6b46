"""A rerun visits the failed alone: what is made is neither read nor fetched again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.io import storage
from pipeline.io.digests import digest_files
from pipeline.io.scratch import Scratch
from pipeline.records import SlideListing
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.sources.slides import list_slides
from tests.conftest import S3Server
from tests.support.flaky_s3 import flaky_s3
from tests.support.made.slides import SETTINGS, list_slide, write_slide


def test_only_the_failed_slide_is_read_where_times_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_slide(tmp_path, name) for name in "abc"]
    whole = paths[1].read_bytes()
    paths[1].write_bytes(b"cut off")

    def ingest() -> tuple[int, int, int]:
        listing = SlideListing("made", tuple(map(list_slide, paths)), ())
        report = ingest_slides(
            str(tmp_path / "out"), listing, SETTINGS, map_serially, trusts_times=True
        )
        return report.parts_made, report.parts_kept, len(report.failures)

    assert ingest() == (2, 0, 1)
    paths[1].write_bytes(whole)
    digested: list[str] = []

    def count(files: Sequence[Path]) -> str:
        digested.extend(path.name for path in files)
        return digest_files(files)

    monkeypatch.setattr("pipeline.slides.visit.digest_files", count)
    assert ingest() == (1, 2, 0)
    assert digested == ["b.tif"]


def test_only_the_failed_slide_is_fetched_from_s3(
    moto_url: str, moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        storage.write_bytes(f"{moto_url}/in/{name}.tif", write_slide(tmp_path, name).read_bytes())
    whole = storage.read_bytes(f"{moto_url}/in/b.tif")
    storage.write_bytes(f"{moto_url}/in/b.tif", b"cut off")

    def ingest() -> tuple[int, int, int]:
        listing = list_slides(f"{moto_url}/in")
        report = ingest_slides(f"{moto_url}/out", listing, SETTINGS, map_serially, scratch=scratch)
        return report.parts_made, report.parts_kept, len(report.failures)

    scratch = Scratch(tmp_path / "first", 1 << 30)
    assert ingest() == (2, 0, 1)
    storage.write_bytes(f"{moto_url}/in/b.tif", whole)
    scratch = Scratch(tmp_path / "second", 1 << 30)  # with no copy of an earlier run
    with flaky_s3(moto_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.reset_connections()
        assert ingest() == (1, 2, 0)
    storage.reset_connections()
    fetched = {path.rpartition("/in/")[2] for method, path in proxy.requests if method == "GET"}
    assert {
        name.partition("?")[0] for name in fetched if ".tif" in name and "parts" not in name
    } == {"b.tif"}
