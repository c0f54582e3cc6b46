"""Who reaches a server without its password or token is turned away; our own commands are not."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from flows.local import processes, services
from flows.local.access import USER, Access, password_path
from flows.local.loopback import HOST, ServiceError, answers
from flows.local.services import PREFECT
from flows.local.stack import Stack, StackPorts, find_stack, start_stack, stop_stack
from flows.registry.adopt import adopt
from flows.shared.settings import Settings, child_environment
from pipeline.errors import RegistryError
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import versions
from training.registry.versions import load_version

ANY_PORTS = StackPorts(0, 0, 0, 0)
REFUSED = {401, 403}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, mlflow_tracking_uri=f"sqlite:///{home}/mlflow/mlflow.db")
    yield settings
    stop_stack(settings)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Stack:
    """A stack that listens on every network."""
    return start_stack(settings, ANY_PORTS, Access("0.0.0.0"))  # noqa: S104  # what is tested


def port_of(url: str) -> int:
    return int(url.removesuffix("/api").rpartition(":")[2])


def ask(port: int, path: str, method: str = "GET", host: str = HOST) -> int:
    """The status that a server answers to somebody without password or token."""
    connection = HTTPConnection(host, port, timeout=10)
    try:
        body = "{}" if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def dashboard_port(settings: Settings) -> int:
    """The port of Ray's dashboard, as its process was told."""
    record = processes.find(services.RAY, settings.home)
    assert record is not None
    command = psutil.Process(record.pid).cmdline()
    return int(command[command.index("--dashboard-port") + 1])


def test_prefect_turns_strangers_away(stack: Stack) -> None:
    port = port_of(stack.prefect_api_url)
    for method, path in (
        ("POST", "/api/flow_runs/filter"),
        ("POST", "/api/deployments/filter"),
        ("POST", "/api/block_documents/filter"),
        ("GET", "/api/admin/settings"),
        ("POST", "/api/admin/database/clear"),
    ):
        assert ask(port, path, method) == 401, path
    assert answers(port, "/api/flow_runs/filter", {}, credentials=f"{USER}:wrong") is None
    assert answers(port, "/api/flow_runs/filter", {}, credentials=f"{USER}:{stack.password}")
    assert ask(port, "/api/health") == 200  # what a supervisor may ask


def test_mlflow_turns_strangers_away(stack: Stack) -> None:
    port = port_of(stack.mlflow_tracking_uri)
    for method, path in (
        ("GET", "/api/2.0/mlflow/registered-models/search"),
        ("POST", "/api/2.0/mlflow/experiments/search"),
        ("GET", "/ajax-api/2.0/mlflow/registered-models/search"),
        ("GET", "/get-artifact?path=a&run_uuid=b"),
        ("POST", "/api/2.0/mlflow/users/create"),
        ("GET", "/"),
    ):
        assert ask(port, path, method) in REFUSED, path
    path = "/api/2.0/mlflow/registered-models/search"
    assert answers(port, path, credentials=f"{USER}:wrong") is None
    assert answers(port, path, credentials=f"{USER}:{stack.password}")


def test_ray_turns_strangers_away(settings: Settings, stack: Stack) -> None:
    assert stack.ray_address
    port = dashboard_port(settings)
    for method, path in (
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("GET", "/nodes?view=summary"),
        ("GET", "/api/v0/logs"),
        ("GET", "/api/cluster_status"),
    ):
        assert ask(port, path, method) in REFUSED, path


def test_a_wrong_token_of_ray_is_named(settings: Settings, stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    code = (
        "import sys\n"
        "from training.cluster.connection import WorkersError, running_ray\n"
        "try:\n"
        "    with running_ray(sys.argv[1], 1): pass\n"
        "except WorkersError as error: print(error)\n"
    )
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run(
        [sys.executable, "-c", code, stack.ray_address],
        env=child_environment(settings, **wrong),
        capture_output=True,
        text=True,
        check=False,
    )
    said = "a server answers, but lets this process into no Ray cluster. Set RAY_AUTH_TOKEN"
    assert f"{stack.ray_address}: {said}" in done.stdout, done.stderr[-2000:]


def test_other_networks_are_turned_away_alike(settings: Settings, stack: Stack) -> None:
    outside = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not outside:
        pytest.skip("this machine is in no network")
    prefect, mlflow = port_of(stack.prefect_api_url), port_of(stack.mlflow_tracking_uri)
    assert ask(prefect, "/api/flow_runs/filter", "POST", outside[0]) == 401
    assert ask(mlflow, "/api/2.0/mlflow/registered-models/search", host=outside[0]) in REFUSED
    assert ask(dashboard_port(settings), "/api/jobs/", host=outside[0]) in REFUSED


def test_our_own_commands_need_no_password_to_be_typed(settings: Settings, stack: Stack) -> None:
    assert find_stack(settings) == stack
    code = (
        "import json, mlflow\n"
        "from prefect import flow\n"
        "from prefect.client.orchestration import get_client\n"
        "@flow\n"
        "def greet(): return 1\n"
        "greet()\n"
        "with get_client(sync_client=True) as client:\n"
        "    print(json.dumps([run.state_name for run in client.read_flow_runs()]))\n"
        "print(mlflow.MlflowClient().create_registered_model('toys').name)\n"
    )
    command = [sys.executable, "-c", code]
    environment = child_environment(settings, **stack.environment())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    states, name = done.stdout.splitlines()[-2:]
    assert (json.loads(states), name) == (["Completed"], "toys")


def test_the_password_is_written_where_only_its_owner_reads_it(
    settings: Settings, stack: Stack
) -> None:
    path = password_path(settings)
    assert stack.password == path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(stack.password) not in repr(stack)
    for name in services.PREFECT, services.MLFLOW, services.WORKER:
        record = processes.find(name, settings.home)
        assert record is not None
        assert str(stack.password) not in " ".join(psutil.Process(record.pid).cmdline())
    for log in (settings.home / "logs").iterdir():
        assert str(stack.password) not in log.read_text(), log


def test_servers_that_run_are_not_called_protected(settings: Settings, stack: Stack) -> None:
    assert stack.password
    with pytest.raises(ServiceError, match=f"{PREFECT}: it runs already.*`normscope down` first"):
        start_stack(settings, ANY_PORTS, Access(passwords=True))


def test_no_server_starts_open_to_other_machines(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"host 0\.0\.0\.0: whoever reaches .* password"):
        Access("0.0.0.0", passwords=False)  # noqa: S104  # what is tested
    assert not Access().asks_password
    assert Access(passwords=True).asks_password
    assert not (tmp_path / "access").exists()


def test_ray_does_not_start_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ServiceError, match=r"RAY_AUTH_MODE: it is disabled, .*Unset it"):
        services.ray_head(Settings(home=tmp_path), 0, 0)
    assert "RAY_AUTH_MODE" in os.environ


def run_command(settings: Settings, *tokens: str, **variables: str) -> tuple[int, list[str]]:
    """The exit status of a command, and the lines that it says of itself."""
    program = str(Path(sys.executable).with_name("normscope"))
    done = subprocess.run(
        [program, *tokens],
        env=child_environment(settings, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if "normscope:" in line]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PREFECT_API_AUTH_STRING": f"{USER}:wrong"}, "PREFECT_API_AUTH_STRING: the Prefect"),
        ({"PREFECT_API_AUTH_STRING": ""}, "PREFECT_API_AUTH_STRING: the Prefect server"),
        ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, "refuses these credentials. Set MLFLOW_TRACKING"),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
            "PREFECT_API_URL: no Prefect server answers",
        ),
    ],
)
def test_a_wrong_password_is_one_line_and_status_2(
    settings: Settings, stack: Stack, variables: dict[str, str], said: str
) -> None:
    environment = {**stack.environment(), **variables}
    status, lines = run_command(settings, "ledger", "toys-anomaly", **environment)
    assert (status, len(lines)) == (2, 1), lines
    assert said in lines[0]
    assert "wrong" not in lines[0]


def test_a_person_adopts_a_version_of_an_earlier_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with own_mlflow(tmp_path):
        with monkeypatch.context() as earlier:
            earlier.setattr(versions, "record_files", lambda *_, **__: None)
            register(make_dataset(str(tmp_path / "dataset"), normals=8))
        with pytest.raises(RegistryError, match="`normscope adopt`"):
            load_version(NAME, "1")
        report = adopt(
            NAME,
            version="challenger",
            name="A. Reader",
            reason="compared with our backup",
            ledgers=str(tmp_path / "ledgers"),
        )
        assert report.entries[-1].summary.endswith("by A. Reader: compared with our backup")
        assert load_version(NAME, "1").version == "1"


@pytest.mark.s3
def test_s3_turns_strangers_away(real_s3_url: str) -> None:
    bucket = real_s3_url.removeprefix("s3://")
    port = port_of(os.environ["AWS_ENDPOINT_URL"])
    assert ask(port, f"/{bucket}") == 403
    assert ask(port, f"/{bucket}/key", "PUT") == 403
