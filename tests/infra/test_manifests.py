"""The manifests hang together: they cannot be run here, so names and references are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
SECRETS = {"normscope-postgres": {"password"}, "normscope-ray": {"token"}, "normscope-s3": set()}
REQUIRED = {
    "ConfigMap": ("data",),
    "Deployment": ("spec.selector.matchLabels", "spec.template.spec.containers"),
    "Namespace": (),
    "RayCluster": ("spec.rayVersion", "spec.headGroupSpec.template.spec.containers"),
    "Service": ("spec.selector", "spec.ports"),
    "StatefulSet": (
        "spec.serviceName",
        "spec.selector.matchLabels",
        "spec.template.spec.containers",
    ),
}
VERSIONS = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "Namespace": "v1",
    "RayCluster": "ray.io/v1",
    "Service": "v1",
    "StatefulSet": "apps/v1",
}


def look_up(document: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        document = document[key]
    return document


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(node, dict):
        yield node
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from walk(child)


def read_resources() -> list[dict[str, Any]]:
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [doc for name in names for doc in yaml.safe_load_all((KUBERNETES / name).read_text())]


RESOURCES = read_resources()


def test_kustomization_names_every_file() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    present = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == present


@pytest.mark.parametrize(
    "resource", RESOURCES, ids=lambda r: f"{r['kind']}-{r['metadata']['name']}"
)
def test_each_resource_has_what_its_kind_requires(resource: dict[str, Any]) -> None:
    kind = resource["kind"]
    assert resource["apiVersion"] == VERSIONS[kind]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", resource["metadata"]["name"])
    assert kind == "Namespace" or resource["metadata"]["namespace"] == "normscope"
    assert all(look_up(resource, path) for path in REQUIRED[kind])
    if kind in {"Deployment", "StatefulSet"}:
        labels = look_up(resource, "spec.template.metadata.labels")
        assert look_up(resource, "spec.selector.matchLabels").items() <= labels.items()


def test_services_select_pods_and_ports_that_exist() -> None:
    pods = [
        (look_up(r, "spec.template.metadata.labels"), str(look_up(r, "spec.template.spec")))
        for r in RESOURCES
        if r["kind"] in {"Deployment", "StatefulSet"}
    ]
    services = [r["spec"] for r in RESOURCES if r["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        (spec,) = [spec for labels, spec in pods if service["selector"].items() <= labels.items()]
        assert all(f"'containerPort': {port['port']}" in spec for port in service["ports"])


def test_secrets_are_references_to_what_the_readme_makes() -> None:
    nodes = list(walk(RESOURCES))
    keys = [node["secretKeyRef"] for node in nodes if "secretKeyRef" in node]
    whole = [node["secretRef"]["name"] for node in nodes if "secretRef" in node]
    maps = [node["configMapRef"]["name"] for node in nodes if "configMapRef" in node]
    assert keys
    assert all(key["key"] in SECRETS[key["name"]] for key in keys)
    assert set(whole) <= SECRETS.keys()
    readme = (ROOT / "infra" / "README.md").read_text()
    assert all(f"create secret generic {name} " in readme for name in SECRETS)
    known = {r["metadata"]["name"] for r in RESOURCES if r["kind"] == "ConfigMap"}
    assert set(maps) <= known
    plain = [
        node["value"] for node in nodes if "PASSWORD" in str(node.get("name")) and "value" in node
    ]
    assert plain == []


def test_addresses_are_those_of_services() -> None:
    services = {
        r["metadata"]["name"]: r["spec"]["ports"] for r in RESOURCES if r["kind"] == "Service"
    }
    environment = next(r for r in RESOURCES if r["metadata"]["name"] == "normscope-environment")
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        host, port = re.findall(r"http://([a-z]+):(\d+)", environment["data"][name])[0]
        assert int(port) in {entry["port"] for entry in services[host]}
    # KubeRay names the head's service after the cluster.
    cluster = next(r for r in RESOURCES if r["kind"] == "RayCluster")
    assert environment["data"]["RAY_ADDRESS"] == f"{cluster['metadata']['name']}-head-svc:6379"


def test_ray_s_version_is_the_locked_one() -> None:
    cluster = next(r for r in RESOURCES if r["kind"] == "RayCluster")
    locked = re.findall(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked == [cluster["spec"]["rayVersion"]]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
    return document


def test_compose_hangs_together(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (ROOT / "infra" / source).is_dir()
        if "build" in service:
            dockerfile = ROOT / service["build"]["dockerfile"]
            stages = re.findall(r"^FROM \S+ AS (\S+)", dockerfile.read_text(), re.M)
            assert service["build"].get("target") in {None, *stages}
        # What is published is for this machine alone.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_asks_for_each_secret_that_the_example_names() -> None:
    text = (ROOT / "infra" / "compose.yaml").read_text()
    example = (ROOT / "infra" / "example.env").read_text()
    named = set(re.findall(r"^([A-Z_]+)=", example, re.M))
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) == named
    assert set(re.findall(r"\$\{([A-Z_]+):\?", text)) == named


@pytest.mark.parametrize("name", ["Dockerfile", "s3.Dockerfile"])
def test_images_copy_what_the_context_lets_through(name: str) -> None:
    lines = (ROOT / "infra" / name).read_text().replace("\\\n", " ").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_through = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M)
    assert sources
    assert all(word == "." or word.removeprefix("./") in let_through for word in sources)
    assert all((ROOT / word).exists() for word in sources)


def test_the_image_does_not_run_as_root() -> None:
    text = (ROOT / "infra" / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "normscope"
    assert "-c requirements.lock" in text
