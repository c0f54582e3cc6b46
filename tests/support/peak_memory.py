"""How much memory a piece of work takes at its peak, in a process of its own.

A script that measures itself imports `peak_bytes` and prints what it used and what is stated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most memory that this process ever held.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def run_measured(script: str, folder: Path) -> tuple[int, int]:
    """The two numbers of bytes, used and stated, that a script prints when it is given a folder."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    used, stated = map(int, done.stdout.split())
    return used, stated
