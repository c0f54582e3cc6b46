"""Fixtures that every test may use.

The tests meet no server, home folder or key of the person who runs them: what the surroundings
say is set aside here, before any library reads it. `NORMSCOPE_TEST_S3` names the endpoint of a
real S3 server to test against, with its keys in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from flows.shared.settings import Settings, prepare_environment
from tests.support.skips import register_skips

ROOT = Path(__file__).parents[1]
HOME = Path(tempfile.mkdtemp(prefix="normscope-tests-"))


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 server and the keys that it takes."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """What clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }


def _set_surroundings_aside() -> S3Server | None:
    """Empty the environment of what tests must not meet; the real S3 server, where one is named."""
    endpoint = os.environ.get("NORMSCOPE_TEST_S3")
    # Processes that pytest starts to share the tests begin with what is left here, so that the
    # keys stay by another name.
    keys = [
        os.environ.setdefault(f"NORMSCOPE_TEST_{name}", os.environ.get(f"AWS_{name}", ""))
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    ]
    for name in list(os.environ):
        foreign = name.startswith(("AWS_", "PREFECT_", "MLFLOW_", "_MLFLOW_", "RAY_", "NORMSCOPE_"))
        if foreign and not name.startswith("NORMSCOPE_TEST_"):
            del os.environ[name]
    # No test may wait for the keys that a cloud's own machine would be given.
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    # By default Ray's workers stand back behind whatever else runs: other tests, here.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # spelt by Ray
    prepare_environment(Settings(home=HOME))
    return S3Server(endpoint, *keys) if endpoint else None


_REAL_S3 = _set_surroundings_aside()

# How quick an example is depends on what else the machine does.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# Fixtures and folders whose tests start Prefect, MLflow, Ray, Dask or a browser.
_SERVERS = {"prefect_server", "mlflow_server", "real_s3_server", "browser", "cluster", "ray_head"}
_SERVER_FOLDERS = (
    "flows",
    "e2e",
    "infra",
    "pipeline/runtime",
    "training/cluster",
    "training/registry",
    "benchmarks",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start servers; begin with slow files, so that processes end together."""
    folders = tuple(str(ROOT / "tests" / folder) for folder in _SERVER_FOLDERS)
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & _SERVERS or str(item.path).startswith(folders):
            item.add_marker("server")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_configure(config: pytest.Config) -> None:
    """Fail on skips where every test is meant to run."""
    register_skips(config)


def pytest_unconfigure() -> None:
    """Remove what the tests left in their home folder."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("NORMSCOPE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NORMSCOPE_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """An S3 server in this process: quick, and no proof of what real ones do."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}", "moto", "moto-secret")
    server.stop()


@pytest.fixture(scope="session")
def real_s3_server() -> S3Server:
    """The real S3 server that the tests were given; tests that need it skip without it."""
    if _REAL_S3 is None:
        pytest.skip("no real S3 server: `make s3-up` starts one, NORMSCOPE_TEST_S3 names it")
    return _REAL_S3


@pytest.fixture
def moto_url(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://bucket` of this test's own on moto's server, with the environment for it."""
    with _own_bucket(moto_server, monkeypatch) as url:
        yield url


@pytest.fixture
def real_s3_url(real_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://bucket` of this test's own on the real server, with the environment for it."""
    with _own_bucket(real_s3_server, monkeypatch) as url:
        yield url


@pytest.fixture(params=["moto", pytest.param("real", marks=pytest.mark.s3)])
def s3_url(request: pytest.FixtureRequest) -> str:
    """`s3://bucket` of this test's own, once on each S3 server."""
    url: str = request.getfixturevalue("moto_url" if request.param == "moto" else "real_s3_url")
    return url


@pytest.fixture(params=["memory", "file", "moto", pytest.param("real", marks=pytest.mark.s3)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL of this test's own with nothing below it, once for each kind of store."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/below"
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    url: str = request.getfixturevalue("moto_url" if request.param == "moto" else "real_s3_url")
    return f"{url}/below"


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The API's URL of a Prefect server; flows that tests call run against it."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.local.stack import running_prefect_server

    with running_prefect_server(Settings()) as url, temporary_settings({PREFECT_API_URL: url}):
        yield url
        APILogHandler().flush()


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[str]:
    """The tracking URI of an MLflow server."""
    from flows.local.stack import running_mlflow_server

    with running_mlflow_server(Settings()) as url:
        yield url


@contextmanager
def _own_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, gone afterwards with all that is in it."""
    import boto3

    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = boto3.Session().resource("s3").create_bucket(Bucket=f"normscope-{uuid.uuid4().hex}")
    try:
        yield f"s3://{bucket.name}"
    finally:
        bucket.objects.all().delete()
        bucket.delete()
