"""The network lets through what the addresses in the pods' environments need, and nothing else."""

from __future__ import annotations

import pytest

from tests.infra.kubernetes.network import (
    End,
    list_addresses,
    list_services,
    may_reach,
    read_environment,
)
from tests.infra.kubernetes.rendering import (
    Object,
    Pod,
    find,
    list_pods,
    read_examples,
    render_overlay,
)

OUTSIDE = End(address="203.0.113.7")
METADATA = End(address="169.254.169.254")
# They talk among themselves at ports of their own choice.
CLUSTERS = {"ray", "dask"}
SERVED = ("dask", "mlflow", "postgres", "prefect", "ray")


def _list_edges(objects: list[Object], pods: list[Pod]) -> set[tuple[str, str, int]]:
    """Every pod, Service and port that the policies let meet, clusters' own traffic left out."""
    return {
        (source.name, service, port)
        for source in pods
        for service, (selector, ports) in list_services(objects).items()
        for target in pods
        if selector.items() <= target.labels.items()
        for port in ports
        if may_reach(objects, End(source.labels), End(target.labels), port)
        if not (source.labels["app"] == target.labels["app"] and source.labels["app"] in CLUSTERS)
    }


def test_the_network_lets_through_what_addresses_name_and_nothing_else(
    objects: list[Object], pods: list[Pod]
) -> None:
    named = {
        (pod.name, service, port) for pod in pods for service, port in list_addresses(objects, pod)
    }
    assert len(named) > 30
    assert _list_edges(objects, pods) == named


@pytest.mark.parametrize(
    "name",
    [
        *(f"uses-{name}" for name in SERVED),
        "dask-scheduler",
        "mlflow",
        "postgres",
        "prefect",
        "ray-head",
    ],
)
def test_each_policy_is_needed(name: str) -> None:
    objects = render_overlay("gpu-1")
    edges = _list_edges(objects, list_pods(objects))
    objects.remove(find(objects, "NetworkPolicy", name))
    assert _list_edges(objects, list_pods(objects)) < edges


def test_without_the_policy_that_denies_all_a_new_pod_is_open_to_everybody() -> None:
    objects = render_overlay("gpu-1")
    stranger, new = End({}, "elsewhere"), End({"app": "new"})
    assert not may_reach(objects, stranger, new, 80)
    objects.remove(find(objects, "NetworkPolicy", "deny-all"))
    assert may_reach(objects, stranger, new, 80)


def test_nodes_of_a_cluster_reach_one_another_at_any_port(
    objects: list[Object], pods: list[Pod]
) -> None:
    for app in CLUSTERS:
        nodes = [pod for pod in pods if pod.labels["app"] == app]
        assert len(nodes) >= 2
        for one in nodes:
            for other in nodes:
                assert may_reach(objects, End(one.labels), End(other.labels), 34567)
    assert not may_reach(objects, End({"app": "ray"}), End({"app": "dask"}), 34567)


def test_what_has_keys_of_s3_reaches_it_and_nothing_else_leaves(
    objects: list[Object], pods: list[Pod]
) -> None:
    for pod in pods:
        has_keys = "s3" in str(
            [
                (c.get("envFrom"), [v.get("valueFrom") for v in c.get("env", ())])
                for c in pod.list_containers()
            ]
        ).replace("normscope-services", "")
        asks_kubernetes = pod.labels.get("uses-kubernetes") == "true"
        assert may_reach(objects, End(pod.labels), OUTSIDE, 443) == (has_keys or asks_kubernetes), (
            pod
        )
        assert may_reach(objects, End(pod.labels), OUTSIDE, 6443) == asks_kubernetes, pod
        assert not may_reach(objects, End(pod.labels), OUTSIDE, 80)
        assert not may_reach(objects, End(pod.labels), METADATA, 443)


def test_every_pod_resolves_names_in_the_kube_system_namespace_alone(
    objects: list[Object], pods: list[Pod]
) -> None:
    for pod in pods:
        names = End({"k8s-app": "kube-dns"}, "kube-system")
        assert may_reach(objects, End(pod.labels), names, 53)
        assert not may_reach(objects, End(pod.labels), names, 443)
        assert not may_reach(objects, End(pod.labels), End({}, "default"), 53)


def test_operators_reach_what_they_operate_and_strangers_do_not(objects: list[Object]) -> None:
    head, scheduler = End({"app": "ray", "role": "head"}), End({"app": "dask", "role": "scheduler"})
    kuberay = {"app.kubernetes.io/name": "kuberay-operator"}
    dask = {"app.kubernetes.io/name": "dask-kubernetes-operator"}
    assert may_reach(objects, End(kuberay, "anywhere"), head, 8265)
    assert not may_reach(objects, End(kuberay, "anywhere"), head, 6379)
    assert may_reach(objects, End(dask, "dask-operator"), scheduler, 8786)
    assert not may_reach(objects, End(dask, "elsewhere"), scheduler, 8786)
    for stranger in (End({}), End({}, "elsewhere"), End({"app": "mlflow"})):
        assert not may_reach(objects, stranger, head, 8265)
        assert not may_reach(objects, stranger, scheduler, 8786)


def test_prometheus_reaches_figures_and_no_more(objects: list[Object]) -> None:
    prometheus = End({}, "monitoring")
    assert may_reach(objects, prometheus, End({"app": "ray", "role": "worker"}), 8080)
    assert may_reach(objects, prometheus, End({"app": "prefect"}), 4200)
    assert may_reach(objects, prometheus, End({"app": "dask", "role": "scheduler"}), 8787)
    assert not may_reach(objects, prometheus, End({"app": "dask", "role": "scheduler"}), 8786)
    assert not may_reach(objects, prometheus, End({"app": "postgres"}), 5432)
    assert not may_reach(objects, prometheus, End({"app": "ray", "role": "head"}), 8265)


def test_addresses_name_services_and_ports_that_are_there(
    objects: list[Object], pods: list[Pod]
) -> None:
    services = list_services(objects)
    for pod in pods:
        for service, port in list_addresses(objects, pod):
            assert port in services[service][1], (pod.name, service, port)
    flow = next(pod for pod in pods if pod.name.startswith("train"))
    environment = read_environment(objects, flow.list_containers()[0])
    # KubeRay names the Service of the head after the cluster.
    cluster = find(objects, "RayCluster", "ray")["metadata"]["name"]
    assert environment["RAY_ADDRESS"] == f"{cluster}-head-svc:6379"
    assert environment["RAY_API_SERVER_ADDRESS"] == f"http://{cluster}-head-svc:8265"
    assert environment["NORMSCOPE_DASK_ADDRESS"] == "tcp://dask-scheduler:8786"
    assert environment["NORMSCOPE_STATE"].startswith("s3://")


def test_the_example_s_pods_reach_mlflow_and_s3(objects: list[Object]) -> None:
    # Flow runs and the like are listed only with the pool's own objects.
    pool = [find(objects, "ConfigMap", "prefect-pool"), find(objects, "Job", "deploy")]
    nodes = [pod for pod in list_pods([*pool, *read_examples()]) if pod.name.startswith("train--")]
    assert len(nodes) == 2
    for node in nodes:
        assert list_addresses(objects, node) == {("mlflow", 5000)}
        assert may_reach(objects, End(node.labels), End({"app": "mlflow"}), 5000)
        assert may_reach(objects, End(node.labels), OUTSIDE, 443)
        assert not may_reach(objects, End(node.labels), End({"app": "postgres"}), 5432)
