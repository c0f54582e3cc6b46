"""Scheduled runs that have piled up while nothing could run them: the first one does it all."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled

logger: Final = logging.getLogger(__name__)


def cancel_late_runs() -> int:
    """Cancel runs of this deployment that are due and wait to do just what this one does.

    A night's run that begins now finds all that is new, so that those of the nights before it,
    and any that somebody has asked for with the same parameters, have nothing left to do. Outside
    a deployment's run nothing is done.

    Returns:
        Number of runs that were cancelled.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return 0
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    with get_client(sync_client=True) as client:
        waiting = [
            each
            for each in client.read_flow_runs(flow_run_filter=due)
            if each.id != run.id and each.parameters == run.parameters
        ]
        for each in waiting:
            message = f"Run {run.name!r} does its work, as it began after this one was due"
            client.set_flow_run_state(each.id, Cancelled(message=message))
    if waiting:
        logger.info("%d late runs of the same work are cancelled", len(waiting))
    return len(waiting)
