"""The deployments as written down: every flow is there, and triggers are what Prefect takes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ParameterTypeError

from flows.cli import _FLOWS
from flows.ingest_images import ingest_images
from flows.ingest_xrays import ingest_xrays
from flows.local.automations import SILENCE, TAG
from flows.local.deployments import PREFECT_FILE

DEPLOYMENTS = yaml.safe_load(PREFECT_FILE.read_text())["deployments"]


def test_every_flow_of_the_command_line_is_deployed() -> None:
    deployed = {entry["entrypoint"].replace(".", "/") for entry in DEPLOYMENTS}
    commands = {flow.replace(":", ".").replace(".", "/") for flow, _, _ in _FLOWS.values()}
    assert commands == deployed
    for entry in DEPLOYMENTS:
        module, _, name = entry["entrypoint"].rpartition(".")
        assert isinstance(getattr(import_module(module), name), Flow)


def test_automations_know_every_deployment_and_hear_of_it_in_time() -> None:
    for entry in DEPLOYMENTS:
        assert entry["tags"] == [TAG]
        environment = entry["work_pool"]["job_variables"]["env"]
        often_s = int(environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert 3 * often_s < SILENCE.total_seconds()


def test_models_are_trained_side_by_side() -> None:
    one_at_a_time = {e["entrypoint"] for e in DEPLOYMENTS if "concurrency_limit" in e}
    # The nightly scoring has one output. A search that lost its worker must not keep out the one
    # that finds its job again.
    assert one_at_a_time == {"flows.score.score"}


@pytest.mark.parametrize("flow", [ingest_images, ingest_xrays])
def test_a_deployment_may_say_one_size_or_several(flow: Flow[..., Any]) -> None:
    for said, meant in ((64, (64,)), ([64, 224], (64, 224))):
        given = {"source": "in", "dataset": "out-{size_px}", "size_px": said}
        assert flow.validate_parameters(given)["size_px"] == meant
    one, several = flow.parameters.properties["size_px"]["anyOf"]  # what Prefect's server checks
    assert (one["type"], several["type"]) == ("integer", "array")
    with pytest.raises(ParameterTypeError, match="greater than or equal to 8"):
        flow.validate_parameters({"source": "in", "dataset": "out", "size_px": 7})


def test_nightly_runs_by_the_clock_and_after_a_promotion_once_made_active() -> None:
    (nightly,) = (entry for entry in DEPLOYMENTS if entry["name"] == "nightly")
    assert nightly["concurrency_limit"] == 1
    assert [schedule["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
    (trigger,) = (DeploymentEventTrigger.model_validate(each) for each in nightly["triggers"])
    assert trigger.expect == {"mlflow.model.promoted"}
    assert nightly["triggers"][0]["match"] == {"prefect.resource.id": "mlflow.model.*"}
    assert not trigger.enabled
    assert not nightly["schedules"][0]["active"]
