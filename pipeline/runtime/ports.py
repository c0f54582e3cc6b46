"""TCP ports of this machine."""

from __future__ import annotations

import socket


def find_free_port() -> int:
    """Find a TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
