"""Folders and servers to use: the only reader of environment variables."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import SettingsError
from pipeline.io.storage import join
from pipeline.runtime.cores import count_cores

QUIET: Final[Mapping[str, str]] = {
    # Nothing here calls home unless its user asks for it.
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its own bars and notes would cut through ours.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train's current interface, and its current rule for visible devices.
    "RAY_TRAIN_V2_ENABLED": "1",
    # Threads that wait by spinning take the cores from those that work.
    "OMP_WAIT_POLICY": "passive",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # S3 servers other than Amazon's refuse the checksum trailers that SDKs now send.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # Our own log lines reach Prefect's pages; outside a run they only reach the console.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline,training,flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # A server that is started anew must know which slots are taken, or they are never free again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage."
    "filesystem",
    "PREFECT_SERVER_METRICS_ENABLED": "true",
}
"""Defaults for the libraries in use; a variable that is already set wins."""

LOGGING_FILE: Final = Path(__file__).parents[1] / "logging.yaml"
"""Prefect's configuration of logs for lines of JSON."""

_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_PROXIES: Final = (
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
)
# What Ray adds to it are about 77 characters, and a socket's path ends at 107.
_SOCKETS_FOLDER_LENGTH: Final = 30
_HERE: Final = {*_LOOPBACK_NAMES, "local", "auto"}
_SHARED: Final = ("s3://", "file://")


class Settings(BaseSettings):
    """Everything that environment variables may decide, read once.

    An argument by its field's name wins over the variable; an empty variable counts as unset.
    """

    model_config = SettingsConfigDict(
        env_prefix="NORMSCOPE_",
        env_ignore_empty=True,
        validate_by_name=True,
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(
        default=Path(".normscope"),
        description="NORMSCOPE_HOME: folder of all local state: databases, artifacts, datasets of "
        "the demo, logs. Relative to the current directory.",
    )
    workers: PositiveInt = Field(
        default_factory=lambda: min(count_cores(), 4),
        description="NORMSCOPE_WORKERS: processes or threads that one command uses on this "
        "machine; the number of cores, at most 4, by default.",
    )
    state: str | None = Field(
        default=None,
        description="NORMSCOPE_STATE: where checkpoints, searches, ledgers and weights are kept, "
        "a path or `s3://`; the home folder by default. On a cluster it must be `s3://`, or "
        "`file:///...` for a folder that every host mounts.",
    )
    dask_address: str | None = Field(
        default=None,
        description="NORMSCOPE_DASK_ADDRESS: a Dask scheduler, e.g. `tcp://scheduler:8786`; "
        "without it ingest starts its own workers here.",
    )
    prefect_api_url: str | None = Field(
        default=None,
        validation_alias="PREFECT_API_URL",
        description="PREFECT_API_URL: a Prefect server, e.g. `http://127.0.0.1:4200/api`; without "
        "it a command starts one on loopback and stops it again.",
    )
    mlflow_tracking_uri: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home'] / 'mlflow' / 'mlflow.db'}",
        validation_alias="MLFLOW_TRACKING_URI",
        description="MLFLOW_TRACKING_URI: an MLflow server or database; by default an SQLite file "
        "in the home folder.",
    )
    ray_address: str | None = Field(
        default=None,
        validation_alias="RAY_ADDRESS",
        description="RAY_ADDRESS: a Ray cluster, e.g. `127.0.0.1:6379`; without it training "
        "starts Ray here and stops it again.",
    )
    ray_api_server_address: str | None = Field(
        default=None,
        validation_alias="RAY_API_SERVER_ADDRESS",
        description="RAY_API_SERVER_ADDRESS: where the cluster takes jobs, for a machine that is "
        "no node of it; port 8265 of the host in RAY_ADDRESS by default.",
    )
    ray_working_dir: str | None = Field(
        default=None,
        description="NORMSCOPE_RAY_WORKING_DIR: folder of code that jobs on the cluster run "
        "instead of the code installed there, e.g. a checkout.",
    )
    ray_wait_s: NonNegativeFloat = Field(
        default=600,
        description="NORMSCOPE_RAY_WAIT_S: seconds to wait for a cluster that lacks the cores or "
        "GPUs asked for, as nodes may join; 600 by default.",
    )
    aws_endpoint_url: str | None = Field(
        default=None,
        validation_alias="AWS_ENDPOINT_URL",
        description="AWS_ENDPOINT_URL: an S3 server other than Amazon's, e.g. "
        "`http://127.0.0.1:9103`. Keys and region come from the usual AWS variables.",
    )

    pseudonym_key: SecretStr | None = Field(
        default=None,
        description="NORMSCOPE_PSEUDONYM_KEY: at least 64 hexadecimal digits, from which the "
        "pseudonyms of patients and studies are made (`openssl rand -hex 32`); DICOM files need "
        "it. Keep it secret and apart from the data.",
    )

    log_format: Literal["text", "json"] = Field(
        default="text",
        description="NORMSCOPE_LOG_FORMAT: `json` writes each line of the log as a JSON object "
        "with time, level, logger, message, and the flow run's id and name; `text` by default.",
    )
    notify_url: SecretStr | None = Field(
        default=None,
        description="NORMSCOPE_NOTIFY_URL: where `normscope deploy` has Prefect send word of "
        "drift, undecided promotions and failed runs: an `https://` webhook that takes JSON, or "
        "any Apprise URL, e.g. `mailtos://...`. Without it nobody is notified.",
    )
    gpus: PositiveInt | None = Field(
        default=None,
        description="NORMSCOPE_GPUS: number of GPUs that all runs together may use, which "
        "`normscope deploy` sets as Prefect's concurrency limit `gpu`; no limit by default.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="NORMSCOPE_METRICS_TOKEN: bearer token that `normscope metrics` asks of "
        "whoever reads the metrics; needed wherever it listens beyond loopback.",
    )

    @field_validator("home", mode="after")
    @classmethod
    def _make_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @property
    def state_url(self) -> str:
        """Where checkpoints, searches, ledgers and weights are kept; an absolute path or a URL."""
        state = self.state or str(self.home)
        return state if "://" in state else str(Path(state).expanduser().absolute())

    def place(self, folder: str, given: str | None = None) -> str:
        """Choose where something of the state is kept: as given, else a folder of the state.

        Args:
            folder: Name below `NORMSCOPE_STATE`, e.g. `training`.
            given: Path or URL that a parameter names; it wins.

        Raises:
            SettingsError: It is on this machine's disk, though a server or cluster elsewhere is
                in use, whose other users would not find it.
        """
        url = given or join(self.state_url, folder)
        engine = self.remote_engine
        if engine is not None and not url.startswith(_SHARED):
            problem = f"{url} is on this machine's disk, but {engine} is elsewhere"
            remedy = "Name an `s3://` URL, or `file:///...` for a folder that every host mounts"
            raise SettingsError("NORMSCOPE_STATE", problem, remedy)
        return url

    @property
    def remote_engine(self) -> str | None:
        """The first server or cluster in use that is not on this machine: variable and address."""
        addresses = {
            "RAY_ADDRESS": self.ray_address,
            "PREFECT_API_URL": self.prefect_api_url,
            "MLFLOW_TRACKING_URI": self.mlflow_tracking_uri,
        }
        found = ((k, v) for k, v in addresses.items() if v and not _is_here(v))
        return next((f"{name}={_hide_password(address)}" for name, address in found), None)

    @property
    def mlflow_artifact_root(self) -> Path | None:
        """Where artifacts of a database without a server go; None where a server decides."""
        if self.mlflow_tracking_uri.startswith(("http://", "https://")):
            return None
        return self.home / "mlflow" / "artifacts"


def library_environment(settings: Settings) -> dict[str, str]:
    """The variables that libraries read, for this process and those it starts.

    Args:
        settings: Settings that name the home folder and the S3 endpoint.

    Returns:
        Names and values; none of them is meant to replace one that is already set.
    """
    variables = dict(QUIET)
    if settings.log_format == "json":
        variables["PREFECT_LOGGING_SETTINGS_PATH"] = str(LOGGING_FILE)
    variables["NORMSCOPE_HOME"] = str(settings.home)
    if short_temporary_folder() != tempfile.gettempdir():
        variables["RAY_TMPDIR"] = short_temporary_folder()
    variables["PREFECT_HOME"] = str(settings.home / "prefect")
    if _has_own_ray_token(settings):
        variables["RAY_AUTH_MODE"] = "token"
        variables["RAY_AUTH_TOKEN_PATH"] = str(settings.home / "ray" / "token")
    variables["MLFLOW_TRACKING_URI"] = settings.mlflow_tracking_uri
    if settings.mlflow_artifact_root is not None:
        # MLflow's own default is a folder `mlruns` wherever the process happens to stand.
        variables["_MLFLOW_SERVER_ARTIFACT_ROOT"] = settings.mlflow_artifact_root.as_uri()
    if "SSL_CERT_FILE" in os.environ:  # what most libraries read, but not requests and boto3
        authorities = os.environ["SSL_CERT_FILE"]
        variables["REQUESTS_CA_BUNDLE"] = variables["AWS_CA_BUNDLE"] = authorities
    if settings.aws_endpoint_url is not None:
        variables["MLFLOW_S3_ENDPOINT_URL"] = settings.aws_endpoint_url
        variables["AWS_EC2_METADATA_DISABLED"] = "true"
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        variables["AWS_REGION"] = variables["AWS_DEFAULT_REGION"] = region
        if settings.aws_endpoint_url.startswith("http://"):
            variables["AWS_ALLOW_HTTP"] = "true"
    return variables


def job_environment(settings: Settings) -> dict[str, str]:
    """The variables that a job on a Ray cluster gets: no secrets, and no places of this machine.

    Keys and passwords come from the environment of the cluster's own nodes.

    Args:
        settings: Settings that name servers and state.
    """
    here = ("NORMSCOPE_HOME", "PREFECT_HOME", "RAY_AUTH_", "RAY_TMPDIR", "_MLFLOW_")
    variables = {k: v for k, v in library_environment(settings).items() if not k.startswith(here)}
    variables["NORMSCOPE_STATE"] = settings.state_url
    variables["RAY_COLOR_PREFIX"] = "0"  # its log is read by Prefect's page, not by a terminal
    if settings.aws_endpoint_url is not None:
        variables["AWS_ENDPOINT_URL"] = settings.aws_endpoint_url
    return variables


def prepare_environment(settings: Settings) -> None:
    """Set the libraries' variables in this process; call it before importing those libraries.

    Makes the home folder and, where Ray has no token yet, a token that only this user may read.

    Args:
        settings: Settings that name the home folder and the S3 endpoint.
    """
    for folder in ("mlflow", "prefect", "ray"):
        (settings.home / folder).mkdir(parents=True, exist_ok=True)
    if _has_own_ray_token(settings):
        create_token(settings.home / "ray" / "token")
    adopt_environment(library_environment(settings))
    adopt_environment(_describe_user(settings))
    os.environ.update(_spare_loopback())


def short_temporary_folder() -> str:
    """A temporary folder in which Ray's sockets fit: their paths may not exceed 107 characters."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _SOCKETS_FOLDER_LENGTH else "/tmp"  # noqa: S108 -- Ray's own


def _describe_user(settings: Settings) -> dict[str, str]:
    """Home and name of a user whom the system does not know, as in many containers.

    Prefect and MLflow ask for both when they are imported or used.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"HOME": str(settings.home), "LOGNAME": f"uid-{os.getuid()}"}
    return {}


def _spare_loopback() -> dict[str, str]:
    """`NO_PROXY` with this machine, where a proxy is set: no proxy reaches the servers here."""
    if not any(os.environ.get(name) for name in _PROXIES):
        return {}
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy", "")
    spared = [name.strip() for name in known.split(",")]
    spared += [name for name in _LOOPBACK_NAMES if name not in spared]
    text = ",".join(filter(None, spared))
    return {"NO_PROXY": text, "no_proxy": text}


def load_settings() -> Settings:
    """Read the settings and set the libraries' variables accordingly; every flow begins so."""
    settings = Settings()
    prepare_environment(settings)
    return settings


def adopt_environment(variables: Mapping[str, str]) -> None:
    """Set variables in this process, unless they are set already.

    Args:
        variables: Names and values, e.g. the addresses of a running stack.
    """
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def child_environment(settings: Settings, **variables: str) -> dict[str, str]:
    """The whole environment for a process that we start.

    Args:
        settings: Settings that name the home folder and the S3 endpoint.
        **variables: Variables that win over everything else.

    Returns:
        The libraries' defaults, over them this process's own variables, over them `variables`.
        This Python's folder comes first in `PATH`: a Ray node runs a job's driver by the `python`
        that it finds there.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ours = {"PATH": path, **_spare_loopback()}
    return {**library_environment(settings), **os.environ, **ours, **variables}


def _has_own_ray_token(settings: Settings) -> bool:
    """Whether to make a token for Ray: it runs on this machine, and nothing else is set."""
    if os.environ.get("RAY_AUTH_TOKEN_PATH") == str(settings.home / "ray" / "token"):
        return True
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return False
    return settings.ray_address is None or _is_here(settings.ray_address)


def _is_here(address: str) -> bool:
    """Whether an address is of this machine: a loopback name, or no network address at all."""
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme not in {"http", "https", "ray"}:
        return scheme in {"sqlite", "file"}
    host = rest.rpartition("@")[2].partition("/")[0].removesuffix("]").rsplit("]:", 1)[0]
    name = host.lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name in _HERE or name.startswith("127.") or rest.startswith("/")


def _hide_password(address: str) -> str:
    """An address without user and password."""
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def create_token(path: Path) -> None:
    """Write a random token that only this user may read, unless one is there."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
