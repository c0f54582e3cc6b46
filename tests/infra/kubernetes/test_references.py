"""What objects name is there: ConfigMaps, Services, ports, volumes, accounts, images, flows."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.kubernetes.network import list_services
from tests.infra.kubernetes.rendering import (
    KUBERNETES,
    ROOT,
    Object,
    Pod,
    find,
    list_pods,
    read_examples,
    read_pool,
    render_folder,
    render_overlay,
)


def _locked(package: str) -> str:
    (version,) = re.findall(
        rf"^{package}(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M
    )
    return str(version)


def test_services_select_pods_that_have_their_ports(objects: list[Object], pods: list[Pod]) -> None:
    services = list_services(objects)
    assert services.keys() == {"dask-scheduler", "mlflow", "postgres", "prefect", "ray-head-svc"}
    for selector, ports in services.values():
        (pod,) = (pod for pod in pods if selector.items() <= pod.labels.items())
        opened = {p["containerPort"] for c in pod.list_containers() for p in c.get("ports", ())}
        assert ports <= opened


def test_config_maps_keys_and_claims_are_there(objects: list[Object], pods: list[Pod]) -> None:
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    claims = {o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"} | {
        "data"
    }
    for pod in pods:
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())} | claims
        for volume in pod.spec.get("volumes", ()):
            assert volume.get("configMap", {"name": "backup"})["name"] in maps
            claim = volume.get("persistentVolumeClaim", {"claimName": "data"})["claimName"]
            assert claim in claims
        for container in pod.list_containers():
            for source in container.get("envFrom", ()):
                assert source.get("configMapRef", {"name": "backup"})["name"] in maps
            mounts = container.get("volumeMounts", ())
            assert {mount["name"] for mount in mounts} <= volumes, pod.name
            paths = [mount["mountPath"] for mount in mounts]
            assert len(paths) == len(set(paths))


def test_probes_ask_ports_that_are_there(pods: list[Pod]) -> None:
    asked = 0
    for pod in pods:
        for container in pod.list_containers():
            names = {port["name"] for port in container.get("ports", ())}
            assert all(len(name) <= 15 for name in names)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if port := container.get(probe, {}).get("httpGet", {}).get("port"):
                    assert port in names
                    asked += 1
    assert asked >= 10


def test_servers_are_probed(pods: list[Pod]) -> None:
    containers = {pod.name: pod.spec["containers"][0] for pod in pods}
    for name in ("mlflow", "postgres", "prefect"):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= containers[name].keys()
    assert containers["prefect"]["readinessProbe"]["httpGet"]["path"] == "/api/ready"
    assert containers["prefect"]["livenessProbe"]["httpGet"]["path"] == "/api/health"
    for name in ("prefect-worker", "prefect-kubernetes-worker"):
        assert "--with-healthcheck" in containers[name]["args"]
        assert containers[name]["livenessProbe"]["httpGet"]["path"] == "/health"


def test_the_account_of_the_worker_may_make_jobs_in_this_namespace_alone(
    objects: list[Object],
) -> None:
    assert not [o for o in objects if o["kind"].startswith("Cluster")]
    name = "prefect-kubernetes-worker"
    spec = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    binding = find(objects, "RoleBinding", name)
    assert spec["serviceAccountName"] == find(objects, "ServiceAccount", name)["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": name, "namespace": "normscope"}
    ]
    assert binding["roleRef"]["name"] == find(objects, "Role", name)["metadata"]["name"]
    rules = {
        resource: set(rule["verbs"])
        for rule in find(objects, "Role", name)["rules"]
        for resource in rule["resources"]
    }
    assert rules["jobs"] >= {"create", "delete", "watch"}
    assert "secrets" not in rules
    assert not rules["pods"] & {"create", "delete", "patch", "update"}


def test_budgets_guard_pods_that_are_there(objects: list[Object], pods: list[Pod]) -> None:
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == 6
    for budget in budgets:
        labels = budget["selector"]["matchLabels"].items()
        assert any(labels <= pod.labels.items() for pod in pods)


def test_ray_grows_from_nothing_and_shrinks_again(objects: list[Object]) -> None:
    spec = find(objects, "RayCluster", "ray")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0
        assert group["maxReplicas"] > 0
    autoscaler = find(objects, "DaskAutoscaler", "dask")["spec"]
    assert autoscaler["cluster"] == find(objects, "DaskCluster", "dask")["metadata"]["name"]
    assert 1 <= autoscaler["minimum"] < autoscaler["maximum"]


@pytest.mark.parametrize(
    ("overlay", "gpus"), [("laptop", 0), ("gpu-1", 1), ("gpu-8", 8), ("gpu-64", 64)]
)
def test_overlays_have_as_many_gpus_as_their_names_say(overlay: str, gpus: int) -> None:
    spec = find(render_overlay(overlay), "RayCluster", "ray")["spec"]
    found = 0
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        each = int(pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        found += group["maxReplicas"] * each
        assert bool(each) == ("nodeSelector" in pod) == ("tolerations" in pod)
    assert found == gpus
    (deploy,) = find(render_overlay(overlay), "Job", "deploy")["spec"]["template"]["spec"][
        "containers"
    ]
    limits = [int(v["value"]) for v in deploy["env"] if v["name"] == "NORMSCOPE_GPUS"]
    assert limits == [gpus] * bool(gpus)


def test_shared_memory_holds_ray_s_object_store(pods: list[Pod]) -> None:
    for pod in pods:
        for volume in pod.spec.get("volumes", ()):
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                memory = pod.spec["containers"][0]["resources"]["limits"]["memory"]
                assert _read_mib(volume["emptyDir"]["sizeLimit"]) >= 0.3 * _read_mib(memory)


def _read_mib(text: str) -> float:
    return float(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


def test_images_are_named_by_a_version(pods: list[Pod]) -> None:
    for pod in [*pods, *_list_example_nodes()]:
        for container in pod.list_containers():
            if container["name"] != "autoscaler":
                assert re.search(r":\d|@sha256:", container["image"]), pod.name


def _list_example_nodes() -> list[Pod]:
    pool = [find(render_overlay("laptop"), "ConfigMap", "prefect-pool")]
    job = find(render_overlay("laptop"), "Job", "deploy")
    return [pod for pod in list_pods([*pool, job, *read_examples()]) if "train--" in pod.name]


def test_versions_are_the_locked_ones(objects: list[Object], pods: list[Pod]) -> None:
    assert find(objects, "RayCluster", "ray")["spec"]["rayVersion"] == _locked("ray")
    (job,) = read_examples()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == _locked("ray")
    (worker,) = (pod for pod in pods if pod.name == "prefect-kubernetes-worker")
    image = worker.spec["containers"][0]["image"]
    assert image.startswith(f"prefecthq/prefect:{_locked('prefect')}-python3.")


def test_a_site_names_its_images_once_by_their_digests(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    site = tmp_path / "kubernetes" / "site" / "kustomization.yaml"
    digest = f"sha256:{'0' * 64}"
    place = f"newName: registry.example.org/normscope\n    digest: {digest}"
    site.write_text(site.read_text().replace('newTag: "0.2.0"', place, 1))
    for overlay in ("laptop", "gpu-64"):
        objects = render_folder(tmp_path / "kubernetes" / "overlays" / overlay)
        images = {
            container["image"]
            for pod in list_pods(objects)
            for container in pod.list_containers()
            if "normscope" in container.get("image", "")
        }
        assert images == {f"registry.example.org/normscope@{digest}", "normscope-mlflow:0.2.0"}


def test_an_s3_service_s_address_and_port_are_given_once(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    site = tmp_path / "kubernetes" / "site" / "kustomization.yaml"
    text = site.read_text().replace("value: 443", "value: 9000")
    site.write_text(
        text.replace("data:\n", "data:\n        AWS_ENDPOINT_URL: https://s3:9000\n", 1)
    )
    objects = render_folder(tmp_path / "kubernetes" / "overlays" / "gpu-1")
    storage = find(objects, "ConfigMap", "normscope-storage")["data"]
    assert storage["AWS_ENDPOINT_URL"] == "https://s3:9000"
    assert storage["NORMSCOPE_STATE"] == "s3://lake/state"
    (rule,) = find(objects, "NetworkPolicy", "uses-s3")["spec"]["egress"]
    assert rule["ports"] == [{"port": 9000, "protocol": "TCP"}]


def test_the_pool_s_deployments_are_flows_that_exist() -> None:
    _, file = read_pool(render_overlay("laptop"))
    others = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())["deployments"]
    known = {deployment["entrypoint"]: deployment for deployment in others}
    for deployment in file["deployments"]:
        module, name = deployment["entrypoint"].rsplit(".", 1)
        assert deployment["entrypoint"] in known
        assert deployment.get("tags") == known[deployment["entrypoint"]].get("tags")
        flow: Any = getattr(importlib.import_module(module), name)
        assert deployment.get("parameters", {}).keys() <= flow.parameters.properties.keys()


def test_runs_begin_where_the_image_holds_the_code() -> None:
    _, file = read_pool(render_overlay("laptop"))
    (step,) = file["pull"]
    folder = step["prefect.deployments.steps.set_working_directory"]["directory"]
    assert f"WORKDIR {folder}" in (ROOT / "infra" / "Dockerfile").read_text().splitlines()


def test_the_pool_s_variables_are_those_of_its_template() -> None:
    template, file = read_pool(render_overlay("laptop"))
    properties = template["variables"]["properties"]
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == properties.keys()
    for deployment in file["deployments"]:
        variables = deployment["work_pool"]["job_variables"]
        assert variables.keys() <= properties.keys()
        assert set(template["variables"]["required"]) <= variables.keys()
    assert all(len(entry["description"]) > 20 for entry in properties.values())
