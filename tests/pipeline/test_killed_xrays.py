"""Whoever is killed, and whenever: the sealed radiographs are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster

from pipeline.schema import open_dataset
from pipeline.sources.synthetic_xrays import write_xrays
from tests.conftest import ROOT
from tests.pipeline.killed_xrays import run
from tests.pipeline.test_ingest import content_of

WORKER_KILLS, DRIVER_KILLS = 6, 3


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two workers that are started again when they die, as on a real cluster."""
    patience = {"distributed.scheduler.allowed-failures": WORKER_KILLS}
    with (
        dask.config.set(patience),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as found,
    ):
        found.adapt(minimum=2, maximum=2)  # a worker that died while starting is replaced
        yield found


def kill_a_worker(cluster: LocalCluster, chance: random.Random) -> bool:
    pids = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
    if not pids:
        return False
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except ProcessLookupError:  # dead already, and not yet missed
        return False
    return True


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
