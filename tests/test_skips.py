"""A skip that nobody has allowed fails the tests where all of them are meant to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.skips import VARIABLE

PLUGIN = """
from tests.support.skips import register_skips as pytest_configure
"""


@pytest.mark.parametrize(
    ("reason", "asked", "status"),
    [
        ("no second implementation is installed", "1", 1),
        ("no second implementation is installed", "", 0),
        ("recorded on another platform, which rounds", "1", 0),
    ],
)
def test_a_skip_needs_a_reason_on_the_list(
    tmp_path: Path, reason: str, asked: str, status: int
) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    body = f"import pytest\n\ndef test_it(): pytest.skip({reason!r})\n\ndef test_other(): pass\n"
    (tmp_path / "test_it.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        env={**os.environ, VARIABLE: asked, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("UNEXPECTED SKIP" in done.stdout) == bool(status)
