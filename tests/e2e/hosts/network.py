"""Hosts on one machine: a network, processes and a disk of their own each, by Linux' namespaces.

    this process --- lan (a bridge in a namespace) --- s3, control, worker, ray-head, ...

A host's processes see no others, and of the disk only the installed code is common, read-only, as
an image would be. A host can be cut off from the network and healed, or killed at once, as by a
loss of power, and started again with what was on its disk. Needs root, `ip` and `unshare`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[3]
NETWORK: Final = f"10.77.{os.getpid() % 250}"  # several may run side by side
_OWN: Final = 254  # last number of this process's own address
_PROGRAMS: Final = ("ip", "unshare", "nsenter", "mount")

_SETUP: Final = """
set -e
mount --make-rprivate /
mount --bind "$1/hosts" /etc/hosts
mount --bind "$2" "$2"
mount -o remount,bind,ro "$2"
mount -t tmpfs tmpfs /dev/shm
hostname "$3"
mount --bind "$1/$3/var" /var/tmp
mount --bind "$1/$3/tmp" /tmp
mkdir -p /tmp/home
touch /tmp/home/.up
exec sleep infinity
"""


def find_missing() -> str | None:
    """What this machine lacks for hosts of its own; None if nothing."""
    if os.geteuid() != 0:
        return "hosts need root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"hosts need {', '.join(missing)}" if missing else None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host; made by `Lan.add`.

    Args:
        name: Name by which the others find it.
        number: Last number of its address.
        lan: Its network.
        environment: Variables of every process on it.
    """

    name: str
    number: int
    lan: Lan
    environment: Mapping[str, str]
    _first: int = 0
    _holder: subprocess.Popen[bytes] | None = None
    _logs: Path = field(default_factory=Path)

    @property
    def address(self) -> str:
        """IP address of the host."""
        return f"{NETWORK}.{self.number}"

    @property
    def namespace(self) -> str:
        """Name of its network namespace."""
        return f"{self.lan.name}-{self.name}"

    @property
    def disk(self) -> Path:
        """Folder that is `/tmp` on the host, and outlives it."""
        return self.lan.folder / self.name / "tmp"

    def boot(self) -> None:
        """Begin the host's first process, which holds the others."""
        for part in ("tmp", "var"):
            (self.lan.folder / self.name / part).mkdir(parents=True, exist_ok=True)
        up = self.disk / "home" / ".up"
        up.unlink(missing_ok=True)
        holds = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        script = ("bash", "-c", _SETUP, "setup", str(self.lan.folder), str(REPOSITORY), self.name)
        inside = ("ip", "netns", "exec", self.namespace)
        self._holder = subprocess.Popen(
            # Nothing of it outlives this process, however that ends.
            ["setpriv", "--pdeathsig", "KILL", *inside, "unshare", *holds, *script],
            stderr=subprocess.DEVNULL,  # unshare has a word when it is killed
            start_new_session=True,
        )
        wait_until(up.exists, f"{self.name} boots")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self._first = int(children.split()[0])

    def start(
        self, *command: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program on the host; what it prints goes to the log of its name.

        Args:
            command: Program and arguments.
            variables: Environment variables beside the host's own.
        """
        name = Path(command[0]).name.removeprefix("python")
        log = self.lan.folder / "logs" / f"{self.name}-{name or command[2]}.log"
        with log.open("ab") as file:
            return subprocess.Popen(
                self._enter(command, variables or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(
        self, *command: str, limit_s: float = 300, variables: Mapping[str, str] | None = None
    ) -> str:
        """Run a program on the host to its end, and return what it prints.

        Args:
            command: Program and arguments.
            limit_s: Time limit in seconds.
            variables: Environment variables beside the host's own.
        """
        done = subprocess.run(
            self._enter(command, variables or {}),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert not done.returncode, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def kill(self) -> None:
        """End all processes of the host at once, as a loss of power does; its disk stays."""
        os.kill(self._first, signal.SIGKILL)  # all others of its namespace die with the first
        if self._holder is not None:
            self._holder.wait()

    def cut_off(self) -> None:
        """Take the host off the network; its processes go on."""
        _run("ip", "-n", self.lan.name, "link", "set", self._port, "down")

    def heal(self) -> None:
        """Put the host back on the network."""
        _run("ip", "-n", self.lan.name, "link", "set", self._port, "up")

    @property
    def _port(self) -> str:
        return f"to-{self.number}"

    def connect(self) -> None:
        """Make its network namespace, with one link to the network."""
        _run("ip", "netns", "add", self.namespace)
        ends = ("eth0", "netns", self.namespace, "type", "veth", "peer", "name", self._port)
        _run("ip", "link", "add", "name", *ends, "netns", self.lan.name)
        _run("ip", "-n", self.lan.name, "link", "set", self._port, "master", "bridge", "up")
        _run("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", self.namespace, "link", "set", device, "up")

    def _enter(self, command: tuple[str, ...], variables: Mapping[str, str]) -> list[str]:
        assigned = [f"{k}={v}" for k, v in {**self.environment, **variables}.items()]
        namespaces = ("--mount", "--pid", "--uts", "--ipc", "--net")
        return [
            *("nsenter", "--target", str(self._first), *namespaces, "--"),
            *("env", "--ignore-environment", "--chdir=/tmp/home", *assigned, *command),
        ]


@dataclass
class Lan:
    """A network of hosts.

    Args:
        name: Name of its namespace, unique on this machine and short.
        folder: Folder for the hosts' disks and logs.
        environment: Variables of every process on every host.
    """

    name: str
    folder: Path
    environment: Mapping[str, str]
    hosts: dict[str, Host] = field(default_factory=dict)

    def add(self, *names: str) -> None:
        """Make and boot hosts, which find each other by name.

        Args:
            names: Names of the hosts.
        """
        common = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp/home",  # noqa: S108 -- on a disk of the host's own
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NORMSCOPE_HOME": "/tmp/home/normscope",  # noqa: S108 -- the same
            **self.environment,
        }
        for name in names:
            self.hosts[name] = Host(name, len(self.hosts) + 1, self, common)
        table = [f"{host.address} {host.name}" for host in self.hosts.values()]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *table, ""]))
        (self.folder / "logs").mkdir(exist_ok=True)
        for name in names:
            self.hosts[name].connect()
            self.hosts[name].boot()


@contextmanager
def running_lan(folder: Path, environment: Mapping[str, str]) -> Iterator[Lan]:
    """A network without hosts yet, which goes with all of them when the block ends.

    Args:
        folder: Empty folder for the hosts' disks and logs.
        environment: Variables of every process on every host.
    """
    lan = Lan(f"ns{os.getpid()}", folder, environment)
    try:
        _run("ip", "netns", "add", lan.name)
        _run("ip", "-n", lan.name, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", lan.name, "link", "set", "bridge", "up")
        peer = ("type", "veth", "peer", "name", "to-own", "netns", lan.name)
        _run("ip", "link", "add", lan.name, *peer)
        _run("ip", "-n", lan.name, "link", "set", "to-own", "master", "bridge", "up")
        _run("ip", "address", "add", f"{NETWORK}.{_OWN}/24", "dev", lan.name)
        _run("ip", "link", "set", lan.name, "up")
        yield lan
    finally:
        for host in lan.hosts.values():
            if host._first and Path(f"/proc/{host._first}").exists():
                host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)
        subprocess.run(["ip", "link", "delete", lan.name], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", lan.name], check=False)


def wait_until(holds: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    """Wait until something holds.

    Args:
        holds: Function that tells; an error of the operating system counts as no.
        what: Words for what is waited for.
        limit_s: Time limit in seconds.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.2)
