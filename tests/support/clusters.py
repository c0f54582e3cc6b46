"""Dask clusters whose workers die, who kills them, and drivers that wait for it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import dask
from distributed import Client, LocalCluster

from pipeline.runtime.engines import DaskMap, MapWork
from tests.conftest import ROOT

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def running_cluster(*, allowed_failures: int, memory_limit: str = "auto") -> Iterator[LocalCluster]:
    """Two workers that are started again when they die, as on a real cluster.

    Args:
        allowed_failures: How many deaths an item may outlive.
        memory_limit: Of each worker.
    """
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": allowed_failures}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
        ) as found,
    ):
        found.adapt(minimum=2, maximum=2)  # a worker that died while starting is replaced
        yield found


def kill_a_worker(cluster: LocalCluster, chance: random.Random) -> bool:
    """SIGKILL one of the workers; False if none was alive."""
    pids = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
    if not pids:
        return False
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except ProcessLookupError:  # dead already, and not yet missed
        return False
    return True


def count_commits(dataset: Path) -> int:
    """Shards made so far."""
    return sum(path.name.isdecimal() for path in dataset.glob("commit/c/*"))


def _released(dataset: Path) -> Path:
    return dataset.with_name(f"{dataset.name}.released")


def _work_once_released(dataset: Path, shards: int, function: Callable[[T], R], item: T) -> R:
    while count_commits(dataset) >= shards and not _released(dataset).exists():
        time.sleep(0.02)
    return function(item)


@dataclass(frozen=True)
class HeldBack(DaskMap):
    """Leaves the last shards to when all kills are done: however fast they are made, some are left.

    Args:
        dataset: What is made.
        shards: Held back from so many shards on.
    """

    dataset: Path
    shards: int

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        """Map, but wait where the last shards begin."""
        held = partial(_work_once_released, self.dataset, self.shards, function)
        return super().__call__(held, items, give_up=give_up)


def drive(
    run: Callable[[Path, Path, MapWork], None], source: str, dataset: str, address: str, shards: str
) -> None:
    """A driver's whole process: ingest on a running cluster, the last shards held back.

    Args:
        run: Takes source, dataset and engine.
        source: A folder.
        dataset: A folder.
        address: Of the scheduler.
        shards: Held back from so many on.
    """
    with Client(address, set_as_default=False) as client:
        run(Path(source), Path(dataset), HeldBack(client, Path(dataset), int(shards)))
        os._exit(0)  # a client whose workers are killed under it need not say farewell


def ingest_among_kills(
    module: str,
    source: Path,
    dataset: Path,
    cluster: LocalCluster,
    *,
    kills: tuple[int, int],
    shards: int,
    seed: int,
) -> int:
    """Start a driver again until it ends by itself, killing it and the cluster's workers.

    Args:
        module: The driver, which takes source, dataset, scheduler and the shards to be held back
            from (see `HeldBack`).
        source: What is ingested.
        dataset: What is made.
        cluster: Where.
        kills: Of workers and of the driver; as many are done, spread over the shards.
        shards: Of the whole dataset.
        seed: Of the moments.

    Returns:
        The driver's exit status.
    """
    chance = random.Random(seed)  # noqa: S311  # no secret
    held_from = shards - shards // 8
    arguments = [str(source), str(dataset), cluster.scheduler_address, str(held_from)]
    workers_left, drivers_left = kills
    while True:
        driver = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT)
        try:
            while driver.poll() is None:
                time.sleep(chance.uniform(0.0, 0.3))
                made = count_commits(dataset)
                if _is_due(workers_left, kills[0], made, shards):
                    workers_left -= kill_a_worker(cluster, chance)
                if made and _is_due(drivers_left, kills[1], made, shards):
                    driver.kill()
                    drivers_left -= 1
                    driver.wait()
                if not workers_left and not drivers_left:
                    _released(dataset).touch()
        finally:
            driver.kill()
        if driver.returncode != -signal.SIGKILL:
            assert (workers_left, drivers_left) == (0, 0)
            return driver.returncode


def _is_due(left: int, kills: int, made: int, shards: int) -> bool:
    """Kills go ahead of the shards, so that the last is due before the last are held back."""
    return left > 0 and (kills - left) * shards <= made * (kills + 2)
