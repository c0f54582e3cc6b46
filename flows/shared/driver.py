"""Where the driver of a Ray cluster runs: in this process, or as a job on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from prefect import runtime
from prefect.client.orchestration import get_client

from flows.shared.settings import Settings, job_environment
from pipeline.errors import SettingsError
from pipeline.records import Progress, ignore_progress
from training.cluster.connection import is_node_of
from training.cluster.jobs import JobPlace, name_jobs_address, run_as_job

P = ParamSpec("P")
R = TypeVar("R")


def needs_job(settings: Settings) -> bool:
    """Whether a call that uses the Ray cluster must run as a job on it.

    Args:
        settings: Settings that name the cluster.
    """
    if settings.ray_address is None:
        return settings.ray_api_server_address is not None
    return not is_node_of(settings.ray_address)


def drive(function: Callable[P, R], settings: Settings, *, subject: str) -> Callable[..., R]:
    """Prepare a call that uses Ray: in this process, or as a job that this process follows.

    A process can drive a cluster only on one of its nodes. Elsewhere the call becomes a Ray job,
    whose log and progress come back, which ends when the flow run is cancelled, and which the
    same call finds again after this process has died.

    Args:
        function: Function of `training`, with a parameter `ray_address`; it is called by keywords.
        settings: Settings that name the cluster and the state.
        subject: Name of the run or output that the call works on; of two jobs on it the second is
            refused.
    """

    @wraps(function)
    def call_here(*args: P.args, **arguments: P.kwargs) -> R:
        arguments["ray_address"] = settings.ray_address
        return function(*args, **arguments)

    @wraps(function)
    def call_there(*, on_progress: Progress = ignore_progress, **arguments: object) -> R:
        arguments.pop("ray_address", None)  # Prefect adds every default
        _require_urls(arguments)
        owner = runtime.flow_run.id
        return run_as_job(
            function,
            arguments,
            _choose_place(settings),
            subject=subject,
            owner=str(owner) if owner else None,
            on_progress=on_progress,
            should_stop=_is_cancelled,
        )

    return call_there if needs_job(settings) else call_here


def _choose_place(settings: Settings) -> JobPlace:
    return JobPlace(
        settings.ray_api_server_address or name_jobs_address(settings.ray_address or ""),
        settings.place("jobs"),
        job_environment(settings),
        settings.ray_working_dir,
    )


def _require_urls(arguments: Mapping[str, object]) -> None:
    """Refuse a place on this machine's disk, which the cluster does not see.

    Raises:
        SettingsError: An argument is such a place.
    """
    for name, value in arguments.items():
        is_place = isinstance(value, str) and name.endswith(("_url", "_uri"))
        if is_place and str(value).startswith(("/", "sqlite:")):
            problem = f"{value} is on this machine's disk, but the Ray cluster is elsewhere"
            if name == "tracking_uri":
                remedy = "Set MLFLOW_TRACKING_URI to an MLflow server"
            else:
                remedy = "Name an `s3://` URL, or `file:///...` for a folder on every host"
            raise SettingsError(name.removesuffix("_url"), problem, remedy)


def _is_cancelled(error: BaseException) -> bool:
    """Whether a person wants the work to end, and not only this process has to."""
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, Exception) or runtime.flow_run.id is None:
        return False
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())
