"""Deploying again, on a real server: what was set on Prefect's page stays, what is new arrives."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore

from flows.local.deployments import deploy_all

pytestmark = pytest.mark.slow
NIGHTLY, PROMOTE = "score/nightly", "promote/default"


@pytest.fixture(autouse=True)
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)


def set_on_page() -> None:
    """Set what a site sets: parameters, another hour, a second schedule, the trigger."""
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        [schedule] = nightly.schedules
        assert not schedule.active
        hours = (("0 4 * * *", "nightly"), ("0 12 * * 1-5", "noon"))
        schedules = [
            DeploymentScheduleUpdate(
                schedule=CronSchedule(cron=cron, timezone="Europe/Berlin"), active=True, slug=slug
            )
            for cron, slug in hours
        ]
        parameters = {"source": "s3://lake/new", "output": "s3://lake/out", "model_name": "m"}
        job_variables = {"env": {"NORMSCOPE_WORKERS": "3"}}
        client.update_deployment(
            nightly.id,
            DeploymentUpdate(
                schedules=schedules,
                parameters=parameters,
                job_variables=job_variables,
                concurrency_limit=2,
                tags=["ward 7"],
            ),
        )
        promote = client.read_deployment_by_name(PROMOTE)
        client.update_deployment(promote.id, DeploymentUpdate(parameters={"wait_s": 60}))
        [trigger] = [each for each in client.read_automations() if each.name == "promoted"]
        wanted = AutomationCore.model_validate(trigger.model_dump(exclude={"owner_resource"}))
        client.update_automation(trigger.id, wanted.model_copy(update={"enabled": True}))


def test_a_second_deploy_keeps_what_was_set() -> None:
    assert deploy_all().kept == ()
    set_on_page()
    assert set(deploy_all().kept) == {NIGHTLY, PROMOTE}
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        found = {(each.slug, each.schedule.cron, each.active) for each in nightly.schedules}  # type: ignore[union-attr]  # cron both
        assert found == {("nightly", "0 4 * * *", True), ("noon", "0 12 * * 1-5", True)}
        assert nightly.parameters["source"] == "s3://lake/new"
        environment = nightly.job_variables["env"]
        assert environment["NORMSCOPE_WORKERS"] == "3"
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"  # the file's own
        assert nightly.global_concurrency_limit is not None
        assert nightly.global_concurrency_limit.limit == 2
        assert nightly.tags == ["ward 7", "normscope"]
        assert client.read_deployment_by_name(PROMOTE).parameters == {"wait_s": 60}
        [trigger] = [each for each in client.read_automations() if each.name == "promoted"]
        assert trigger.enabled
