"""Servers as processes: found again, stopped whole, and never mistaken for somebody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.local import processes
from flows.local.loopback import ServiceError, answers, require_free_port
from flows.local.processes import Service
from pipeline.runtime.ports import find_free_port

# Serves a folder, with a child in a session of its own that shrugs off SIGTERM.
SERVER = """
import http.server, os, signal, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c",
     "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True)
open("child.pid", "w").write(str(child.pid))
open("sigint", "w").write(str(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"well")
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

MakeService = Callable[..., Service]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeService]:
    """Makes services of one home, `tmp_path`, and stops them at the end."""
    monkeypatch.setattr(processes, "PATIENCE_S", 1.0)
    (tmp_path / "scratch").mkdir()

    def make(code: str = SERVER, timeout_s: float = 20.0) -> Service:
        port = find_free_port()
        return Service(
            name="thing",
            command=(
                sys.executable,
                "-c",
                f"import os; os.chdir({str(tmp_path)!r})\n{code}",
                str(port),
            ),
            environment=dict(os.environ),
            url=f"http://127.0.0.1:{port}",
            is_ready=lambda: answers(port, "/health") == b"well",
            timeout_s=timeout_s,
            scratch=str(tmp_path / "scratch"),
        )

    yield make
    processes.stop("thing", tmp_path)


def child_of(home: Path) -> psutil.Process:
    return psutil.Process(int((home / "child.pid").read_text()))


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_service_runs_for_a_block_and_is_gone_with_its_children(
    made: MakeService, tmp_path: Path
) -> None:
    service = made()
    with processes.running(service, tmp_path) as url:
        assert url == service.url
        assert service.is_ready()
        child = child_of(tmp_path).pid
        assert not is_gone(child)
    assert not service.is_ready()
    assert is_gone(child)
    assert not (tmp_path / "scratch").exists()


def test_starting_twice_keeps_the_first(made: MakeService, tmp_path: Path) -> None:
    first = processes.start(made(), tmp_path)
    second = processes.start(made(), tmp_path)
    assert second == first == processes.find("thing", tmp_path)
    assert processes.stop("thing", tmp_path)
    assert processes.find("thing", tmp_path) is None
    assert not processes.stop("thing", tmp_path)


def test_what_a_crash_leaves_is_stopped_too(made: MakeService, tmp_path: Path) -> None:
    record = processes.start(made(), tmp_path)
    child = child_of(tmp_path).pid
    os.kill(record.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(record.pid)], timeout=5)
    assert processes.find("thing", tmp_path) is None
    assert not is_gone(child)
    assert processes.stop("thing", tmp_path)
    assert is_gone(child)


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        record = {"pid": stranger.pid, "stamp": "0" * 16, "url": "http://x", "scratch": None}
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thing.json").write_text(json.dumps(record))
        assert processes.find("thing", tmp_path) is None
        assert not processes.stop("thing", tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_record_that_a_crash_cut_short_is_no_record(made: MakeService, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thing.json").write_text('{"pid": 12')
    assert processes.find("thing", tmp_path) is None
    assert processes.start(made(), tmp_path) == processes.find("thing", tmp_path)


def test_a_service_that_dies_names_its_log(made: MakeService, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"logs/thing\.log: thing stopped with status 3"):
        processes.start(made("print('no database'); raise SystemExit(3)"), tmp_path)
    assert "no database" in processes.log_path("thing", tmp_path).read_text()
    assert not (tmp_path / "run" / "thing.json").exists()


def test_a_service_that_stays_silent_is_stopped(made: MakeService, tmp_path: Path) -> None:
    pid_path = tmp_path / "pid"

    def never_answers() -> bool:
        wait_until(lambda: pid_path.exists() and bool(pid_path.read_text()))
        return False

    code = "open('pid', 'w').write(str(os.getpid()))\nimport time; time.sleep(600)"
    silent = replace(made(code, 1.5), is_ready=never_answers)
    with (
        pytest.raises(ServiceError, match=r"did not answer at http://127\.0\.0\.1:\d+ within 2 s"),
        processes.running(silent, tmp_path),
    ):
        pass
    assert is_gone(int(pid_path.read_text()))


def test_sigint_works_even_where_a_script_had_it_ignored(made: MakeService, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes.running(made(), tmp_path):
            assert (tmp_path / "sigint").read_text() == "True"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_killed_command_takes_its_server_with_it(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from flows.local.processes import Service, running
            code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
            ready = lambda: Path("pid").exists()
            service = Service("thing", (sys.executable, "-c", code), dict(os.environ), "", ready)
            with running(service, Path("home")):
                open("ready", "w").close()
                time.sleep(600)
        """),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    wait_until((tmp_path / "ready").exists)
    owner.kill()
    owner.wait()
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(pid))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_taken_port_is_named(made: MakeService, tmp_path: Path) -> None:
    service = made()
    port = int(service.url.rpartition(":")[2])
    require_free_port(port, "thing")
    with (
        processes.running(service, tmp_path),
        pytest.raises(
            ServiceError, match=rf"port {port}: thing needs it, but 'python.*\(process \d"
        ),
    ):
        require_free_port(port, "thing")
    assert answers(port, "/health") is None
