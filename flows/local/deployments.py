"""Deploy every flow of `prefect.yaml` to its work pool, by Prefect's own command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import yaml

from flows.local.services import POOL
from flows.shared.settings import Settings, child_environment
from pipeline.errors import SettingsError

PREFECT_FILE: Final = Path(__file__).parents[1] / "prefect.yaml"


def deploy_all() -> tuple[str, ...]:
    """Create the work pool, if need be, and deploy every flow to it.

    Returns:
        The deployments' names, as `flow module/deployment`.

    Raises:
        SettingsError: No Prefect server is named, or it refuses.
    """
    settings = Settings()
    if not settings.prefect_api_url:
        raise SettingsError(
            "PREFECT_API_URL",
            "it names no Prefect server, and none runs here",
            "Start one with `normscope up`, or set the variable",
        )
    _prefect(settings, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect(settings, "deploy", "--all", "--prefect-file", str(PREFECT_FILE))
    deployments = yaml.safe_load(PREFECT_FILE.read_text())["deployments"]
    return tuple(f"{entry['entrypoint'].split('.')[1]}/{entry['name']}" for entry in deployments)


def _prefect(settings: Settings, *arguments: str) -> None:
    done = subprocess.run(  # noqa: S603 -- our own arguments
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SettingsError(
            f"prefect {arguments[0]}",
            (done.stderr or done.stdout).strip()[-500:],
            f"Check the server at {settings.prefect_api_url}",
        )
