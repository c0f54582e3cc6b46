"""Every pod keeps to the standard "restricted", and has only the secrets that it needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tests.infra.kubernetes.rendering import (
    NAMESPACE,
    ROOT,
    Object,
    Pod,
    find,
    list_pods,
    read_examples,
    render_overlay,
)

GUIDE = ROOT / "docs" / "how-to" / "kubernetes.md"


def find_breaches(pod: Pod) -> list[str]:
    """What of the standard "restricted" a pod does not keep to."""
    context = pod.spec.get("securityContext", {})
    breaches = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(name)]
    breaches += [f"volume {v['name']}" for v in pod.spec.get("volumes", ()) if not _is_allowed(v)]
    for container in pod.list_containers():
        own = container.get("securityContext", {})
        rules = {
            "runAsNonRoot": {**context, **own}.get("runAsNonRoot") is True,
            "runAsUser": {**context, **own}.get("runAsUser") != 0,
            "seccompProfile": {**context, **own}.get("seccompProfile", {}).get("type")
            in {"RuntimeDefault", "Localhost"},
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "hostPort": not any("hostPort" in port for port in container.get("ports", ())),
        }
        breaches += [
            f"{container['name']}: {rule}" for rule, is_kept in rules.items() if not is_kept
        ]
    return breaches


def _is_allowed(volume: Object) -> bool:
    kinds = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    return volume.keys() - {"name"} <= kinds


def test_every_pod_is_restricted(pods: list[Pod]) -> None:
    everything = [*pods, *list_pods_of_examples()]
    assert len(everything) > 20
    assert {pod.name: find_breaches(pod) for pod in everything if find_breaches(pod)} == {}


def list_pods_of_examples() -> list[Pod]:
    template = find(render_overlay("laptop"), "ConfigMap", "prefect-pool")
    deploy = find(render_overlay("laptop"), "Job", "deploy")
    return [
        pod
        for pod in list_pods([*read_examples(), template, deploy])
        if pod.name.startswith("train--")
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.pop("securityContext"),
        lambda spec: spec["securityContext"].update(runAsUser=0),
        lambda spec: spec["securityContext"].pop("seccompProfile"),
        lambda spec: spec["containers"][0].pop("securityContext"),
        lambda spec: spec["containers"][0]["securityContext"]["capabilities"].update(add=["ALL"]),
        lambda spec: spec["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
    ],
)
def test_a_pod_that_asks_for_more_is_found(damage: Callable[[Any], object]) -> None:
    pod = next(p for p in list_pods(render_overlay("laptop")) if p.name == "mlflow")
    spec = deepcopy(dict(pod.spec))
    damage(spec)
    assert find_breaches(Pod(pod.name, pod.labels, spec)) != []


def test_the_namespace_refuses_other_pods(objects: list[Object]) -> None:
    labels = find(objects, "Namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_root_file_systems_are_read_only_and_scratch_is_bounded(pods: list[Pod]) -> None:
    for pod in pods:
        for container in pod.list_containers():
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        for volume in pod.spec.get("volumes", ()):
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""}), (pod.name, volume)


def test_every_container_has_requests_and_limits(pods: list[Pod]) -> None:
    for pod in pods:
        for container in pod.list_containers():
            resources = container["resources"]
            for part in ("requests", "limits"):
                assert {"cpu", "memory"} <= resources[part].keys(), (pod.name, container["name"])
            for name, amount in resources["requests"].items():
                assert _read_quantity(amount) <= _read_quantity(resources["limits"][name])


def _read_quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+)(m|Mi|Gi)?", text)
    assert match, text
    return int(match[1]) * {"m": 1e-3, "Mi": 2**20, "Gi": 2**30, None: 1}[match[2]]


def test_only_what_asks_kubernetes_has_an_account_there(pods: list[Pod]) -> None:
    with_account = {
        pod.name for pod in pods if pod.spec.get("automountServiceAccountToken") is not False
    }
    assert with_account == {"prefect-kubernetes-worker", "ray-head"}


def list_secrets(pod: Pod) -> dict[str, set[str]]:
    """The keys of each Secret that a pod names; no keys for a Secret taken as a whole."""
    found: dict[str, set[str]] = {}
    for container in pod.list_containers():
        for source in container.get("envFrom", ()):
            if "secretRef" in source:
                found.setdefault(source["secretRef"]["name"], set())
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                found.setdefault(reference["name"], set()).add(reference["key"])
    return found


def test_each_secret_is_where_it_is_needed_and_nowhere_else(objects: list[Object]) -> None:
    holders: dict[str, set[str]] = {}
    for pod in list_pods(objects):
        for name in list_secrets(pod):
            holders.setdefault(name, set()).add(pod.labels["app"])
    flows = {"flow-run", "prefect-worker"}
    assert holders == {
        "normscope-mlflow": {*flows, "mlflow", "ray"},
        "normscope-notify": {"deploy"},
        "normscope-postgres": {
            "backup-postgres",
            "migrate-mlflow",
            "migrate-prefect",
            "mlflow",
            "postgres",
            "prefect",
        },
        "normscope-prefect": {*flows, "deploy", "prefect", "prefect-kubernetes-worker"},
        "normscope-pseudonyms": {"flow-run"},
        "normscope-ray": flows,
        "normscope-s3": {*flows, "dask", "ray"},
        "normscope-s3-backup": {"backup-postgres", "backup-state"},
        "normscope-s3-mlflow": {"mlflow"},
        "normscope-s3-read": {"backup-state"},
    }
    assert find(objects, "RayCluster", "ray")["spec"]["authOptions"] == {
        "mode": "token",
        "secretName": "normscope-ray",
    }


def test_only_flows_that_read_dicom_have_the_key_of_the_pseudonyms(pods: list[Pod]) -> None:
    holders = {pod.name for pod in pods if "normscope-pseudonyms" in list_secrets(pod)}
    assert holders == {"ingest_slides-run-", "ingest_xrays-run-"}


def test_the_dask_scheduler_has_no_secrets(pods: list[Pod]) -> None:
    (scheduler,) = (pod for pod in pods if pod.name == "dask-scheduler")
    assert list_secrets(scheduler) == {}


def test_the_guide_makes_every_secret_with_every_key(pods: list[Pod]) -> None:
    made: dict[str, set[str]] = {}
    for command in GUIDE.read_text().replace("\\\n", " ").splitlines():
        if match := re.search(r"create secret generic (\S+)", command):
            made[match[1]] = set(re.findall(r"--from-literal=([\w-]+)=", command))
    used: dict[str, set[str]] = {"normscope-ray": {"auth_token"}}
    for pod in pods:
        for name, keys in list_secrets(pod).items():
            used.setdefault(name, set()).update(keys)
    assert made.keys() == used.keys()
    for name, keys in used.items():
        assert keys <= made[name], name
    assert made["normscope-s3"] == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert made["normscope-pseudonyms"] == {"NORMSCOPE_PSEUDONYM_KEY"}


def test_no_password_is_written_down(objects: list[Object], pods: list[Pod]) -> None:
    assert not any(object_["kind"] == "Secret" for object_ in objects)
    secret = re.compile(
        r"PASSWORD|TOKEN$|SECRET_ACCESS_KEY|ACCESS_KEY_ID|AUTH_STRING$|PSEUDONYM_KEY"
    )
    for pod in pods:
        for container in pod.list_containers():
            for variable in container.get("env", ()):
                assert "value" not in variable or not secret.search(variable["name"]), variable
    maps = [object_["data"] for object_ in objects if object_["kind"] == "ConfigMap"]
    assert not any(secret.search(name) for data in maps for name in data)


def test_the_worker_hands_its_password_on_as_a_reference() -> None:
    pods = {pod.name: pod for pod in list_pods(render_overlay("laptop"))}
    (worker,) = pods["prefect-kubernetes-worker"].list_containers()
    variables = {variable["name"]: variable for variable in worker["env"]}
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    own = variables["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    assert variables[f"{prefix}_NAME"]["value"] == own["name"]
    assert variables[f"{prefix}_KEY"]["value"] == own["key"]
