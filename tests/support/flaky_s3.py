"""A proxy in front of an S3 server that now and then answers 503, or damages what it hands on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class FlakyS3:
    """The proxy's state.

    Args:
        target: Endpoint of the server behind it.
        every: Of so many requests one is answered 503; 0 for none.
        damage: Changes the body of each answer to GET.
        requests: (method, path) of every request, in order.
        refused: How many were answered 503.
    """

    target: str
    every: int = 0
    damage: Callable[[bytes], bytes] = bytes
    requests: list[tuple[str, str]] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""

    def is_refused(self, method: str, path: str) -> bool:
        with self.lock:
            self.requests.append((method, path))
            is_refused = bool(self.every) and len(self.requests) % self.every == 0
            self.refused += is_refused
        return is_refused


@contextmanager
def flaky_s3(target: str, **state: int | Callable[[bytes], bytes]) -> Iterator[FlakyS3]:
    """Run the proxy for as long as the block runs."""
    proxy = FlakyS3(target, **state)  # type: ignore[arg-type]  # keywords of the dataclass

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if proxy.is_refused(self.command, self.path):
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            backend = HTTPConnection(urlsplit(proxy.target).netloc, timeout=30)
            backend.request(self.command, self.path, body, dict(self.headers))
            response = backend.getresponse()
            data = response.read()
            headers = dict(response.getheaders())
            if self.command == "GET" and response.status in {200, 206}:
                data = proxy.damage(data)
            self.answer(response.status, headers, data)
            backend.close()

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            length = str(len(data))
            for name, value in headers.items():
                if name.lower() == "content-length":
                    length = value if self.command == "HEAD" else length
                elif name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 -- the server's names

        def log_request(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
