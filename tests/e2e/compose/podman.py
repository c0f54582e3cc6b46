"""podman by its command line."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

# crun refuses hybrid control groups; limits above our own need a right that we may lack.
_SETTINGS = """\
[containers]
default_ulimits = {limits}
[engine]
runtime = "runc"
"""
_MOST = 16384  # files and threads; more than 32768 threads are refused whatever the limit says


def _list_limits() -> list[str]:
    """What a container gets at most, in podman's words: as much as this process may give on."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    largest = {name: min(resource.getrlimit(each)[1], _MOST) for name, each in limits.items()}
    return [f"{name}={limit}:{limit}" for name, limit in largest.items()]


@dataclass(frozen=True, slots=True)
class Podman:
    """The engine, with settings of its own, so that this machine's stay as they are.

    Args:
        settings: File that holds them.
    """

    settings: Path

    @classmethod
    def configure(cls, folder: Path) -> Podman:
        """Write the settings to a folder."""
        path = folder / "containers.conf"
        path.write_text(_SETTINGS.format(limits=json.dumps(_list_limits())))
        return cls(path)

    @staticmethod
    def build_arguments() -> list[str]:
        """What `podman build` needs on the command line, as it does not read the settings' limits.

        NORMSCOPE_TEST_BUILD_ARGUMENTS adds to it.
        """
        further = shlex.split(os.environ.get("NORMSCOPE_TEST_BUILD_ARGUMENTS", ""))
        return ["--network=host", *(f"--ulimit={limit}" for limit in _list_limits()), *further]

    def environment(self) -> dict[str, str]:
        """What podman and podman-compose read; nothing else of ours."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        # Health checks are asked for by the tests: systemd, which does so elsewhere, may be absent.
        return {**kept, "CONTAINERS_CONF": str(self.settings), "DISABLE_HC_SYSTEMD": "true"}

    def __call__(self, *arguments: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        """Run a command of podman; what it printed."""
        return self.run(["podman", *arguments], stdin=stdin, timeout_s=timeout_s)

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command of podman ends with 0."""
        command = ["podman", *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, check=False)
        return done.returncode == 0

    def run(
        self,
        command: list[str],
        *,
        stdin: str | None = None,
        timeout_s: float = 300,
        variables: dict[str, str] | None = None,
    ) -> str:
        """Run any program in this environment; what it printed.

        Raises:
            AssertionError: It failed; the error holds the end of what it printed.
        """
        done = subprocess.run(
            command,
            env={**self.environment(), **(variables or {})},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{command[:6]}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout
