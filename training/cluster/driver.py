"""The driver of a job on the cluster: `python -m training.cluster.driver FOLDER DIGEST`.

It runs the function that `call.json` in the folder names, and writes `outcome.json` beside it. The
digest is that of the file which was submitted: whoever can write there cannot have code run here.
What it prints is JSON by the line, which `training.cluster.job_log` reads.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from hashlib import sha256
from importlib.metadata import version
from typing import Final

from pipeline.errors import NormscopeError, SettingsError, StorageError
from pipeline.io import storage
from training.cluster.calls import Call, encode_error, encode_result
from training.cluster.jobs import CALL, DEFECT, OUTCOME

_PROGRESS_EVERY_S: Final = 1.0


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: logger, level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its traceback included."""
        text = super().format(record)
        return json.dumps({"logger": record.name, "level": record.levelno, "message": text})


class _ProgressPrinter:
    """Prints how far the work is, at most once a second, and its end."""

    def __init__(self) -> None:
        self._printed_at = -_PROGRESS_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._printed_at >= _PROGRESS_EVERY_S:
            self._printed_at = now
            print(json.dumps({"progress": [done, total]}), flush=True)


def drive(folder_url: str, digest: str) -> None:
    """Run the call of a folder and write its outcome there.

    Args:
        folder_url: Folder or prefix that holds `call.json`.
        digest: SHA-256 of that file.
    """
    url = storage.join(folder_url, CALL)
    data = storage.read_bytes(url)
    try:
        if sha256(data).hexdigest() != digest:
            raise StorageError(url, "is not the call that was submitted", "Submit it again")
        outcome = _run(Call.from_bytes(data))
    except NormscopeError as error:
        outcome = encode_error(error)
    storage.write_bytes(storage.join(folder_url, OUTCOME), outcome)


def _run(call: Call) -> bytes:
    ours = version("normscope")
    if call.version != ours:
        problem = f"the cluster has Normscope {ours}, the call comes from {call.version}"
        raise SettingsError(call.subject, problem, "Install the same version on both")
    function, arguments = call.find_function(), call.decode_arguments()
    if "on_progress" in inspect.signature(function).parameters:
        arguments["on_progress"] = _ProgressPrinter()
    return encode_result(function, function(**arguments, ray_address="auto"))


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for package in ("training", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)


if __name__ == "__main__":
    _log_as_json()
    try:
        drive(*sys.argv[1:])
    except Exception:
        logging.getLogger("training.cluster.driver").exception("The driver has failed")
        sys.exit(DEFECT)
