"""The form of the benchmarks: turns, medians, ratios, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark


def test_methods_take_turns_and_nobody_always_follows_the_same_one() -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> Method:
        def run() -> float:
            calls.append(name)
            return seconds

        return Method(name, run, units=12, prepare=lambda: calls.append("prepare"))

    comparison = compare("Work", [work("slow", 3.0), work("fast", 2.0)], unit="things/s", rounds=2)
    done = [call for call in calls if call != "prepare"]
    assert calls[::2] == ["prepare"] * 6
    assert done == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert comparison.rates == {"slow": [4.0, 4.0], "fast": [6.0, 6.0]}
    assert comparison.ratio("fast") == 1.5
    assert comparison.ratio("slow", "fast") == pytest.approx(2 / 3)


def test_medians_ignore_one_bad_round() -> None:
    comparison = Comparison("Work", "x/s", {"a": [1.0, 9.0, 2.0], "b": [4.0, 4.0, 0.1]}, "a")
    assert comparison.rate("a") == 2.0
    assert comparison.ratio("b") == 2.0


def test_without_seconds_of_its_own_the_whole_call_counts() -> None:
    comparison = compare("Nothing", [Method("none", lambda: None, 1.0)], unit="x/s", rounds=1)
    assert comparison.rate("none") > 0


def test_processor_time_is_compared_for_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0, 103.0, 103.0, 107.0])  # the warm-up takes longest
    monkeypatch.setattr(harness, "_processor_seconds", lambda: next(clock))
    by_clock, by_processor = harness.compare_by_clock_and_processor(
        "Work", [Method("ours", lambda: 2.0, units=12)], unit="x/s", rounds=2
    )
    assert by_clock.rates == {"ours": [6.0, 6.0]}
    assert by_processor.rates == {"ours": [4.0, 3.0]}
    assert by_processor.unit == "x/s of a core"


def test_the_json_has_the_agreed_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bool] = []

    def measure(quick: bool) -> Outcome:
        asked.append(quick)
        comparison = Comparison("Work", "x/s", {"ours": [150.0], "limit": [300.0]}, "limit")
        return Outcome([comparison], {"share_of_limit": comparison.ratio("ours")}, ["A note."])

    target = tmp_path / "new" / "result.json"
    run_benchmark("work", measure, ["--quick", "--json", str(target)])
    record = json.loads(target.read_text())
    assert asked == [True]
    assert list(record) == ["benchmark", "hardware", "date", "metrics"]
    assert record["benchmark"] == "work"
    assert record["metrics"] == {"share_of_limit": 0.5}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert re.search(r"\d+ cores", record["hardware"])
    shown = capsys.readouterr().out
    assert "share_of_limit = 0.5" in shown
    assert "A note." in shown
