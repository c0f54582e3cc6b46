"""Limits across runs: one at a time on a model, so many GPUs; what the dead hold comes free."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.shared.limits import GPU, limited
from flows.shared.settings import Settings, child_environment
from pipeline.errors import SettingsError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def gpus() -> Iterator[int]:
    """As many GPUs as the house has, for one test."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU, 4)
        yield 4
        client.delete_global_concurrency_limit_by_name(GPU)


def follow_one_another(**slots: Any) -> bool:
    """Whether a second run enters only after a first one has left, which it lets wait."""
    inside, asked, leave = threading.Event(), threading.Event(), threading.Event()

    @flow
    def first() -> None:
        with limited(**slots):
            inside.set()
            assert leave.wait(timeout=300)

    @flow
    def second() -> bool:
        asked.set()
        with limited(**slots):
            return leave.is_set()

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(copy_context().run, first)
        assert inside.wait(timeout=300)
        waiting = pool.submit(copy_context().run, second)
        assert asked.wait(timeout=300)
        time.sleep(3)  # a run that does not wait is through by then
        leave.set()
        holding.result()
        return waiting.result()


def test_two_runs_on_one_model_follow_one_another() -> None:
    # A slash may stand in a model's name, though not in a limit's.
    assert follow_one_another(name=f"train-{uuid.uuid4()}/a model")


def test_runs_on_two_models_go_side_by_side() -> None:
    together = threading.Barrier(2)

    @flow
    def work(name: str) -> None:
        with limited(name):
            together.wait(timeout=60)

    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(copy_context().run, work, f"train-{uuid.uuid4()}") for _ in "ab"]:
            run.result()


def test_runs_share_the_gpus_and_none_asks_for_more_than_there_are(gpus: int) -> None:
    assert follow_one_another(gpus=2.5)  # three whole ones each, of four

    @flow
    def work() -> None:
        with limited(gpus=gpus + 1):
            pass

    with pytest.raises(SettingsError, match=rf"gpu.*wants {gpus + 1} .*limit is {gpus}"):
        work()


def test_without_a_limit_any_number_of_gpus_is_taken() -> None:
    @flow
    def work() -> str:
        with limited(gpus=1000):
            return "done"

    assert work() == "done"


def test_outside_a_run_nothing_is_held() -> None:
    with limited("train-x", gpus=1):
        pass


# By the shortest lease that Prefect grants.
HOLD = """
import sys
from flows.shared import limits
from tests.support.lost import hold
limits._LEASE_S = 60
hold(*sys.argv[1:])
"""


def test_the_slot_of_a_killed_run_comes_free(prefect_server: str, tmp_path: Path) -> None:
    name = f"train-{uuid.uuid4()}"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, name, str(tmp_path)],
        env=child_environment(Settings(), PREFECT_API_URL=prefect_server),
        cwd=Path(__file__).parents[3],
    )
    while not (tmp_path / "holding").exists():
        assert holder.poll() is None
        time.sleep(0.1)
    holder.kill()
    holder.wait()
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(name).active_slots == 1

    @flow
    def work() -> str:
        with limited(name):
            return "done"

    assert work() == "done"
