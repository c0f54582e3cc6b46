"""Prefect, MLflow and Ray on this machine: one server for one command, or the whole stack.

All state lies below the home folder. Prefect and MLflow listen on loopback, or elsewhere with a
password; Ray listens on every address of the machine and asks for the home folder's token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, TypeAlias

from pydantic import Field

from flows.local import processes, services
from flows.local.access import USER, Access, read_password
from flows.local.loopback import HOST, ServiceError, require_free_port
from flows.local.processes import Service
from flows.local.services import LOOPBACK, MLFLOW, PREFECT, RAY, WORKER
from flows.shared.settings import Settings

POOL: Final = services.POOL
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]
SERVICES: Final = (PREFECT, MLFLOW, RAY, WORKER)
"""In the order of starting; stopping goes backwards."""


@dataclass(frozen=True, slots=True)
class StackPorts:
    """Where the stack listens; 0 takes whichever port is free."""

    prefect: int = 4200
    mlflow: int = 5000
    ray: int = 6379
    ray_dashboard: int = 8265


@dataclass(frozen=True, slots=True)
class Stack:
    """The running stack's addresses, as its clients need them."""

    prefect_api_url: str
    mlflow_tracking_uri: str
    ray_address: str
    password: str | None = field(default=None, repr=False)

    def environment(self) -> dict[str, str]:
        """The variables that point a command, or a shell, at this stack; passwords among them."""
        variables = {
            "PREFECT_API_URL": self.prefect_api_url,
            "MLFLOW_TRACKING_URI": self.mlflow_tracking_uri,
            "RAY_ADDRESS": self.ray_address,
        }
        if self.password is not None:
            variables["PREFECT_API_AUTH_STRING"] = f"{USER}:{self.password}"
            variables["MLFLOW_TRACKING_USERNAME"] = USER
            variables["MLFLOW_TRACKING_PASSWORD"] = self.password
        return variables


@contextmanager
def running_prefect_server(settings: Settings, port: int = 0) -> Iterator[str]:
    """A Prefect server for one command: the stack's where that runs, else one of its own.

    Args:
        settings: The server's database lies below its home folder.
        port: Port of a new server; 0 takes a free one.

    Yields:
        The API's URL, e.g. `http://127.0.0.1:4200/api`.

    Raises:
        ServiceError: The server did not start; the error names its log.
    """
    with _found_or_running(
        PREFECT, settings, partial(services.prefect_server, settings, port)
    ) as url:
        yield url


@contextmanager
def running_mlflow_server(settings: Settings, port: int = 0) -> Iterator[str]:
    """An MLflow server over the home folder's database, for as long as the block lasts.

    Args:
        settings: Database and artifacts lie below its home folder.
        port: 0 takes whichever is free.

    Yields:
        The tracking URI, e.g. `http://127.0.0.1:5000`.

    Raises:
        ServiceError: The server did not start; the error names its log.
    """
    with _found_or_running(
        MLFLOW, settings, partial(services.mlflow_server, settings, port)
    ) as url:
        yield url


@contextmanager
def running_ray_head(
    settings: Settings, port: int = 0, dashboard_port: int = 0, cpus: int | None = None
) -> Iterator[str]:
    """A Ray head of our own, for as long as the block lasts.

    Args:
        settings: Settings whose home folder holds the token that clients must show.
        port: Port of the cluster's control store; 0 takes a free one.
        dashboard_port: Port of the dashboard; 0 takes a free one.
        cpus: Number of cores that Ray may use; all by default.

    Yields:
        The address for `ray.init(address=...)`, e.g. `127.0.0.1:6379`.

    Raises:
        ServiceError: Ray did not start; the error names its log.
    """
    head = services.ray_head(settings, port, dashboard_port, cpus)
    with processes.running(head, settings.home) as address:
        yield address


def start_stack(
    settings: Settings, ports: StackPorts | None = None, access: Access = LOOPBACK
) -> Stack:
    """Start whatever of the stack does not run yet: Prefect server and worker, MLflow, Ray.

    Args:
        settings: All state lies below its home folder.
        ports: Ports to listen on; each service's usual one by default.
        access: Address to listen on, and whether passwords are asked for.

    Returns:
        The stack's addresses; those of services that ran already are kept.

    Raises:
        ServiceError: A service did not start, its port is taken, or it runs already though
            another access is asked for. What this call had started is stopped again.
    """
    ports = ports or StackPorts()
    _require_same_access(settings, access)
    _require_free_ports(settings, ports)
    started: list[str] = []

    def ensure(service: Service) -> str:
        if processes.find(service.name, settings.home) is None:
            started.append(service.name)
        return processes.start(service, settings.home).url

    try:
        stack = Stack(
            prefect_api_url=_found(PREFECT, settings)
            or ensure(services.prefect_server(settings, ports.prefect, access)),
            mlflow_tracking_uri=_found(MLFLOW, settings)
            or ensure(services.mlflow_server(settings, ports.mlflow, access)),
            ray_address=_found(RAY, settings)
            or ensure(services.ray_head(settings, ports.ray, ports.ray_dashboard, access=access)),
            password=read_password(settings),
        )
        _found(WORKER, settings) or ensure(services.prefect_worker(settings, stack.environment()))
    except BaseException:
        for name in reversed(started):
            processes.stop(name, settings.home)
        raise
    return stack


def find_stack(settings: Settings) -> Stack | None:
    """The addresses of the stack of this home, or None unless all of it runs."""
    urls = [_found(name, settings) for name in SERVICES]
    prefect_api_url, mlflow_tracking_uri, ray_address, worker = urls
    if not (prefect_api_url and mlflow_tracking_uri and ray_address and worker):
        return None
    return Stack(prefect_api_url, mlflow_tracking_uri, ray_address, read_password(settings))


def usual_stack() -> Stack:
    """Where a stack answers that somebody has started by hand at the usual ports."""
    ports = StackPorts()
    return Stack(
        f"http://{HOST}:{ports.prefect}/api",
        f"http://{HOST}:{ports.mlflow}",
        f"{HOST}:{ports.ray}",
    )


def stop_stack(settings: Settings) -> list[str]:
    """Stop all of the stack that runs, or that a crash has left; the names of what was stopped."""
    return [name for name in reversed(SERVICES) if processes.stop(name, settings.home)]


@contextmanager
def _found_or_running(name: str, settings: Settings, make: Callable[[], Service]) -> Iterator[str]:
    """The URL of the stack's service where that runs, else of one for this block alone."""
    url = _found(name, settings)
    if url is not None:
        yield url
        return
    with processes.running(make(), settings.home) as url:
        yield url


def _found(name: str, settings: Settings) -> str | None:
    """The URL of a service that runs already."""
    record = processes.find(name, settings.home)
    return None if record is None else record.url


def _require_same_access(settings: Settings, access: Access) -> None:
    """Refuse to call servers protected that run already, perhaps without a password."""
    for name in (PREFECT, MLFLOW):
        if access != LOOPBACK and _found(name, settings) is not None:
            problem = "it runs already, and keeps its address and whether it asks for a password"
            raise ServiceError(name, problem, "Stop it with `normscope down` first")


def _require_free_ports(settings: Settings, ports: StackPorts) -> None:
    """Say what is in the way before anything is started."""
    names = (PREFECT, MLFLOW, RAY, RAY)
    wanted = (ports.prefect, ports.mlflow, ports.ray, ports.ray_dashboard)
    for name, port in zip(names, wanted, strict=True):
        if port and _found(name, settings) is None:
            require_free_port(port, name)
