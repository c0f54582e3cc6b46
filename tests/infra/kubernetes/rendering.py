"""The manifests as a cluster would get them, and the pods that would come of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = ("laptop", "gpu-1", "gpu-8", "gpu-64")
NAMESPACE = "normscope"

Object = dict[str, Any]


@cache
def find_kustomize() -> tuple[str, ...]:
    """The command that renders a folder; the test is skipped where there is none."""
    if shutil.which("kustomize"):
        return ("kustomize", "build")
    if not shutil.which("kubectl"):
        pytest.skip("neither kubectl nor kustomize is installed")
    asked = subprocess.run(
        ["kubectl", "version", "--client", "--output", "json"], capture_output=True, check=True
    )
    version = str(json.loads(asked.stdout).get("kustomizeVersion", "v0"))
    if int(version.removeprefix("v").split(".")[0]) < 5:
        pytest.skip("kubectl is older than 1.27: its kustomize knows no components")
    return ("kubectl", "kustomize")


def render_folder(folder: Path) -> list[Object]:
    """The objects of a folder."""
    done = subprocess.run([*find_kustomize(), str(folder)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b"", done.stderr.decode()  # deprecated fields are named there
    return list(yaml.safe_load_all(done.stdout))


@cache
def _render_overlay(name: str) -> str:
    return json.dumps(render_folder(KUBERNETES / "overlays" / name))


def render_overlay(name: str) -> list[Object]:
    """The objects of an overlay, a copy of one's own."""
    objects: list[Object] = json.loads(_render_overlay(name))
    return objects


def read_examples() -> list[Object]:
    """The objects that are not part of an overlay."""
    paths = sorted((KUBERNETES / "examples").glob("*.yaml"))
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of a kind and a name."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


@dataclass(frozen=True)
class Pod:
    """A pod that would run, or the pods of one template."""

    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any] = field(repr=False)

    def list_containers(self) -> list[Object]:
        """Its containers, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def list_pods(objects: list[Object]) -> list[Pod]:
    """The pods that would come of objects, those of flow runs included."""
    return [pod for object_ in [*objects, *list_runs(objects)] for pod in _expand(object_)]


def _expand(object_: Object) -> Iterator[Pod]:
    name = object_["metadata"].get("name") or object_["metadata"]["generateName"]
    spec = object_.get("spec", {})
    match object_["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            yield _of_template(name, spec["template"])
        case "CronJob":
            yield _of_template(name, spec["jobTemplate"]["spec"]["template"])
        case "DaskCluster":
            for role in ("scheduler", "worker"):
                labels = spec[role]["metadata"]["labels"]
                added = {"dask.org/cluster-name": name, "dask.org/component": role}
                yield Pod(f"{name}-{role}", {**labels, **added}, spec[role]["spec"])
        case "RayCluster":
            yield from _expand_ray(name, spec)
        case "RayJob":
            yield from _expand_ray(name, spec["rayClusterSpec"])


def _expand_ray(name: str, spec: Object) -> Iterator[Pod]:
    head = deepcopy(spec["headGroupSpec"]["template"])
    if spec.get("enableInTreeAutoscaling"):
        # The operator adds this container, with the head's image and these options.
        options = {k: v for k, v in spec["autoscalerOptions"].items() if k not in _OPERATOR_S}
        head["spec"]["containers"].append({"name": "autoscaler", **options})
    yield _of_template(f"{name}-head", head)
    for group in spec["workerGroupSpecs"]:
        yield _of_template(f"{name}-{group['groupName']}", group["template"])


_OPERATOR_S = {"version", "upscalingMode", "idleTimeoutSeconds"}


def _of_template(name: str, template: Object) -> Pod:
    return Pod(name, template["metadata"]["labels"], template["spec"])


def read_pool(objects: list[Object]) -> tuple[Object, Object]:
    """The template of the pool `kubernetes`, and the file of its deployments."""
    data = find(objects, "ConfigMap", "prefect-pool")["data"]
    return json.loads(data["base-job-template.json"]), yaml.safe_load(data["prefect.yaml"])


def list_runs(objects: list[Object]) -> list[Object]:
    """The Job of a run of each deployment in the pool `kubernetes`."""
    template, file = read_pool(objects)
    (deploy,) = find(objects, "Job", "deploy")["spec"]["template"]["spec"]["containers"]
    image = next(v["value"] for v in deploy["env"] if v["name"] == "NORMSCOPE_IMAGE")
    return [
        _render_run(template, deployment["entrypoint"].split(".")[1], variables, image)
        for deployment in file["deployments"]
        for variables in [deployment["work_pool"]["job_variables"]]
    ]


def _render_run(template: Object, flow: str, variables: Object, image: str) -> Object:
    properties = template["variables"]["properties"]
    defaults = {name: entry["default"] for name, entry in properties.items() if "default" in entry}
    values = {**defaults, **variables, "image": image, "name": f"{flow}-run"}
    job: Object = apply_values(deepcopy(template["job_configuration"]["job_manifest"]), values)
    # The worker asks for both, though they belong to a Job's own specification; a cluster drops
    # them, as it drops all unknown fields of clients that do not ask it to be strict.
    assert job["spec"]["template"]["spec"].pop("parallelism") == 1
    assert job["spec"]["template"]["spec"].pop("completions") == 1
    return job
