"""A web server that takes notices and keeps them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.served import serving


@dataclass
class Mailbox:
    """Where notices have come.

    Args:
        port: Port on loopback.
        notices: What was posted, as JSON.
    """

    port: int = 0
    notices: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, what: str) -> dict[str, Any]:
        """The first notice that says something."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [each for each in list(self.notices) if what in str(each)]
            if found:
                return found[0]
            time.sleep(0.1)
        raise TimeoutError(f"no such notice among {self.notices}")


@contextmanager
def listening() -> Iterator[Mailbox]:
    """A server on loopback, for as long as the block runs."""
    mailbox = Mailbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            mailbox.notices.append(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with serving(Handler) as mailbox.port:
        yield mailbox
