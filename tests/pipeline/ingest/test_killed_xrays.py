"""Whoever is killed, and whenever: the sealed radiographs are those of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from pipeline.runtime.engines import dask_engine
from pipeline.store.dataset import open_dataset
from pipeline.synthetic.xrays import write_xrays
from tests.support.clusters import ingest_among_kills, running_cluster
from tests.support.content import content_of
from tests.support.killed_xrays import run

WORKER_KILLS, DRIVER_KILLS = 6, 3


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with running_cluster(allowed_failures=WORKER_KILLS) as found:
        yield found


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, cluster: LocalCluster) -> None:
    films, dataset, reference = tmp_path / "films", tmp_path / "out", tmp_path / "reference"
    write_xrays(str(films), seed=3, patients=60, size_px=160)
    min((films / "images").iterdir()).write_bytes(b"no image")  # accounted for in any case
    with dask_engine(workers=1) as engine:
        run(films, reference, engine)
    shards = len(open_dataset(str(reference)).read_commits())
    assert shards >= 16
    status = ingest_among_kills(
        "tests.support.killed_xrays",
        films,
        dataset,
        cluster,
        kills=(WORKER_KILLS, DRIVER_KILLS),
        shards=shards,
        seed=11,
    )
    assert status == 0
    assert content_of(str(dataset)) == content_of(str(reference))
