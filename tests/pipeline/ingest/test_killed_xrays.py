"""Whoever is killed, and whenever: the sealed radiographs are those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.engines import dask_engine
from pipeline.store.dataset import open_dataset
from pipeline.synthetic.xrays import write_xrays
from tests.support.clusters import ingest_among_kills, running_cluster
from tests.support.content import content_of
from tests.support.killed_xrays import run

WORKER_KILLS, DRIVER_KILLS = 6, 3


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, s3_url: str) -> None:
    films, reference = str(tmp_path / "films"), str(tmp_path / "reference")
    write_xrays(films, seed=3, patients=60, size_px=160)
    min(Path(films, "images").iterdir()).write_bytes(b"no image")  # accounted for in any case
    with dask_engine(workers=1) as engine:
        run(films, reference, engine)
    parts = len(open_dataset(reference).parts)
    assert parts >= 16
    with running_cluster(allowed_failures=WORKER_KILLS) as cluster:
        status = ingest_among_kills(
            "tests.support.killed_xrays",
            films,
            f"{s3_url}/out",
            cluster,
            kills=(WORKER_KILLS, DRIVER_KILLS),
            parts=parts,
            seed=11,
        )
    assert status == 0
    assert content_of(f"{s3_url}/out") == content_of(reference)
