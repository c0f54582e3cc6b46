"""Ports and answers on loopback: what is free, what is taken, what responds."""

from __future__ import annotations

import http.client
import json
import socket
from base64 import b64encode
from typing import Final

from pipeline.errors import NormscopeError

HOST: Final = "127.0.0.1"


class ServiceError(NormscopeError):
    """A server that does not start, or whose port belongs to somebody else."""


def find_free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port


def require_free_port(port: int, name: str) -> None:
    """Raise ServiceError where somebody else listens on a port that a service needs."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            raise ServiceError(
                f"port {port}",
                f"{name} needs it, but another program listens there",
                "Stop that program or choose another port",
            )


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
