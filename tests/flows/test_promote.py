"""A challenger that the gate holds: the run pauses, and a person or the clock decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import resume_flow_run

from flows.promote import promote
from flows.registry.answer import answer
from flows.registry.ledger import ledger
from pipeline.errors import RegistryError
from pipeline.store.dataset import open_dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import promotion
from training.registry.promotion import PromotionReport
from training.registry.versions import aliases, resolve, set_alias

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

# So few images decide nothing between two untrained networks.
UNDECIDED: dict[str, Any] = {"margin": 0.0, "subgroup_margin": 1.0}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A champion, and a challenger of which nobody can tell whether it is better."""
    # That versions score alike in a fresh process has a test of its own, and takes long.
    monkeypatch.setattr(promotion, "check_reproduction", lambda *_: 0.0)
    with own_mlflow(tmp_path):
        dataset = make_dataset(str(tmp_path / "dataset"), normals=8)
        set_alias(NAME, "champion", register(dataset, seed=3).version)
        register(dataset, seed=4)
        yield tmp_path


def promote_within(place: Path, wait_s: int) -> PromotionReport:
    report: PromotionReport = promote(
        NAME, str(place / "dataset"), ledgers=str(place / "ledgers"), wait_s=wait_s, **UNDECIDED
    )
    return report


def find_paused() -> FlowRun:
    """The run that waits for a person, once there is one."""
    only = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_flow_runs(flow_run_filter=only)
            if found:
                return found[0]
            time.sleep(0.2)
    raise TimeoutError("no run has paused")


def test_a_person_resumes_the_run_and_the_alias_moves(place: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        promoting = pool.submit(copy_context().run, promote_within, place, 120)
        run = find_paused()
        assert aliases(NAME)["champion"] == "1"
        with pytest.raises(RuntimeError, match="verdict"):  # the server checks the form
            resume_flow_run(run.id, {"verdict": "perhaps", "name": "A. Reader", "reason": "?"})
        resume_flow_run(
            run.id, {"verdict": "approve", "name": "A. Reader", "reason": "looked at all of them"}
        )
        report = promoting.result()
    said = "Approved by A. Reader: looked at all of them"
    assert (report.decision.outcome, report.decision.reasons[0]) == ("promoted", said)
    assert aliases(NAME)["champion"] == "2"
    assert resolve(NAME, "2").tags["promotion_reason"] == said
    entries = ledger(NAME, ledgers=str(place / "ledgers")).entries[2:]  # two were registered
    assert [entry.kind for entry in entries] == ["found", "held", "promoted"]
    assert entries[2].content["answer"] == {
        "verdict": "approve",
        "name": "A. Reader",
        "reason": "looked at all of them",
    }
    assert entries[2].summary == "version 2, by A. Reader: looked at all of them"
    assert entries[2].at >= entries[1].at


def test_a_command_answers_where_nobody_waits_and_only_once(place: Path) -> None:
    assert promote_within(place, 0).decision.outcome == "held"
    said: dict[str, Any] = {"name": "B. Reader", "reason": "too few images"}
    report = answer(NAME, verdict="refuse", ledgers=str(place / "ledgers"), **said)
    assert report.decision.outcome == "refused"
    assert "Refused by B. Reader: too few images" in report.to_markdown()
    with pytest.raises(RegistryError, match=r"no challenger is held.*refused, version 2, by B"):
        answer(NAME, verdict="approve", ledgers=str(place / "ledgers"), **said)
    assert aliases(NAME)["champion"] == "1"


def test_a_form_answers_for_its_own_version_alone(place: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        promoting = pool.submit(copy_context().run, promote_within, place, 120)
        run = find_paused()
        register(open_dataset(str(place / "dataset")), seed=5)
        assert promote_within(place, 0).challenger_version == "3"
        resume_flow_run(
            run.id, {"verdict": "approve", "name": "A. Reader", "reason": "looked at version 2"}
        )
        with pytest.raises(RegistryError, match=r"about version 2, but .* now holds version 3"):
            promoting.result()
    assert aliases(NAME)["champion"] == "1"
    said: dict[str, Any] = {"name": "B. Reader", "reason": "too few images"}
    with pytest.raises(RegistryError, match=r"about version 2, .*--version 3"):
        answer(NAME, verdict="approve", version="2", ledgers=str(place / "ledgers"), **said)
    answer(NAME, verdict="approve", version="3", ledgers=str(place / "ledgers"), **said)
    assert aliases(NAME)["champion"] == "3"


def test_without_an_answer_in_time_the_challenger_is_refused(place: Path) -> None:
    report = promote_within(place, 1)
    assert report.decision.outcome == "refused"
    assert report.decision.reasons[0] == "Refused, as nobody answered within 1 s"
    assert aliases(NAME)["champion"] == "1"
    entries = ledger(NAME, ledgers=str(place / "ledgers")).entries[2:]  # two were registered
    assert [entry.kind for entry in entries] == ["found", "held", "refused"]
    assert entries[2].summary == "version 2"
