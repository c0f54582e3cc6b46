"""Whoever is killed, and whenever: the sealed radiographs are those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from pipeline.schema import open_dataset
from pipeline.sources.synthetic_xrays import write_xrays
from tests.conftest import ROOT
from tests.pipeline.clusters import kill_a_worker, running_cluster
from tests.pipeline.killed_xrays import run
from tests.pipeline.test_ingest import content_of

WORKER_KILLS, DRIVER_KILLS = 6, 3


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with running_cluster(allowed_failures=WORKER_KILLS) as found:
        yield found


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, cluster: LocalCluster) -> None:
    chance = random.Random(11)  # noqa: S311  # no secret
    films, dataset = tmp_path / "films", tmp_path / "out"
    write_xrays(str(films), seed=3, patients=60, size_px=160)
    min((films / "images").iterdir()).write_bytes(b"no image")  # accounted for in any case
    run(films, tmp_path / "reference", None)
    shards = len(open_dataset(str(tmp_path / "reference")).read_commits())
    assert shards >= 16
    command = [sys.executable, "-m", "tests.pipeline.killed_xrays", str(films), str(dataset)]
    worker_kills = driver_kills = 0
    returncode = -signal.SIGKILL
    while returncode == -signal.SIGKILL:
        driver = subprocess.Popen([*command, cluster.scheduler_address], cwd=ROOT)
        while driver.poll() is None:
            time.sleep(chance.uniform(0.0, 0.2))
            made = sum(path.name.isdecimal() for path in dataset.glob("commit/c/*"))
            if worker_kills < WORKER_KILLS and made * (WORKER_KILLS + 2) > worker_kills * shards:
                worker_kills += kill_a_worker(cluster, chance)
            if driver_kills < DRIVER_KILLS and made * (DRIVER_KILLS + 2) > driver_kills * shards:
                driver.kill()
                driver_kills += 1
                driver.wait()
        returncode = driver.returncode
    assert returncode == 0
    assert (worker_kills, driver_kills) == (WORKER_KILLS, DRIVER_KILLS)
    assert content_of(str(dataset)) == content_of(str(tmp_path / "reference"))
