"""Functions that tests call in a job on a cluster."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from pipeline.errors import SchemaError
from pipeline.records import Progress, ignore_progress

logger = logging.getLogger("training.called")


@dataclass(frozen=True)
class Doubled:
    """A result that holds a number, what is no number, and the node that made it."""

    number: int
    nothing: float
    node: str


def double(
    number: int, *, ray_address: str | None = None, on_progress: Progress = ignore_progress
) -> Doubled:
    """Double a number by a task of the cluster."""
    ray.init(address=ray_address, logging_level=logging.ERROR)
    logger.warning("doubling %d", number)
    for step in range(1, 4):
        on_progress(step, 3)
    task = ray.remote(lambda: 2 * number)
    node = ray.get_runtime_context().get_node_id()
    return Doubled(ray.get(task.remote()), float("nan"), node)


def refuse(dataset: str, *, ray_address: str | None = None) -> Doubled:
    """Raise an error that a user can correct."""
    raise SchemaError(dataset, f"is empty at {ray_address}", "Fill it")


def break_down(*, ray_address: str | None = None) -> Doubled:
    """Fail by a defect."""
    raise ValueError(f"a defect at {ray_address}")


def wait(folder: str, *, ray_address: str | None = None) -> int:
    """Write a file that says that this driver is at work, and wait for the file `go`."""
    Path(folder, f"driver-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.1)
    return len(str(ray_address))
