"""A real Prefect server takes the pool and its deployments, as the job `deploy` makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from tests.infra.kubernetes.rendering import find, read_pool, render_overlay

IMAGE = f"registry.example.org/normscope@sha256:{'0' * 64}"


def _deploy(folder: Path, api_url: str) -> None:
    """Run the second half of the Job's own script; `normscope deploy` has tests elsewhere."""
    (job,) = find(render_overlay("laptop"), "Job", "deploy")["spec"]["template"]["spec"][
        "containers"
    ]
    _, script = job["args"][-1].split("normscope deploy\n")
    script = script.replace("/etc/normscope", str(folder))
    script = script.replace("prefect --no-prompt", f"{sys.executable} -m prefect --no-prompt")
    done = subprocess.run(
        ["sh", "-ec", script],
        env={**os.environ, "PREFECT_API_URL": api_url, "NORMSCOPE_IMAGE": IMAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_server_takes_the_pool_and_its_deployments_twice(
    prefect_server: str, tmp_path: Path
) -> None:
    objects = render_overlay("laptop")
    for name, text in find(objects, "ConfigMap", "prefect-pool")["data"].items():
        (tmp_path / name).write_text(text)
    _deploy(tmp_path, prefect_server)
    _deploy(tmp_path, prefect_server)
    template, file = read_pool(objects)
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("kubernetes")
        assert pool.type == "kubernetes"
        assert pool.base_job_template == template
        for entry in file["deployments"]:
            flow = entry["entrypoint"].split(".")[-1].replace("_", "-")
            deployment = client.read_deployment_by_name(f"{flow}/kubernetes")
            assert deployment.work_pool_name == "kubernetes"
            (step,) = deployment.pull_steps or [{}]
            assert step["prefect.deployments.steps.set_working_directory"] == {"directory": "/app"}
            wanted = entry["work_pool"]["job_variables"]
            assert deployment.job_variables == {**wanted, "image": IMAGE}
            client.delete_deployment(deployment.id)
        client.delete_work_pool("kubernetes")
