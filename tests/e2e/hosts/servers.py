"""The servers of the chain, each on a host of its own, with passwords and a database."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.e2e.hosts.network import REPOSITORY, Host, Lan, wait_until

SECRETS: Final[Mapping[str, str]] = {
    "s3": "planted-s3-secret-0f2b",
    "postgres": "planted-postgres-password-51aa",
    "prefect": "planted-prefect-password-9d04",
    "mlflow": "planted-mlflow-password-77e1",
    "flask": "planted-flask-key-c3c3",
    "ray": "planted-ray-token-b7d2-long-enough",
    "pseudonym": "5e" * 32,
}
"""Secrets of this test alone; after a run nothing that was written may hold one."""

USER: Final = "normscope"
RAY_NODES: Final = ("ray-1", "ray-2")
NAMES: Final = ("s3", "control", "worker", "ray-head", *RAY_NODES, "dask")
S3_CLIENT: Final[Mapping[str, str]] = {
    "AWS_ENDPOINT_URL": "http://s3:9000",
    "AWS_ALLOW_HTTP": "true",
    "AWS_ACCESS_KEY_ID": USER,
    "AWS_SECRET_ACCESS_KEY": SECRETS["s3"],
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
}
_MLFLOW_CLIENT: Final = {
    "MLFLOW_TRACKING_URI": "http://control:5000",
    "MLFLOW_TRACKING_USERNAME": USER,
    "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow"],
}
_RAY: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": SECRETS["ray"],
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "NORMSCOPE_STATE": "s3://lake/state",
}
_PREFECT_CLIENT: Final = {
    "PREFECT_API_URL": "http://control:4200/api",
    "PREFECT_API_AUTH_STRING": f"{USER}:{SECRETS['prefect']}",
}
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_WORKER: Final = {
    **S3_CLIENT,
    **_MLFLOW_CLIENT,
    **_RAY,
    **_PREFECT_CLIENT,
    "RAY_ADDRESS": "ray-head:6379",
    "NORMSCOPE_DASK_ADDRESS": "tcp://dask:8786",
    "NORMSCOPE_PSEUDONYM_KEY": SECRETS["pseudonym"],
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}
_MLFLOW_USERS: Final = f"""\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = postgresql://{USER}@127.0.0.1/mlflow
admin_username = {USER}
admin_password = {SECRETS["mlflow"]}
"""


def find_postgres() -> Path | None:
    """Folder of PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


def find_missing_server() -> str | None:
    """What this machine lacks of the servers; None if nothing."""
    missing = [name for name in ("radosgw", "ceph-mon", "ceph-osd") if shutil.which(name) is None]
    missing += [] if find_postgres() else ["postgresql"]
    return f"the hosts' servers need {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class _Kept:
    """A program that is to run as long as its host.

    Args:
        host: Host that it runs on.
        command: Program and arguments.
        variables: Environment variables beside the host's own.
        process: The program as it runs now.
    """

    host: Host
    command: tuple[str, ...]
    variables: Mapping[str, str]
    process: subprocess.Popen[bytes]


@dataclass
class Servers:
    """Starts each host's servers, again after the host was killed too.

    Args:
        lan: Network with a host for each of `NAMES`.
    """

    lan: Lan
    _kept: list[_Kept] = field(default_factory=list)
    _starters: Mapping[str, Callable[[], None]] = field(init=False)

    def __post_init__(self) -> None:
        self._starters = {
            "s3": self._start_s3,
            "control": self._start_control,
            "worker": self._start_worker,
            "ray-head": self._start_ray_head,
            "dask": self._start_dask,
            **{name: partial(self._start_ray_node, name) for name in RAY_NODES},
        }

    def start(self, *names: str) -> None:
        """Start the servers of hosts, one host after the other.

        Args:
            names: Names of the hosts; all by default, in the order of their need.
        """
        for name in names or NAMES:
            self._starters[name]()

    def restart(self, name: str) -> None:
        """Boot a killed host and start its servers.

        Args:
            name: Name of the host.
        """
        self._kept = [each for each in self._kept if each.host.name != name]
        self.lan.hosts[name].boot()
        self.start(name)

    def revive(self) -> list[str]:
        """Start programs again that have ended on a host which is up, as its supervisor does.

        Returns:
            Host and program of each.
        """
        ended = [each for each in self._kept if each.process.poll() is not None]
        for each in ended:
            self._kept.remove(each)
            self._keep(each.host, *each.command, variables=each.variables)
        return [f"{each.host.name}'s {Path(each.command[0]).name}" for each in ended]

    def _keep(self, host: Host, *command: str, variables: Mapping[str, str] | None = None) -> None:
        if command[0] == "ray":
            shutil.rmtree(host.disk / "ray", ignore_errors=True)
        process = host.start(*command, variables=variables)
        self._kept.append(_Kept(host, command, variables or {}, process))

    def _start_s3(self) -> None:
        host = self.lan.hosts["s3"]
        command = ("python", "-m", "infra.s3.server", "up", "/tmp/s3")  # noqa: S108 -- its own disk
        options = ("--host", "0.0.0.0", "--port", "9000", "--secret-key", SECRETS["s3"])  # noqa: S104 -- on its own network
        host.run(*command, *options, variables={"PYTHONPATH": str(REPOSITORY)})
        script = (
            "import boto3; s3 = boto3.client('s3')\n"
            "for name in ('lake', 'mlflow'): s3.create_bucket(Bucket=name)"
        )
        host.run("python", "-c", script, variables=S3_CLIENT)

    def _start_control(self) -> None:
        host, programs = self.lan.hosts["control"], find_postgres()
        assert programs is not None
        data = host.disk / "postgres"
        as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        is_new = not data.exists()
        if is_new:
            password = host.disk / "password"
            password.write_text(SECRETS["postgres"])
            data.mkdir()
            for path in (password, data):
                shutil.chown(path, "postgres", "postgres")
            options = ("--auth=scram-sha-256", f"--username={USER}", "--pwfile=/tmp/password")
            host.run(*as_postgres, str(programs / "initdb"), *options, "/tmp/postgres")  # noqa: S108 -- its own disk
            password.unlink()
        settings = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
        (data / "postmaster.pid").unlink(missing_ok=True)  # its numbers are of before the boot
        self._keep(host, *as_postgres, str(programs / "postgres"), "-D", "/tmp/postgres", *settings)  # noqa: S108 -- its own disk
        asks = (str(programs / "pg_isready"), "-q", "-h", "127.0.0.1")
        wait_until(lambda: _succeeds(host, *asks), "PostgreSQL answers")
        if is_new:
            for name in ("mlflow", "prefect"):
                create = (str(programs / "createdb"), "-h", "127.0.0.1", "-U", USER, name)
                host.run(*create, variables={"PGPASSWORD": SECRETS["postgres"]})
        self._start_mlflow(host)
        self._start_prefect(host)
        wait_until(lambda: answers(host, 5000, "/health") == 200, "MLflow answers")
        wait_until(lambda: answers(host, 4200, "/api/ready") == 200, "Prefect answers")

    def _start_mlflow(self, host: Host) -> None:
        (host.disk / "auth.ini").write_text(_MLFLOW_USERS)
        (host.disk / "auth.ini").chmod(0o600)
        self._keep(
            host,
            *("mlflow", "server", "--app-name=basic-auth", "--host=0.0.0.0", "--port=5000"),
            *("--workers=1", f"--allowed-hosts=control:5000,{host.address}:5000"),
            f"--backend-store-uri=postgresql://{USER}@127.0.0.1/mlflow",
            "--artifacts-destination=s3://mlflow/artifacts",
            variables={
                "PGPASSWORD": SECRETS["postgres"],
                "MLFLOW_AUTH_CONFIG_PATH": "/tmp/auth.ini",  # noqa: S108 -- its own disk
                "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRETS["flask"],
                **S3_CLIENT,
                **_QUIET,
            },
        )

    def _start_prefect(self, host: Host) -> None:
        database = f"postgresql+asyncpg://{USER}@127.0.0.1/prefect"
        self._keep(
            host,
            *("prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"),  # noqa: S104 -- the same
            variables={
                "PGPASSWORD": SECRETS["postgres"],
                "PREFECT_API_DATABASE_CONNECTION_URL": database,
                "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{SECRETS['prefect']}",
                **_QUIET,
            },
        )

    def _start_worker(self) -> None:
        host = self.lan.hosts["worker"]
        worker = ("prefect", "worker", "start", "--pool", "local", "--type", "process")
        self._keep(host, *worker, variables={**_WORKER, **_QUIET})

    def _start_ray_head(self) -> None:
        host = self.lan.hosts["ray-head"]
        self._start_ray(host, "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0")
        wait_until(lambda: answers(host, 8265, "/api/gcs_healthz") == 200, "Ray's head answers")

    def _start_ray_node(self, name: str) -> None:
        self._start_ray(self.lan.hosts[name], "--address=ray-head:6379", "--num-cpus=1")

    def _start_ray(self, host: Host, *role: str) -> None:
        common = (f"--node-ip-address={host.address}", "--object-store-memory=200000000")
        variables = {**S3_CLIENT, **_MLFLOW_CLIENT, **_RAY}
        command = ("ray", "start", "--block", "--disable-usage-stats", *role, *common)
        self._keep(host, *command, variables=variables)

    def _start_dask(self) -> None:
        host = self.lan.hosts["dask"]
        scheduler = ("dask", "scheduler", f"--host={host.address}", "--port=8786")
        self._keep(host, *scheduler, "--no-dashboard")
        workers = ("--nworkers=2", "--nthreads=1", "--memory-limit=2GiB", "--no-dashboard")
        self._keep(host, "dask", "worker", "dask:8786", *workers, variables=S3_CLIENT)

    def run_command(self, *command: str, limit_s: float = 300) -> str:
        """Run a command on the host of Prefect's worker, with the worker's environment.

        Args:
            command: Program and arguments.
            limit_s: Time limit in seconds.
        """
        host = self.lan.hosts["worker"]
        return host.run(*command, limit_s=limit_s, variables={**_WORKER, **_QUIET})


def answers(host: Host, port: int, path: str, password: str | None = None) -> int | None:
    """Ask a server for a page.

    Args:
        host: Host of the server.
        port: Port of the server.
        path: Path of the page.
        password: Value of the header `Authorization`; none by default.

    Returns:
        HTTP's status; None if nothing answers.
    """
    request = urllib.request.Request(f"http://{host.address}:{port}{path}")
    if password is not None:
        request.add_header("Authorization", password)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 -- http
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _succeeds(host: Host, *command: str) -> bool:
    try:
        host.run(*command, limit_s=10)
    except AssertionError:
        return False
    return True
