"""Our own way of starting a real S3 server."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.s3 import server as s3_server
from infra.s3.ceph import Server, ServerError

needs_ceph = pytest.mark.skipif(
    any(shutil.which(program) is None for program in s3_server.PROGRAMS),
    reason="needs Ceph's programs: apt-get install ceph-mon ceph-osd radosgw",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # A long path with a space: sockets and settings must bear it.
    folder = tmp_path_factory.mktemp("s3 " + "x" * 80) / "server"
    yield folder
    s3_server.stop(folder)


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"radosgw missing: apt-get install"):
        s3_server.start(tmp_path / "new", 0)
    assert not (tmp_path / "new").exists()


@needs_ceph
def test_a_folder_of_other_things_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "diary.txt").write_text("mine")
    assert s3_server.main(["up", str(tmp_path)]) == 1
    assert "holds other things" in capsys.readouterr().err
    assert (tmp_path / "log" / "diary.txt").read_text() == "mine"


def test_the_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    with server.locked():
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700


@needs_ceph
@pytest.mark.slow
def test_objects_survive_a_stop_and_starting_twice_is_starting_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = s3_server.start(folder, 0)
    server = Server(folder)
    before = {name: server.find_pid(name) for name in s3_server.DAEMONS}
    assert all(before.values())
    assert s3_server.start(folder, 0) == variables
    assert {name: server.find_pid(name) for name in s3_server.DAEMONS} == before

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket="kept")
    client.put_object(Bucket="kept", Key="a/b", Body=b"c")

    s3_server.stop(folder)
    assert not any(server.find_pid(name) for name in s3_server.DAEMONS)
    again = s3_server.start(folder, int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    assert again == variables
    assert client.get_object(Bucket="kept", Key="a/b")["Body"].read() == b"c"


@needs_ceph
@pytest.mark.slow
def test_a_taken_port_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"another program listens on port {port}"):
            s3_server.start(tmp_path / "new", port)
    server = Server(tmp_path / "new")
    assert not any(server.find_pid(name) for name in s3_server.DAEMONS)


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "osd.pid").write_text(str(os.getpid()))
    server = Server(tmp_path)
    assert server.find_pid("osd") is None
    server.stop_daemon("osd")  # would end these tests
    assert not (tmp_path / "run" / "osd.pid").exists()
