"""Prometheus' configuration and the dashboard: every name in them is that of a real metric."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import ray
import yaml
from distributed import LocalCluster
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Completed
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from flows.local.automations import TAG
from flows.local.stack import running_ray_head
from flows.shared.metrics import announce_work
from flows.shared.settings import Settings
from pipeline.ingest.run import IngestReport
from tests.support.scraped import scrape, serving_metrics

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"\b(?:normscope|ray|dask|process)_[a-z_]+\b")
NAMES = {name for expression in EXPRESSIONS for name in METRIC.findall(expression)}
# Ray tells of these only where it finds such hardware, or once a node has failed.
UNSEEN = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_cluster_failed_nodes"}


def names_of(prefix: str) -> set[str]:
    return {name for name in NAMES if name.startswith(f"{prefix}_")}


def wait_for_names(url: str, wanted: set[str]) -> set[str]:
    """The names at an endpoint, once those that are wanted have come or a minute has gone."""
    deadline = time.monotonic() + 60
    found = set(scrape(url))
    while not wanted <= found and time.monotonic() < deadline:
        time.sleep(1)
        found |= set(scrape(url))
    return found


@flow
def worked() -> None:
    """Tell of work, as our flows do."""
    announce_work(IngestReport("s3://lake/x", "0" * 64, 4, 1, 1, 0, (), 2.5))


def test_the_dashboard_has_no_metric_of_another_kind() -> None:
    kinds = {"normscope", "ray", "dask", "process"}
    functions = {"increase", "rate", "sum", "by", "time", "up", "instance"}
    bare = [re.sub(r"\{.*?\}|\[.*?\]", "", expression) for expression in EXPRESSIONS]
    words = {word for each in bare for word in re.findall(r"\b[a-z_]{2,}\b", each)}
    assert {word for word in words if word.split("_")[0] not in kinds} <= functions
    assert all(names_of(kind) for kind in kinds)


@pytest.mark.slow
def test_our_own_metrics_are_there(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"read_bytes": 10, "stored_bytes": 5}
    monkeypatch.setattr("flows.shared.metrics.read_progress", lambda _: known)
    worked()
    with get_client(sync_client=True) as client:
        client.create_flow_run(worked, tags=[TAG])
        done = client.create_flow_run(worked, tags=[TAG])
        client.set_flow_run_state(done.id, Completed())
    with serving_metrics(Settings(prefect_api_url=prefect_server)) as url:
        assert names_of("normscope") <= wait_for_names(url, names_of("normscope"))


@pytest.mark.slow
def test_metrics_of_prefect_are_there(prefect_server: str) -> None:
    assert names_of("process") <= set(scrape(f"{prefect_server}/metrics"))


@pytest.mark.slow
def test_metrics_of_ray_are_there() -> None:
    with running_ray_head(Settings(), cpus=1) as address:
        ray.init(address=address, log_to_driver=False)
        try:
            assert ray.get(ray.remote(lambda: 1).remote()) == 1
            (node,) = ray.nodes()  # type: ignore[no-untyped-call]
            url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
            wanted = names_of("ray") - UNSEEN
            assert wanted <= wait_for_names(url, wanted)
        finally:
            ray.shutdown()


def test_metrics_of_ray_that_need_a_gpu_are_known_to_ray() -> None:
    assert names_of("ray") >= UNSEEN
    assert {name.removeprefix("ray_") for name in UNSEEN} <= set(METRICS_GAUGES)


@pytest.mark.slow
def test_metrics_of_dask_are_there() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as found:
        scheduler = found.dashboard_link.removesuffix("/status")
        (worker,) = found.scheduler_info["workers"].values()
        port = worker["services"]["dashboard"]
        names = set(scrape(f"{scheduler}/metrics")) | set(
            scrape(f"http://127.0.0.1:{port}/metrics")
        )
    assert names_of("dask") <= names


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == [
        "normscope",
        "prefect",
        "ray",
        "dask-scheduler",
        "dask-worker",
    ]
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian: prometheus): the configuration is not checked by it")
    shutil.copy(MONITORING / "prometheus.yml", tmp_path)
    for name in ("prefect-password", "metrics-token"):
        (tmp_path / name).write_text("secret")
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
