"""From the workers to the driver: reports, resumptions and errors, in pickled letters."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from training.learning.loop import Report
from training.learning.run_folder import Resumption

_LISTEN_EVERY_S: Final = 0.3

OnReport: TypeAlias = Callable[[Report], None]

logger: Final = logging.getLogger(__name__)


class Heard:
    """What the driver has heard so far.

    Args:
        on_report: Called with each report.

    Attributes:
        resumptions: Every one.
        error: The first error, a worker's or the listener's own.
    """

    def __init__(self, on_report: OnReport | None) -> None:
        self.resumptions: list[Resumption] = []
        self.error: Exception | None = None
        self._on_report = on_report

    def take(self, letter: bytes) -> None:
        """Open one letter."""
        content = pickle.loads(letter)  # noqa: S301 -- our own workers wrote it
        if isinstance(content, Report):
            if self._on_report is not None:
                self._on_report(content)
        elif isinstance(content, Resumption):
            self.resumptions.append(content)
            logger.info(
                "%d worker(s) go on from %s, step %d",
                content.workers,
                content.checkpoint_url,
                content.step,
            )
        elif isinstance(content, Exception):
            self.error = self.error or content


@contextmanager
def listening(collect: Callable[[], list[bytes]], on_report: OnReport | None) -> Iterator[Heard]:
    """Open letters while the block runs, in another thread, and those left at its end.

    Args:
        collect: Takes the letters that have come.
        on_report: Called with each report.
    """
    heard, stop = Heard(on_report), threading.Event()

    def listen() -> None:
        try:
            while not stop.wait(_LISTEN_EVERY_S):
                _take_all()
            _take_all()
        except Exception as error:  # noqa: BLE001 -- the driver's own thread raises it
            heard.error = heard.error or error

    def _take_all() -> None:
        for letter in collect():
            heard.take(letter)

    listener = threading.Thread(target=listen, name="training-reports", daemon=True)
    listener.start()
    try:
        yield heard
    finally:
        stop.set()
        listener.join()
