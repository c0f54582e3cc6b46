"""System metrics of a worker's node reach its run; a server that is away ends nothing."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import mlflow
import pytest

from training.registry.node_metrics import NodeMonitor


@pytest.mark.usefixtures("mlflow_server")
def test_a_node_s_metrics_are_in_the_run(tmp_path: Path, mlflow_server: str) -> None:
    assert tmp_path
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    run = client.create_run(client.create_experiment(f"nodes-{time.time_ns()}")).info.run_id
    monitor = pickle.loads(pickle.dumps(NodeMonitor(run, mlflow_server, every_s=0.2)))  # noqa: S301 -- our own
    with monitor.watch("node-1"):
        time.sleep(3)
    found = client.get_run(run).data.metrics
    assert found["system/node-1/system_memory_usage_megabytes"] > 0


def test_a_server_that_is_away_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    done = []
    with NodeMonitor("no-such-run", "http://127.0.0.1:9", every_s=0.2).watch("node-0"):
        done.append(1)
    assert done
