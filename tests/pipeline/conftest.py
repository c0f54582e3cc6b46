"""Fixtures of the pipeline's tests."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import pytest
from distributed import LocalCluster


@pytest.fixture(scope="module")
def mending_cluster() -> Iterator[LocalCluster]:
    """A running cluster that gives an item up at its second death: one may be the machine's."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1GiB", dashboard_address="127.0.0.1:0"
        ) as found,
    ):
        found.adapt(minimum=2, maximum=2)  # a worker that died while starting is replaced
        yield found
