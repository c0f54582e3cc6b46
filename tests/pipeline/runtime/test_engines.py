"""Dask as an engine: what it works with, and an item that kills whoever takes it up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.ingest.plan import SourceRead
from pipeline.ingest.run import ingest
from pipeline.io.storage import read_bytes
from pipeline.records import Array
from pipeline.runtime.engines import dask_engine, describe_workers, map_serially
from pipeline.store.dataset import open_dataset
from tests.support.made.datasets import MadeReader, MadeSource, plan_made, write_sources


def die_at_one(item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@dataclass(frozen=True)
class FragileReader:
    """Reads as `MadeReader`, but dies of what begins with `k`."""

    def read(
        self, source: MadeSource, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        if read_bytes(source.url).startswith(b"k"):
            os.kill(os.getpid(), signal.SIGKILL)
        yield from MadeReader().read(source, rows, images)


def test_says_what_it_works_with(mending_cluster: LocalCluster) -> None:
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        workers = describe_workers(engine)
    assert (workers.count, workers.memory_bytes) == (2, 2**30)
    assert describe_workers(map_serially).memory_bytes > 2**29


def test_an_item_that_kills_its_worker_is_named(mending_cluster: LocalCluster) -> None:
    with (
        dask_engine(address=mending_cluster.scheduler_address) as engine,
        pytest.raises(SettingsError, match=r"item 1 of 1: every worker .* has died"),
    ):
        list(engine(die_at_one, [1]))


def test_something_else_stands_in_for_the_one_item_that_kills(
    mending_cluster: LocalCluster,
) -> None:
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        found = list(engine(die_at_one, [0, 1, 2], give_up=lambda item: -item))
    assert sorted(found) == [-1, 0, 2]


def test_a_source_that_kills_every_worker_is_quarantined(
    tmp_path: Path, mending_cluster: LocalCluster
) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"0123", "b": b"kk", "c": b"456"}))
    url = str(tmp_path / "out")
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        report = ingest(url, plan, FragileReader(), engine)
    assert [entry.state for entry in report.manifest] == ["done", "failed", "done"]
    assert "every worker that took it up has died" in str(report.manifest[1].reason)
    dataset = open_dataset(url)
    assert np.flatnonzero(~dataset.column("readable")).tolist() == [4, 5]
    assert dataset.read_images(0, 9)[6, 0, 0].tolist() == [ord("4")] * 2
    again = ingest(url, plan, MadeReader(), map_serially)
    assert not again.failures
    assert open_dataset(url).column("readable").all()


def test_a_scheduler_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(SettingsError, match="no Dask scheduler answers"),
        dask_engine(address="tcp://127.0.0.1:9"),
    ):
        pass
