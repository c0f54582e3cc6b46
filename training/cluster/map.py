"""Ray as an engine of `pipeline`: maps a function over items on a cluster's workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import ActorPool

from pipeline.errors import NormscopeError
from pipeline.runtime.engines import MapWork
from training.cluster.connection import ONE_CORE, Share, WorkersError, running_ray

T = TypeVar("T")
R = TypeVar("R")

_RESTARTS: Final = 3  # of a worker that dies; its item is started again


@contextmanager
def ray_engine(address: str | None, *, workers: int, share: Share = ONE_CORE) -> Iterator[MapWork]:
    """Provide workers of a Ray cluster, or of one that is started here and stopped again.

    Args:
        address: Address of a Ray cluster; None starts Ray on this machine.
        workers: Number of processes that work at once.
        share: Cores and GPUs that each worker takes; its placement is left to Ray.
    """
    with running_ray(address, workers, share):
        yield RayMap(workers, share)


@dataclass(frozen=True)
class RayMap:
    """`MapWork` on Ray: the function is sent to each worker once, then items one by one."""

    workers: int
    share: Share

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,  # noqa: ARG002 - the protocol's
    ) -> Iterator[R]:
        """Call the function with every item and yield the results as they come.

        `give_up` is ignored. Files that kill their readers are met by ingest, on the engines of
        `pipeline`; here workers read arrays that ingest has written, and die of too little memory.

        Raises:
            WorkersError: A worker has died repeatedly.
        """
        make: Any = ray.remote(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            # Ray hides GPUs from nobody that asks for none, and a worker takes what it sees.
            runtime_env={} if self.share.gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )(_Worker)
        sent = [ray.put(function)]  # within a list it is passed as a reference
        pool: Any = ActorPool([make.remote() for _ in range(min(self.workers, len(items)))])
        try:
            yield from pool.map_unordered(lambda each, item: each.work.remote(sent, item), items)
        except RayTaskError as error:
            if isinstance(error.cause, NormscopeError):
                raise error.cause from error
            raise
        except RayError as error:
            raise WorkersError(
                "Ray", "a worker has died repeatedly", "Give it more memory; see its logs"
            ) from error


class _Worker:
    _function: Callable[[Any], Any] | None = None

    def work(self, sent: Sequence[Any], item: Any) -> Any:
        if self._function is None:
            self._function = ray.get(sent[0])
        return self._function(item)
