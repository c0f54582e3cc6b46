"""A Prefect server that flows cannot run against is named before they start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.local.prefect_api import require_prefect_server
from pipeline.errors import SettingsError
from tests.support.served import serving


class OldServer(BaseHTTPRequestHandler):
    """What Prefect 2 answers to the question for its version.

    A stub: the real one would have to be installed beside this environment's own.
    """

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'"2.20.25"')

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def old_server() -> Iterator[str]:
    with serving(OldServer) as port:
        yield f"http://127.0.0.1:{port}/api"


def test_a_server_of_another_version_is_named() -> None:
    with (
        old_server() as url,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(SettingsError, match=rf"{url}: .*server: 2\.20\.25\. Run the same major"),
    ):
        require_prefect_server(url)


def test_a_server_that_is_not_there_is_named() -> None:
    url = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(
            SettingsError, match=rf"no Prefect server answers at {url} \(.*\)\. Start it"
        ),
    ):
        require_prefect_server(url)


def test_a_server_of_ours_is_taken(prefect_server: str) -> None:
    require_prefect_server(prefect_server)
