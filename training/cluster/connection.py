"""A Ray cluster: the one in use, one at an address, or one started on this machine."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import ray
from ray._private.services import _find_address_from_flag as find_raylets
from ray.autoscaler.sdk import request_resources

from pipeline.errors import NormscopeError
from pipeline.runtime.cores import count_cores
from pipeline.runtime.ports import find_free_port

Placement: TypeAlias = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
_ANSWER_S: Final = 10  # time limit of a cluster's answer
_LOOK_EVERY_S: Final = 2.0

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What each worker takes of a cluster.

    Attributes:
        cpus: Number of cores.
        gpus: Number of GPUs, 0 to 1; with a fraction several workers share one GPU.
        placement: Ray's placement strategy: few nodes (`PACK`) or many (`SPREAD`), as far as
            possible or `STRICT`ly.
        wait_s: Seconds to wait for a cluster that has less in all than is asked for, as nodes may
            join it.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    placement: Placement = "PACK"
    wait_s: float = 600.0

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
        WorkersError: No cluster answers at the address, this machine is no node of it, or it lacks
            cores or GPUs and gets none in time.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        cpus = max(math.ceil(workers * share.cpus), count_cores())
        ray.init(
            address="local",
            num_cpus=cpus,
            dashboard_port=find_free_port(),  # the usual one is for a Ray that lives on
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    else:
        _connect(address)
    try:
        _await_resources(fewest or workers, share, 0.0 if address is None else share.wait_s)
        yield
    finally:
        ray.shutdown()


def is_node_of(address: str) -> bool:
    """Whether this machine is a node of a cluster, so that a process on it can drive the cluster.

    A driver needs a raylet of the cluster on its own machine: without one `ray.init` ends the
    process natively.

    Args:
        address: Address of a cluster, `host:port`; `auto` means one on this machine.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return True
    wanted = _resolve(host)
    is_loopback = any(ip.startswith("127.") or ip == "::1" for ip in wanted)
    here = [found.rpartition(":") for found in find_raylets("--gcs-address")]
    return any(
        number == port and (is_loopback or wanted & _resolve(name)) for name, _, number in here
    )


def _resolve(host: str) -> set[str]:
    """IP addresses of a host, or its name where nothing resolves it."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return {host}
    return {str(each[4][0]) for each in found}


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    problem = "no Ray cluster answers"
    remedy = "Start one with `ray start --head`, or unset RAY_ADDRESS to work on this machine"
    try:
        if port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), _ANSWER_S).close()
            problem = "a server answers, but lets this process into no Ray cluster"
            remedy = "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and RAY_USE_TLS, as on its nodes"
        if not address.startswith("ray://") and not is_node_of(address):
            raise WorkersError(
                address,
                "this machine is no node of the Ray cluster",
                "Run this on a node of the cluster, join it by `ray start --address "
                f"{address} --num-cpus 0`, or start the flow, which submits a job",
            )
        # In a job the workers' lines reach its log, and with it the flow run; a terminal they
        # would flood.
        ray.init(address=address, log_to_driver=address == "auto", logging_level=logging.WARNING)
    except OSError as error:
        raise WorkersError(address, problem, remedy) from error


def _await_resources(workers: int, share: Share, wait_s: float) -> None:
    """Wait until the cluster has what is asked for, which Ray would wait for without end."""
    deadline, has_asked = time.monotonic() + wait_s, False
    try:
        while missing := _describe_missing(workers, share):
            if time.monotonic() >= deadline:
                remedy = "Ask for less, e.g. fewer workers or no GPUs, or add nodes"
                waited = f" after {wait_s:g} s" if wait_s else ""
                raise WorkersError("Ray cluster", f"{missing}{waited}", remedy)
            if not has_asked:
                logger.warning("Ray: %s; waiting up to %g s for nodes to join", missing, wait_s)
                request_resources(bundles=[share.resources()] * workers)  # an autoscaler adds them
                has_asked = True
            time.sleep(min(_LOOK_EVERY_S, wait_s))
    finally:
        if has_asked:
            request_resources(bundles=[])


def _describe_missing(workers: int, share: Share) -> str:
    """Say which resource the whole cluster has too little of; empty if none."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
    for name, each in share.resources().items():
        wanted, has = workers * each, available.get(name, 0.0)
        if has < wanted:
            return f"{wanted:g} {name} needed, {has:g} available"
    return ""
