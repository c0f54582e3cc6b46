"""The servers that make up the local stack: how each is started and when it is ready."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flows.local.access import USER, Access, make_password, write_mlflow_settings
from flows.local.loopback import HOST, ServiceError, answers, require_free_port
from flows.local.processes import Service
from flows.shared.settings import (
    Settings,
    child_environment,
    prepare_environment,
    short_temporary_folder,
)
from pipeline.runtime.ports import find_free_port

POOL: Final = "local"
"""The Prefect work pool whose worker runs deployments on this machine."""

LOOPBACK: Final = Access()
"""Servers that only this machine's users reach, and that ask for no password."""

PREFECT: Final = "prefect-server"
MLFLOW: Final = "mlflow-server"
RAY: Final = "ray-head"
WORKER: Final = "prefect-worker"


def prefect_server(settings: Settings, port: int, access: Access = LOOPBACK) -> Service:
    """The server's own application under uvicorn: a third of the time `prefect server` takes."""
    prepare_environment(settings)
    port = _choose_port(port, PREFECT)
    database = settings.home / "prefect" / "prefect.db"
    url = f"http://{HOST}:{port}/api"
    passwords = {}
    if access.asks_password:
        passwords["PREFECT_SERVER_API_AUTH_STRING"] = f"{USER}:{make_password(settings)}"
    return Service(
        name=PREFECT,
        command=(
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", access.host, "--port", str(port), "--log-level", "warning"),
        ),
        environment=child_environment(
            settings,
            PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{database}",
            PREFECT_SERVER_API_HOST=access.host,
            PREFECT_SERVER_API_PORT=str(port),
            PREFECT_SERVER_UI_API_URL="/api",  # of whichever address the page was opened at
            PREFECT_API_URL=url,
            **passwords,
        ),
        url=url,
        is_ready=lambda: answers(port, "/api/health") is not None,
    )


def mlflow_server(settings: Settings, port: int, access: Access = LOOPBACK) -> Service:
    """The server over the same files that commands use without it, so that both see all runs."""
    prepare_environment(settings)
    port = _choose_port(port, MLFLOW)
    folder = settings.home / "mlflow"
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if access.asks_password:
        variables["MLFLOW_AUTH_ADMIN_PASSWORD"] = make_password(settings)
        variables["MLFLOW_AUTH_CONFIG_PATH"] = str(write_mlflow_settings(settings))
        variables["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(32)
    return Service(
        name=MLFLOW,
        command=(
            *(sys.executable, "-m", "mlflow", "server", "-w", "1", "--host", access.host),
            *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--default-artifact-root", (folder / "artifacts").as_uri(), "--no-serve-artifacts"),
            *(("--app-name", "basic-auth") if access.asks_password else ()),
        ),
        environment=child_environment(settings, **variables),
        url=f"http://{HOST}:{port}",
        is_ready=lambda: answers(port, "/health") is not None,
    )


def ray_head(
    settings: Settings,
    port: int,
    dashboard_port: int,
    cpus: int | None = None,
    access: Access = LOOPBACK,
) -> Service:
    """`ray start --block`, all of whose processes are ours to stop; `ray stop` is host-wide."""
    prepare_environment(settings)
    environment = child_environment(settings, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0")
    _require_token(environment)
    port = _choose_port(port, RAY)
    dashboard_port = _choose_port(dashboard_port, RAY)
    # Not below the home folder: paths of sockets may not exceed 107 characters.
    scratch = tempfile.mkdtemp(prefix="nsr-", dir=short_temporary_folder())
    raylet = Path(scratch, "session_latest", "sockets", "raylet")
    return Service(
        name=RAY,
        command=(
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--node-ip-address", HOST, "--port", str(port)),
            *("--dashboard-host", access.host, "--dashboard-port", str(dashboard_port)),
            *("--ray-client-server-port", str(find_free_port())),
            *("--dashboard-agent-listen-port", str(find_free_port())),
            *("--temp-dir", scratch, "--disable-usage-stats"),
            *(() if cpus is None else ("--num-cpus", str(cpus))),
        ),
        environment=environment,
        url=f"{HOST}:{port}",
        is_ready=lambda: (
            raylet.exists() and answers(dashboard_port, "/api/gcs_healthz") is not None
        ),
        scratch=scratch,
    )


def prefect_worker(settings: Settings, addresses: Mapping[str, str]) -> Service:
    """A process worker; it makes the work pool where that is missing.

    Args:
        settings: Settings that name the home folder.
        addresses: Variables that point its flow runs at the stack, `PREFECT_API_URL` among them.
    """
    url = addresses["PREFECT_API_URL"]
    port = int(url.removesuffix("/api").rpartition(":")[2])
    # A new name each time: the server takes a dead worker for alive for another minute.
    worker = f"{POOL}-{secrets.token_hex(3)}"
    return Service(
        name=WORKER,
        command=(
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL),
            *("--type", "process", "--name", worker),
        ),
        environment=child_environment(settings, **addresses, PREFECT_WORKER_QUERY_SECONDS="2"),
        url=url,
        is_ready=lambda: _is_online(worker, port, addresses.get("PREFECT_API_AUTH_STRING")),
    )


def _is_online(worker: str, port: int, credentials: str | None) -> bool:
    """Whether the Prefect server has heard of a worker."""
    content = answers(
        port, f"/api/work_pools/{POOL}/workers/filter", body={}, credentials=credentials
    )
    found = json.loads(content) if content else []
    return any(entry["name"] == worker and entry["status"] == "ONLINE" for entry in found)


def _require_token(environment: Mapping[str, str]) -> None:
    """Refuse to start Ray open: it listens on every address of the machine, whatever it is told."""
    mode = environment.get("RAY_AUTH_MODE", "disabled")
    if mode != "token":
        problem = f"it is {mode}, so that whoever reaches this machine could run code on it"
        raise ServiceError("RAY_AUTH_MODE", problem, "Unset it, or set it to `token`")


def _choose_port(port: int, name: str) -> int:
    """The port to listen on, known to be free at this moment."""
    if port == 0:
        return find_free_port()
    require_free_port(port, name)
    return port
