"""The Compose file and the images hang together; tests/e2e/compose builds and runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILES = ("Dockerfile", "s3.Dockerfile", "postgres.Dockerfile")
COMPOSE = (INFRA / "compose.yaml").read_text()
EXAMPLE = (INFRA / "example.env").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_dependencies_exist_and_have_the_health_checks_that_are_waited_for(
    services: dict[str, Any],
) -> None:
    for service in services.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert name in services
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in services[name]


def test_every_service_that_stays_has_a_health_check_and_is_restarted(
    services: dict[str, Any],
) -> None:
    for name, service in services.items():
        assert service["restart"] == ("on-failure" if name == "buckets" else "unless-stopped")
        assert name == "buckets" or "healthcheck" in service


def test_volumes_networks_and_build_stages_are_declared(services: dict[str, Any]) -> None:
    document = yaml.safe_load(COMPOSE)
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in document["volumes"] or (INFRA / source).is_dir()
        assert set(service.get("networks", [])) <= document["networks"].keys()
        if "build" in service:
            text = (ROOT / service["build"]["dockerfile"]).read_text()
            stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
            assert service["build"].get("target") in {None, *stages}
            assert all(f"ARG {name}=" in text for name in service["build"]["args"])


def test_what_is_published_is_for_this_machine_alone_unless_asked(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for port in ports)


def test_what_asks_for_no_password_has_a_closed_network(services: dict[str, Any]) -> None:
    networks = yaml.safe_load(COMPOSE)["networks"]
    members = {
        network: {name for name, each in services.items() if network in each.get("networks", ())}
        for network in ("dask", "database")
    }
    assert networks["dask"]["internal"] is networks["database"]["internal"] is True
    assert members["dask"] == {"s3", "worker", "dask-scheduler", "dask-worker"}
    assert members["database"] == {"postgres", "mlflow", "prefect"}
    for name in ("dask-scheduler", "dask-worker", "postgres"):
        assert len(services[name]["networks"]) == 1
        assert "ports" not in services[name]


def test_each_role_holds_the_secrets_that_it_needs_and_no_others(services: dict[str, Any]) -> None:
    held = {
        name: set(re.findall(r"\$\{([A-Z0-9_]+):\?", str(service.get("environment"))))
        for name, service in services.items()
    }
    s3, ray, mlflow, prefect = (
        "AWS_SECRET_ACCESS_KEY",
        "RAY_AUTH_TOKEN",
        "MLFLOW_PASSWORD",
        "PREFECT_PASSWORD",
    )
    assert held == {
        "s3": {s3},
        "buckets": {s3},
        "postgres": {"POSTGRES_PASSWORD"},
        "mlflow": {s3, "POSTGRES_PASSWORD", mlflow, "MLFLOW_SECRET_KEY"},
        "prefect": {"POSTGRES_PASSWORD", prefect},
        "worker": {s3, mlflow, ray, prefect, "NORMSCOPE_PSEUDONYM_KEY"},
        "ray-head": {s3, mlflow, ray},
        "ray-worker": {s3, mlflow, ray},
        "dask-scheduler": set(),
        "dask-worker": {s3},
    }


def test_the_example_lists_every_variable_and_gives_no_secret_a_value() -> None:
    required = set(re.findall(r"\$\{([A-Z0-9_]+):\?", COMPOSE))
    optional = dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", COMPOSE))
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", COMPOSE)) == required | optional.keys()
    assert set(re.findall(r"^([A-Z0-9_]+)=$", EXAMPLE, re.MULTILINE)) == required
    assert dict(re.findall(r"^#([A-Z0-9_]+)=(.+)$", EXAMPLE, re.MULTILINE)) == optional


def test_what_holds_the_secrets_reaches_neither_git_nor_an_image() -> None:
    assert "/infra/.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert "**/.env" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_copy_what_the_context_lets_through(name: str) -> None:
    lines = (INFRA / name).read_text().replace("\\\n", " ").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_through = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sources
    assert all((ROOT / word).exists() for word in sources)
    assert all(word == "." or word.split("/")[0] in let_through for word in sources)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_do_not_run_as_root(name: str) -> None:
    """Every stage that is built on its own ends as a user, and what follows it is no `USER`."""
    stages = re.split(r"^FROM ", (INFRA / name).read_text(), flags=re.MULTILINE)[1:]
    last = [re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1:] for stage in stages]
    built = last[1:] if name == "Dockerfile" else last  # `libraries` is only built upon
    assert built
    assert all(user and user != ["root"] for user in built)


def test_images_install_the_locked_versions() -> None:
    text = (INFRA / "Dockerfile").read_text()
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 3
    assert all(each.startswith(("-c requirements.lock", "--no-deps")) for each in installs)
