"""Peers and references of the benchmarks, each in an environment of its own, never in ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.shared.settings import Settings


def make_environment(
    requirements: Sequence[str], cache: Path | None = None, *, unpinned: Sequence[str] = ()
) -> Path:
    """An environment with some packages in it, made once and kept.

    Args:
        requirements: Packages for pip, with versions, e.g. `tiffslide==2.5.1`.
        unpinned: Packages to install without their dependencies, which `requirements` must then
            name: for peers that pin old versions.
        cache: Folder of the environments; None for `peers` below the home folder.

    Returns:
        Its Python.

    Raises:
        RuntimeError: pip could not install them; the message says what it said.
    """
    apart = [sorted(unpinned)] if unpinned else []
    wanted = json.dumps([sys.version_info[:2], sorted(requirements), *apart])
    cache = cache or Settings().home / "peers"
    folder = cache.absolute() / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    if stamp.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    _install(python, requirements)
    _install(python, unpinned, "--no-deps")
    stamp.write_text(wanted)
    return python


def _install(python: Path, requirements: Sequence[str], *options: str) -> None:
    if not requirements:
        return
    command = [str(python), "-m", "pip", "install", "--quiet", *options, *requirements]
    run_command(command, f"cannot install {', '.join(requirements)}")


def run_peer(python: Path, script: Path, *arguments: str, timeout_s: float = 600) -> Any:
    """Run a script in a peer's environment.

    Args:
        python: Interpreter from `make_environment`.
        script: Prints one line of JSON last.
        *arguments: Command-line arguments of the script.
        timeout_s: Seconds after which the script is stopped.

    Returns:
        What that line says.

    Raises:
        RuntimeError: The script failed; the message says what it said.
    """
    # -I: neither our packages nor our paths may reach the peer.
    command = [str(python), "-I", str(script), *arguments]
    return json.loads(run_command(command, f"{script.name} failed", timeout_s))


def run_command(command: Sequence[str], problem: str, timeout_s: float | None = None) -> str:
    """Run a command and return the last line that it prints; RuntimeError quotes its errors."""
    done = subprocess.run(  # noqa: S603  # pip, or a script of this folder
        command, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode != 0:
        raise RuntimeError(f"{problem}: {done.stderr[-1000:]}")
    return "".join(done.stdout.splitlines()[-1:])
