"""A real S3 server on loopback, Ceph's RADOS gateway.

It serves the tests, the benchmarks, `make s3-up` and the Compose file; no package imports it.

    python -m infra.s3.server up DIR [--port PORT]    start it; prints the variables to export
    python -m infra.s3.server down DIR                stop it; the data stay in DIR

One monitor, one store, one gateway, as Debian and Ubuntu package them:

    apt-get install --no-install-recommends ceph-mon ceph-osd radosgw

It keeps one copy of everything and is not for data that matter. Several servers may run side by
side, each with a folder of its own. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import http.client
import json
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from infra.s3.ceph import Server, ServerError

HOST = "127.0.0.1"
ACCESS_KEY = "normscope"
REGION = "us-east-1"
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw")
DAEMONS = ("mon", "osd", "rgw")
"""In the order of starting; stopping goes backwards."""

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{v2_port},v1:{host}:{v1_port}]
public network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class update on start = false
mon allow pool size one = true
mon max pg per osd = 500
mon warn on pool no redundancy = false
run dir = {folder}/run
log file = {folder}/log/$name.log
# A socket's path may not exceed 107 characters, and nobody asks here.
admin socket =
[client]
keyring = {folder}/keyring
[mon]
mon data = {folder}/mon
mon data avail warn = 2
mon data avail crit = 1
[osd]
osd data = {folder}/osd
keyring = {folder}/osd/keyring
osd objectstore = bluestore
osd memory target = 1073741824
# A sparse file: it takes the space of what is in it.
bluestore block size = 10737418240
[client.rgw]
rgw data = {folder}/rgw
keyring = {folder}/rgw/keyring
rgw dns name = localhost
rgw enable usage log = false
rgw run sync thread = false
"""


def start(
    folder: Path, port: int, *, host: str = HOST, secret_key: str | None = None
) -> dict[str, str]:
    """Start the server, unless it runs already.

    Args:
        folder: Holds all of its state; made by the first start, kept by `stop`.
        port: Of the gateway; 0 takes whichever is free. A running server keeps its own.
        host: The address that the gateway listens on; everything else stays on loopback.
        secret_key: Of the user that the first start makes; a random one by default.

    Returns:
        The variables that its clients need.

    Raises:
        ServerError: A program is missing, a port is taken, a daemon does not start.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ServerError(
            f"{', '.join(missing)} missing: apt-get install --no-install-recommends "
            "ceph-mon ceph-osd radosgw"
        )
    server = Server(folder.absolute())
    _refuse_foreign_folder(server)
    with server.locked():
        try:
            if not server.state_path.exists():
                _create_cluster(server)
            _start_monitor(server)
            if not (server.folder / "rgw" / "keyring").exists():
                _create_store(server)
            _start_store(server)
            return _start_gateway(server, port, host, secret_key or secrets.token_hex(20))
        except BaseException:
            _stop_daemons(server)
            raise


def stop(folder: Path) -> None:
    """Stop what `start` started, also after a crash; the data stay."""
    server = Server(folder.absolute())
    if (server.folder / "run").is_dir():
        with server.locked():
            _stop_daemons(server)


def _stop_daemons(server: Server) -> None:
    for name in reversed(DAEMONS):
        server.stop_daemon(name)


def _refuse_foreign_folder(server: Server) -> None:
    """A first start empties the folder of what an earlier one left: only ever our own."""
    held = {path.name for path in server.folder.iterdir()} if server.folder.is_dir() else set()
    if held and "s3_server.lock" not in held:
        raise ServerError(f"{server.folder} holds other things: name a new or an empty folder")


def _create_cluster(server: Server) -> None:
    """Write the configuration, the first keys and the monitor's database."""
    _stop_daemons(server)
    for name in ("mon", "osd", "rgw", "run", "log"):
        shutil.rmtree(server.folder / name, ignore_errors=True)
        (server.folder / name).mkdir()
    fsid, v2_port, v1_port = str(uuid.uuid4()), _find_free_port(), _find_free_port()
    settings = {"fsid": fsid, "host": HOST, "v2_port": v2_port, "v1_port": v1_port}
    server.configuration.write_text(CONFIGURATION.format(folder=server.folder, **settings))
    addresses = f"[v2:{HOST}:{v2_port},v1:{HOST}:{v1_port}]"
    authtool = ("ceph-authtool", "keyring", "--gen-key")
    everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
    monmap = ("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", addresses)
    (server.folder / "keyring").unlink(missing_ok=True)
    server.run(*authtool, "--create-keyring", "-n", "mon.", "--cap", "mon", "allow *")
    server.run(*authtool, "-n", "client.admin", *everything)
    server.run(*monmap, "monmap")
    server.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")


def _create_store(server: Server) -> None:
    """Register store and gateway with the monitor, and format the store."""
    identity = str(uuid.uuid4())
    key = server.run("ceph-authtool", "--gen-print-key").strip()
    secret = json.dumps({"cephx_secret": key})
    server.run("ceph", "osd", "new", identity, "0", "-i", "-", text=secret)
    authtool = ("ceph-authtool", "--create-keyring", "osd/keyring")
    server.run(*authtool, "-n", "osd.0", "--add-key", key)
    server.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
    caps = ("mon", "allow rwx", "osd", "allow rwx")
    keyring = server.run("ceph", "auth", "get-or-create", "client.rgw", *caps)
    (server.folder / "rgw" / "keyring").write_text(keyring)


def _start_monitor(server: Server) -> None:
    server.start_daemon("mon", "ceph-mon", "-i", "a")
    server.wait_until(lambda: bool(_ask(server, "status")), "mon")


def _start_store(server: Server) -> None:
    server.start_daemon("osd", "ceph-osd", "-i", "0")
    server.wait_until(lambda: " 1 up" in _ask(server, "osd", "stat"), "osd")


def _start_gateway(server: Server, port: int, host: str, secret_key: str) -> dict[str, str]:
    """Start the gateway and, the first time, make its user; the variables for its clients."""
    port_path = server.folder / "run" / "port"
    if server.find_pid("rgw") is None:
        port = port or _find_free_port()
        _require_free_port(port)
        port_path.write_text(str(port))
        # Without tcp_nodelay each small read waits 40 ms for the other side's acknowledgement.
        frontend = f"beast endpoint={host}:{port} tcp_nodelay=1"
        server.start_daemon("rgw", "radosgw", "-n", "client.rgw", "--rgw-frontends", frontend)
    port = int(port_path.read_text())
    server.wait_until(lambda: _answers(port), "rgw")
    if not server.state_path.exists():
        user = ("--uid", ACCESS_KEY, "--display-name", ACCESS_KEY)
        keys = ("--access-key", ACCESS_KEY, "--secret-key", secret_key)
        server.run("radosgw-admin", "user", "create", *user, *keys)
        server.state_path.touch(mode=0o600)
        server.state_path.write_text(json.dumps({"secret_key": secret_key}))
    return _variables(port, json.loads(server.state_path.read_text())["secret_key"])


def _variables(port: int, secret_key: str) -> dict[str, str]:
    """What obstore, boto3, pyarrow and MLflow read, and what makes this project's tests use it."""
    endpoint = f"http://{HOST}:{port}"
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "NORMSCOPE_TEST_S3": endpoint,
    }


def _ask(server: Server, *question: str) -> str:
    """The monitor's answer, or nothing while it has none."""
    try:
        return server.run("ceph", "--connect-timeout", "5", *question)
    except (ServerError, subprocess.TimeoutExpired):
        return ""


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return True
    finally:
        connection.close()


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ServerError(f"another program listens on port {port}: choose one with --port")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds all of the server's state")
    parser.add_argument("--port", type=int, default=0, help="of the gateway; any free one if 0")
    parser.add_argument("--host", default=HOST, help="that the gateway listens on")
    parser.add_argument("--secret-key", help="for the first start; a random one by default")
    options = parser.parse_args(arguments)
    try:
        if options.action == "down":
            stop(options.folder)
            return 0
        variables = start(
            options.folder, options.port, host=options.host, secret_key=options.secret_key
        )
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}")
    except ServerError as error:
        print(f"s3_server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
