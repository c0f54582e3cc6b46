"""Log lines as JSON objects, one form for all processes: `NORMSCOPE_LOG_FORMAT=json`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Final

from prefect.context import FlowRunContext
from prefect.logging.configuration import PROCESS_LOGGING_CONFIG, setup_logging
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_LOGGING_EXTRA_LOGGERS,
    PREFECT_LOGGING_SETTINGS_PATH,
    temporary_settings,
)
from pythonjsonlogger.json import JsonFormatter

from flows.shared.settings import LOGGING_FILE, Settings

_NAMES: Final = {"levelname": "level", "name": "logger", "flow_run_name": "run_name"}


class JsonLines(JsonFormatter):
    """Formats a record as `{"time", "level", "logger", "message", "flow_run_id", "run_name"}`.

    The last two are null outside a flow run. What a record brings beyond that, e.g. `exc_info` or
    `task_run_name`, follows.
    """

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message", "flow_run_id", "flow_run_name"],
            rename_fields=_NAMES,
            defaults={"time": None},  # first in the line
        )

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill the object of a line.

        Args:
            log_data: Object that becomes the line.
            record: Record to be formatted.
            message_dict: Fields of a message that is itself a mapping.
        """
        super().add_fields(log_data, record, message_dict)
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = moment.isoformat(timespec="milliseconds")
        if log_data["flow_run_id"] is None:
            log_data["flow_run_id"], log_data["run_name"] = _find_run()


def use_log_format(settings: Settings) -> None:
    """Have this process write its log in the form that the settings ask for.

    Args:
        settings: Settings that name the form; `text` leaves Prefect's own.
    """
    console = PROCESS_LOGGING_CONFIG.get("handlers", {}).get("console", {})
    if settings.log_format == "text" or console.get("formatter") == "json":
        return
    # A worker that does not know `PREFECT_LOGGING_SETTINGS_PATH` has started this process.
    for name in PREFECT_LOGGING_EXTRA_LOGGERS.value():
        logging.getLogger(name).handlers.clear()  # or each line would reach the page twice
    with temporary_settings({PREFECT_LOGGING_SETTINGS_PATH: LOGGING_FILE}):
        setup_logging(incremental=False)


def show_own_loggers() -> None:
    """Have Prefect take the lines of our own loggers to its pages.

    `PREFECT_LOGGING_EXTRA_LOGGERS` does so where it is set before Prefect is imported; a worker
    that somebody else has started does not set it.
    """
    extra = logging.getLogger("prefect.extra")
    for package in ("flows", "training", "pipeline"):
        ours = logging.getLogger(package)
        ours.setLevel(logging.INFO)
        for handler in extra.handlers:
            if not any(type(known) is type(handler) for known in ours.handlers):
                ours.addHandler(handler)


def _find_run() -> tuple[str | None, str | None]:
    """Identifier and name of the flow run that this thread works for."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        return str(context.flow_run.id), context.flow_run.name
    return flow_run.id, None  # of a thread of our own: the process's run; its name is not at hand
