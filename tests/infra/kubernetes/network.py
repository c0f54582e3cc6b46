"""What NetworkPolicies let through, and what the addresses in pods' environments need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from tests.infra.kubernetes.rendering import NAMESPACE, Object, Pod, find

# Without a port an address means this one.
_USUAL_PORTS = {"postgresql": 5432, "http": 80}
_URL = re.compile(
    r"(postgresql|http|tcp)(?:\+\w+)?://(?:[^@/\s]+@)?([a-z0-9-]+)(?::(\d+))?(?=[/\s\"]|$)"
)


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod of some namespace, or an address outside the cluster."""

    labels: Mapping[str, str] | None = None
    namespace: str = NAMESPACE
    address: str = ""


def may_reach(objects: list[Object], source: End, target: End, port: int) -> bool:
    """Whether the policies let a TCP connection through, at both of its ends."""
    return _lets(objects, "Egress", source, target, port) and _lets(
        objects, "Ingress", target, source, port
    )


def _lets(objects: list[Object], direction: str, here: End, there: End, port: int) -> bool:
    if here.labels is None or here.namespace != NAMESPACE:
        return True  # policies are of our namespace alone
    rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    specs = [object_["spec"] for object_ in objects if object_["kind"] == "NetworkPolicy"]
    of_pod = [
        spec
        for spec in specs
        if direction in spec["policyTypes"] and _selects(spec["podSelector"], here.labels)
    ]
    return not of_pod or any(
        _has_port(rule, port)
        and (peers not in rule or any(_is_peer(p, there) for p in rule[peers]))
        for spec in of_pod
        for rule in spec.get(rules, ())
    )


def _has_port(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(
        entry["port"] == port and entry["protocol"] == "TCP" for entry in rule["ports"]
    )


def _is_peer(peer: Object, end: End) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return (
            end.labels is None
            and ip_address(end.address) in ip_network(block["cidr"])
            and not any(ip_address(end.address) in ip_network(net) for net in block["except"])
        )
    if end.labels is None:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": end.namespace}
        is_there = _selects(peer["namespaceSelector"], named)
    else:
        is_there = end.namespace == NAMESPACE
    return is_there and _selects(peer.get("podSelector", {}), end.labels)


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def list_services(objects: list[Object]) -> dict[str, tuple[Mapping[str, str], set[int]]]:
    """The selector and the ports of each Service, those that operators make included."""
    services = {
        object_["metadata"]["name"]: (
            object_["spec"]["selector"],
            {port["port"] for port in object_["spec"]["ports"]},
        )
        for object_ in objects
        if object_["kind"] == "Service"
    }
    dask = find(objects, "DaskCluster", "dask")
    service = dask["spec"]["scheduler"]["service"]
    services["dask-scheduler"] = (service["selector"], {port["port"] for port in service["ports"]})
    head = find(objects, "RayCluster", "ray")["spec"]["headGroupSpec"]["template"]
    ports = {port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    services["ray-head-svc"] = (head["metadata"]["labels"], ports)
    return services


def list_addresses(objects: list[Object], pod: Pod) -> set[tuple[str, int]]:
    """The Services, with ports, that a pod's environment and commands name."""
    services = list_services(objects)
    found = set()
    for text in _list_texts(objects, pod):
        for scheme, host, port in _URL.findall(text):
            if host in services:
                found.add((host, int(port or _USUAL_PORTS[scheme])))
    return found


def _list_texts(objects: list[Object], pod: Pod) -> Iterator[str]:
    for container in pod.list_containers():
        yield from (str(word) for word in container.get("args", ()))
        for name, value in read_environment(objects, container).items():
            # The one address that is no URL: PostgreSQL's tools read it.
            yield f"postgresql://{value}" if name == "PGHOST" else value


def read_environment(objects: list[Object], container: Object) -> dict[str, str]:
    """The variables of a container that no Secret holds."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            variables |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        value: Any = variable.get("value")
        if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
            data = find(objects, "ConfigMap", reference["name"])["data"]
            is_optional = reference.get("optional", False)
            value = data.get(reference["key"]) if is_optional else data[reference["key"]]
        if value is not None:
            variables[variable["name"]] = value
    return variables
