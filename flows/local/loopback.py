"""Ports and answers on loopback: what is free, what is taken, what responds."""

from __future__ import annotations

import http.client
import json
import socket
from base64 import b64encode
from contextlib import suppress
from typing import Final

import psutil

from pipeline.errors import NormscopeError

HOST: Final = "127.0.0.1"


class ServiceError(NormscopeError):
    """A server that does not start, or whose port belongs to somebody else."""


def require_free_port(port: int, name: str) -> None:
    """Raise ServiceError where somebody else listens on a port that a service needs."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            raise ServiceError(
                f"port {port}",
                f"{name} needs it, but {_name_listener(port)} listens there",
                "Stop that program, or name another port: `normscope up --help` shows how",
            )


def _name_listener(port: int) -> str:
    """Name and number of the process that listens on a port, where this user may know it."""
    with suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            address = found.laddr
            is_it = len(address) == 2 and address.port == port
            if is_it and found.status == psutil.CONN_LISTEN and found.pid:
                return f"{psutil.Process(found.pid).name()!r} (process {found.pid})"
    return "another program"


def answers(
    port: int, path: str, body: object = None, *, credentials: str | None = None
) -> bytes | None:
    """What an HTTP server on loopback answers with status 200, or None.

    Args:
        port: Port of the server on loopback.
        path: Path of the request, e.g. `/health`.
        body: Sent as JSON by POST; without it the request is a GET.
        credentials: `user:password` for a server that asks; None sends none.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    headers = {"Content-Type": "application/json"}
    if credentials is not None:
        headers["Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return content if response.status == 200 else None
