"""Ceph's daemons and tools as one server in one folder: run, start, find again, stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class ServerError(Exception):
    """The server cannot be started; says why and what to do."""


@dataclass(frozen=True)
class Server:
    """One server and the folder that holds all of it.

    Args:
        folder: Absolute; made by the first start.
    """

    folder: Path

    @property
    def state_path(self) -> Path:
        """Written last by the first start: keys and the gateway's port."""
        return self.folder / "state.json"

    @property
    def configuration(self) -> Path:
        """Where every daemon and tool learns of the others."""
        return self.folder / "ceph.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of this server, which is also how we know it for ours."""
        # By default the process id tells a daemon from its predecessor: after a crash in a
        # container both have the same, and the others wait for a minute and a half.
        ours = {"CEPH_CONF": str(self.configuration), "CEPH_USE_RANDOM_NONCE": "1"}
        return {**os.environ, **ours}

    def run(self, *command: str, text: str | None = None) -> str:
        """Run one of Ceph's tools to its end; its output, or ServerError with what it said."""
        done = subprocess.run(  # noqa: S603  # Ceph's own tools, no shell
            command,
            env=self.environment,
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0:
            raise ServerError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def start_daemon(self, name: str, *command: str) -> None:
        """Start a daemon, unless it runs, in a session of its own."""
        if self.find_pid(name) is not None:
            return
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(  # noqa: S603  # Ceph's own daemons, no shell
                [*command, "-f"],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.folder / "run" / f"{name}.pid").write_text(str(daemon.pid))
        # Linux shows a new program's environment a moment later than the program.
        while daemon.poll() is None and self.find_pid(name) is None:
            time.sleep(0.01)
        daemon.returncode = 0  # it outlives this process on purpose

    def find_pid(self, name: str) -> int | None:
        """The daemon's process, verified to be this server's; None when it is gone."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if b"CEPH_CONF=" + os.fsencode(self.configuration) in variables else None

    def stop_daemon(self, name: str, patience_s: float = 30.0) -> None:
        """Ask a daemon to end, and kill it when it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.find_pid(name)
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while self.find_pid(name) is not None and time.monotonic() < deadline:
                time.sleep(0.1)
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def wait_until(self, holds: Callable[[], bool], daemon: str, timeout_s: float = 90.0) -> None:
        """Return once something holds; ServerError when the daemon dies or time runs out."""
        deadline = time.monotonic() + timeout_s
        log = self.folder / "log" / f"{daemon}.out"
        while not holds():
            if self.find_pid(daemon) is None:
                raise ServerError(f"{daemon} stopped while starting: read the end of {log}")
            if time.monotonic() > deadline:
                raise ServerError(f"{daemon} took over {timeout_s:.0f} s to start: read {log}")
            time.sleep(0.2)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold other starts and stops of the same folder back."""
        # The keys in it open every daemon, on ports that each user of the machine reaches.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "s3_server.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
