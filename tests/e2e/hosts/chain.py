"""The chain by `prefect deployment run`: what is triggered, followed and looked at afterwards."""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pipeline.io import storage
from tests.e2e.hosts.network import Lan
from tests.e2e.hosts.servers import S3_CLIENT, SECRETS, USER, Servers

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FINAL: Final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Chain:
    """Runs deployments on the hosts.

    Args:
        lan: Network of the hosts.
        servers: Their servers.
    """

    lan: Lan
    servers: Servers

    def trigger(self, deployment: str, **parameters: object) -> str:
        """Trigger a deployment by Prefect's command, and return the run's identifier.

        Args:
            deployment: Name, `flow/deployment`.
            parameters: Parameters of the flow.
        """
        command = ("prefect", "--no-prompt", "deployment", "run", deployment)
        printed = self.servers.run_command(*command, "--params", json.dumps(parameters))
        found = _UUID.search(printed)
        assert found is not None, printed
        return found.group()

    def finish(self, run: str, limit_s: float = 300) -> Mapping[str, Any]:
        """Wait until a flow run has ended well.

        Args:
            run: Identifier of the run.
            limit_s: Time limit in seconds.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            state = self.read_state(run)
            if state and state["type"] in FINAL:
                assert state["type"] == "COMPLETED", f"{state}\n{self.read_log(run)}"
                return state
            time.sleep(1)
        raise AssertionError(f"run {run} did not end in {limit_s:g} s\n{self.read_log(run)}")

    def run(self, deployment: str, limit_s: float = 300, **parameters: object) -> str:
        """Trigger a deployment, wait until the run has ended well, and return its log.

        Args:
            deployment: Name, `flow/deployment`.
            limit_s: Time limit in seconds.
            parameters: Parameters of the flow.
        """
        run = self.trigger(deployment, **parameters)
        self.finish(run, limit_s)
        return self.read_log(run)

    def read_state(self, run: str) -> Mapping[str, Any] | None:
        """State of a flow run; None while Prefect's server does not answer."""
        try:
            state: Mapping[str, Any] = self._ask("GET", f"flow_runs/{run}")["state"]
        except OSError:
            return None
        return state

    def read_log(self, run: str) -> str:
        """Log of a flow run, as Prefect's page shows it."""
        lines: list[str] = []
        while True:
            wanted = {
                "logs": {"flow_run_id": {"any_": [run]}},
                "sort": "TIMESTAMP_ASC",
                "limit": 200,
                "offset": len(lines),
            }
            found = self._ask("POST", "logs/filter", wanted)
            lines += [f"{entry['name']}: {entry['message']}" for entry in found]
            if len(found) < wanted["limit"]:  # type: ignore[operator]  # a number
                return "\n".join(lines)

    def peek_log(self, run: str) -> str:
        """Log of a flow run; empty while Prefect's server does not answer."""
        try:
            return self.read_log(run)
        except OSError:
            return ""

    def give_up(self, run: str) -> None:
        """Set a run whose process is gone to cancelled, so that nobody starts it again."""
        state = {"type": "CANCELLED", "name": "Cancelled", "message": "its process is gone"}
        self._ask("POST", f"flow_runs/{run}/set_state", {"state": state, "force": True})

    def wait_for_log(self, run: str, text: str, limit_s: float = 180) -> None:
        """Wait until a flow run's log holds some words.

        Args:
            run: Identifier of the run.
            text: The words.
            limit_s: Time limit in seconds.
        """
        deadline = time.monotonic() + limit_s
        while text not in self.read_log(run):
            state = self.read_state(run)
            is_over = state is not None and state["type"] in FINAL
            if is_over or time.monotonic() > deadline:
                raise AssertionError(f"no {text!r}:\n{state}\n{self.read_log(run)}")
            time.sleep(1)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        address = self.lan.hosts["control"].address
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{address}:4200/api/{path}", data=data, method=method
        )
        password = base64.b64encode(f"{USER}:{SECRETS['prefect']}".encode()).decode()
        request.add_header("Authorization", f"Basic {password}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- http
            return json.load(answer)


@contextmanager
def reading_s3(lan: Lan) -> Iterator[None]:
    """Let this process read the hosts' S3 while the block runs."""
    endpoint = f"http://{lan.hosts['s3'].address}:9000"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3_CLIENT.items():
            patch.setenv(name, endpoint if "ENDPOINT" in name else value)
        storage.reset_connections()
        yield
    storage.reset_connections()
