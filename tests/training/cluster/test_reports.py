"""Tracking of reports: in order, each step once, whatever the tracking function does."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from training.cluster.reports import Tracker
from training.learning.loop import Report
from training.learning.validation import (
    Gallery,
    ValidationScores,
    pack_validation,
    unpack_validation,
)


def report_of(step: int) -> Report:
    return Report(step, 9, {"train_loss": 1.0 / step})


class Tracking:
    """A tracking server that is down while told so."""

    def __init__(self) -> None:
        self.is_down = False
        self.steps: list[int] = []

    def __call__(self, report: Report) -> None:
        if self.is_down:
            raise ConnectionError("no answer")
        self.steps.append(report.step)


def test_what_failed_is_tracked_with_the_next_report(caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking()
    tracker = Tracker(tracking)
    tracker.track([report_of(1)])
    tracking.is_down = True
    tracker.track([report_of(2), report_of(3)])
    tracker.track([report_of(4)])
    assert tracking.steps == [1]
    tracking.is_down = False
    tracker.track([report_of(5)])
    tracker.close()
    assert tracking.steps == [1, 2, 3, 4, 5]
    warnings = [record.message for record in caplog.records]
    assert warnings == ["Step 2 could not be tracked: no answer"] * 2


def test_what_was_never_tracked_is_logged_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking()
    tracker = Tracker(tracking)
    tracking.is_down = True
    tracker.track([report_of(step) for step in range(1, 7)])
    tracker.close()
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.message == "Reports of these steps were not tracked: [1, 2, 3, 4, 5, 6]"


def test_one_report_that_always_fails_does_not_hold_back_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps: list[int] = []

    def refuse_two(report: Report) -> None:
        if report.step == 2:
            raise ValueError("a bad picture")
        steps.append(report.step)

    tracker = Tracker(refuse_two)
    tracker.track([report_of(step) for step in (1, 2, 3)])
    tracker.close()
    assert steps == [1, 3]
    assert "were not tracked: [2]" in caplog.text


def test_a_step_that_workers_repeat_is_tracked_once() -> None:
    tracking = Tracking()
    tracker = Tracker(tracking)
    tracker.track([report_of(1), report_of(2)])
    tracker.track([report_of(1), report_of(2), report_of(3)])
    assert tracking.steps == [1, 2, 3]


def test_validations_survive_their_file() -> None:
    draw = np.random.default_rng(0)
    labels = np.array([0, 1], np.int8)
    scores = ValidationScores(draw.random(2, np.float32), labels)
    pictures = draw.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    maps = draw.random((2, 4, 4), np.float32)
    gallery = Gallery(4, labels, scores.scores, pictures, pictures[::-1], maps)
    found_scores, found = unpack_validation(pack_validation(scores, gallery))
    assert found is not None
    assert found.resolution == 4
    for before, after in ((scores, found_scores), (gallery, found)):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)
    assert unpack_validation(pack_validation(scores, None))[1] is None
