"""Dask clusters whose workers die, and who kills them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import LocalCluster


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
            n_workers=2, threads_per_worker=1, memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
        ) as found,
    ):  # fmt: skip
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
