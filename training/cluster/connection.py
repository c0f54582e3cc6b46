"""A Ray cluster: the one in use, one at an address, or one started on this machine."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import ray

from pipeline.errors import NormscopeError

Placement: TypeAlias = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
_ANSWER_S: Final = 10  # time limit of a cluster's answer

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What each worker takes of a cluster.

    Attributes:
        cpus: Number of cores.
        gpus: Number of GPUs, 0 to 1; with a fraction several workers share one GPU.
        placement: Ray's placement strategy: few nodes (`PACK`) or many (`SPREAD`), as far as
            possible or `STRICT`ly.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    placement: Placement = "PACK"

    def resources(self) -> dict[str, float]:
        """Return the resources by the names that Ray uses."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


ONE_CORE: Final = Share()


class WorkersError(NormscopeError):
    """There are no workers, or they failed repeatedly without progress."""


@contextmanager
def running_ray(
    address: str | None, workers: int, share: Share = ONE_CORE, *, fewest: int | None = None
) -> Iterator[None]:
    """Use the Ray in use, connect to a cluster, or start one here; stop what was started.

    Args:
        address: Address of a cluster: `host:port`, `ray://host:port` or `auto`; None starts Ray
            on this machine.
        workers: Number of processes that need resources.
        share: Cores and GPUs that each process takes.
        fewest: Smallest number of processes that must find resources; all by default.

    Raises:
        WorkersError: No cluster answers at the address, or this machine lacks GPUs.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        cpus = max(math.ceil(workers * share.cpus), len(os.sched_getaffinity(0)))
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
    else:
        _connect(address)
    try:
        _require_resources(fewest or workers, share, may_grow=address is not None)
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:
        remedy = "Start one with `ray start --head`, or unset RAY_ADDRESS to work on this machine"
        raise WorkersError(address, "no Ray cluster answers", remedy) from error


def _require_resources(workers: int, share: Share, *, may_grow: bool) -> None:
    """Report missing resources, which Ray would wait for silently."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
    for name, each in share.resources().items():
        wanted, has = workers * each, available.get(name, 0.0)
        if has >= wanted:
            continue
        problem = f"{wanted:g} {name} needed, {has:g} available"
        if not may_grow:
            remedy = f"Ask for less, e.g. leave out {name.lower()}s_per_worker"
            raise WorkersError("Ray on this machine", problem, remedy)
        logger.warning("Ray: %s; the rest waits until nodes join", problem)
