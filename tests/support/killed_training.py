"""Trainings in processes of their own, and a Ray cluster for them, that tests kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

import mlflow
import psutil
import torch
from ray.cluster_utils import Cluster

from tests.support.toys import make_settings
from training.learning.run_folder import open_checkpoints
from training.train import train_and_register

PATIENCE_S = 240.0
RUN_NAME = "killed"
EXPERIMENT = "toys-anomaly"

SETTINGS = make_settings(
    growth={
        "initial_resolution": 8,
        "final_resolution": 32,
        "fade_in_iterations": 30,
        "stabilize_iterations": 30,
        "batch_sizes": {8: 12, 16: 12, 32: 10},
    },
    log_every=1,
    validate_every=25,
    checkpoint_every=2,
    cpu_threads=1,
)
TOTAL_STEPS = 150


@dataclass
class Training:
    """A run of a name, whichever process drives it.

    Attributes:
        folder: Holds the run, and MLflow's database.
        dataset_url: What it trains on.
        choice: Workers, and Ray's address.
        driver: The process that drives it now.
    """

    folder: str
    dataset_url: str
    choice: dict[str, Any]
    driver: BaseProcess = field(init=False)

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def run_url(self) -> str:
        return f"{self.folder}/{RUN_NAME}"

    def start(self, **choice: Any) -> None:
        """Drive it from a new process, which has imported everything before it is forked."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.killed_training"])
        self.choice = {**self.choice, **choice}
        self.driver = context.Process(
            target=drive,
            args=(self.folder, self.dataset_url, self.tracking_uri),
            kwargs=self.choice,
        )
        self.driver.start()

    def count_steps(self) -> int:
        """Steps that are safe."""
        return max(open_checkpoints(self.run_url, SETTINGS).find_steps(), default=0)

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Whether something came about before the driver ended."""
        began = time.monotonic()
        while self.driver.is_alive() and not is_so():
            assert time.monotonic() - began < PATIENCE_S, "waited in vain"
            time.sleep(0.01)
        return self.driver.is_alive()

    def end(self) -> None:
        """Wait for the driver; it must not have failed."""
        self.driver.join(PATIENCE_S)
        assert self.driver.exitcode == 0


def drive(folder: str, dataset_url: str, tracking_uri: str, **choice: Any) -> None:
    """What a driver does."""
    os.chdir(folder)
    torch.set_num_threads(1)
    mlflow.set_system_metrics_sampling_interval(1)  # type: ignore[no-untyped-call]  # MLflow's own
    train_and_register(
        SETTINGS,
        dataset_url=dataset_url,
        storage_url=folder,
        tracking_uri=tracking_uri,
        run_name=RUN_NAME,
        model_name=EXPERIMENT,
        **choice,
    )


class KillableCluster:
    """A head, where drivers are at home, and nodes that the workers run on."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def set_nodes(self, *cpus: int) -> None:
        """Have nodes with so many CPUs, and no others."""
        for node in self._nodes:
            self._cluster.remove_node(node, allow_graceful=False)
        self._nodes = [self._cluster.add_node(num_cpus=count) for count in cpus]

    def find_workers(self) -> list[psutil.Process]:
        """The processes that train, on the nodes' first."""
        children = self._raylet(0).children(recursive=True)
        return [child for child in children if is_training_worker(child)]

    def kill_node(self) -> None:
        """SIGKILL the process that is the first node, and its workers: a machine is gone at once.

        Left alone they would end by themselves, though a quick training ends before them.
        """
        workers = self.find_workers()
        self._raylet(0).kill()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    def close(self) -> None:
        self.set_nodes()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray's own is untyped

    def _raylet(self, number: int) -> psutil.Process:
        started = self._nodes[number].all_processes["raylet"][0]
        return psutil.Process(started.process.pid)


def is_training_worker(process: psutil.Process) -> bool:
    """Whether a process is one of Ray Train's workers; one that has ended is not."""
    try:
        return "RayTrainWorker" in "".join(process.cmdline())
    except psutil.Error:
        return False


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still does something; one that nobody has buried yet does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(process: BaseProcess) -> None:
    """SIGKILL, and wait for the end."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
