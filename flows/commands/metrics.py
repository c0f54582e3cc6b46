"""`normscope metrics`: figures of the flow runs, for Prometheus to read."""

from __future__ import annotations

import hmac
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID
from wsgiref.simple_server import WSGIRequestHandler, make_server

from cyclopts import Parameter
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events import Event
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventOrder,
    EventRelatedFilter,
)
from prefect.settings import PREFECT_API_URL, temporary_settings
from prometheus_client import CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from flows.local.automations import TAG
from flows.shared.metrics import FIGURES, WORKED
from flows.shared.settings import Settings
from pipeline.errors import SettingsError

_HISTORY: Final = timedelta(days=7)  # for so long Prefect keeps events, by default
_LATE: Final = timedelta(minutes=5)  # after which an event will not arrive any more
_RUNS: Final = 200  # a request may ask for so many
_EVENTS: Final = 50
_OPEN: Final = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
_ENDS: Final = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class RunFigures(Collector):
    """Reads Prefect's server at each scrape: open runs, ended runs, and figures of their work."""

    def __init__(self, prefect_api_url: str) -> None:
        self._url = prefect_api_url
        self._lock = threading.Lock()
        self._since = datetime.now(UTC) - _HISTORY
        self._seen: dict[UUID, datetime] = {}
        self._ended: Counter[tuple[str, str]] = Counter()
        self._last: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the server need not answer yet."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Make the metrics of one scrape."""
        # Each request has a thread of its own, which knows nothing of this one's settings.
        where = temporary_settings({PREFECT_API_URL: self._url})
        with self._lock, where, get_client(sync_client=True) as client:
            self._take_events(client)
            open_runs = _count_open(client)
        ended = CounterMetricFamily(
            "normscope_flow_runs_ended", "Flow runs that have ended.", labels=["flow", "state"]
        )
        for labels, count in self._ended.items():
            ended.add_metric(labels, count)
        return [open_runs, ended, *self._describe_last()]

    def _describe_last(self) -> list[Metric]:
        labels = ["flow", "subject"]
        ends = GaugeMetricFamily(
            "normscope_last_end_timestamp_seconds", "When the last run ended.", labels=labels
        )
        families = {
            name: GaugeMetricFamily(f"normscope_last_{name}", f"Last run: {text}", labels=labels)
            for name, text in FIGURES.items()
        }
        for key, (moment, figures) in self._last.items():
            ends.add_metric(key, moment)
            for name in figures.keys() & families.keys():
                families[name].add_metric(key, figures[name])
        return [ends, *families.values()]

    def _take_events(self, client: SyncPrefectClient) -> None:
        """Add up the events that have come since the last scrape."""
        now = datetime.now(UTC)
        works = EventNameFilter(name=[WORKED])
        ends = EventNameFilter(name=[f"prefect.flow-run.{state}" for state in _ENDS])
        ours = EventRelatedFilter(role=["tag"], id=[f"prefect.tag.{TAG}"])
        for names, related in ((works, None), (ends, ours)):
            when = EventOccurredFilter(since=self._since - _LATE, until=now)
            query = EventFilter(occurred=when, event=names, related=related, order=EventOrder.ASC)
            for event in _read_events(client, query):
                if event.id not in self._seen:
                    self._seen[event.id] = event.occurred
                    self._add(event)
        self._since = now
        oldest = now - 2 * _LATE
        self._seen = {known: when for known, when in self._seen.items() if when > oldest}

    def _add(self, event: Event) -> None:
        if event.event == WORKED:
            key = (str(event.payload["flow"]), str(event.resource["subject"]))
            self._last[key] = (event.occurred.timestamp(), dict(event.payload["figures"]))
        else:
            flows = [each.name for each in event.related if each.role == "flow"]
            state = event.event.rpartition(".")[2]
            self._ended[(flows[0] or "" if flows else "", state.lower())] += 1


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log no line for each scrape."""


def metrics(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 takes a free one.")] = 9400,
) -> None:
    """Serve figures of the flow runs of the Prefect server at `PREFECT_API_URL`, until stopped.

    Args:
        host: Address to listen on. Beyond loopback NORMSCOPE_METRICS_TOKEN must be set, and
            whoever reads must show it as a bearer token.
        port: Port to listen on; 0 takes a free one.
    """
    with make_metrics_server(Settings(), host, port) as server:
        print(f"Metrics at http://{host}:{server.server_port}/metrics", flush=True)
        server.serve_forever()


def make_metrics_server(settings: Settings, host: str, port: int) -> ThreadingWSGIServer:
    """Make the server that `serve_forever` then runs.

    Args:
        settings: Settings that name Prefect's server and the token.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        SettingsError: No Prefect server is named, or nothing guards a port beyond loopback.
    """
    if not settings.prefect_api_url:
        remedy = "Start one with `normscope up`, or set the variable"
        raise SettingsError("PREFECT_API_URL", "it names no Prefect server", remedy)
    if settings.metrics_token is None and host not in {"127.0.0.1", "localhost", "::1"}:
        problem = f"anybody could read the metrics at {host}"
        raise SettingsError(
            "NORMSCOPE_METRICS_TOKEN", problem, "Set it, e.g. `openssl rand -hex 32`"
        )
    registry = CollectorRegistry()
    registry.register(RunFigures(settings.prefect_api_url))
    application = make_wsgi_app(registry)
    if settings.metrics_token is not None:
        application = _guard(application, settings.metrics_token.get_secret_value())
    return make_server(host, port, application, ThreadingWSGIServer, _QuietHandler)


def _guard(application: Application, token: str) -> Application:
    """Answer only those who show the token."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        shown = environ.get("HTTP_AUTHORIZATION", "").encode()
        if hmac.compare_digest(shown, f"Bearer {token}".encode()):
            return application(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
        return [b"Show NORMSCOPE_METRICS_TOKEN as a bearer token.\n"]

    return answer


def _count_open(client: SyncPrefectClient) -> Metric:
    """Count the runs that wait or work now; those that are due later do not wait yet."""
    only = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": list(_OPEN)}}}
    now, counts, names = datetime.now(UTC), Counter[tuple[str, str]](), dict[UUID, str]()
    query = FlowRunFilter.model_validate(only)
    for offset in range(0, 50 * _RUNS, _RUNS):
        runs = client.read_flow_runs(flow_run_filter=query, limit=_RUNS, offset=offset)
        for run in runs:
            due = run.expected_start_time or now
            if run.flow_id not in names:
                names[run.flow_id] = client.read_flow(run.flow_id).name
            if run.state is not None and due <= now:
                counts[names[run.flow_id], run.state.type.value.lower()] += 1
        if len(runs) < _RUNS:
            break
    family = GaugeMetricFamily(
        "normscope_flow_runs", "Flow runs that wait or work now.", labels=["flow", "state"]
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _read_events(client: SyncPrefectClient, query: EventFilter) -> Iterator[Event]:
    page = client.read_events(query, limit=_EVENTS)
    while True:
        yield from page.events
        if page.next_page is None:
            return
        page = client.read_events_page(str(page.next_page))
