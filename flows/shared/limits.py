"""Limits that all flow runs share: one at a time on a model, and the GPUs of the house.

They are Prefect's global concurrency limits, so that the page shows who holds a slot and an
operator changes their size. A run holds its slots by a lease that it renews: the slots of a run
that has died are free again within `_LEASE_S`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled

from pipeline.errors import SettingsError

GPU: Final = "gpu"
"""Name of the limit whose slots are GPUs; without it any number may be used."""

_LEASE_S: Final = 120.0  # renewed at three quarters of it; a server may be away for the rest
_FORBIDDEN: Final = re.compile(r"[/%&><]")  # in the name of a limit

logger: Final = logging.getLogger(__name__)


@contextmanager
def limited(name: str | None = None, *, gpus: float = 0) -> Iterator[None]:
    """Wait for a slot, and for GPUs, and hold them while the block runs.

    Outside a flow run nothing is held.

    Args:
        name: Limit of one run at a time, e.g. `train-pcam-anomaly`; it is made where it is
            missing. None holds GPUs alone.
        gpus: Number of GPUs that the block uses in all, counted up to whole ones.

    Raises:
        SettingsError: The block wants more GPUs than the limit `gpu` has.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    holder = ConcurrencyLeaseHolder(type="flow_run", id=context.flow_run.id)
    # The name first, everywhere: runs that wait for GPUs then never wait for one another.
    wanted = [(_FORBIDDEN.sub("-", name), 1)] if name else []
    if gpus:
        wanted.append((GPU, math.ceil(gpus)))
    with ExitStack() as slots:
        for limit, count in wanted:
            if _is_limited(limit, count):
                held = concurrency(limit, count, lease_duration=_LEASE_S, holder=holder)
                slots.enter_context(held)
        yield


def _is_limited(name: str, count: int) -> bool:
    """Whether to take slots of a limit; logs when that will take a while.

    Raises:
        SettingsError: There will never be that many slots.
    """
    limit = _find_or_make(name)
    if limit is None or not limit.active:
        return False
    if count > limit.limit:
        raise SettingsError(
            name,
            f"the run wants {count} of it, but Prefect's concurrency limit is {limit.limit}",
            f"Ask for fewer, or raise it: `prefect gcl update {name} --limit {count}`",
        )
    if limit.active_slots + count > limit.limit:
        logger.info("Waits for %d of %r: %d of %d taken", count, name, *_count_slots(limit))
    return True


def _count_slots(limit: GlobalConcurrencyLimitResponse) -> tuple[int, int]:
    return round(limit.active_slots), limit.limit


def _find_or_make(name: str) -> GlobalConcurrencyLimitResponse | None:
    """The limit of that name; one of a single slot is made, but none of GPUs."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            return client.read_global_concurrency_limit_by_name(name)
        if name == GPU:
            return None
        with suppress(ObjectAlreadyExists):  # another run was quicker
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        return client.read_global_concurrency_limit_by_name(name)


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
