"""The fixtures of tests/conftest.py give what they promise."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError


def test_nothing_of_the_surroundings_is_left() -> None:
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert "PREFECT_API_URL" not in os.environ
    assert "normscope-tests-" in os.environ["NORMSCOPE_HOME"]


def test_each_test_has_a_bucket_of_its_own(s3_url: str) -> None:
    client = boto3.Session().client("s3")
    bucket = urlsplit(s3_url).netloc
    client.put_object(Bucket=bucket, Key="one/two", Body=b"three")
    listing = client.list_objects_v2(Bucket=bucket)
    assert [entry.get("Key") for entry in listing["Contents"]] == ["one/two"]


def test_the_server_lets_only_one_creator_win(s3_url: str) -> None:
    client = boto3.Session().client("s3")
    bucket = urlsplit(s3_url).netloc
    client.put_object(Bucket=bucket, Key="lock", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="lock", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="lock")["Body"].read() == b"first"


def test_store_urls_are_of_every_kind(store_url: str, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["store_url"]
    scheme = {"memory": "memory", "file": "file", "moto": "s3", "real": "s3"}[kind]
    assert urlsplit(store_url).scheme == scheme


def test_flows_run_on_the_server_of_the_tests(prefect_server: str) -> None:
    from prefect import flow, get_client, runtime

    @flow
    def answer() -> tuple[int, str]:
        return 42, str(runtime.flow_run.id)

    number, run_id = answer()
    assert number == 42
    with get_client(sync_client=True) as client:
        assert str(client.api_url).rstrip("/") == prefect_server
        run = client.read_flow_run(run_id)  # type: ignore[arg-type]  # a string will do
        assert run.state is not None
        assert run.state.is_completed()


def test_mlflow_answers(mlflow_server: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(mlflow_server)
    assert "Default" in [entry.name for entry in client.search_experiments()]
