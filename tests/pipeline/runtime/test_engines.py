"""Dask as an engine: what it works with, and an item that kills whoever takes it up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import overload
from weakref import WeakSet

import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, Security
from numpy.typing import NDArray

from pipeline.errors import SettingsError, UnreachableError
from pipeline.ingest.sources import SourceRead
from pipeline.io.storage import read_bytes
from pipeline.runtime.engines import DaskMap, dask_engine, describe_workers, map_serially
from pipeline.store.dataset import open_dataset
from tests.support.made.datasets import MadeReader, MadeSource, ingest_made, write_sources

ROOT = Path(__file__).parents[3]


def die_at_one(item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@dataclass(frozen=True)
class FragileReader:
    """Reads as `MadeReader`, but dies of what begins with `k`."""

    def read(
        self, source: MadeSource, rows: range, images: NDArray[np.uint8]
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
    sources = write_sources(tmp_path / "in", {"a": b"0123", "b": b"kk", "c": b"456"})
    url = str(tmp_path / "out")
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        report = ingest_made(url, sources, engine, reader=FragileReader())
    assert [entry.state for entry in report.manifest] == ["done", "failed", "done"]
    assert report.manifest[1].reason == "it kills"
    dataset = open_dataset(url)
    assert [part.name for part in dataset.parts] == ["a", "c"]
    assert dataset.read_images(0, 7)[4, 0, 0].tolist() == [ord("4")] * 2
    again = ingest_made(url, sources)
    assert not again.failures
    assert open_dataset(url).column("readable").tolist() == [True] * 9


class Named:
    """An item that the driver makes when it is asked for."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class LazyItems(Sequence[Named]):
    """Many items, of which those that somebody holds are known."""

    length: int
    held: WeakSet[Named] = field(default_factory=WeakSet)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> Named: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Named]: ...
    def __getitem__(self, place: int | slice) -> Named | Sequence[Named]:
        if isinstance(place, slice):
            return [self[number] for number in range(self.length)[place]]
        if place >= self.length:
            raise IndexError
        item = Named(place)
        self.held.add(item)
        return item


def square(item: Named) -> int:
    return item.number**2


def count_unfinished(dask_scheduler: Scheduler) -> int:
    return sum(task.state not in {"memory", "released"} for task in dask_scheduler.tasks.values())


def count_tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


def test_the_scheduler_and_the_driver_hold_a_window_of_items(mending_cluster: LocalCluster) -> None:
    items, window = LazyItems(150), 8
    held, unfinished, tasks, found = [], [], [], []
    with dask_engine(address=mending_cluster.scheduler_address) as engine:
        assert isinstance(engine, DaskMap)
        for result in engine(square, items):
            found.append(result)
            held.append(len(items.held))
            if len(found) % 5 == 0:
                unfinished.append(engine.client.run_on_scheduler(count_unfinished))
                tasks.append(engine.client.run_on_scheduler(count_tasks))
    assert sorted(found) == [number**2 for number in range(150)]
    assert 0 < max(unfinished) <= window
    assert max(tasks) <= 4 * window  # done ones are let go a moment later
    assert max(held) <= 4 * window


def test_a_scheduler_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(SettingsError, match="no Dask scheduler answers"),
        dask_engine(address="tcp://127.0.0.1:9"),
    ):
        pass


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.05)
    return path


@contextmanager
def running_dask(port: int) -> Iterator[Callable[[], None]]:
    """A scheduler and a worker as programs of their own; yields what kills both."""
    address, dask = f"tcp://127.0.0.1:{port}", (sys.executable, "-m", "dask")
    scheduler = ("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    programs = [subprocess.Popen([*dask, *command], cwd=ROOT) for command in (scheduler, worker)]

    def kill() -> None:
        for program in programs:
            program.kill()
            program.wait()

    try:
        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        yield kill
    finally:
        kill()


def test_a_scheduler_that_restarts_is_used_again(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gate = tmp_path / "gate"
    with ExitStack() as stack:
        with running_dask(port) as kill:
            engine = stack.enter_context(dask_engine(address=f"tcp://127.0.0.1:{port}"))
            Timer(1, kill).start()
            with pytest.raises(UnreachableError, match=r"Dask scheduler .*: has lost the tasks"):
                list(engine(wait_for, [str(gate)]))
        gate.touch()
        with running_dask(port):
            assert list(engine(wait_for, [str(gate)])) == [str(gate)]
        assert isinstance(engine, DaskMap)
        while engine.client.status != "closed":  # as it is when the scheduler stays away
            time.sleep(0.1)
        with pytest.raises(UnreachableError, match="does not answer any more"):
            list(engine(wait_for, [str(gate)]))
        with running_dask(port):
            assert list(engine(wait_for, [str(gate)])) == [str(gate)]


def test_tls_without_certificates_is_named() -> None:
    with (
        pytest.raises(SettingsError, match=r"TLS needs certificates.*TLS__CA_FILE"),
        dask_engine(address="tls://127.0.0.1:9"),
    ):
        pass


def test_a_cluster_of_our_own_lets_nobody_else_in() -> None:
    with dask_engine(workers=1) as engine:
        assert list(engine(abs, [-3])) == [3]
        address = engine.client.scheduler.address  # type: ignore[attr-defined]  # a DaskMap's
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(OSError, match="closed"):  # also who speaks no TLS at all
            Client(address.replace("tls://", "tcp://"), timeout="5s", set_as_default=False)
        strangers = Security.temporary()  # certificates, but not of this cluster
        with pytest.raises(OSError, match=r"Timed out|certificate"):
            Client(address, security=strangers, timeout="5s", set_as_default=False)
