"""The Compose file under podman: start it, run flows in it, crash its containers, stop it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.compose import images
from tests.e2e.compose.podman import Podman

ROOT = Path(__file__).parents[3]
FILE = ROOT / "infra" / "compose.yaml"
PROJECT = "normscope-e2e"
# Another loopback address than the usual, where other servers of this machine are in the way.
ADDRESS = "127.0.0.2"
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MLFLOW_PASSWORD"),
    *("MLFLOW_SECRET_KEY", "RAY_AUTH_TOKEN", "NORMSCOPE_PSEUDONYM_KEY"),
)
_FACTS = Path(__file__).with_name("facts.py")


@dataclass(frozen=True, slots=True)
class ComposeStack:
    """One project of the Compose file.

    Args:
        podman: The engine.
        variables: What infra/.env would hold.
    """

    podman: Podman
    variables: dict[str, str]

    @classmethod
    def configure(cls, folder: Path) -> ComposeStack:
        """Draw secrets, or take up those that an earlier run has left in the folder."""
        kept = folder / "secrets.json"
        if not kept.exists():
            kept.touch(mode=0o600)
            kept.write_text(json.dumps({name: secrets.token_hex(32) for name in SECRETS}))
        sizes = {"DASK_WORKER_MEMORY": "2GiB", "PUBLISH_ADDRESS": ADDRESS}
        drawn: dict[str, str] = json.loads(kept.read_text())
        return cls(Podman.configure(folder), {**drawn, **sizes, **images.VARIABLES})

    def compose(
        self, *arguments: str, timeout_s: float = 900, changes: dict[str, str] | None = None
    ) -> str:
        """Run a command of podman-compose; what it printed.

        Args:
            *arguments: Words of the command line.
            timeout_s: Seconds after which the command counts as hung.
            changes: Variables that differ from the stack's.
        """
        command = ["podman-compose", "--in-pod=0", "-p", PROJECT, "-f", str(FILE), *arguments]
        variables = {**self.variables, **(changes or {})}
        return self.podman.run(command, timeout_s=timeout_s, variables=variables)

    def up(self) -> None:
        """Start everything at once: before 4.6 podman can wait for no health check.

        Who comes too early is started again by the engine, until what it needs is there.
        """
        self.compose("up", "--detach", "--no-deps")

    def containers(self) -> dict[str, list[str]]:
        """Names of the containers of each service."""
        label = f"label=io.podman.compose.project={PROJECT}"
        found: dict[str, list[str]] = {}
        for entry in json.loads(self.podman("ps", "-a", "--format", "json", "--filter", label)):
            service = entry["Labels"]["com.docker.compose.service"]
            found.setdefault(service, []).append(entry["Names"][0])
        return {service: sorted(names) for service, names in sorted(found.items())}

    def execute(
        self, service: str, *command: str, stdin: str | None = None, timeout_s: float = 300
    ) -> str:
        """Run a command in the first container of a service; what it printed."""
        name = self.containers()[service][0]
        flags = () if stdin is None else ("-i",)
        return self.podman("exec", *flags, name, *command, stdin=stdin, timeout_s=timeout_s)

    def inspect(self, name: str) -> dict[str, Any]:
        """State of a container."""
        state: dict[str, Any] = json.loads(self.podman("inspect", name))[0]["State"]
        return state

    def crash(self, name: str, timeout_s: float = 60) -> None:
        """Kill a container's first process, as a lack of memory would; return when it is back."""
        pid: int = self.inspect(name)["Pid"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while self.inspect(name)["Pid"] in {0, pid}:
            assert time.monotonic() < deadline, f"{name} was not started again"
            time.sleep(0.2)

    def wait_until_healthy(self, timeout_s: float = 300) -> float:
        """Wait until every health check of the Compose file succeeds; the seconds that it took."""
        began = time.monotonic()
        waiting = self.checked()
        while waiting:
            waiting = [
                name for name in waiting if not self.podman.succeeds("healthcheck", "run", name)
            ]
            taken = time.monotonic() - began
            assert taken < timeout_s, f"not healthy after {taken:.0f} s: {', '.join(waiting)}"
            time.sleep(1)
        return time.monotonic() - began

    def checked(self) -> list[str]:
        """Containers that are to run for good; `buckets` ends when its work is done."""
        return [
            name
            for service, names in self.containers().items()
            if service != "buckets"
            for name in names
        ]

    def run_flow(self, flow: str, parameters: dict[str, Any], timeout_s: float = 900) -> str:
        """Trigger a deployment by Prefect's command in the worker's container, and wait for it."""
        return self.execute(
            "worker",
            *("prefect", "deployment", "run", f"{flow}/default", "--watch"),
            *("--params", json.dumps(parameters)),
            timeout_s=timeout_s,
        )

    def facts(self) -> dict[str, Any]:
        """Registry, ledgers, deployments and datasets, as clients see them."""
        printed = self.execute("worker", "python", "-", stdin=_FACTS.read_text())
        facts: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return facts
