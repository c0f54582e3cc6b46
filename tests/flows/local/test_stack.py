"""The stack on this machine, with the real servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from flows.local import processes, services
from flows.local.loopback import ServiceError, answers
from flows.local.processes import Service
from flows.local.services import MLFLOW, PREFECT, RAY, WORKER
from flows.local.stack import (
    SERVICES,
    Stack,
    StackPorts,
    find_stack,
    running_mlflow_server,
    running_prefect_server,
    start_stack,
    stop_stack,
)
from flows.shared.settings import Settings, child_environment

ANY_PORTS = StackPorts(0, 0, 0, 0)

pytestmark = pytest.mark.slow


def port_of(url: str) -> int:
    return int(url.removesuffix("/api").rpartition(":")[2])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    # A long path with a space: databases, artifacts and sockets must bear it.
    home = tmp_path_factory.mktemp("home of the stack " + "x" * 60)
    settings = Settings(home=home, mlflow_tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db")
    yield settings
    stop_stack(settings)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Stack:
    return start_stack(settings, ANY_PORTS)


def test_one_command_gets_a_server_of_its_own_and_leaves_none(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with running_prefect_server(settings) as url:
        assert answers(port_of(url), "/api/health") == b"true"
    assert answers(port_of(url), "/api/health") is None
    assert (tmp_path / "prefect" / "prefect.db").exists()
    assert find_stack(settings) is None


def test_the_stack_answers_and_is_found_again(settings: Settings, stack: Stack) -> None:
    assert answers(port_of(stack.prefect_api_url), "/api/work_pools/local")
    assert answers(port_of(stack.mlflow_tracking_uri), "/health") == b"OK"
    assert find_stack(settings) == stack == start_stack(settings, ANY_PORTS)
    assert all(processes.find(name, settings.home) for name in SERVICES)


def test_one_command_uses_the_stack_where_it_runs(settings: Settings, stack: Stack) -> None:
    with running_prefect_server(settings) as url:
        assert url == stack.prefect_api_url
    with running_mlflow_server(settings) as uri:
        assert uri == stack.mlflow_tracking_uri
    assert answers(port_of(stack.prefect_api_url), "/api/health") == b"true"


def test_ray_takes_work_from_whoever_has_the_token(settings: Settings, stack: Stack) -> None:
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False);"
        "print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
    )
    command = [sys.executable, "-c", code, stack.ray_address]
    environment = child_environment(settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["42"], done.stderr
    wrong = settings.home / "wrong token"
    wrong.write_text("0" * 64)
    environment["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "uthentication" in done.stderr


def test_runs_are_the_same_with_and_without_the_server(
    settings: Settings, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing may be left where the process happens to stand
    text = tmp_path / "note.txt"
    text.write_text("seen by both")
    server = mlflow.MlflowClient(stack.mlflow_tracking_uri)
    run = server.create_run(server.create_experiment("with a server"))
    server.log_artifact(run.info.run_id, str(text))
    text.unlink()
    alone = mlflow.MlflowClient(settings.mlflow_tracking_uri)
    copy = alone.download_artifacts(run.info.run_id, "note.txt", str(settings.home))
    assert Path(copy).read_text() == "seen by both"
    assert run.info.artifact_uri.startswith((settings.home / "mlflow" / "artifacts").as_uri())
    assert not list(tmp_path.iterdir())


def test_a_killed_worker_comes_back_and_the_others_stay(settings: Settings, stack: Stack) -> None:
    before = {name: processes.find(name, settings.home) for name in SERVICES}
    worker = before[WORKER]
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    while processes.find(WORKER, settings.home) is not None:
        time.sleep(0.05)
    assert find_stack(settings) is None
    assert start_stack(settings, ANY_PORTS) == stack
    after = {name: processes.find(name, settings.home) for name in SERVICES}
    assert {name for name in SERVICES if before[name] != after[name]} == {WORKER}


def test_stopping_stops_all_backwards(settings: Settings) -> None:
    stack = start_stack(settings, ANY_PORTS)
    records = [processes.find(name, settings.home) for name in SERVICES]
    assert stop_stack(settings) == [WORKER, RAY, MLFLOW, PREFECT]
    assert stop_stack(settings) == []
    assert find_stack(settings) is None
    for url in (stack.prefect_api_url, stack.mlflow_tracking_uri):
        assert answers(port_of(url), "/health") is None
    scratch = [record.scratch for record in records if record and record.scratch]
    assert len(scratch) == 1
    assert not Path(scratch[0]).exists()


@pytest.mark.parametrize("position", range(4))
def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path, position: int) -> None:
    settings = Settings(home=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [0, 0, 0, 0]
        ports[position] = taken.getsockname()[1]
        name = (PREFECT, MLFLOW, RAY, RAY)[position]
        with pytest.raises(ServiceError, match=f"port {ports[position]}: {name} needs it"):
            start_stack(settings, StackPorts(*ports))
    assert not (tmp_path / "run").exists()


def test_what_had_been_started_is_stopped_when_the_next_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(name: str, code: str) -> None:
        command = (sys.executable, "-c", f"import sys, time; {code}")
        service = Service(
            name, command, dict(os.environ), "http://127.0.0.1:1", lambda: name == PREFECT
        )
        maker = {PREFECT: "prefect_server", MLFLOW: "mlflow_server"}[name]
        monkeypatch.setattr(services, maker, lambda *_: service)

    fake(PREFECT, "time.sleep(600)")
    fake(MLFLOW, "sys.exit(5)")
    with pytest.raises(ServiceError, match="mlflow-server stopped with status 5"):
        start_stack(Settings(home=tmp_path), ANY_PORTS)
    assert not list((tmp_path / "run").glob("*.json"))


def test_the_default_experiment_lies_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Settings().mlflow_artifact_root
    assert root is not None
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/new.db")
    experiment = client.get_experiment_by_name("Default")
    assert experiment is not None
    assert experiment.artifact_location == f"{root.as_uri()}/0"
    assert [path.name for path in tmp_path.iterdir()] == ["new.db"]
