"""Servers on loopback as processes: start, wait until they answer, find again, stop."""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from flows.local.loopback import ServiceError

STAMP: Final = "NORMSCOPE_SERVICE"
"""Every process of a service carries its stamp in this variable: later commands find it by that."""

PATIENCE_S: Final = 15.0
"""How long a process may take to end before it is killed."""

DEATH_S: Final = 15.0
"""How long a killed process may take to be gone."""

# A process started with `&` by a script ignores SIGINT, and so do its children: a Prefect worker
# then lives on after SIGTERM. `--with-parent` has Linux end the service when its owner dies.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.argv[1] == "--with-parent" and sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Service:
    """A server and the command that starts it.

    Args:
        name: Names its log and its record, e.g. `prefect-server`.
        command: Program and arguments.
        environment: The whole environment of the process.
        url: Address for its clients.
        is_ready: Says whether it answers; asked several times a second.
        timeout_s: Longest time until the first answer, in seconds.
        scratch: Folder, e.g. of sockets, that is deleted after the service has ended.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    url: str
    is_ready: Callable[[], bool]
    timeout_s: float = 90.0
    scratch: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Record of a running service, in `<home>/run/<name>.json`.

    Args:
        pid: The process that we started, leader of its own process group.
        stamp: Value of the variable `STAMP` in it and in all that it starts.
        url: Address for its clients.
        scratch: Folder that is deleted after the service has ended.
    """

    pid: int
    stamp: str
    url: str
    scratch: str | None


def start(service: Service, home: Path) -> Record:
    """Start a service that outlives this process, unless it runs already.

    Args:
        service: Service to start.
        home: Home folder, with the record in `run/` and the output in `logs/`.

    Returns:
        The record of the service: the running one's, whose URL may differ from `service`'s.

    Raises:
        ServiceError: It stopped, or did not answer in time; the error names the log.
    """
    with _only_one_starts(home):
        running = find(service.name, home)
        if running is not None:
            return running
        stop(service.name, home)  # what a crash may have left of it
        process, record = _launch(service, home, with_parent=False)
        _record_path(service.name, home).write_text(json.dumps(asdict(record)))
        try:
            _wait_until_ready(service, process, home)
        except BaseException:
            stop(service.name, home)
            raise
        # It is meant to live on; Python would warn of a child that nobody waited for.
        process.returncode = 0
        return record


@contextmanager
def running(service: Service, home: Path) -> Iterator[str]:
    """Run a service for as long as the block lasts.

    Args:
        service: Service to run.
        home: Home folder, with the output in `logs/`.

    Yields:
        The service's URL.

    Raises:
        ServiceError: It stopped, or did not answer in time; the error names the log.
    """
    with _only_one_starts(home):
        process, record = _launch(service, home, with_parent=True)
        try:
            _wait_until_ready(service, process, home)
        except BaseException:
            _end(record)
            process.wait()
            raise
    try:
        yield service.url
    finally:
        _end(record)
        process.wait()


def find(name: str, home: Path) -> Record | None:
    """The record of a service, or None when its process is gone."""
    record = _read_record(name, home)
    if record is None or not any(member.pid == record.pid for member in _members(record)):
        return None
    return record


def stop(name: str, home: Path) -> bool:
    """Stop a service and whatever is left of it; False when nothing was running."""
    record = _read_record(name, home)
    if record is None:
        return False
    ended = _end(record)
    _record_path(name, home).unlink(missing_ok=True)
    return ended


def log_path(name: str, home: Path) -> Path:
    """Where a service's output goes."""
    return home / "logs" / f"{name}.log"


def _launch(
    service: Service, home: Path, *, with_parent: bool
) -> tuple[subprocess.Popen[bytes], Record]:
    """Start the process as the leader of a session of its own."""
    log = log_path(service.name, home)
    log.parent.mkdir(parents=True, exist_ok=True)
    stamp = secrets.token_hex(8)
    lifetime = "--with-parent" if with_parent else "--on-its-own"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # the commands are this project's own
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, lifetime, *service.command],
            env={**service.environment, STAMP: stamp},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, Record(process.pid, stamp, service.url, service.scratch)


def _wait_until_ready(service: Service, process: subprocess.Popen[bytes], home: Path) -> None:
    """Return once the service answers; raise ServiceError when it stops or stays silent."""
    deadline = time.monotonic() + service.timeout_s
    while time.monotonic() < deadline:
        status = process.poll()
        if status is not None:
            problem = f"{service.name} stopped with status {status} instead of starting"
            raise ServiceError(str(log_path(service.name, home)), problem, "Read the end of it")
        if service.is_ready():
            return
        time.sleep(0.1)
    problem = f"{service.name} did not answer at {service.url} within {service.timeout_s:.0f} s"
    raise ServiceError(str(log_path(service.name, home)), problem, "Read the end of it")


def _members(record: Record) -> list[psutil.Process]:
    """Every process of a service, children that lost their parent or their group included."""
    stamped: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(STAMP) == record.stamp:
                stamped[process.pid] = process
                # Programs that rename themselves overwrite the environment that we can see.
                stamped.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:
            continue  # not ours to look at, or already gone
    return [p for p in stamped.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _end(record: Record) -> bool:
    """Ask a service's processes to end and kill those that do not; whether there were any."""
    members = alive = _members(record)
    for number, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, DEATH_S)):
        for process in sorted(alive, key=lambda member: member.pid):
            _send(process, number)
        _, alive = psutil.wait_procs(alive, timeout=patience_s)
    if record.scratch is not None:
        shutil.rmtree(record.scratch, ignore_errors=True)
    return bool(members)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _record_path(name: str, home: Path) -> Path:
    return home / "run" / f"{name}.json"


def _read_record(name: str, home: Path) -> Record | None:
    """The record as last written; None where there is none or a crash cut it short."""
    try:
        return Record(**json.loads(_record_path(name, home).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def _only_one_starts(home: Path) -> Iterator[None]:
    """Let one command at a time start servers: two must not create one database."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
