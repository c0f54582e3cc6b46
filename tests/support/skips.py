"""Which tests may be skipped where everything is installed: a short list, each with its reason.

`NORMSCOPE_TEST_NO_SKIPS=1`, which `.ci/run` sets, makes any other skip a failure: a comparison
that never runs proves nothing.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import pytest

VARIABLE: Final = "NORMSCOPE_TEST_NO_SKIPS"
ALLOWED: Final = {
    r"recorded on another platform": "floating point rounds otherwise on other processors",
    r"^the bytes were not recorded with": "another version of a library makes other pixels",
    r"NORMSCOPE_TEST_(CONTAINERS|PODS)": "builds images for half an hour; run by hand",
    r"^missing: |^pods need|podman": "the same, where the tools for it are not installed either",
    r"NORMSCOPE_TEST_KILLS": "takes minutes; a shorter form of it runs",
    r"kubectl is older than": "Debian's knows no components; the schemas are checked all the same",
    r"this machine is in no network": "there is no address besides loopback to ask",
    r"no real data at": "the data are large and not part of the repository",
    r"no recordings of the public code": "they lie with the data",
    r"no (PatchCamelyon tiles|slide) ": "they lie with the data",
    r"no compiler": "compiled steps need one; where there is none they are not used",
    r"no CUDA": "needs a GPU: `make gpu-check`",
}
"""Pattern of a skip's reason -> why that is no fault of the machine that runs the tests."""


class UnexpectedSkips:
    """Collects skips that are not in the list, and fails the session that has any."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skipped test and its reason."""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            if not any(re.search(pattern, reason) for pattern in ALLOWED):
                self.found[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a session of which nothing else has failed."""
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Name the tests and what would let them run."""
        for name, reason in self.found.items():
            terminalreporter.write_line(f"UNEXPECTED SKIP {name}: {reason}", red=True)


def register_skips(config: pytest.Config) -> None:
    """Watch for skips in the process that reports, where the variable asks for it."""
    if os.environ.get(VARIABLE) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(UnexpectedSkips(), "unexpected-skips")
