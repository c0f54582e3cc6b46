"""MLflow servers that refuse, or that are too old, are named in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import mlflow
import pytest

from flows.local import processes, services
from flows.local.access import USER, Access, read_password
from flows.shared.settings import Settings
from pipeline.errors import RegistryError
from pipeline.store.dataset import Dataset
from tests.support.served import serving
from tests.support.toys import make_dataset, make_settings
from training.registry.runs import tracked_run
from training.registry.versions import aliases, load_version, recover_version, resolve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and password of an MLflow server that asks for one."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    service = services.mlflow_server(settings, 0, Access(passwords=True))
    with processes.running(service, settings.home) as url:
        yield url, str(read_password(settings))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(str(tmp_path_factory.mktemp("dataset")), normals=8)


@pytest.fixture(autouse=True)
def _tracking_uri() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def track(uri: str, dataset: Dataset) -> None:
    with tracked_run(
        tracking_uri=uri,
        experiment="toys",
        run_name="first",
        settings=make_settings(),
        dataset=dataset,
    ) as run:
        run.log_metrics({"a": 1.0})


def list_uses(url: str, dataset: Dataset) -> list[Callable[[], object]]:
    """What asks the server: reading of the registry, and a training."""
    return [
        lambda: aliases("toys"),
        lambda: resolve("toys", "1"),
        lambda: load_version("toys", "champion"),
        lambda: recover_version("toys", "0" * 32, ledgers_url=""),
        lambda: track(url, dataset),
    ]


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_wrong_password_is_named_and_not_said(
    server: tuple[str, str],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    password: str | None,
) -> None:
    url, _ = server
    if password is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    mlflow.set_tracking_uri(url)
    said = rf"the MLflow server at {url} refuses these credentials\. Set MLFLOW_TRACKING_USER"
    for use in list_uses(url, dataset):
        with pytest.raises(RegistryError, match=said) as error:
            use()
        assert "wrong" not in str(error.value)


def test_the_right_password_opens(
    server: tuple[str, str], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, password = server
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    track(url, dataset)
    with pytest.raises(RegistryError, match=r"not found.*`normscope train` first"):
        aliases("toys")


def test_a_password_in_the_address_is_not_said(server: tuple[str, str]) -> None:
    url, _ = server
    mlflow.set_tracking_uri(url.replace("//", f"//{USER}:wrong-password@"))
    with pytest.raises(RegistryError, match="refuses these credentials") as error:
        aliases("toys")
    assert "wrong-password" not in str(error.value)


class OldServer(BaseHTTPRequestHandler):
    """What MLflow 2 answers: its version, and here 404 to everything else.

    A stub: the real one would have to be installed beside this environment's own.
    """

    def do_GET(self) -> None:
        known = self.path == "/version"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"2.22.1" if known else b"Not Found")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def old_server() -> Iterator[str]:
    with serving(OldServer) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_server_of_another_version_is_named(dataset: Dataset) -> None:
    with old_server() as url:
        mlflow.set_tracking_uri(url)
        said = rf"{url}: this MLflow server is version 2\.22\.1, but here .*same major version"
        for use in list_uses(url, dataset):
            with pytest.raises(RegistryError, match=said):
                use()
