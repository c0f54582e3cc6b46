"""Whoever is killed, and whenever: the sealed dataset is that of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.engines import dask_engine
from pipeline.store.dataset import open_dataset
from tests.support.clusters import ingest_among_kills, running_cluster
from tests.support.content import content_of
from tests.support.killed_slides import run
from tests.support.made.slides import write_slide

WORKER_KILLS, DRIVER_KILLS = 8, 4
SLIDES = 20


@pytest.fixture(params=["file", "moto", pytest.param("real", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL of this test's own: a plain path, or on each S3 server."""
    if request.param == "file":
        return str(tmp_path / "out")
    bucket: str = request.getfixturevalue("moto_url" if request.param == "moto" else "real_s3_url")
    return f"{bucket}/below"


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, url: str) -> None:
    slides, reference = tmp_path / "slides", str(tmp_path / "reference")
    slides.mkdir()
    for number in range(SLIDES):
        write_slide(slides, f"slide_{number:02d}", boxes=[(64, 64, 320, 448)])
    with dask_engine(workers=1) as engine:
        run(str(slides), reference, engine)
    parts = len(open_dataset(reference).parts)
    assert parts == SLIDES
    with running_cluster(allowed_failures=WORKER_KILLS) as cluster:
        status = ingest_among_kills(
            "tests.support.killed_slides",
            str(slides),
            url,
            cluster,
            kills=(WORKER_KILLS, DRIVER_KILLS),
            parts=parts,
            seed=7,
        )
    assert status == 0
    assert content_of(url) == content_of(reference)
