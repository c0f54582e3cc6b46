"""A cluster would take every object: they render, and have no field that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import kubernetes_validate
import pytest
import yaml

from tests.infra.kubernetes.rendering import (
    KUBERNETES,
    OVERLAYS,
    Object,
    find,
    list_runs,
    read_examples,
    render_overlay,
)
from tests.infra.kubernetes.validation import OLDEST, ValidationError, validate


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_passes_its_schema(overlay: str, version: str) -> None:
    objects = render_overlay(overlay)
    assert len(objects) > 40
    for object_ in [*objects, *list_runs(objects), *read_examples()]:
        validate(object_, version)


def _add_unknown_field(object_: Object, *path: str | int) -> None:
    node = object_
    for step in path:
        node = node[step]  # type: ignore[index]  # lists lie on the way
    node["unknownField"] = "1"


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "mlflow", ("spec", "template", "spec", "containers", 0, "resources")),
        ("CronJob", "backup-state", ("spec",)),
        ("NetworkPolicy", "ray-head", ("spec", "ingress", 0, "from", 0)),
        ("RayCluster", "ray", ("spec",)),
        (
            "RayCluster",
            "ray",
            ("spec", "workerGroupSpecs", 1, "template", "spec", "tolerations", 0),
        ),
        ("RayCluster", "ray", ("metadata",)),
        ("DaskCluster", "dask", ("spec", "worker", "spec", "containers", 0, "securityContext")),
        ("DaskAutoscaler", "dask", ("spec",)),
    ],
)
def test_an_unknown_field_is_refused(kind: str, name: str, path: tuple[str | int, ...]) -> None:
    object_ = find(render_overlay("gpu-8"), kind, name)
    validate(object_, OLDEST)
    _add_unknown_field(object_, *path)
    with pytest.raises(ValidationError, match="unknownField"):
        validate(object_, OLDEST)


def test_an_unknown_field_of_a_run_or_an_example_is_refused() -> None:
    for object_ in [*list_runs(render_overlay("laptop")), *read_examples()]:
        damaged = deepcopy(object_)
        _add_unknown_field(damaged, "spec")
        with pytest.raises(ValidationError, match="unknownField"):
            validate(damaged, OLDEST)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cluster: cluster["spec"].update(authOptions={"mode": "password"}),
        lambda cluster: cluster["spec"]["autoscalerOptions"].update(idleTimeoutSeconds="soon"),
        lambda cluster: cluster["spec"].pop("headGroupSpec"),
    ],
)
def test_a_wrong_value_of_a_ray_cluster_is_refused(damage: Callable[[Object], object]) -> None:
    cluster = find(render_overlay("gpu-1"), "RayCluster", "ray")
    damage(cluster)
    with pytest.raises(ValidationError):
        validate(cluster, OLDEST)


def test_every_file_is_part_of_an_overlay() -> None:
    for folder in KUBERNETES.rglob("kustomization.yaml"):
        text = folder.read_text()
        document = yaml.safe_load(text)
        files = {
            str(path.relative_to(folder.parent))
            for path in folder.parent.rglob("*")
            if path.is_file() and path != folder
        }
        if folder.parent.name not in {"overlays", "kubernetes"}:
            assert all(name in text for name in files), folder
        for other in [*document.get("resources", ()), *document.get("components", ())]:
            assert (folder.parent / other).exists()


def test_names_are_given_once(objects: list[Object]) -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    assert {o["metadata"].get("namespace", "normscope") for o in objects} == {"normscope"}
