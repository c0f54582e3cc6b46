"""A Ray cluster to work on: the one that runs, one at an address, or one started here."""

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
_ANSWER_S: Final = 10  # in which a cluster must answer

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What each worker takes of a cluster.

    Attributes:
        cpus: Cores.
        gpus: GPUs, 0 to 1; several workers share one that each takes a part of.
        placement: Whether workers lie on as few nodes as they can or on many, as Ray names it.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    placement: Placement = "PACK"

    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


ONE_CORE: Final = Share()


class WorkersError(NormscopeError):
    """No workers, or such as failed again and again without getting further."""


@contextmanager
def running_ray(
    address: str | None, workers: int, share: Share = ONE_CORE, *, fewest: int | None = None
) -> Iterator[None]:
    """Use the Ray that runs, connect to a cluster, or start one here; stop what was begun.

    Args:
        address: Of a cluster: `host:port`, `ray://host:port` or `auto`; None starts one here.
        workers: Processes that a Ray which is started here has cores for.
        share: Of each.
        fewest: For how many of them there must be room; all by default.

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
        _require_room(fewest or workers, share, may_grow=address is not None)
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would go on asking for minutes
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:
        remedy = "Start one with `ray start --head`, or unset RAY_ADDRESS to work on this machine"
        raise WorkersError(address, "no Ray cluster answers", remedy) from error


def _require_room(workers: int, share: Share, *, may_grow: bool) -> None:
    """Say what is not there, which Ray would wait for in silence."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
    for name, each in share.resources().items():
        wanted, has = workers * each, there.get(name, 0.0)
        if has >= wanted:
            continue
        problem = f"{wanted:g} {name} wanted, {has:g} there"
        if not may_grow:
            remedy = f"Ask for less, e.g. leave out {name.lower()}s_per_worker"
            raise WorkersError("Ray on this machine", problem, remedy)
        logger.warning("Ray: %s; what has no room waits until nodes join", problem)
