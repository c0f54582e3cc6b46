"""What Prefect's server does by itself: lost runs run again, people are told; really killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.events.schemas.automations import Automation
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Failed, Pending, Scheduled
from prefect.types.entrypoint import EntrypointType
from pydantic import SecretStr

from flows.local import processes, services
from flows.local.automations import PREFIX, TAG, make_repairs, ship_automations
from flows.local.services import POOL
from flows.shared.events import DRIFTED, HELD
from flows.shared.limits import cancel_late_runs
from flows.shared.settings import Settings
from tests.support.lost import linger
from tests.support.notified import Mailbox, listening

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def server(prefect_server: str) -> Iterator[str]:
    """A server on which no automation of ours is left."""
    yield prefect_server
    with get_client(sync_client=True) as client:
        for automation in read_ours():
            client.delete_automation(automation.id)


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with listening() as found:
        yield found


def read_ours() -> list[Automation]:
    with get_client(sync_client=True) as client:
        return [each for each in client.read_automations() if each.name.startswith(PREFIX)]


def test_automations_are_made_once_set_right_and_taken_away(mailbox: Mailbox) -> None:
    notifying = Settings(notify_url=SecretStr(f"http://127.0.0.1:{mailbox.port}/"))
    names = ship_automations(notifying)
    first = {each.name: each for each in read_ours()}
    assert sorted(first) == sorted(names)
    assert len(names) == 6

    altered, disabled = first[names[0]], first[names[1]]
    with get_client(sync_client=True) as client:
        body = altered.model_dump(exclude={"id", "owner_resource"}) | {"description": "altered"}
        client.update_automation(altered.id, type(make_repairs()[0]).model_validate(body))
        client.pause_automation(disabled.id)
    assert ship_automations(notifying) == names
    second = {each.name: each for each in read_ours()}
    assert {name: each.id for name, each in second.items()} == {
        name: each.id for name, each in first.items()
    }
    assert second[names[0]] == altered
    assert not second[names[1]].enabled

    assert ship_automations(Settings()) == names[:3]
    assert sorted(each.name for each in read_ours()) == sorted(names[:3])


def deploy(folder: Path) -> UUID:
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    deployment: Any = linger.to_deployment(
        "lost",
        parameters={"folder": str(folder)},
        tags=[TAG],
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    identifier: UUID = deployment.apply()
    return identifier


def wait_for_start(folder: Path) -> int:
    """The process of the first start."""
    deadline = time.monotonic() + 120
    while not (folder / "start-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return int((folder / "start-0").read_text())


def wait_for_end(run: UUID) -> FlowRun:
    deadline = time.monotonic() + 180
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_flow_run(run)
            if found.state is not None and found.state.is_completed():
                return found
            time.sleep(0.5)
        states = [each.name for each in client.read_flow_run_states(run)]
    raise TimeoutError(f"the run has not completed: {states}")


def name_states(run: UUID) -> list[str | None]:
    with get_client(sync_client=True) as client:
        return [each.name for each in client.read_flow_run_states(run)]


def worker(home: Path, url: str) -> Any:
    addresses = {"PREFECT_API_URL": url, "PYTHONPATH": str(Path(__file__).parents[3])}
    return processes.running(services.prefect_worker(Settings(home=home), addresses), home)


def kill_with_worker(process: int) -> None:
    """Kill a flow's process, and before it the worker that would tell of its end."""
    flow_process = psutil.Process(process)
    parents = takewhile(lambda each: each.pid != os.getpid(), flow_process.parents())
    for each in (*reversed(list(parents)), flow_process):
        each.kill()


def test_a_killed_run_is_marked_as_crashed_and_runs_again(server: str, tmp_path: Path) -> None:
    ship_automations(Settings())
    with worker(tmp_path, server), get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deploy(tmp_path))
        os.kill(wait_for_start(tmp_path), signal.SIGKILL)
        ended = wait_for_end(run.id)
    states = name_states(run.id)
    assert states.index("Crashed") < states.index("AwaitingRetry") < states.index("Completed")
    assert ended.run_count == 2


def test_a_run_is_found_lost_when_its_worker_has_died_with_it(server: str, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client:
        for automation in make_repairs(silence=timedelta(seconds=20)):
            client.create_automation(automation)
        with worker(tmp_path, server):
            run = client.create_flow_run_from_deployment(deploy(tmp_path))
            kill_with_worker(wait_for_start(tmp_path))
        assert name_states(run.id)[-1] == "Running"  # nobody was left to say otherwise
        with worker(tmp_path, server):
            ended = wait_for_end(run.id)
    states = name_states(run.id)
    assert states.index("Crashed") < states.index("AwaitingRetry") < states.index("Completed")
    assert ended.run_count == 2


def test_a_run_that_its_worker_took_and_never_began_is_handed_out_again(
    server: str, tmp_path: Path
) -> None:
    (tmp_path / "start-0").touch()  # the flow ends at once
    with get_client(sync_client=True) as client:
        for automation in make_repairs(patience=timedelta(seconds=10)):
            client.create_automation(automation)
        run = client.create_flow_run_from_deployment(deploy(tmp_path))
        client.set_flow_run_state(run.id, Pending())
        with worker(tmp_path, server):
            wait_for_end(run.id)
    states = name_states(run.id)
    assert states.index("Pending") < states.index("AwaitingRetry") < states.index("Completed")


def test_late_runs_of_the_same_work_collapse_into_one(server: str, tmp_path: Path) -> None:
    (tmp_path / "start-0").touch()
    deployment = deploy(tmp_path)
    with get_client(sync_client=True) as client:
        early = [client.create_flow_run_from_deployment(deployment) for _ in range(3)]
        other = client.create_flow_run_from_deployment(deployment, parameters={"folder": "b"})
        tomorrow: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
        later = client.create_flow_run_from_deployment(deployment, state=tomorrow)
        run = client.read_flow_run(early[1].id)
        with FlowRunContext.model_construct(flow_run=run):  # type: ignore[call-arg]  # no more is read
            assert cancel_late_runs() == 2
        found = [client.read_flow_run(each.id) for each in (*early, other, later)]
    cancelled = {each.id for each in found if each.state_type is StateType.CANCELLED}
    assert cancelled == {early[0].id, early[2].id}
    assert cancel_late_runs() == 0  # outside a run


@flow
def nothing() -> None:
    """Stand for one of our flows."""


@pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")  # within Apprise
@pytest.mark.parametrize("scheme", ["http", "json"])  # a webhook; an address of Apprise's
def test_people_are_told_of_drift_held_challengers_and_failed_runs(
    mailbox: Mailbox, scheme: str
) -> None:
    address = SecretStr(f"{scheme}://127.0.0.1:{mailbox.port}/key-of-the-webhook")
    ship_automations(Settings(notify_url=address))
    model = {"prefect.resource.id": "mlflow.model.pcam-anomaly", "version": "7"}
    emit_event(DRIFTED, resource=model, payload={"findings": ["the mean has moved", "so has x"]})
    emit_event(HELD, resource=model, payload={"outcome": "held", "reasons": []})
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(nothing, tags=[TAG])
        client.set_flow_run_state(run.id, Failed(message="/archive/SURNAME.svs is torn"))
        other = client.create_flow_run(nothing)  # of somebody else
        client.set_flow_run_state(other.id, Failed())
    told = [mailbox.wait_for(what) for what in ("drifted", "not promoted", "run has failed")]
    assert "mlflow.model.pcam-anomaly version 7: the mean has moved; so has x" in str(told[0])
    assert "mlflow.model.pcam-anomaly version 7: held" in str(told[1])
    assert f"{run.name} of nothing: Failed" in str(told[2])
    assert "SURNAME" not in str(told)
    assert other.name not in str(mailbox.notices)
