"""Keeps what somebody has set on Prefect's page of a deployment when it is deployed again.

`prefect deploy` writes what the file says: parameters of a site would be emptied, an active
schedule switched off, and a trigger that was enabled made anew as disabled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound

_TAKEN: Final = (
    *("parameters", "job_variables", "tags", "paused", "concurrency_options"),
    *("work_pool_name", "work_queue_name"),
)


@dataclass(frozen=True)
class Choices:
    """What was set for deployments before they are deployed again.

    Args:
        deployments: Deployments as they were, by `flow/deployment`.
        triggers: Automations that belong to them, by their names.
    """

    deployments: Mapping[str, DeploymentResponse] = field(default_factory=dict)
    triggers: Mapping[str, Automation] = field(default_factory=dict)


def read_choices(
    client: SyncPrefectClient, names: Sequence[str], triggers: Sequence[str]
) -> Choices:
    """Read what is set now.

    Args:
        client: Client of the Prefect server.
        names: Names of the deployments, as `flow/deployment`; some may not be there yet.
        triggers: Names of the automations that start them.
    """
    found = {}
    for name in names:
        try:
            found[name] = client.read_deployment_by_name(name)
        except ObjectNotFound:
            continue
    automations = {each.name: each for each in client.read_automations() if each.name in triggers}
    return Choices(found, automations)


def restore_choices(client: SyncPrefectClient, before: Choices) -> tuple[str, ...]:
    """Set again what was set before, over what the file says.

    Parameters, schedules, tags and variables of the work pool's jobs that only the file has stay;
    of those that both have, the earlier one counts.

    Args:
        client: Client of the Prefect server.
        before: Deployments and triggers as `read_choices` has found them.

    Returns:
        Names of the deployments for which something was set again.
    """
    restored = []
    for name, old in before.deployments.items():
        new = client.read_deployment_by_name(name)
        changes = _list_changes(old, new)
        if changes:
            client.update_deployment(new.id, DeploymentUpdate(**changes))
            restored.append(name)
    for automation in client.read_automations():
        old_trigger = before.triggers.get(automation.name)
        if old_trigger is not None and old_trigger.id != automation.id:
            wanted = _writable(old_trigger)
            if wanted != _writable(automation):
                client.update_automation(automation.id, wanted)
    return tuple(restored)


def _writable(automation: Automation) -> AutomationCore:
    """The part of an automation that the server takes in an update."""
    return AutomationCore.model_validate(automation.model_dump(exclude={"owner_resource"}))


def _list_changes(old: DeploymentResponse, new: DeploymentResponse) -> dict[str, Any]:
    """What differs from before, as fields of an update."""
    now = {**_describe(new), "schedules": _describe_schedules(new)}
    wanted = {
        **_describe(old),
        "parameters": {**new.parameters, **old.parameters},
        "job_variables": _merge(new.job_variables, old.job_variables),
        "tags": [*old.tags, *(tag for tag in new.tags if tag not in old.tags)],
        "schedules": _merge_schedules(old, new),
    }
    return {name: value for name, value in wanted.items() if value != now[name]}


def _describe(deployment: DeploymentResponse) -> dict[str, Any]:
    limit = deployment.global_concurrency_limit
    known = {name: getattr(deployment, name) for name in _TAKEN}
    return {**known, "concurrency_limit": limit.limit if limit is not None else None}


def _merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**ours, **theirs}
    for name, value in ours.items():
        if isinstance(value, Mapping) and isinstance(theirs.get(name), Mapping):
            merged[name] = _merge(value, theirs[name])
    return merged


def _merge_schedules(
    old: DeploymentResponse, new: DeploymentResponse
) -> list[DeploymentScheduleUpdate]:
    kept = _describe_schedules(old)
    known = {schedule.slug for schedule in kept if schedule.slug}
    added = [each for each in _describe_schedules(new) if each.slug and each.slug not in known]
    return [*kept, *added]


def _describe_schedules(deployment: DeploymentResponse) -> list[DeploymentScheduleUpdate]:
    fields = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    found = [
        DeploymentScheduleUpdate(**{name: getattr(each, name) for name in fields})
        for each in deployment.schedules
    ]
    return sorted(found, key=lambda each: each.slug or "")
