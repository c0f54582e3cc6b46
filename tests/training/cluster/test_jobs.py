"""Calls as Ray jobs on a real cluster: result, errors, log, progress, one driver, cancelling."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from flows.local import processes
from flows.local.services import ray_head
from flows.shared.settings import Settings
from pipeline.errors import SchemaError, StorageError, UnreachableError
from tests.conftest import HOME, ROOT
from tests.support.called import Doubled, break_down, double, refuse, wait
from training.cluster import jobs
from training.cluster.calls import decode_outcome
from training.cluster.connection import Share, WorkersError, is_node_of, running_ray
from training.cluster.jobs import CALL, OUTCOME, JobPlace, run_as_job
from training.cluster.map import ray_engine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """Address of a cluster of one node, and where it takes jobs."""
    service = ray_head(Settings(home=HOME), 0, 0, cpus=2)
    with processes.running(service, HOME) as address:
        port = service.command[service.command.index("--dashboard-port") + 1]
        yield address, f"http://127.0.0.1:{port}"


@pytest.fixture
def place(head: tuple[str, str], tmp_path: Path) -> JobPlace:
    """The cluster, with a folder for calls of this test's own."""
    variables = {"PYTHONPATH": str(ROOT), "RAY_TRAIN_V2_ENABLED": "1"}
    return JobPlace(head[1], str(tmp_path / "jobs"), variables)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def list_drivers(folder: Path) -> list[Path]:
    return sorted(folder.glob("driver-*"))


def follow(place: JobPlace, folder: Path, **options: object) -> Callable[[], list[int]]:
    """Call `wait` in another thread; what is returned waits for its end and gives the result."""
    found: list[int] = []

    def call() -> None:
        found.append(
            run_as_job(wait, {"folder": str(folder)}, place, subject="a run", **options)  # type: ignore[arg-type]  # as given
        )

    thread = threading.Thread(target=call)
    thread.start()

    def finish() -> list[int]:
        thread.join(60)
        return found

    return finish


def test_a_call_comes_back_with_result_log_and_progress(
    place: JobPlace, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        found = run_as_job(
            double, {"number": 21}, place, subject="s", on_progress=lambda *at: seen.append(at)
        )
    assert found.number == 42
    assert math.isnan(found.nothing)
    assert found.node
    assert (seen[0], seen[-1]) == ((1, 3), (3, 3))
    assert ("training.called", logging.WARNING, "doubling 21") in caplog.record_tuples


def test_an_error_for_the_user_keeps_its_class_and_a_defect_stays_one(
    place: JobPlace, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SchemaError, match=r"lake: is empty at auto\. Fill it"):
        run_as_job(refuse, {"dataset": "lake"}, place, subject="refused")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match=r"the driver of job break-down-.*failed"),
    ):
        run_as_job(break_down, {}, place, subject="broken")
    assert "ValueError: a defect at auto" in caplog.text


def test_the_same_call_follows_the_job_that_runs_and_another_is_refused(
    place: JobPlace, tmp_path: Path
) -> None:
    first, second = follow(place, tmp_path), None
    wait_until(lambda: len(list_drivers(tmp_path)) == 1)
    with pytest.raises(WorkersError, match=r"a run: job wait-.* works on it with other arguments"):
        run_as_job(wait, {"folder": "other"}, place, subject="a run")
    second = follow(place, tmp_path)
    time.sleep(2)
    (tmp_path / "go").touch()
    assert first() == second() == [4]
    assert len(list_drivers(tmp_path)) == 1


def test_two_at_once_start_one_driver(place: JobPlace, tmp_path: Path) -> None:
    both = [follow(place, tmp_path), follow(place, tmp_path)]
    wait_until(lambda: len(list_drivers(tmp_path)) == 1)
    time.sleep(3)
    (tmp_path / "go").touch()
    assert [finish() for finish in both] == [[4], [4]]
    assert len(list_drivers(tmp_path)) == 1


def test_what_ended_unfollowed_is_found_by_its_owner_alone(place: JobPlace, tmp_path: Path) -> None:
    class Away(Exception):  # noqa: N818 -- stands for the death of the process
        pass

    def leave(*_: object) -> None:
        raise Away

    arguments = {"folder": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_follow", leave)
        with pytest.raises(Away):
            run_as_job(wait, arguments, place, subject="a run", owner="flow-1")
    wait_until(lambda: len(list_drivers(tmp_path)) == 1)
    (tmp_path / "go").touch()
    wait_until(lambda: len(list(tmp_path.glob(f"jobs/*/{OUTCOME}"))) == 1)
    assert run_as_job(wait, arguments, place, subject="a run", owner="flow-1") == 4
    assert len(list_drivers(tmp_path)) == 1
    assert run_as_job(wait, arguments, place, subject="a run", owner="flow-2") == 4
    assert len(list_drivers(tmp_path)) == 2


def test_cancelling_stops_the_driver_and_a_dying_process_does_not(
    place: JobPlace, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        wait_until(lambda: len(list_drivers(tmp_path)) == 1)
        raise KeyboardInterrupt

    client = JobSubmissionClient(place.address)
    for should_stop, status in ((False, "RUNNING"), (True, "STOPPED")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jobs, "_follow", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_as_job(
                    wait,
                    {"folder": str(tmp_path)},
                    place,
                    subject="cancelled",
                    should_stop=lambda _, answer=should_stop: answer,  # type: ignore[misc]  # a default binds it
                )
        [job] = [j for j in client.list_jobs() if (j.metadata or {}).get("subject") == "cancelled"]
        assert job.status == status
    pid = int(list_drivers(tmp_path)[0].name.removeprefix("driver-"))
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_driver_that_dies_is_told_of_and_a_second_call_starts_another(
    place: JobPlace, tmp_path: Path
) -> None:
    finish = follow(place, tmp_path)
    wait_until(lambda: len(list_drivers(tmp_path)) == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        os.kill(int(list_drivers(tmp_path)[0].name.removeprefix("driver-")), signal.SIGKILL)
        assert finish() == []
    (tmp_path / "go").touch()
    assert run_as_job(wait, {"folder": str(tmp_path)}, place, subject="a run") == 4
    assert len(list_drivers(tmp_path)) == 2


def test_a_call_that_was_changed_on_its_way_is_not_run(place: JobPlace, tmp_path: Path) -> None:
    class ChangingClient(jobs._Client):
        def submit_job(self, **options: object) -> str:
            [folder] = (tmp_path / "jobs").iterdir()
            content = json.loads((folder / CALL).read_bytes())
            (folder / CALL).write_text(json.dumps({**content, "function": "os:system"}))
            return super().submit_job(**options)  # type: ignore[arg-type]  # passed on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_Client", ChangingClient)
        with pytest.raises(StorageError, match="is not the call that was submitted"):
            run_as_job(refuse, {"dataset": "lake"}, place, subject="changed")


def test_a_head_whose_python_lacks_normscope_says_so(place: JobPlace, tmp_path: Path) -> None:
    (tmp_path / "code/training").mkdir(parents=True)
    (tmp_path / "code/training/__init__.py").write_text("import no_such_module\n")
    lacking = dataclasses.replace(place, working_dir=str(tmp_path / "code"))
    with pytest.raises(WorkersError, match=r"`python` cannot run Normscope .*Start Ray there"):
        run_as_job(refuse, {"dataset": "lake"}, lacking, subject="no python")


def test_no_cluster_a_wrong_token_and_no_secret_on_the_page(
    place: JobPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = JobPlace("http://127.0.0.1:9", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9: no Ray cluster takes jobs there"):
        run_as_job(wait, {"folder": ""}, nowhere, subject="s")
    assert os.environ["RAY_AUTH_TOKEN_PATH"]
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    shown = JobSubmissionClient(place.address)._do_request("GET", "/api/jobs/").text
    assert token not in shown


def test_only_a_node_can_drive(head: tuple[str, str]) -> None:
    host, _, port = head[0].rpartition(":")
    assert is_node_of(head[0])
    assert is_node_of(f"localhost:{port}")
    assert is_node_of("auto")
    assert not is_node_of(f"{host}:1")
    assert not is_node_of(f"no-such-host.invalid:{port}")


def test_gpus_that_a_cluster_never_gets_are_not_waited_for_without_end(
    head: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(WorkersError, match=r"1 GPU needed, 0 available after 2 s\. Ask for less"),
        running_ray(head[0], 1, Share(gpus=1, wait_s=2)),
    ):
        pass
    assert "waiting up to 2 s for nodes to join" in caplog.text


def test_a_worker_without_gpus_sees_none(head: tuple[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with ray_engine(head[0], workers=1) as map_work:
            assert list(map_work(os.getenv, ["CUDA_VISIBLE_DEVICES"])) == [""]


def test_an_outcome_cannot_name_a_class_that_is_no_error_of_ours() -> None:
    fields = {"item": "a", "problem": "b", "remedy": "c"}
    for name in ("training.cluster.calls:Call", "os:system", "pipeline.errors:Nothing"):
        data = json.dumps({"error": name, **fields}).encode()
        with pytest.raises(Exception, match=r"a: b\. c") as caught:
            decode_outcome(double, data)
        assert type(caught.value).__name__ == "NormscopeError"
    assert Doubled(1, 2.0, "n").number == 1
