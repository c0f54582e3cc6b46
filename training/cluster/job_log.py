"""The log of a Ray job, followed: log records and progress as JSON lines, anything else as text."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

from ray.job_submission import JobSubmissionClient

from pipeline.records import Progress

_LAST_S: Final = 10.0  # for the rest of the log of a job that has ended

logger: Final = logging.getLogger(__name__)
# It tells of each connection that a job's end closes.
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)


@dataclass
class JobLog:
    """Passes the lines of a job's log on to our own loggers, each once.

    A thread reads, as the connection waits for the next line; after an outage another one begins
    at the start of the log and leaves out what is known.

    Args:
        client: Client of the cluster.
        name: Name of the job.
        on_progress: Called with what is done and what there is in all.
    """

    client: JobSubmissionClient
    name: str
    on_progress: Progress
    _chunks: SimpleQueue[tuple[threading.Thread, str]] = field(default_factory=SimpleQueue)
    _reader: threading.Thread | None = None
    _is_lost: bool = False
    _seen: int = 0  # characters
    _position: int = 0  # of the reader, in characters
    _rest: str = ""

    def reopen(self) -> None:
        """Read by another connection next time, as the present one may never end."""
        self._is_lost = True

    def pass_on(self) -> None:
        """Pass on what has come since the last call."""
        if self._reader is None or self._is_lost or not self._reader.is_alive():
            self._take()
            self._begin()
        self._take()

    def finish(self) -> None:
        """Pass on the rest of the log of a job that has ended."""
        if self._reader is not None:
            self._reader.join(_LAST_S)
        self._take()
        if self._rest:
            self._write(self._rest)

    def _begin(self) -> None:
        self._is_lost, self._position = False, 0
        self._reader = threading.Thread(target=self._read, name=f"log-of-{self.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Put what the job has written into the queue, until the log or the connection ends."""
        me = threading.current_thread()

        async def read() -> None:
            async for chunk in self.client.tail_job_logs(self.name):
                self._chunks.put((me, chunk))
                if me is not self._reader:
                    return

        try:
            asyncio.run(read())
        except Exception as error:  # noqa: BLE001 -- a log that breaks off must not end a training
            logger.debug("the log of job %s broke off: %s", self.name, error)

    def _take(self) -> None:
        while True:
            try:
                reader, chunk = self._chunks.get_nowait()
            except Empty:
                return
            if reader is not self._reader:
                continue
            fresh = chunk[max(self._seen - self._position, 0) :]
            self._position += len(chunk)
            self._seen = max(self._seen, self._position)
            *lines, self._rest = (self._rest + fresh).split("\n")
            for line in lines:
                self._write(line)

    def _write(self, line: str) -> None:
        """Log a line at its own level and by its own logger, or tell of progress."""
        try:
            record = json.loads(line)
            if "progress" in record:
                self.on_progress(*record["progress"])
            else:
                logging.getLogger(record["logger"]).log(record["level"], "%s", record["message"])
        except (ValueError, KeyError, TypeError):  # not one of ours
            if line.strip():
                logger.info("%s", line)
