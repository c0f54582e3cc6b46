"""A call as a Ray job: for a machine that is no node of the cluster.

    flow's process                      cluster
      submit  --- call.json (state) ---> driver, `training.cluster.driver`
      follow  <-- log lines, progress ---   |  runs the function beside the workers
      result  <-- outcome.json (state) ---  v

The job outlives the process that has submitted it. A later call on the same subject finds it: the
same call follows it, another one is refused, so that no run ever has two drivers.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import AbsentError, UnreachableError
from pipeline.io import storage
from pipeline.records import Progress, ignore_progress
from training.cluster.calls import Call, decode_outcome, is_result
from training.cluster.connection import WorkersError
from training.cluster.job_log import JobLog

R = TypeVar("R")

_ANSWER_S: Final = 30.0  # time limit of one request
_OUTAGE_S: Final = 300.0  # a cluster may be away for that long
_APPEAR_S: Final = 30.0  # between the record of a call and its job
_LOOK_EVERY_S: Final = 1.0
_STOP_S: Final = 30.0
_JOBS_PORT: Final = 8265
_NEVER_STARTED: Final = (1, 126, 127)  # exit statuses of an import that fails, and of a shell
CALL: Final = "call.json"
OUTCOME: Final = "outcome.json"
DEFECT: Final = 3  # exit status of a driver that fails by a defect

logger: Final = logging.getLogger(__name__)


def stop_never(error: BaseException) -> bool:  # noqa: ARG001 -- a default
    """Let the job go on, whatever ends the process that follows it."""
    return False


@dataclass(frozen=True)
class JobPlace:
    """Where jobs run, and what they get.

    Args:
        address: URL at which the cluster takes jobs, e.g. `http://ray-head:8265`.
        jobs_url: Folder of calls and outcomes that this machine and the cluster share.
        variables: Environment variables of the job; no secrets, as Ray's pages show them.
        working_dir: Folder of code to run instead of the code installed on the cluster.
    """

    address: str
    jobs_url: str
    variables: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None


def name_jobs_address(address: str) -> str:
    """Where a cluster takes jobs, by its usual port.

    Args:
        address: Address of the cluster, `host:port`.
    """
    return f"http://{address.removeprefix('ray://').rpartition(':')[0]}:{_JOBS_PORT}"


def run_as_job(
    function: Callable[..., R],
    arguments: Mapping[str, object],
    place: JobPlace,
    *,
    subject: str,
    owner: str | None = None,
    on_progress: Progress = ignore_progress,
    should_stop: Callable[[BaseException], bool] = stop_never,
) -> R:
    """Call a function in a job on the cluster, and follow it to its end.

    Args:
        function: Function of ours. The job adds `ray_address`, and `on_progress` where the
            function takes it.
        arguments: The other arguments of the function by name; their types go into JSON.
        place: Cluster that runs the job, and folder of its call.
        subject: Name of the run or output that the call works on, by one job at a time.
        owner: Identifier of the flow run that asks; it gets the result of its own earlier call.
        on_progress: Called with what is done and what there is in all.
        should_stop: Whether what interrupts this process is to end the job too.

    Raises:
        NormscopeError: The error that the function raised, of its own class.
        WorkersError: The cluster refuses the job, or another call works on the subject.
        UnreachableError: The cluster does not answer, or has lost the job.
        RuntimeError: The driver has failed by a defect.
    """
    call = Call.of(function, arguments, subject=subject, owner=owner)
    client = _connect(place.address)
    name = _find_or_submit(client, place, call)
    try:
        status = _follow(client, name, on_progress)
    except BaseException as error:
        if should_stop(error):
            _stop(client, name)
        else:
            logger.warning("Job %s goes on; the same call finds it again", name)
        raise
    return _conclude(client, name, status, function, storage.join(place.jobs_url, name, OUTCOME))


class _Client(JobSubmissionClient):
    """Ray's client, with a time limit for each request and errors that tell what may pass."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            answer = super()._do_request(method, endpoint, timeout=_ANSWER_S, **options)
        except OSError as error:
            problem, remedy = "no Ray cluster takes jobs there", "Start it, or correct the address"
            raise UnreachableError(self.get_address(), problem, remedy) from error
        except AuthenticationError as error:
            remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
            raise WorkersError(self.get_address(), "refuses this token", remedy) from error
        if answer.status_code >= 500:
            last = answer.text.strip().splitlines()[-1:]
            problem = f"answers {answer.status_code} ({''.join(last)[:300]})"
            raise UnreachableError(self.get_address(), problem, "Look at the head's logs")
        return answer

    def read_ray_version(self) -> str:
        """Version of Ray on the cluster's head."""
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


def _connect(address: str) -> _Client:
    client = _Client(address)
    theirs = client.read_ray_version()
    if theirs != ray.__version__:
        problem = f"runs Ray {theirs}, this is Ray {ray.__version__}"
        raise WorkersError(address, problem, "Install the same version on both")
    return client


def _find_or_submit(client: _Client, place: JobPlace, call: Call) -> str:
    """The job of a call: one that runs, one of this owner that has ended well, or a new one."""
    prefix = _name_attempts(place, call)
    while True:
        jobs = client.list_jobs()
        running = _find_running(jobs, call)
        if running is not None:
            return running
        earlier = _list_attempts(place, prefix)
        for name in reversed(earlier):
            if _is_own_result(place, name, call):
                return name
        known = (str(job.submission_id) for job in jobs)
        names = {*earlier, *(name for name in known if name.startswith(prefix))}
        last = max((int(name.removeprefix(prefix)) for name in names), default=0)
        name = f"{prefix}{last + 1}"
        if not storage.create_bytes(storage.join(place.jobs_url, name, CALL), call.to_bytes()):
            continue  # another process was first
        if names and _appears(client, f"{prefix}{last}", call):
            storage.delete(storage.join(place.jobs_url, name, CALL))
            continue
        _submit(client, place, call, name)
        return name


def _find_running(jobs: Iterable[JobDetails], call: Call) -> str | None:
    """The job that works on the subject of a call now.

    Raises:
        WorkersError: It belongs to another call.
    """
    for job in jobs:
        known = job.metadata or {}
        if known.get("subject") != call.subject or job.status.is_terminal():
            continue
        if known.get("call") != call.digest:
            problem = f"job {job.submission_id} works on it with other arguments"
            remedy = "Wait for it, or stop it on Ray's page"
            raise WorkersError(call.subject, problem, remedy)
        logger.info("Job %s does this already; following it", job.submission_id)
        return str(job.submission_id)
    return None


def _name_attempts(place: JobPlace, call: Call) -> str:
    """What the names of all jobs of a call begin with; two states may share a cluster."""
    digest = sha256(f"{place.jobs_url}\n{call.digest}".encode()).hexdigest()[:12]
    return f"{call.function.rpartition(':')[2].replace('_', '-')}-{digest}-"


def _list_attempts(place: JobPlace, prefix: str) -> list[str]:
    names = storage.list_folder(place.jobs_url)[1]
    return sorted((n for n in names if n.startswith(prefix)), key=lambda n: int(n[len(prefix) :]))


def _is_own_result(place: JobPlace, name: str, call: Call) -> bool:
    """Whether a job of the same owner has ended with a result while nobody followed it."""
    if call.owner is None:
        return False
    try:
        outcome = storage.read_bytes(storage.join(place.jobs_url, name, OUTCOME))
        recorded = Call.from_bytes(storage.read_bytes(storage.join(place.jobs_url, name, CALL)))
    except AbsentError:
        return False
    return is_result(outcome) and recorded.owner == call.owner


def _appears(client: _Client, name: str, call: Call) -> bool:
    """Whether the job of an earlier attempt comes up, whose submitter may be at it right now."""
    deadline = time.monotonic() + _APPEAR_S
    while True:
        jobs = client.list_jobs()
        if _find_running(jobs, call) is not None:
            return True
        is_known = any(job.submission_id == name for job in jobs)
        if is_known or time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY_S)


def _submit(client: _Client, place: JobPlace, call: Call, name: str) -> None:
    environment: dict[str, Any] = {"env_vars": dict(place.variables)}
    if place.working_dir:
        environment["working_dir"] = place.working_dir
    folder, digest = storage.join(place.jobs_url, name), sha256(call.to_bytes()).hexdigest()
    try:
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "training.cluster.driver", folder, digest]),
            submission_id=name,
            runtime_env=environment,
            metadata={"subject": call.subject, "call": call.digest},
        )
    except RuntimeError as error:
        problem = f"does not take the job ({str(error).strip()[:300]})"
        raise WorkersError(place.address, problem, "Look at the head's logs") from error
    logger.info("Job %s submitted to %s", name, place.address)


def _follow(client: _Client, name: str, on_progress: Progress) -> JobStatus | None:
    """Pass on a job's log until it ends; None if the cluster does not know it any more."""
    answered, log = time.monotonic(), JobLog(client, name, on_progress)
    while True:
        try:
            status: JobStatus | None = client.get_job_status(name)
            answered = time.monotonic()
        except UnreachableError as error:
            if time.monotonic() - answered > _OUTAGE_S:
                raise
            logger.warning("Waiting for the cluster: %s", error)
            log.reopen()
        except RuntimeError:  # 404: a restarted head has forgotten it
            return None
        else:
            log.pass_on()
            if status is not None and status.is_terminal():
                log.finish()
                return status
        time.sleep(_LOOK_EVERY_S)


def _conclude(
    client: _Client, name: str, status: JobStatus | None, function: Callable[..., R], url: str
) -> R:
    try:
        return decode_outcome(function, storage.read_bytes(url))
    except AbsentError:
        pass
    if status is JobStatus.STOPPED:
        raise WorkersError(f"job {name}", "was stopped", "Run it again: it goes on from there")
    if status is None:
        problem, remedy = "is lost: the cluster has restarted", "Run it again: it goes on"
        raise UnreachableError(f"job {name}", problem, remedy)
    details = client.get_job_info(name)
    if details.driver_exit_code == DEFECT:
        raise RuntimeError(f"the driver of job {name} failed; its log above says why")
    message = (details.message or "").strip()
    last = "".join(message.splitlines()[-1:])[-200:]
    if details.driver_exit_code in _NEVER_STARTED:
        problem = f"the head's `python` cannot run Normscope ({last})"
        remedy = "Start Ray there with Normscope's environment first in PATH"
        raise WorkersError(f"job {name}", problem, remedy)
    problem = f"its driver has died ({message[:200]})"
    raise UnreachableError(f"job {name}", problem, "Give the head more memory; see its logs")


def _stop(client: _Client, name: str) -> None:
    """Stop a job and wait for its end, so that its workers are free again."""
    logger.info("Stopping job %s", name)
    client.stop_job(name)
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline and not client.get_job_status(name).is_terminal():
        time.sleep(_LOOK_EVERY_S)
