"""What Prefect's server does by itself for our deployments: mend lost runs, and notify people.

The automations are told apart from a site's own by their names; they touch runs of deployments
with the tag `normscope` alone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    SendNotification,
)
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.filters import AutomationFilter, AutomationFilterTags
from prefect.events.schemas.automations import Automation
from pydantic import SecretStr

from flows.shared.events import DRIFTED, HELD, REFUSED
from flows.shared.settings import Settings

TAG: Final = "normscope"
PREFIX: Final = "normscope: "
BLOCK: Final = "normscope-notify"
"""Name of the block that keeps where notices go; Prefect stores its address encrypted."""

SILENCE: Final = timedelta(minutes=10)
"""Time without a sign of life after which a run is lost: three of Prefect's usual heartbeats."""

PATIENCE: Final = timedelta(minutes=30)
"""Time for a run to begin: a cluster may have to pull an image for it."""

_BEGAN: Final = "prefect.flow-run.Running"
_ENDS: Final = [
    f"prefect.flow-run.{state}"
    for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")
]
_STARTS: Final = ["1", "2", "3"]
_OURS: Final = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_RUN: Final = "{{ flow_run.name }} of {{ flow.name }}: {{ event.resource['prefect.state-name'] }}"
_MODEL: Final = (
    "{{ event.resource['prefect.resource.id'] }} version {{ event.resource['version'] }}"
)


def ship_automations(settings: Settings) -> tuple[str, ...]:
    """Make the automations on the server, or set right those that are there.

    One that somebody has disabled on the page stays so. Those that notify are deleted when no
    address is set any more.

    Args:
        settings: Settings that may name where notices go.

    Returns:
        The names of the automations that are there now.
    """
    notices = _make_notices(_save_block(settings.notify_url)) if settings.notify_url else []
    wanted = [*make_repairs(), *notices]
    ours = AutomationFilter(tags=AutomationFilterTags(all_=[TAG]))
    with get_client(sync_client=True) as client:
        found = {each.name: each for each in client.read_automations(automations=ours)}
        for automation in wanted:
            _create_or_update(client, automation, found.pop(automation.name, None))
        for name, automation in found.items():
            if name.startswith(PREFIX):
                client.delete_automation(automation.id)
    return tuple(automation.name for automation in wanted)


def make_repairs(
    silence: timedelta = SILENCE, patience: timedelta = PATIENCE
) -> list[AutomationCore]:
    """Make the automations that mark lost runs as crashed, and run crashed ones again.

    Args:
        silence: Time without a sign of life after which a run is lost; at least 10 s.
        patience: Time after which a run that was handed to a worker and has not begun is handed
            out again; at least 10 s.
    """
    # The number of starts, so that a run that always crashes comes to an end; and not 0, as a run
    # that could not even be started would be tried for ever.
    crashed = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match={"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": _STARTS},
        match_related=_OURS,
    )
    # From the change of state on, as a run may be killed before its first heartbeat.
    alive = "prefect.flow-run.heartbeat"
    lost = _watch_silence({_BEGAN, alive}, {alive, *_ENDS}, silence)
    # A worker may die between taking a run and starting it; the run holds a slot meanwhile.
    not_begun = {_BEGAN, "prefect.flow-run.Scheduled", *_ENDS}
    pending = _watch_silence({"prefect.flow-run.Pending"}, not_begun, patience)
    crash = ChangeFlowRunState(state=StateType.CRASHED, message="It gave no sign of life any more")
    return [
        _automation("mark runs that are lost as crashed", lost, crash),
        _automation(
            "run crashed runs again, three times at most",
            crashed,
            _run_again("It crashed and runs again"),
        ),
        _automation(
            "hand out runs again that no worker begins",
            pending,
            _run_again("No worker has begun it"),
        ),
    ]


def _watch_silence(after: set[str], expect: set[str], within: timedelta) -> EventTrigger:
    """Fire where none of the expected events of a run follows one of the others in time."""
    return EventTrigger(
        after=after,
        expect=expect,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def _run_again(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message)


def _make_notices(block_id: UUID) -> list[AutomationCore]:
    def send(subject: str, body: str) -> SendNotification:
        # No text of an error: it may name files, and files may name patients.
        subject = f"Normscope: {subject}"
        return SendNotification(block_document_id=block_id, subject=subject, body=body)

    ended = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
    findings = "{{ event.payload.findings | join('; ') }}"
    return [
        _automation(
            "tell of drift",
            EventTrigger(expect={DRIFTED}),
            send("scores have drifted", f"{_MODEL}: {findings}"),
        ),
        _automation(
            "tell of promotions that are held or refused",
            EventTrigger(expect={HELD, REFUSED}),
            send("a challenger was not promoted", f"{_MODEL}: {{{{ event.payload.outcome }}}}"),
        ),
        _automation(
            "tell of runs that fail",
            EventTrigger(
                expect=ended,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=_OURS,
            ),
            send("a run has failed", f"{_RUN}, {{{{ flow_run | ui_url }}}}"),
        ),
    ]


def _automation(name: str, trigger: EventTrigger, action: Any) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}{name}",
        description="Made and set right by `normscope deploy`.",
        trigger=trigger,
        actions=[action],
        tags=[TAG],
    )


def _save_block(address: SecretStr) -> UUID:
    """Keep where notices go on the server, as a block that its own code can load."""
    url = address.get_secret_value()
    block: Any
    if url.startswith(("http://", "https://")):
        text = {"subject": "{{subject}}", "body": "{{body}}", "text": "{{subject}}\n{{body}}"}
        block = CustomWebhookNotificationBlock(
            name=TAG, url="{{address}}", json_data=text, secrets={"address": url}
        )
    else:
        # Of Prefect's blocks the one that hands any address that is not Slack's to Apprise.
        block = SlackWebhook(url=address)
    identifier: UUID = block.save(BLOCK, overwrite=True)
    return identifier


def _create_or_update(
    client: SyncPrefectClient, wanted: AutomationCore, found: Automation | None
) -> None:
    if found is None:
        client.create_automation(wanted)
        return
    wanted = wanted.model_copy(update={"enabled": found.enabled})
    if AutomationCore.model_validate(found.model_dump()) != wanted:
        client.update_automation(found.id, wanted)
