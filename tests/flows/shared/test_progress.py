"""Progress: a bar on a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from flows.shared.progress import progress


def test_elsewhere_each_tenth_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flows.shared.progress")
    with progress("Tiles", Console(file=io.StringIO())) as advance:
        for done in range(1, 38):
            advance(done, 37)
    assert len(caplog.messages) == 10
    assert caplog.messages[0] == "Tiles: 4 of 37 (10 %)"
    assert caplog.messages[-1] == "Tiles: 37 of 37 (100 %)"


def test_big_steps_say_the_last_tenth_and_going_back_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="flows.shared.progress")
    with progress("Tiles", Console(file=io.StringIO())) as advance:
        for done in (35, 20, 100):
            advance(done, 100)
    assert caplog.messages == ["Tiles: 35 of 100 (30 %)", "Tiles: 100 of 100 (100 %)"]


def test_nothing_to_do_is_all_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flows.shared.progress")
    with progress("Tiles", Console(file=io.StringIO())) as advance:
        advance(0, 0)
    assert caplog.messages == ["Tiles: 0 of 0 (100 %)"]


def test_a_terminal_gets_a_bar(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flows.shared.progress")
    screen = io.StringIO()
    with progress("Tiles", Console(file=screen, force_terminal=True, width=80)) as advance:
        advance(3, 7)
    assert "Tiles" in screen.getvalue()
    assert "3/7" in screen.getvalue()
    assert not caplog.messages
