"""The Compose file from nothing: built, started, used by every flow, crashed, stopped, restarted.

    NORMSCOPE_TEST_CONTAINERS=1 pytest -sv tests/e2e/compose

As root, about half an hour on two cores. `NORMSCOPE_TEST_CONTAINERS=keep` leaves the stack and its
volumes for the next run. `NORMSCOPE_TEST_BUILD_ARGUMENTS` goes to `podman build`, e.g. to mount
pip's settings: `--volume /etc/pip.conf:/etc/pip.conf:ro`.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compose import images
from tests.e2e.compose.stack import ADDRESS, ROOT, SECRETS, ComposeStack

_PROGRAMS = ("podman", "runc", "podman-compose", "debootstrap")
_ASKED = os.environ.get("NORMSCOPE_TEST_CONTAINERS", "")
_MISSING = [program for program in _PROGRAMS if shutil.which(program) is None]
_KEPT = Path("/var/tmp/normscope-e2e")  # noqa: S108 -- root's own, mode 0700

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not _ASKED, reason="NORMSCOPE_TEST_CONTAINERS=1 builds and runs containers"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: podman's networks are the machine's"),
    pytest.mark.skipif(bool(_MISSING), reason=f"missing: {', '.join(_MISSING)}"),
]

_BUILT = ("s3", "mlflow", "worker")  # one service for each image
LAKE = "s3://lake"
SLIDES, XRAYS = "camelyon16-anomaly", "chestxray14-anomaly"
TWO_WORKERS: dict[str, Any] = {"preset": "demo", "workers": 2, "placement": "SPREAD"}


def say(text: str) -> None:
    """A line of the log, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The images, built; nothing runs yet."""
    folder = tmp_path_factory.mktemp("compose")
    if _ASKED == "keep":
        folder = _KEPT
        folder.mkdir(mode=0o700, exist_ok=True)
    built = ComposeStack.configure(folder)
    began = time.monotonic()
    images.make_base(built.podman, folder)
    images.make_postgres(built.podman, ROOT)
    joined = shlex.join(built.podman.build_arguments())
    built.compose(f"--podman-build-args={joined}", "build", *_BUILT, timeout_s=2400)
    say(f"images built in {time.monotonic() - began:.0f} s")
    yield built
    if _ASKED != "keep":
        built.compose("down", "--volumes")


@pytest.fixture(scope="module")
def running(stack: ComposeStack) -> ComposeStack:
    """The stack up and healthy, with deployments and synthetic scans."""
    began = time.monotonic()
    stack.up()
    stack.wait_until_healthy()
    say(f"up and healthy in {time.monotonic() - began:.0f} s: {stack.containers()}")
    say(stack.execute("worker", "normscope", "deploy").replace("\n", ", "))
    stack.execute("worker", "python", "-m", "pipeline.synthetic", f"{LAKE}/scans")
    return stack


@pytest.fixture(scope="module")
def chained(running: ComposeStack) -> ComposeStack:
    """Every flow has run once, as a deployment."""
    for flow, parameters in CHAIN:
        began = time.monotonic()
        running.run_flow(flow, parameters)
        say(f"{flow} {parameters}: {time.monotonic() - began:.0f} s")
    return running


CHAIN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ingest-slides", {"source": f"{LAKE}/scans/slides", "dataset": f"{LAKE}/slides.zarr"}),
    ("ingest-xrays", {"source": f"{LAKE}/scans/xrays", "dataset": f"{LAKE}/xrays.zarr"}),
    ("ingest-images", {"source": f"{LAKE}/scans/tiles", "dataset": f"{LAKE}/tiles.zarr"}),
    ("export", {"dataset": f"{LAKE}/slides.zarr", "output": f"{LAKE}/exports"}),
    ("train", {"dataset": f"{LAKE}/slides.zarr", **TWO_WORKERS}),
    ("train", {"dataset": f"{LAKE}/xrays.zarr", **TWO_WORKERS}),
    ("search", {"dataset": f"{LAKE}/slides.zarr", "preset": "demo", "trials": 2}),
    ("promote", {"model_name": SLIDES, "dataset": f"{LAKE}/slides.zarr", "wait_s": 0}),
    ("promote", {"model_name": XRAYS, "dataset": f"{LAKE}/xrays.zarr", "wait_s": 0}),
    (
        "score",
        {
            "source": f"{LAKE}/slides.zarr",
            "output": f"{LAKE}/scored-slides",
            "model_name": SLIDES,
            "workers": 2,
        },
    ),
    (
        "score",
        {
            "source": f"{LAKE}/scans/xrays",
            "output": f"{LAKE}/scored-xrays",
            "model_name": XRAYS,
            "workers": 2,
        },
    ),
    ("ledger", {"model_name": SLIDES}),
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_start_without_a_secret_is_refused(stack: ComposeStack, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"{name}.*infra/\.env"):
        stack.compose("config", changes={name: ""})


@pytest.mark.parametrize("image", ["normscope", "normscope-mlflow", "normscope-s3"])
def test_a_secret_that_reads_like_an_example_is_refused(stack: ComposeStack, image: str) -> None:
    command = ("run", "--rm", "-e", "RAY_AUTH_TOKEN=change-me-ray", f"localhost/{image}", "true")
    with pytest.raises(AssertionError, match=r"RAY_AUTH_TOKEN holds \"change-me\".*infra/\.env"):
        stack.podman(*command)


def test_nothing_runs_as_root(running: ComposeStack) -> None:
    users = {name: running.podman("exec", name, "id", "-u").strip() for name in running.checked()}
    assert "0" not in users.values(), users


@pytest.mark.parametrize(
    ("port", "path"),
    [
        (4200, "/api/admin/version"),
        (5000, "/api/2.0/mlflow/experiments/get?experiment_id=0"),
        (8265, "/api/jobs/"),
        (9000, "/lake"),
    ],
)
def test_a_server_refuses_who_shows_no_password(
    running: ComposeStack, port: int, path: str
) -> None:
    assert running
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=30)
    connection.request("GET", path, headers={"Host": f"127.0.0.1:{port}"})
    assert connection.getresponse().status in {401, 403}
    connection.close()


def test_prefect_shows_its_pages(running: ComposeStack) -> None:
    assert running
    connection = http.client.HTTPConnection(ADDRESS, 4200, timeout=30)
    connection.request("GET", "/v2/")
    assert b"<title>" in connection.getresponse().read()
    connection.close()


def test_dask_answers_its_own_network_alone(running: ComposeStack) -> None:
    name = running.containers()["dask-scheduler"][0]
    networks = json.loads(running.podman("inspect", name))[0]["NetworkSettings"]["Networks"]
    (address,) = (network["IPAddress"] for network in networks.values())
    connect = "import socket; socket.create_connection(('{}', 8786), 5)"
    running.execute("worker", "python", "-c", connect.format(address))
    for host in (address, "dask-scheduler"):
        with pytest.raises(AssertionError, match=r"timed out|unreachable|not known|resolution"):
            running.execute("ray-head", "python", "-c", connect.format(host))


def test_every_flow_runs_as_a_deployment(chained: ComposeStack) -> None:
    facts = chained.facts()
    assert facts["models"][SLIDES]["aliases"]["champion"] == "1"
    assert facts["models"][XRAYS]["aliases"]["champion"] == "1"
    assert {"slides.zarr", "xrays.zarr", "scored-slides", "scored-xrays"} <= facts["lake"].keys()
    assert any(name.startswith("state/ledgers/") for name in facts["lake"])


def test_a_dask_worker_that_crashes_costs_no_slide(chained: ComposeStack) -> None:
    again = {"source": f"{LAKE}/scans/slides", "dataset": f"{LAKE}/crashed.zarr"}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(chained.run_flow, "ingest-slides", again)
        _wait_for_object(chained, "crashed.zarr/")
        chained.crash(chained.containers()["dask-worker"][0])
        run.result()
    assert _fingerprint(chained, "crashed.zarr") == _fingerprint(chained, "slides.zarr")


def test_a_ray_worker_that_crashes_costs_no_training(chained: ComposeStack) -> None:
    asked = {"dataset": f"{LAKE}/xrays.zarr", **TWO_WORKERS, "seed": 1}
    before = len(chained.facts()["models"][XRAYS]["versions"])
    known = _count(chained, "state/training/", "/checkpoints/")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(chained.run_flow, "train", asked)
        _wait_for_object(chained, "state/training/", "/checkpoints/", known)
        chained.crash(chained.containers()["ray-worker"][-1])
        run.result()
    assert len(chained.facts()["models"][XRAYS]["versions"]) == before + 1


def test_a_held_promotion_is_approved_and_taken_back(chained: ComposeStack) -> None:
    """Of the version that the test before has trained: too few patients for an interval."""
    dataset = {"dataset": f"{LAKE}/xrays.zarr", "wait_s": 0}
    chained.run_flow("promote", {"model_name": XRAYS, **dataset})
    assert chained.facts()["models"][XRAYS]["aliases"]["champion"] == "1"
    said = {"verdict": "approve", "version": "2", "name": "A. Reader", "reason": "tried"}
    chained.run_flow("answer", {"model_name": XRAYS, **said})
    assert chained.facts()["models"][XRAYS]["aliases"]["champion"] == "2"
    chained.run_flow("rollback", {"model_name": XRAYS, "reason": "tried"})
    assert chained.facts()["models"][XRAYS]["aliases"]["champion"] == "1"


def test_a_score_is_traced_and_a_verdict_taken_in(chained: ComposeStack) -> None:
    image = chained.execute("worker", "python", "-", stdin=_WRITE_VERDICT).split()[-1]
    chained.run_flow("lineage", {"scores": f"{LAKE}/scored-slides", "image_id": image})
    verdicts = {"verdicts": [f"{LAKE}/verdicts/one.json"], "table": f"{LAKE}/verdicts/labels.csv"}
    chained.run_flow("feedback", verdicts)
    assert _count(chained, "verdicts/labels.csv") == 1


def test_each_kind_of_container_comes_back_after_a_crash(chained: ComposeStack) -> None:
    before = chained.facts()
    for service, (name, *_) in chained.containers().items():
        if service == "buckets":
            continue
        chained.crash(name)
        taken = chained.wait_until_healthy()
        say(f"{service} killed: everything healthy again after {taken:.0f} s")
        assert chained.facts() == before, service
    _wait(lambda: "/2.0 CPU" in chained.execute("ray-head", "ray", "status"), "Ray lacks workers")


def test_down_and_up_keep_everything(chained: ComposeStack) -> None:
    before = chained.facts()
    chained.compose("down")
    assert chained.containers() == {}
    chained.up()
    chained.wait_until_healthy()
    assert chained.facts() == before
    say(f"kept over down and up: {json.dumps(before)}")
    chained.run_flow("ledger", {"model_name": SLIDES})


def test_no_secret_is_written(chained: ComposeStack) -> None:
    logs = {name: chained.podman("logs", name) for name in chained.checked()}
    dump = "PGPASSWORD=$POSTGRES_PASSWORD pg_dumpall -h 127.0.0.1 -U normscope --no-role-passwords"
    logs["the databases"] = chained.execute("postgres", "sh", "-c", dump)
    logs["s3://lake"] = chained.execute("worker", "python", "-", stdin=_READ_ALL, timeout_s=600)
    for name in SECRETS:
        found = [place for place, text in logs.items() if chained.variables[name] in text]
        assert not found, f"{name} is in {found}"


_WRITE_VERDICT = """
import json
from io import BytesIO
import pyarrow.parquet as pq
from pipeline.io import storage
place = "s3://lake/scored-slides"
row = pq.read_table(BytesIO(storage.read_bytes(f"{place}/scores.parquet"))).to_pylist()[0]
verdict = {name: row[name] for name in ("image_id", "group_id", "anomaly_score", "percentile")}
file = {
    "normscope_verdicts": 1, "model_name": "camelyon16-anomaly", "model_version": "1",
    "run_id": "tried", "source": place, "dataset_fingerprint": "tried",
    "exported_at": "2026-01-01T00:00:00Z",
    "verdicts": [{**verdict, "verdict": "normal", "decided_at": "2026-01-01T00:00:00Z"}],
}
storage.write_bytes("s3://lake/verdicts/one.json", json.dumps(file).encode())
print(row["image_id"])
"""

_READ_ALL = """
import boto3
client = boto3.client("s3")
for bucket in ("lake", "mlflow"):
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            if entry["Size"] < 1_000_000:
                body = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"]
                print(entry["Key"], body.read())
"""


def _fingerprint(stack: ComposeStack, name: str) -> str:
    """What a dataset's content is known by."""
    ask = f"from pipeline import open_dataset; print(open_dataset('{LAKE}/{name}').fingerprint)"
    return stack.execute("worker", "python", "-c", ask).split()[-1]


def _count(stack: ComposeStack, prefix: str, within: str = "") -> int:
    """Objects of the bucket `lake` whose names begin with a prefix and hold a text."""
    ask = (
        "import boto3; pages = boto3.client('s3').get_paginator('list_objects_v2')"
        f".paginate(Bucket='lake', Prefix='{prefix}'); print(sum('{within}' in entry['Key']"
        " for page in pages for entry in page.get('Contents', ())))"
    )
    return int(stack.execute("worker", "python", "-c", ask))


def _wait_for_object(stack: ComposeStack, prefix: str, within: str = "", known: int = 0) -> None:
    """Wait until there are more such objects than known."""
    _wait(lambda: _count(stack, prefix, within) > known, f"nothing new below {prefix}")


def _wait(holds: Callable[[], bool], problem: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, problem
        time.sleep(1)
