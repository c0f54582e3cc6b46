"""`normscope metrics`: what Prometheus gets to know of real runs, and who may ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Failed, Scheduled
from prefect.types import DateTime
from pydantic import SecretStr

from flows.cli import launch
from flows.ingest_images import ingest_images
from flows.local.automations import TAG
from flows.shared.settings import Settings
from tests.support.scraped import scrape, serving_metrics
from tests.support.waves import paint

pytestmark = pytest.mark.slow

Samples = dict[str, list[dict[str, str]]]


@flow
def counted() -> None:
    """Stand for one of our flows."""


def wait_until(url: str, is_there: Callable[[Samples], bool]) -> Samples:
    """The metrics once events have arrived."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = scrape(url)
        if is_there(found):
            return found
        time.sleep(0.5)
    raise TimeoutError(f"not among the metrics: {found}")


def find(samples: Samples, name: str, **labels: str) -> list[float]:
    """The values of a metric's samples that have these labels."""
    return [
        float(each["value"]) for each in samples.get(name, []) if labels.items() <= each.items()
    ]


def test_an_ingest_tells_of_images_bytes_and_failures(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    for number in range(3):
        paint(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    dataset = str(tmp_path / "dataset")
    ingest_images(str(tmp_path / "in"), dataset, size_px=(64,))
    with serving_metrics(Settings(prefect_api_url=prefect_server)) as url:
        known = {"flow": "ingest-images", "subject": dataset}
        found = wait_until(url, lambda it: bool(find(it, "normscope_last_images", **known)))
        again = scrape(url)
    assert find(found, "normscope_last_images", **known) == [4]
    assert find(found, "normscope_last_failed_items", **known) == [1]
    assert find(found, "normscope_last_read_bytes", **known) == []  # counted of slides alone
    assert find(found, "normscope_last_stored_bytes", **known)[0] > 0
    assert find(found, "normscope_last_seconds", **known)[0] > 0
    assert abs(find(found, "normscope_last_end_timestamp_seconds", **known)[0] - time.time()) < 600
    assert find(again, "normscope_last_images", **known) == [4]


def test_runs_that_wait_and_runs_that_ended_are_counted_once(prefect_server: str) -> None:
    with (
        serving_metrics(Settings(prefect_api_url=prefect_server)) as url,
        get_client(sync_client=True) as client,
    ):
        due: State[None] = Scheduled(scheduled_time=DateTime.now("UTC").subtract(minutes=1))
        later: State[None] = Scheduled(scheduled_time=DateTime.now("UTC").add(hours=1))
        for state in (due, due, later):
            client.create_flow_run(counted, tags=[TAG], state=state)
        client.create_flow_run(counted, state=due)  # of somebody else
        failed = client.create_flow_run(counted, tags=[TAG])
        client.set_flow_run_state(failed.id, Failed())
        ended = {"flow": "counted", "state": "failed"}
        name = "normscope_flow_runs_ended_total"
        found = wait_until(url, lambda it: bool(find(it, name, **ended)))
        assert find(found, "normscope_flow_runs", flow="counted", state="scheduled") == [2]
        assert find(found, name, **ended) == [1]
        assert find(scrape(url), name, **ended) == [1]


def test_whoever_reads_beyond_loopback_must_show_the_token(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = SecretStr("a-token")
    guarded = Settings(prefect_api_url=prefect_server, metrics_token=token)
    with serving_metrics(guarded) as url:
        for shown in ({}, {"Authorization": "Bearer another"}, {"Authorization": "a-token"}):
            with pytest.raises(HTTPError, match="401"):
                scrape(url, shown)
        scrape(url, {"Authorization": "Bearer a-token"})
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    assert launch("metrics", "--host", "192.0.2.1", "--port", "0") == 2
    assert "NORMSCOPE_METRICS_TOKEN" in capsys.readouterr().err


def test_without_a_prefect_server_nothing_is_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert launch("metrics", "--port", "0") == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err
