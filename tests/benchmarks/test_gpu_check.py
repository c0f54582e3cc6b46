"""The command of the GPU check: one process an item, whatever becomes of it, and what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import ENVIRONMENT, ITEMS, NO_GPU, Item, check_items, main
from benchmarks.gpu_check_item import Found, Setup

HERE = "tests.benchmarks.test_gpu_check"
GPU, CPU = (Item(ENVIRONMENT, f"{HERE}:{name}") for name in ("on_a_gpu", "on_a_processor"))


# What the items of these tests do, each in its own process.


def on_a_gpu(_: Setup) -> Found:
    return Found("a card", {"device": "cuda", "card": "Imagined"})


def on_a_processor(_: Setup) -> Found:
    return Found("no card", {"device": "cpu"})


def tell_the_setup(setup: Setup) -> Found:
    return Found(f"{setup.device_type}, quick {setup.is_quick}", {"share": 0.25, "word": "five"})


def find_a_problem(_: Setup) -> Found:
    return Found("losses differ by 0.2", {"loss": 0.2}, ["loss is 0.2, more than 0.001"])


def skip(_: Setup) -> Found:
    return Found.skip("no C compiler")


def fail_with_an_error(_: Setup) -> Found:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def die(_: Setup) -> Found:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hang(_: Setup) -> Found:
    """With a child, as compilers start some, that holds the output open."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path(os.environ["NORMSCOPE_TEST_CHILD"]).write_text(str(child.pid))
    time.sleep(300)
    raise AssertionError


def run(*items: Item, limit_s: float = 60.0) -> list[gpu_check.Result]:
    return list(check_items(items, is_quick=True, limit_s=limit_s))


def item(function: object, **how: float) -> Item:
    name = getattr(function, "__name__", "")
    return Item(name, f"{HERE}:{name}", bool(how.pop("needs_gpu", False)), **how)


def test_an_item_is_told_where_and_how_thoroughly() -> None:
    _, on_gpu = run(GPU, item(tell_the_setup, needs_gpu=True))
    _, on_cpu = run(CPU, item(tell_the_setup))
    assert (on_gpu.found.says, on_gpu.found.state) == ("cuda, quick True", "passed")
    assert on_cpu.found.says == "cpu, quick True"


def test_without_a_gpu_what_needs_one_is_skipped() -> None:
    _, needing = run(CPU, item(fail_with_an_error, needs_gpu=True))
    assert (needing.found.state, needing.found.says) == ("skipped", NO_GPU)


def test_whatever_becomes_of_an_item_the_next_one_runs() -> None:
    results = run(
        CPU, item(find_a_problem), item(fail_with_an_error), item(die), item(skip), item(on_a_gpu)
    )
    states = {result.name: result.found.state for result in results}
    assert states == {
        ENVIRONMENT: "passed",
        "find_a_problem": "failed",
        "fail_with_an_error": "failed",
        "die": "failed",
        "skip": "skipped",
        "on_a_gpu": "passed",
    }
    says = {result.name: result.found.says for result in results}
    assert says["find_a_problem"] == "losses differ by 0.2"
    assert says["fail_with_an_error"].endswith("an illegal memory access was encountered")
    assert says["die"] == "its process was ended by SIGSEGV"
    logs = {result.name: result.log for result in results if result.log}
    assert "Traceback" in logs["fail_with_an_error"]


def test_an_item_that_hangs_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMSCOPE_TEST_CHILD", str(tmp_path / "pid"))
    _, hung, after = run(CPU, item(hang, limit_s=4), item(tell_the_setup))
    assert (hung.found.state, hung.found.says) == ("failed", "stopped after 4 s")
    assert after.found.state == "passed"
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_what_the_time_does_not_reach_has_failed() -> None:
    _, late = run(CPU, item(tell_the_setup), limit_s=0.01)
    assert (late.found.state, late.found.says) == ("failed", "not begun within 0.01 s")


def test_the_file_holds_every_figure_and_the_status_says_whether_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, items = tmp_path / "new" / "check.json", (GPU, item(tell_the_setup), item(skip))
    assert main(["--json", str(target)], items) == 0
    record = json.loads(target.read_text())
    assert record["benchmark"] == "gpu_check"
    assert datetime.fromisoformat(record["date"]).tzinfo is not None
    assert record["environment"] == {"device": "cuda", "card": "Imagined"}
    assert record["metrics"] == {"tell_the_setup.share": 0.25}
    assert [each["name"] for each in record["items"]] == [ENVIRONMENT, "tell_the_setup", "skip"]
    assert record["items"][1]["found"]["figures"] == {"share": 0.25, "word": "five"}
    shown = capsys.readouterr().out
    assert "cuda, quick False" in shown
    assert "skipped: no C compiler" in shown
    assert main([], (CPU, item(find_a_problem))) == 1
    assert "loss is 0.2, more than 0.001" in capsys.readouterr().out


def test_single_items_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "skip"], (CPU, item(find_a_problem), item(skip))) == 0
    assert "find_a_problem" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "unheard-of"], (CPU, item(skip)))


def test_every_item_names_a_function() -> None:
    for each in ITEMS:
        module, _, function = each.function.partition(":")
        source = (Path(gpu_check.__file__).parent / f"{module}.py").read_text()
        assert f"\ndef {function}(" in source
