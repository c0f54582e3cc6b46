"""The pods of the overlay `laptop`, run: servers, migrations, deployments, flows and backups.

It takes half an hour on two busy cores, and 6 GiB, so it is run when NORMSCOPE_TEST_PODS is set.
Not here, and so not run: PostgreSQL's image (Debian's PostgreSQL serves instead), the operators,
and what only a cluster has: scheduling, NetworkPolicies, the worker that makes Jobs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra.kubernetes.rendering import find, render_overlay
from tests.infra.kubernetes.running import POSTGRES, Machine, find_missing, running_machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        "NORMSCOPE_TEST_PODS" not in os.environ, reason="NORMSCOPE_TEST_PODS is unset"
    ),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(find_missing() is not None, reason=str(find_missing())),
]
PREFECT, MLFLOW = "normscope:planted-prefect", "normscope:planted-mlflow"
KEYS = {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "planted-s3"}
SECRETS = {
    "normscope-postgres": {"password": "planted-postgres"},
    "normscope-ray": {"auth_token": "planted-ray-token-long-enough"},
    "normscope-prefect": {"auth-string": PREFECT},
    "normscope-mlflow": {
        "username": "normscope",
        "password": "planted-mlflow",
        "secret-key": "planted-flask-key",
    },
    "normscope-pseudonyms": {"NORMSCOPE_PSEUDONYM_KEY": "5e" * 32},
    **dict.fromkeys(
        ("normscope-s3", "normscope-s3-mlflow", "normscope-s3-read", "normscope-s3-backup"), KEYS
    ),
}
# The image's own start, with Debian's programs.
SERVE_POSTGRES = """
set -e
initdb -D $PGDATA -U $POSTGRES_USER --pwfile <(echo $POSTGRES_PASSWORD) --auth scram-sha-256
pg_ctl -D $PGDATA -w -o "-c listen_addresses=''" start
export PGPASSWORD=$POSTGRES_PASSWORD PGHOST=/var/run/postgresql PGUSER=$POSTGRES_USER
createdb $POSTGRES_DB
for file in /docker-entrypoint-initdb.d/*.sql; do psql -d $POSTGRES_DB -f $file; done
pg_ctl -D $PGDATA -w stop
exec postgres -c listen_addresses='*'
"""
MAKE_DATA = """
import boto3
from pipeline.synthetic import write_tiles, write_xrays
for name in ("lake", "mlflow", "backup"):
    boto3.client("s3").create_bucket(Bucket=name)
write_tiles("s3://lake/scans/tiles", slides=12, tiles_per_slide=30)
write_xrays("s3://lake/scans/xrays", seed=0, patients=40, size_px=64)
"""
RAY = "ray start --block --no-monitor --object-store-memory=200000000 --node-ip-address=127.0.0.1"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """All servers, up."""
    folder = Path(tempfile.mkdtemp(prefix="normscope-pods-", dir="/var/tmp"))
    objects = render_overlay("laptop")
    site = {"AWS_ENDPOINT_URL": "http://s3:9000", "AWS_ALLOW_HTTP": "true"}
    find(objects, "ConfigMap", "normscope-storage")["data"].update(site)
    find(objects, "ConfigMap", "backup")["data"]["RCLONE_CONFIG_BACKUP_ENDPOINT"] = "http://s3:9000"
    try:
        with running_machine(folder, objects, SECRETS) as running:
            _start_servers(running)
            yield running
    finally:
        shutil.rmtree(folder)


def _start_servers(machine: Machine) -> None:
    machine.serve("moto_server", "-H", "127.0.0.1", "-p", "9000")
    machine.start("postgres", "bash", "-c", SERVE_POSTGRES)
    machine.wait("postgres")
    machine.run("dask-worker", "python", "-c", MAKE_DATA)
    for name in ("migrate-mlflow", "migrate-prefect", "migrate-mlflow", "migrate-prefect"):
        machine.run(name)
    for name in ("mlflow", "prefect", "dask-scheduler"):
        machine.start(name)
    for name in ("mlflow", "prefect", "dask-scheduler"):
        machine.wait(name)
    address = {"DASK_WORKER_NAME": "one", "DASK_SCHEDULER_ADDRESS": "tcp://dask-scheduler:8786"}
    machine.start("dask-worker", **address)
    machine.wait("dask-worker")


def test_servers_ask_for_passwords(machine: Machine) -> None:
    prefect = "http://127.0.0.1:4200/api/admin/version"
    mlflow = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/get?experiment_id=0"
    for url, password in ((prefect, PREFECT), (mlflow, MLFLOW)):
        assert machine.ask(url) == 401
        assert machine.ask(url, "-u", "normscope:wrong") == 401
        assert machine.ask(url, "-u", password) == 200
    assert machine.ask(mlflow, "-u", MLFLOW, "-HHost: elsewhere:5000") == 403
    assert machine.ask("http://127.0.0.1:4200/") == 200  # the page, which asks by itself


@pytest.fixture(scope="module")
def workers(machine: Machine) -> Machine:
    """The same, with a Ray cluster, a Prefect worker, and every deployment."""
    # What KubeRay would add to each node.
    added = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRETS["normscope-ray"]["auth_token"]}
    head = f"{RAY} --head --num-cpus=0 --dashboard-host=0.0.0.0 --metrics-export-port=8080"
    machine.start("ray-head", "bash", "-c", head, **added)
    machine.run("deploy")
    worker = f"{RAY} --address=ray-head-svc:6379 --num-cpus=2 --metrics-export-port=8081"
    machine.start("ray-cpu", "bash", "-c", f"{worker} --dashboard-agent-listen-port=52366", **added)
    machine.start("prefect-worker", PREFECT_WORKER_WEBSERVER_PORT="8090")  # 8080 is Ray's
    assert machine.ask("http://127.0.0.1:8265/api/jobs/") == 401
    return machine


def test_flows_run_in_both_pools(workers: Machine) -> None:
    tiles = "s3://lake/datasets/tiles"
    _run(workers, "ingest-images/default", source="s3://lake/scans/tiles", dataset=tiles)
    _run_in_pod(
        workers, "ingest-xrays", source="s3://lake/scans/xrays", dataset="s3://lake/datasets/xrays"
    )
    _run(workers, "train/default", dataset=tiles, preset="demo", model_name="tiles", workers=2)
    _run_in_pod(workers, "promote", model_name="tiles", dataset=tiles)
    _run_in_pod(
        workers, "score", source=tiles, output="s3://lake/worklists/tiles", model_name="tiles"
    )


def test_backups_hold_the_databases_the_ledger_and_the_models(workers: Machine) -> None:
    workers.run("backup-postgres", container=0)
    workers.run("backup-postgres", container=1)
    workers.run("backup-state")
    listing = (
        "import boto3; print(*(o.key for o in boto3.resource('s3').Bucket('backup').objects.all()))"
    )
    kept = workers.run("dask-worker", "python", "-c", listing)
    for part in (
        r"postgres/[^/]+/mlflow\.dump",
        r"postgres/[^/]+/prefect\.dump",
        r"current/lake/state/ledgers/tiles/",
        r"current/mlflow/artifacts/.+\.safetensors",
    ):
        assert re.search(f"normscope/{part}", kept), part


def _trigger(machine: Machine, deployment: str, **parameters: object) -> str:
    command = ("prefect", "--no-prompt", "deployment", "run", deployment, "--params")
    printed = machine.run("deploy", *command, json.dumps(parameters))
    found = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", printed)
    assert found, printed
    return found.group()


def _run(machine: Machine, deployment: str, **parameters: object) -> None:
    """Trigger a deployment that the process worker runs, and wait for its good end."""
    run = _trigger(machine, deployment, **parameters)
    deadline = time.monotonic() + 900
    while (state := _inspect(machine, run)) not in {"COMPLETED", "FAILED", "CRASHED"}:
        assert time.monotonic() < deadline, f"{deployment} is {state}"
        time.sleep(2)
    assert state == "COMPLETED", (machine.folder / "prefect-worker.log").read_text()[-5000:]


def _run_in_pod(machine: Machine, flow: str, **parameters: object) -> None:
    """Trigger a deployment of the pool `kubernetes`, and run the pod that its worker would make."""
    run = _trigger(machine, f"{flow}/kubernetes", **parameters)
    pod = f"{flow.replace('-', '_')}-run-"
    printed = machine.run(pod, "prefect", "flow-run", "execute", PREFECT__FLOW_RUN_ID=run)
    assert _inspect(machine, run) == "COMPLETED", printed


def _inspect(machine: Machine, run: str) -> str:
    command = ("prefect", "flow-run", "inspect", run, "--output", "json")
    state: Any = json.loads(machine.run("deploy", *command))["state"]
    return str(state["type"])
