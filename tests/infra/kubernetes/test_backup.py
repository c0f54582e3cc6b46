"""The backups' own scripts, run by rclone against S3 servers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.infra.kubernetes.rendering import find, render_overlay

pytestmark = pytest.mark.skipif(not shutil.which("rclone"), reason="rclone is not installed")
BUCKETS = ("lake", "mlflow", "backup")


@pytest.fixture
def buckets(s3_url: str) -> Iterator[None]:
    """The buckets that the scripts name, on a server for the tests."""
    s3 = boto3.Session().resource("s3")
    for name in BUCKETS:
        s3.create_bucket(Bucket=name)
    yield
    for name in BUCKETS:
        s3.Bucket(name).objects.all().delete()
        s3.Bucket(name).delete()


def _run(script: str, *, dumps: Path | None = None, keep: str | None = None) -> None:
    data = find(render_overlay("laptop"), "ConfigMap", "backup")["data"]
    keys = {
        f"RCLONE_CONFIG_{place}_{field}": os.environ[f"AWS_{variable}"]
        for place in ("SOURCE", "BACKUP")
        for field, variable in (
            ("ACCESS_KEY_ID", "ACCESS_KEY_ID"),
            ("SECRET_ACCESS_KEY", "SECRET_ACCESS_KEY"),
            ("ENDPOINT", "ENDPOINT_URL"),
        )
    }
    settings = {name: value for name, value in data.items() if not name.endswith(".sh")}
    settings |= {} if keep is None else {"KEEP": keep}
    text = data[script].replace("/dumps", str(dumps))
    done = subprocess.run(
        ["sh", "-eu", "-c", text],
        env={"PATH": os.environ["PATH"], **settings, **keys},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _list(bucket: str) -> dict[str, bytes]:
    objects = boto3.Session().resource("s3").Bucket(bucket).objects.all()
    return {entry.key: entry.get()["Body"].read() for entry in objects}


def _put(bucket: str, key: str, body: bytes) -> None:
    boto3.Session().client("s3").put_object(Bucket=bucket, Key=key, Body=body)


@pytest.mark.usefixtures("buckets")
def test_the_state_is_copied_and_what_it_loses_is_kept() -> None:
    _put("lake", "state/ledgers/pcam/00000001.json", b"first")
    _put("lake", "state/training/run/checkpoint", b"early")
    _put("lake", "datasets/pcam/zarr.json", b"can be made again")
    _put("mlflow", "artifacts/1/model", b"weights")
    _run("copy.sh")
    current = "normscope/current"
    assert _list("backup") == {
        f"{current}/lake/state/ledgers/pcam/00000001.json": b"first",
        f"{current}/lake/state/training/run/checkpoint": b"early",
        f"{current}/mlflow/artifacts/1/model": b"weights",
    }
    _put("lake", "state/training/run/checkpoint", b"late, and longer")
    boto3.Session().client("s3").delete_object(Bucket="mlflow", Key="artifacts/1/model")
    _run("copy.sh")
    copies = _list("backup")
    assert copies[f"{current}/lake/state/training/run/checkpoint"] == b"late, and longer"
    assert f"{current}/mlflow/artifacts/1/model" not in copies
    replaced = {k.split("/", 3)[3]: v for k, v in copies.items() if "/replaced/" in k}
    assert replaced == {
        "lake/state/training/run/checkpoint": b"early",
        "mlflow/artifacts/1/model": b"weights",
    }


@pytest.mark.usefixtures("buckets")
def test_copies_are_kept_for_as_long_as_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.dump").write_bytes(b"tables")
    _run("upload.sh", dumps=tmp_path)
    ((key, body),) = _list("backup").items()
    assert key.startswith("normscope/postgres/20")
    assert key.endswith("Z/mlflow.dump")
    assert body == b"tables"
    _run("upload.sh", dumps=tmp_path, keep="1ms")
    assert _list("backup") == {}
    _put("lake", "state/kept", b"of today")
    _run("copy.sh", keep="1ms")
    assert list(_list("backup")) == ["normscope/current/lake/state/kept"]
