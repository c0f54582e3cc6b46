"""The deployments as written down: every flow is there, and triggers are what Prefect takes."""

from __future__ import annotations

from importlib import import_module

import yaml
from prefect import Flow
from prefect.events import DeploymentEventTrigger

from flows.cli import _FLOWS
from flows.deployments import PREFECT_FILE

DEPLOYMENTS = yaml.safe_load(PREFECT_FILE.read_text())["deployments"]


def test_every_flow_of_the_command_line_is_deployed() -> None:
    deployed = {entry["entrypoint"].replace(".", "/") for entry in DEPLOYMENTS}
    commands = {flow.replace(":", ".").replace(".", "/") for flow, _, _ in _FLOWS.values()}
    assert commands == deployed
    for entry in DEPLOYMENTS:
        module, _, name = entry["entrypoint"].rpartition(".")
        assert isinstance(getattr(import_module(module), name), Flow)


def test_nightly_runs_by_the_clock_and_after_a_promotion_once_made_active() -> None:
    (nightly,) = (entry for entry in DEPLOYMENTS if entry["name"] == "nightly")
    assert nightly["concurrency_limit"] == 1
    assert [schedule["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    (trigger,) = (DeploymentEventTrigger.model_validate(each) for each in nightly["triggers"])
    assert trigger.expect == {"mlflow.model.promoted"}
    assert nightly["triggers"][0]["match"] == {"prefect.resource.id": "mlflow.model.*"}
    assert not trigger.enabled
    assert not nightly["schedules"][0]["active"]
