"""Whoever is killed, and whenever: the sealed dataset is that of an undisturbed run."""

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
from tests.conftest import ROOT
from tests.pipeline.clusters import kill_a_worker, running_cluster
from tests.pipeline.killed import run
from tests.pipeline.made_slides import write_slide

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


def count_commits(dataset: Path) -> int:
    return len([path for path in dataset.glob("commit/c/*") if path.name.isdecimal()])


@pytest.mark.slow
def test_kills_leave_no_trace(
    tmp_path: Path, cluster: LocalCluster, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(7)  # noqa: S311  # no secret
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(6):
        write_slide(slides, f"slide_{number}")
    run(slides, tmp_path / "reference", None)
    shards = len(open_dataset(str(tmp_path / "reference")).read_commits())
    assert shards == 32

    dataset = tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipeline.killed", str(slides), str(dataset)]
    worker_kills = driver_kills = 0
    while True:
        driver = subprocess.Popen([*command, cluster.scheduler_address], cwd=ROOT)
        request.addfinalizer(driver.kill)
        # The driver dies once this many shards are made; before, and meanwhile, workers do.
        last_shard = (driver_kills + 1) * shards // (DRIVER_KILLS + 2)
        while driver.poll() is None:
            time.sleep(chance.uniform(0.0, 0.3))
            made = count_commits(dataset)
            if worker_kills * shards < made * (WORKER_KILLS + 2) and worker_kills < WORKER_KILLS:
                worker_kills += kill_a_worker(cluster, chance)
            if driver_kills < DRIVER_KILLS and made >= last_shard:
                driver.kill()
                driver_kills += 1
                driver.wait()
        if driver.returncode != -signal.SIGKILL:
            break
    assert driver.returncode == 0
    assert (worker_kills, driver_kills) == (WORKER_KILLS, DRIVER_KILLS)
    assert content_of(dataset) == content_of(tmp_path / "reference")
