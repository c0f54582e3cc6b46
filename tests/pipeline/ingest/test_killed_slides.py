"""Whoever is killed, and whenever: the sealed dataset is that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from pipeline.runtime.engines import dask_engine
from pipeline.store.dataset import open_dataset
from tests.support.clusters import ingest_among_kills, running_cluster
from tests.support.killed_slides import run
from tests.support.made.slides import write_slide

WORKER_KILLS, DRIVER_KILLS = 10, 5


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with running_cluster(allowed_failures=WORKER_KILLS) as found:
        yield found


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file but the record of the run."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    del found["manifest.json"]
    return found


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, cluster: LocalCluster) -> None:
    slides, dataset, reference = tmp_path / "slides", tmp_path / "out", tmp_path / "reference"
    slides.mkdir()
    for number in range(6):
        write_slide(slides, f"slide_{number}")
    with dask_engine(workers=1) as engine:
        run(slides, reference, engine)
    shards = len(open_dataset(str(reference)).read_commits())
    assert shards == 32
    status = ingest_among_kills(
        "tests.support.killed_slides",
        slides,
        dataset,
        cluster,
        kills=(WORKER_KILLS, DRIVER_KILLS),
        shards=shards,
        seed=7,
    )
    assert status == 0
    assert content_of(dataset) == content_of(reference)
