"""Dask as an engine: what it works with, and an item that kills whoever takes it up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import dask
import pytest
from distributed import LocalCluster

from pipeline.engines import dask_engine, describe_workers, map_serially
from pipeline.errors import SettingsError


def die_at_one(item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A running cluster that gives an item up at its first death."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit="1GiB", dashboard_address="127.0.0.1:0"
        ) as found,
    ):
        yield found


def test_says_what_it_works_with(cluster: LocalCluster) -> None:
    with dask_engine(address=cluster.scheduler_address) as engine:
        workers = describe_workers(engine)
    assert (workers.count, workers.memory_bytes) == (2, 2**29)
    assert describe_workers(map_serially).memory_bytes > 2**29


def test_an_item_that_kills_its_worker_is_named(cluster: LocalCluster) -> None:
    with (
        dask_engine(address=cluster.scheduler_address) as engine,
        pytest.raises(SettingsError, match=r"item 1 of 1: every worker .* has died"),
    ):
        list(engine(die_at_one, [1]))


def test_a_scheduler_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(SettingsError, match="no Dask scheduler answers"),
        dask_engine(address="tcp://127.0.0.1:9"),
    ):
        pass
