"""A deployment's promotion that is held: no process waits, and the answer lets it finish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventRelatedFilter
from prefect.flow_runs import resume_flow_run
from prefect.types.entrypoint import EntrypointType

from flows.local import processes, services
from flows.local.services import POOL
from flows.promote import promote
from flows.registry.ledger import ledger
from flows.shared.events import HELD
from flows.shared.settings import Settings
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import aliases, set_alias

pytestmark = pytest.mark.slow

ANSWER = {"verdict": "approve", "name": "A. Reader", "reason": "looked at all of them"}


@pytest.fixture
def place(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A champion, a challenger of which nobody can tell whether it is better, and a worker."""
    with own_mlflow(tmp_path) as uri:
        monkeypatch.setenv("NORMSCOPE_HOME", str(tmp_path))
        dataset = make_dataset(str(tmp_path / "dataset"), normals=8)
        set_alias(NAME, "champion", register(dataset, seed=3).version)
        register(dataset, seed=4)
        addresses = {"PREFECT_API_URL": prefect_server, "MLFLOW_TRACKING_URI": uri}
        with processes.running(services.prefect_worker(Settings(), addresses), tmp_path):
            yield tmp_path


def start(place: Path, wait_s: int) -> UUID:
    """Trigger a promotion as a deployment."""
    deployment: Any = promote.to_deployment(
        "held",
        parameters={
            "model_name": NAME,
            "dataset": str(place / "dataset"),
            "ledgers": str(place / "ledgers"),
            "wait_s": wait_s,
            "margin": 0.0,
            "subgroup_margin": 1.0,
        },
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(deployment.apply()).id


def wait_for_state(run: UUID, *names: str) -> FlowRun:
    deadline = time.monotonic() + 240
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_flow_run(run)
            if found.state_name in names:
                return found
            time.sleep(0.3)
    raise TimeoutError(f"the run is {found.state_name}: {found.state and found.state.message}")


def read_entries(place: Path) -> list[str]:
    return [entry.kind for entry in ledger(NAME, ledgers=str(place / "ledgers")).entries]


def test_no_process_waits_and_the_answer_finishes_the_run(place: Path) -> None:
    run = start(place, wait_s=600)
    suspended = wait_for_state(run, "Suspended")
    process = int(str(suspended.infrastructure_pid).rpartition(":")[2])
    psutil.wait_procs([psutil.Process(process)] if psutil.pid_exists(process) else [], timeout=60)
    assert not psutil.pid_exists(process)
    assert aliases(NAME)["champion"] == "1"
    before = read_entries(place)
    assert before[-1] == "held"

    with pytest.raises(RuntimeError, match="verdict"):  # the server checks the form
        resume_flow_run(run, {**ANSWER, "verdict": "perhaps"})
    resume_flow_run(run, ANSWER)
    ended = wait_for_state(run, "Completed", "Failed", "Crashed")
    assert ended.state_name == "Completed"
    assert ended.infrastructure_pid != suspended.infrastructure_pid
    assert read_entries(place) == [*before, "promoted"]  # it has not judged twice
    assert aliases(NAME)["champion"] == "2"
    told = EventFilter(
        event=EventNameFilter(name=[HELD]),
        related=EventRelatedFilter(id=[f"prefect.flow-run.{run}"]),
    )
    with get_client(sync_client=True) as client:
        assert len(client.read_events(told, limit=50).events) == 1


def test_without_an_answer_the_run_fails_and_the_challenger_stays_held(place: Path) -> None:
    run = start(place, wait_s=1)
    ended = wait_for_state(run, "Failed")
    assert ended.state is not None
    assert "never resumed" in str(ended.state.message)
    assert read_entries(place)[-1] == "held"
    assert aliases(NAME)["champion"] == "1"
