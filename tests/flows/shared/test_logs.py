"""Log lines as JSON: one form, with the run that a line belongs to."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from flows.shared.logs import JsonLines
from flows.shared.settings import Settings, child_environment

FIELDS = ["time", "level", "logger", "message", "flow_run_id", "run_name"]

FLOW = """
import logging, threading
from prefect import flow, get_run_logger
import flows.shared.environment

@flow(flow_run_name="the run")
def work():
    get_run_logger().info("by Prefect's logger")
    logging.getLogger("training.loop").info("step %d :warning: [red]", 1)
    logging.getLogger("library").warning("of a library")

logging.getLogger("flows.before").info("before the run")
work()
"""


def test_a_record_becomes_one_line_of_json() -> None:
    record = logging.LogRecord(
        "training.loop", logging.WARNING, "loop.py", 1, 'lost "%s"\nof 2', ("a",), None
    )
    record.created = 0.25
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "WARNING",
        "logger": "training.loop",
        "message": 'lost "a"\nof 2',
        "flow_run_id": None,
        "run_name": None,
    }


def test_an_error_brings_its_traceback() -> None:
    try:
        int("torn")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "bad", (), sys.exc_info())
    assert "ValueError: invalid literal" in json.loads(JsonLines().format(record))["exc_info"]


@pytest.mark.slow
@pytest.mark.parametrize("is_told_to_prefect", [True, False])
def test_every_line_of_a_flow_process_is_json_with_its_run(
    prefect_server: str, is_told_to_prefect: bool, tmp_path: Path
) -> None:
    surroundings = child_environment(
        Settings(log_format="json"), PREFECT_API_URL=prefect_server, NORMSCOPE_LOG_FORMAT="json"
    )
    if not is_told_to_prefect:  # a worker that was started without our settings
        del surroundings["PREFECT_LOGGING_SETTINGS_PATH"]
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env=surroundings,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    said = {line["message"]: line for line in lines}
    assert [line for line in done.stderr.splitlines() if not line.startswith("{")] == []
    assert all(list(line)[:6] == FIELDS for line in lines)
    runs = {"by Prefect's logger", "step 1 :warning: [red]", "of a library"}
    assert {said[message]["run_name"] for message in runs} == {"the run"}
    assert len({said[message]["flow_run_id"] for message in runs}) == 1
    assert said["before the run"]["flow_run_id"] is None
    assert len([line for line in lines if line["message"] == "of a library"]) == 1


def test_text_stays_the_default(tmp_path: Path) -> None:
    assert Settings().log_format == "text"
    assert "PREFECT_LOGGING_SETTINGS_PATH" not in child_environment(Settings(home=tmp_path))
