"""One call of a flow as a Prefect task, retried where that can help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from pipeline.errors import StorageError, UnreachableError

P = ParamSpec("P")
R = TypeVar("R")


def resumable(function: Callable[P, R]) -> Task[P, R]:
    """Wrap the call that carries a flow's work.

    All of them are idempotent and continue where they stopped, so a server or network that was
    away for a minute costs no work. An error that the user must mend is not retried.

    Args:
        function: Function of `pipeline` or `training`.
    """
    return task(
        name=function.__name__.replace("_", "-"),
        retries=3,
        retry_delay_seconds=[5, 30, 120],
        retry_condition_fn=may_pass,
        cache_policy=NO_CACHE,  # the work's own keys decide what is made again
    )(function)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 -- Prefect's signature
    """Whether a failed task may succeed when tried again.

    Args:
        task: Task that failed; not used.
        run: Run of the task; not used.
        state: State that holds the error.
    """
    error = state.result(raise_on_failure=False)
    return type(error) is StorageError or isinstance(
        error, UnreachableError | ConnectionError | TimeoutError
    )
