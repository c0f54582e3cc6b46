"""Progress of long work: a bar on a terminal, a log line every tenth elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance: TypeAlias = Callable[[int, int], None]

_logger = logging.getLogger(__name__)


@contextmanager
def progress(title: str, console: Console | None = None) -> Iterator[Advance]:
    """Show the progress of some work while the block runs.

    Args:
        title: Name of the things that are counted, e.g. `Tiles`.
        console: Terminal of the bar; standard error by default, so that results can be piped.

    Yields:
        `advance(done, total)`, to be called with the count so far, from any thread.

    Examples:
        >>> with progress("Tiles") as advance:
        ...     for done in range(1, 11):
        ...         advance(done, 10)
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _log_tenths(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def _log_tenths(title: str) -> Advance:
    """An `advance` that logs each tenth of the work once."""
    logged = 0

    def advance(done: int, total: int) -> None:
        nonlocal logged
        tenths = 10 * done // total if total else 10
        if tenths > logged:
            logged = tenths
            _logger.info("%s: %d of %d (%d %%)", title, done, total, 10 * tenths)

    return advance
