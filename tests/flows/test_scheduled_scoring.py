"""A schedule finds what was dropped meanwhile; a new champion ranks everything anew.

By a real Prefect server and process worker, as `normscope up` starts them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from flows.local import processes, services
from flows.local.services import POOL
from flows.registry.rollback import rollback
from flows.score import score
from flows.shared.settings import Settings
from pipeline.io import storage
from tests.support.registered import NAME, own_mlflow, register
from tests.support.waves import make_dataset, paint
from training.registry.versions import set_alias

pytestmark = pytest.mark.slow

# The form of `flows/prefect.yaml`, which has a test of its own: each night there, here twice a
# minute, by a sixth field of seconds.
CRON = "* * * * * */30"
PROMOTED = {"match": {"prefect.resource.id": "mlflow.model.*"}, "expect": ["mlflow.model.promoted"]}


@pytest.fixture
def home(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two versions of a model, the second champion, and a worker that serves the pool."""
    with own_mlflow(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("NORMSCOPE_HOME", str(tmp_path))
        monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
        dataset = make_dataset(tmp_path)
        versions = [register(dataset, seed=seed).version for seed in (3, 4)]
        set_alias(NAME, "previous", versions[0])
        set_alias(NAME, "champion", versions[1])
        addresses = {"PREFECT_API_URL": prefect_server, "MLFLOW_TRACKING_URI": uri}
        with processes.running(services.prefect_worker(Settings(), addresses), tmp_path):
            yield tmp_path


def deploy(home: Path) -> UUID:
    """Let the score flow run after each promotion; a schedule of its own comes later."""
    deployment: Any = score.to_deployment(
        "dropped",
        parameters={
            "source": str(home / "inbox"),
            "output": str(home / "out"),
            "model_name": NAME,
            "top_heatmaps": 2,
            "ledgers": str(home / "ledgers"),
        },
        triggers=[DeploymentEventTrigger.model_validate(PROMOTED)],
        concurrency_limit=1,
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    identifier: UUID = deployment.apply()
    return identifier


@contextmanager
def scheduled(deployment: UUID) -> Iterator[None]:
    """By the clock, while the block runs."""
    clock = CronSchedule(cron=CRON, timezone="UTC")
    schedule = DeploymentScheduleCreate(schedule=clock, active=True)
    with get_client(sync_client=True) as client:
        (made,) = client.create_deployment_schedules(deployment, [schedule])
        yield
        client.delete_deployment_schedule(deployment, made.id)


def wait_for_run(deployment: UUID, *, after: datetime, by_the_clock: bool) -> FlowRun:
    """A run of a deployment that the schedule, or else an event, has begun, once it has ended."""
    only = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    )
    deadline = time.monotonic() + 240
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            for run in client.read_flow_runs(flow_run_filter=only):
                is_later = run.start_time is not None and run.start_time > after
                if is_later and run.auto_scheduled == by_the_clock:
                    return run
            time.sleep(0.5)
        states = [run.state_name for run in client.read_flow_runs(limit=20)]
    raise TimeoutError(f"no such run of the deployment has completed: {states}")


def read_scores(home: Path) -> dict[str, tuple[float, str]]:
    table = pq.read_table(BytesIO(storage.read_bytes(str(home / "out" / "scores.parquet"))))
    rows = zip(
        *(table[name].to_pylist() for name in ("image_id", "anomaly_score", "model_version")),
        strict=True,
    )
    return {name: (value, version) for name, value, version in rows}


def test_what_was_dropped_is_scored_by_the_clock_and_all_after_a_promotion(home: Path) -> None:
    inbox = home / "inbox"
    for number in range(6):
        paint(inbox / f"{number}.png", 100 + number)
    deployment = deploy(home)
    with scheduled(deployment):
        wait_for_run(deployment, after=datetime.now(UTC), by_the_clock=True)
        before = read_scores(home)
        paint(inbox / "6.png", 106)  # dropped
        paint(inbox / "7.png", 107)  # late: older than the last run
        os.utime(inbox / "7.png", (1e9, 1e9))
        paint(inbox / "2.png", 999)  # rewritten
        wait_for_run(deployment, after=datetime.now(UTC), by_the_clock=True)
    after = read_scores(home)
    assert sorted(before) == [f"{number}.png" for number in range(6)]
    assert sorted(after) == [f"{number}.png" for number in range(8)]
    assert {name for name in before if before[name] != after[name]} == {"2.png"}

    asked = datetime.now(UTC)
    rollback(NAME, reason="the event of a promotion", ledgers=str(home / "ledgers"))
    wait_for_run(deployment, after=asked, by_the_clock=False)
    assert {version for _, version in read_scores(home).values()} == {"1"}
    with get_client(sync_client=True) as client:
        only = ArtifactFilter.model_validate({"key": {"any_": ["ranking"]}})
        (moved,) = client.read_artifacts(artifact_filter=only)
    assert str(moved.data).startswith("Version 1 replaces version 2. Both have scored 8 images")
