"""Deploy every flow of `prefect.yaml` by Prefect's own command, and what belongs beside them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.local.automations import ship_automations
from flows.local.redeploy import read_choices, restore_choices
from flows.local.services import POOL
from flows.shared.limits import GPU
from flows.shared.settings import Settings, child_environment
from pipeline.errors import SettingsError

PREFECT_FILE: Final = Path(__file__).parents[1] / "prefect.yaml"


@dataclass(frozen=True, slots=True)
class Deployed:
    """What `deploy_all` has made or set right.

    Args:
        deployments: Names of the deployments, as `flow/deployment`.
        automations: Names of the automations.
        kept: Names of the deployments that keep something which was set on Prefect's page.
        notes: One line for each thing that was left out, and how to have it.
    """

    deployments: tuple[str, ...]
    automations: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def deploy_all() -> Deployed:
    """Create the work pool, if need be; deploy every flow to it, with automations and limits.

    What somebody has set on Prefect's page of a deployment stays.

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
    entries = yaml.safe_load(PREFECT_FILE.read_text())["deployments"]
    names = tuple(
        f"{entry['entrypoint'].rpartition('.')[2].replace('_', '-')}/{entry['name']}"
        for entry in entries
    )
    triggers = [trigger["name"] for entry in entries for trigger in entry.get("triggers", ())]
    with (
        temporary_settings({PREFECT_API_URL: settings.prefect_api_url}),
        get_client(sync_client=True) as client,
    ):
        before = read_choices(client, names, triggers)
        if POOL not in {pool.name for pool in client.read_work_pools()}:
            _prefect(settings, "work-pool", "create", POOL, "--type", "process")
        try:
            _prefect(settings, "deploy", "--all", "--prefect-file", str(PREFECT_FILE))
        finally:
            kept = restore_choices(client, before)
        automations = ship_automations(settings)
        if settings.gpus:
            client.upsert_global_concurrency_limit_by_name(GPU, settings.gpus)
    return Deployed(names, automations, kept, tuple(_list_gaps(settings)))


def _list_gaps(settings: Settings) -> list[str]:
    """What the settings leave out."""
    gaps = {
        "NORMSCOPE_NOTIFY_URL": (
            settings.notify_url,
            "Nobody is notified of drift, undecided promotions and failed runs",
        ),
        "NORMSCOPE_GPUS": (
            settings.gpus,
            "`deploy` sets no limit on the GPUs of all runs together",
        ),
    }
    return [
        f"{what}: set {name} and deploy again"
        for name, (value, what) in gaps.items()
        if value is None
    ]


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
