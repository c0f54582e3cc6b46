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

from pipeline.io import storage
from pipeline.runtime.engines import DaskLine, DaskMap, MapWork
from pipeline.store.part import PARTS
from pipeline.store.spec import ROOT

# Not from `tests.conftest`: a driver or worker that imported it would lose the keys of S3.
_REPOSITORY = Path(__file__).parents[2]
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


def count_commits(dataset: str) -> int:
    """Count the parts made so far."""
    folder = storage.join(dataset, PARTS)
    keys = [info.url.removeprefix(f"{folder}/") for info in storage.list_objects(f"{folder}/")]
    return sum(key.count("/") == 1 and key.endswith(f"/{ROOT}") for key in keys)


def _released(dataset: str) -> str:
    return f"{dataset}.released"


def _work_once_released(dataset: str, parts: int, function: Callable[[T], R], item: T) -> R:
    while not storage.exists(_released(dataset)) and count_commits(dataset) >= parts:
        time.sleep(0.1)
    return function(item)


@dataclass(frozen=True)
class HeldBack(DaskMap):
    """Leaves the last parts to when all kills are done: however fast they are made, some are left.

    Args:
        dataset: What is made.
        parts: Held back from so many parts on.
    """

    dataset: str
    parts: int

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        """Map, but wait where the last parts begin."""
        held = partial(_work_once_released, self.dataset, self.parts, function)
        return super().__call__(held, items, give_up=give_up)


def drive(
    run: Callable[[str, str, MapWork], None], source: str, dataset: str, address: str, parts: str
) -> None:
    """A driver's whole process: ingest on a running cluster, the last parts held back.

    Args:
        run: Takes source, dataset and engine.
        source: A folder or prefix.
        dataset: A folder or prefix.
        address: Of the scheduler.
        parts: Held back from so many on.
    """
    with Client(address, set_as_default=False) as client:
        run(source, dataset, HeldBack(DaskLine(client), dataset, int(parts)))
        os._exit(0)  # a client whose workers are killed under it need not say farewell


def ingest_among_kills(
    module: str,
    source: str,
    dataset: str,
    cluster: LocalCluster,
    *,
    kills: tuple[int, int],
    parts: int,
    seed: int,
) -> int:
    """Start a driver again until it ends by itself, killing it and the cluster's workers.

    Args:
        module: The driver, which takes source, dataset, scheduler and the parts to be held back
            from (see `HeldBack`).
        source: What is ingested.
        dataset: What is made.
        cluster: Where.
        kills: Of workers and of the driver; as many are done, spread over the parts.
        parts: Of the whole dataset.
        seed: Of the moments.

    Returns:
        The driver's exit status.
    """
    chance = random.Random(seed)  # noqa: S311  # no secret
    held_from = parts - parts // 8
    arguments = [source, dataset, cluster.scheduler_address, str(held_from)]
    workers_left, drivers_left = kills
    while True:
        driver = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=_REPOSITORY)
        try:
            while driver.poll() is None:
                time.sleep(chance.uniform(0.0, 0.3))
                made = count_commits(dataset)
                if _is_due(workers_left, kills[0], made, parts):
                    workers_left -= kill_a_worker(cluster, chance)
                if made and _is_due(drivers_left, kills[1], made, parts):
                    driver.kill()
                    drivers_left -= 1
                    driver.wait()
                if not workers_left and not drivers_left:
                    storage.write_bytes(_released(dataset), b"")
        finally:
            driver.kill()
        if driver.returncode != -signal.SIGKILL:
            assert (workers_left, drivers_left) == (0, 0)
            return driver.returncode


def _is_due(left: int, kills: int, made: int, parts: int) -> bool:
    """Kills go ahead of the parts, so that the last is due before the last are held back."""
    return left > 0 and (kills - left) * parts <= made * (kills + 2)
