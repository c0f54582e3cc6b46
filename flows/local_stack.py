"""Prefect, MLflow and Ray on this machine: one server for one command, or the whole stack.

Everything listens on loopback only and keeps its state below the home folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows import processes
from flows.loopback import HOST, answers, find_free_port, require_free_port
from flows.processes import Service
from flows.settings import Settings, child_environment, prepare_environment

POOL: Final = "local"
"""The Prefect work pool whose worker runs deployments on this machine."""

PREFECT: Final = "prefect-server"
MLFLOW: Final = "mlflow-server"
RAY: Final = "ray-head"
WORKER: Final = "prefect-worker"
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

    def environment(self) -> dict[str, str]:
        """The variables that point a command, or a shell, at this stack."""
        return {
            "PREFECT_API_URL": self.prefect_api_url,
            "MLFLOW_TRACKING_URI": self.mlflow_tracking_uri,
            "RAY_ADDRESS": self.ray_address,
        }


@contextmanager
def running_prefect_server(settings: Settings, port: int = 0) -> Iterator[str]:
    """A Prefect server for one command: the stack's where that runs, else one of its own.

    Args:
        settings: The server's database lies below its home folder.
        port: Of a server of its own; 0 takes whichever is free.

    Yields:
        The API's URL, e.g. `http://127.0.0.1:4200/api`.

    Raises:
        ServiceError: The server did not start; the error names its log.
    """
    record = processes.find(PREFECT, settings.home)
    if record is not None:
        yield record.url
        return
    with processes.running(_prefect_server(settings, port), settings.home) as url:
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
    record = processes.find(MLFLOW, settings.home)
    if record is not None:
        yield record.url
        return
    with processes.running(_mlflow_server(settings, port), settings.home) as url:
        yield url


@contextmanager
def running_ray_head(
    settings: Settings, port: int = 0, dashboard_port: int = 0, cpus: int | None = None
) -> Iterator[str]:
    """A Ray head of our own, for as long as the block lasts.

    Args:
        settings: Its home folder holds the token that clients must show.
        port: Of the cluster's control store; 0 takes whichever is free.
        dashboard_port: Of the pages; 0 takes whichever is free.
        cpus: How many cores Ray may hand out; all by default.

    Yields:
        The address for `ray.init(address=...)`, e.g. `127.0.0.1:6379`.

    Raises:
        ServiceError: Ray did not start; the error names its log.
    """
    head = _ray_head(settings, port, dashboard_port, cpus)
    with processes.running(head, settings.home) as address:
        yield address


def start_stack(settings: Settings, ports: StackPorts | None = None) -> Stack:
    """Start whatever of the stack does not run yet: Prefect server and worker, MLflow, Ray.

    Args:
        settings: All state lies below its home folder.
        ports: Where to listen; each service's usual port by default.

    Returns:
        The stack's addresses; those of services that ran already are kept.

    Raises:
        ServiceError: A service did not start or its port is taken. What this call had started
            is stopped again.
    """
    ports = ports or StackPorts()
    started: list[str] = []

    def ensure(service: Service) -> str:
        if processes.find(service.name, settings.home) is None:
            started.append(service.name)
        return processes.start(service, settings.home).url

    try:
        stack = Stack(
            prefect_api_url=_found(PREFECT, settings)
            or ensure(_prefect_server(settings, ports.prefect)),
            mlflow_tracking_uri=_found(MLFLOW, settings)
            or ensure(_mlflow_server(settings, ports.mlflow)),
            ray_address=_found(RAY, settings)
            or ensure(_ray_head(settings, ports.ray, ports.ray_dashboard)),
        )
        _found(WORKER, settings) or ensure(_prefect_worker(settings, stack))
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
    return Stack(prefect_api_url, mlflow_tracking_uri, ray_address)


def stop_stack(settings: Settings) -> list[str]:
    """Stop all of the stack that runs, or that a crash has left; the names of what was stopped."""
    return [name for name in reversed(SERVICES) if processes.stop(name, settings.home)]


def _found(name: str, settings: Settings) -> str | None:
    """The URL of a service that runs already."""
    record = processes.find(name, settings.home)
    return None if record is None else record.url


def _choose_port(port: int, name: str) -> int:
    """The port to listen on, known to be free at this moment."""
    if port == 0:
        return find_free_port()
    require_free_port(port, name)
    return port


def _prefect_server(settings: Settings, port: int) -> Service:
    """The server's own application under uvicorn: a third of the time `prefect server` takes."""
    prepare_environment(settings)
    port = _choose_port(port, PREFECT)
    database = settings.home / "prefect" / "prefect.db"
    url = f"http://{HOST}:{port}/api"
    return Service(
        name=PREFECT,
        command=(
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", HOST, "--port", str(port), "--log-level", "warning"),
        ),
        environment=child_environment(
            settings,
            PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{database}",
            PREFECT_SERVER_API_HOST=HOST,
            PREFECT_SERVER_API_PORT=str(port),
            PREFECT_API_URL=url,
        ),
        url=url,
        is_ready=lambda: answers(port, "/api/health") is not None,
    )


def _mlflow_server(settings: Settings, port: int) -> Service:
    """The server over the same files that commands use without it, so that both see all runs."""
    prepare_environment(settings)
    port = _choose_port(port, MLFLOW)
    folder = settings.home / "mlflow"
    return Service(
        name=MLFLOW,
        command=(
            *(sys.executable, "-m", "mlflow", "server", "-w", "1", "--host", HOST),
            *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--default-artifact-root", (folder / "artifacts").as_uri(), "--no-serve-artifacts"),
        ),
        environment=child_environment(settings, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        url=f"http://{HOST}:{port}",
        is_ready=lambda: answers(port, "/health") is not None,
    )


def _ray_head(
    settings: Settings, port: int, dashboard_port: int, cpus: int | None = None
) -> Service:
    """`ray start --block`, all of whose processes are ours to stop; `ray stop` is host-wide."""
    prepare_environment(settings)
    port = _choose_port(port, RAY)
    dashboard_port = _choose_port(dashboard_port, RAY)
    # Not below the home folder: paths of sockets may not exceed 107 characters.
    scratch = tempfile.mkdtemp(prefix="normscope-ray-")
    raylet = Path(scratch, "session_latest", "sockets", "raylet")
    return Service(
        name=RAY,
        command=(
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--node-ip-address", HOST, "--port", str(port)),
            *("--dashboard-host", HOST, "--dashboard-port", str(dashboard_port)),
            *("--ray-client-server-port", str(find_free_port())),
            *("--dashboard-agent-listen-port", str(find_free_port())),
            *("--temp-dir", scratch, "--disable-usage-stats"),
            *(() if cpus is None else ("--num-cpus", str(cpus))),
        ),
        environment=child_environment(settings, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0"),
        url=f"{HOST}:{port}",
        is_ready=lambda: (
            raylet.exists() and answers(dashboard_port, "/api/gcs_healthz") is not None
        ),
        scratch=scratch,
    )


def _prefect_worker(settings: Settings, stack: Stack) -> Service:
    """A process worker; it makes the work pool where that is missing."""
    port = int(stack.prefect_api_url.rsplit(":", 1)[1].split("/")[0])
    return Service(
        name=WORKER,
        command=(
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL),
            *("--type", "process", "--name", WORKER),
        ),
        environment=child_environment(
            settings, **stack.environment(), PREFECT_WORKER_QUERY_SECONDS="2"
        ),
        url=stack.prefect_api_url,
        is_ready=lambda: _has_worker_online(port),
    )


def _has_worker_online(port: int) -> bool:
    """Whether the server has heard of our worker."""
    content = answers(port, f"/api/work_pools/{POOL}/workers/filter", body={})
    workers = json.loads(content) if content else []
    return any(worker["name"] == WORKER and worker["status"] == "ONLINE" for worker in workers)
