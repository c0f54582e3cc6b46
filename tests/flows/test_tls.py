"""Servers behind TLS with a CA of one's own: one variable makes every client trust them."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme

from flows.local import processes, services
from flows.local.access import Access, read_password
from flows.local.loopback import HOST
from flows.local.processes import Service
from flows.shared.settings import Settings, child_environment
from pipeline.runtime.ports import find_free_port

pytestmark = pytest.mark.slow

# By which a machine may trust other CAs already.
TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")

# All that asks a server: Prefect with its events, MLflow, obstore, boto3 and pyarrow.
CLIENT = """
import json, os, sys
import flows.shared.environment
import boto3, mlflow, pyarrow.fs
from prefect import flow
from prefect.client.orchestration import get_client
from pipeline.io import storage
from training.registry.mlflow_errors import translated

def ask_prefect():
    @flow
    def greet(): return 1
    greet()
    with get_client(sync_client=True) as client:
        assert [run.state_name for run in client.read_flow_runs()] == ["Completed"]

def ask_mlflow():
    with translated("toys"):
        mlflow.MlflowClient().create_registered_model("toys")

def ask_boto3():
    boto3.Session().client("s3").create_bucket(Bucket="lake")

def ask_obstore():
    storage.write_bytes("s3://lake/x", b"1")

def ask_pyarrow():
    place = os.environ["AWS_ENDPOINT_URL"].removeprefix("https://")
    files = pyarrow.fs.S3FileSystem(endpoint_override=place, scheme="https")
    files.get_file_info("lake/x")

said = {}
for ask in (ask_prefect, ask_mlflow, ask_boto3, ask_obstore, ask_pyarrow):
    try:
        ask()
        said[ask.__name__] = ""
    except Exception as error:
        said[ask.__name__] = f"{type(error).__name__} {error}"
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Site:
    """Prefect, MLflow and S3 behind TLS.

    Args:
        authority: File with the certificate of the CA that has signed theirs.
        environment: What their clients need, but for trust in that CA.
    """

    authority: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("home")
    authority, certificate, key = (home / name for name in ("ca.pem", "cert.pem", "key.pem"))
    made = trustme.CA()
    issued = made.issue_cert("localhost", HOST)
    made.cert_pem.write_to_path(str(authority))
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    settings, access = Settings(home=home), Access(passwords=True)
    options = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    prefect = services.prefect_server(settings, 0, access)
    mlflow = services.mlflow_server(settings, 0, access)
    prefect = behind_tls(replace(prefect, command=(*prefect.command, *options)), authority)
    command = (*mlflow.command, "--uvicorn-opts", " ".join(options))
    mlflow = behind_tls(replace(mlflow, command=command), authority)
    s3 = make_s3(certificate, key, authority)
    with (
        processes.running(prefect, home),
        processes.running(mlflow, home),
        processes.running(s3, home),
    ):
        password = read_password(settings)
        environment = {
            "NORMSCOPE_HOME": str(home),
            "PREFECT_API_URL": prefect.url,
            "PREFECT_API_AUTH_STRING": f"normscope:{password}",
            "MLFLOW_TRACKING_URI": mlflow.url,
            "MLFLOW_TRACKING_USERNAME": "normscope",
            "MLFLOW_TRACKING_PASSWORD": str(password),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": "moto",
            "AWS_SECRET_ACCESS_KEY": "moto-secret",
        }
        yield Site(authority, environment)


def behind_tls(service: Service, authority: Path) -> Service:
    """The same service, reached by https and ready once it answers so."""
    url = service.url.replace("http://", "https://")
    port = int(url.removesuffix("/api").rpartition(":")[2])
    trust = ssl.create_default_context(cafile=str(authority))

    def is_ready() -> bool:
        try:
            with (
                socket.create_connection((HOST, port), timeout=5) as plain,
                trust.wrap_socket(plain, server_hostname=HOST),
            ):
                return True
        except OSError:
            return False

    environment = {**service.environment}
    if "PREFECT_API_URL" in environment:
        environment |= {"PREFECT_API_URL": url, "SSL_CERT_FILE": str(authority)}
    return replace(service, url=url, environment=environment, is_ready=is_ready)


def make_s3(certificate: Path, key: Path, authority: Path) -> Service:
    port = find_free_port()
    program = str(Path(sys.executable).with_name("moto_server"))
    command = (program, "-H", HOST, "-p", str(port), "-c", str(certificate), "-k", str(key))
    plain = Service("s3", command, dict(os.environ), f"http://{HOST}:{port}", lambda: False)
    return behind_tls(plain, authority)


def client_environment(site: Site, **variables: str) -> dict[str, str]:
    whole = child_environment(Settings(), **site.environment)
    return {name: value for name, value in whole.items() if name not in TRUST} | variables


def ask_all(site: Site, **variables: str) -> dict[str, str]:
    """What each client says, empty where it got its answer."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env=client_environment(site, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_one_variable_makes_all_clients_trust_the_ca(site: Site) -> None:
    said = ask_all(site, SSL_CERT_FILE=str(site.authority))
    assert not any(said.values()), said


def test_without_it_no_client_talks_to_them(site: Site) -> None:
    said = ask_all(site)
    assert all(said.values()), said
    assert "Set SSL_CERT_FILE to a file with that CA's certificate" in said["ask_mlflow"]
    assert "Set SSL_CERT_FILE to a file with that CA's certificate" in said["ask_obstore"]


def test_a_command_names_the_variable(site: Site) -> None:
    program = str(Path(sys.executable).with_name("normscope"))
    done = subprocess.run(
        [program, "ledger", "toys-anomaly"],
        env=client_environment(site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Set SSL_CERT_FILE to a file with the certificate of its CA" in done.stderr
