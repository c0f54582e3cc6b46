"""Metrics as Prometheus reads them from a real endpoint."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from flows.commands.metrics import make_metrics_server
from flows.shared.settings import Settings


def scrape(url: str, headers: Mapping[str, str] | None = None) -> dict[str, list[dict[str, str]]]:
    """The samples of an endpoint: name -> the labels of each."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 -- our own
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = answer.read().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {**sample.labels, "value": str(sample.value)}
            found.setdefault(sample.name, []).append(labels)
    return found


@contextmanager
def serving_metrics(settings: Settings) -> Iterator[str]:
    """The URL of `normscope metrics`, for as long as the block runs."""
    with make_metrics_server(settings, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()
