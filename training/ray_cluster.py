"""A Ray cluster to work on: the one that runs, one at an address, or one started here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import ray

from pipeline.errors import NormscopeError

_ANSWER_S: Final = 10  # in which a cluster must answer


class WorkersError(NormscopeError):
    """No workers, or such as failed again and again without getting further."""


@contextmanager
def running_ray(address: str | None, workers: int) -> Iterator[None]:
    """Use the Ray that runs, connect to a cluster, or start one here; stop what was begun.

    Args:
        address: Of a cluster: `host:port`, `ray://host:port` or `auto`; None starts one here.
        workers: Processes that there must be room for here.

    Raises:
        WorkersError: No cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        cpus = max(workers, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
    else:
        _connect(address)
    try:
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
