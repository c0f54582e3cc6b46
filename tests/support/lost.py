"""Flows that tests deploy, kill and have run again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow

from flows.shared.limits import limited


@flow
def linger(folder: str) -> None:
    """Write who it is and wait; started again, end at once."""
    starts = Path(folder)
    number = len(list(starts.glob("start-*")))
    written = starts / f"start-{number}.writing"
    written.write_text(str(os.getpid()))
    written.rename(starts / f"start-{number}")
    if number == 0:
        time.sleep(600)


@flow
def hold(name: str, folder: str) -> None:
    """Hold a slot until it is killed."""
    with limited(name):
        Path(folder, "holding").touch()
        time.sleep(600)
