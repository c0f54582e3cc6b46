"""Serial and Dask: two ways to map work over shards or slides.

An engine is a `MapWork`: it applies a picklable function to each item and yields the results in
the order in which they are ready. Callers never depend on that order, so that every engine gives
the same dataset. The only importer of dask.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

import dask
from dask.utils import funcname
from distributed import Client, Future, KilledWorker, LocalCluster, worker_client
from distributed import as_completed as dask_completed
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.system import MEMORY_LIMIT

from pipeline.errors import SettingsError, UnreachableError
from pipeline.runtime.malloc import set_freed_memory

T = TypeVar("T")
R = TypeVar("R")

# An item whose function raises is tried again so often: a server may have been away.
_RETRIES: Final = 3
# A worker that dies takes the item at hand with it; at so many deaths it is the item that kills.
# An existing scheduler decides for itself (`distributed.scheduler.allowed-failures`, by default 3).
_DEATHS_OF_AN_ITEM: Final = 10
# The scheduler holds twice as many tasks as there are threads, counted anew every few seconds.
_LEAST_WINDOW: Final = 8
_RECOUNT_S: Final = 5.0
_TLS_VARIABLES: Final = (
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT",
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY",
)
DEATH: Final = "every worker that took it up has died: out of memory, or a crash in a codec"
DEATH_REMEDY: Final = "Look into the workers' logs; give workers more memory or leave the file out"


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of an engine.

    Args:
        count: Number of items worked on at once.
        memory_bytes: Memory for each item, in bytes.
    """

    count: int
    memory_bytes: int


class MapWork(Protocol):
    """Apply a function to each item, yielding results as they are ready."""

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        """Apply a function; its exceptions are raised here.

        Args:
            function: The function to apply.
            items: The items to apply it to.
            give_up: Function that gives the result of an item that kills every worker; without it
                such an item is an error. An engine in this process cannot survive such an item.
        """
        ...


def map_serially(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    give_up: Callable[[T], R] | None = None,  # noqa: ARG001 - the protocol's
) -> Iterator[R]:
    """Apply a function to one item after the other, in this thread."""
    return (function(item) for item in items)


@contextmanager
def dask_engine(
    *, address: str | None = None, workers: int = 2, memory_limit: str = "auto"
) -> Iterator[MapWork]:
    """Processes of a Dask cluster: an existing one, or one started here and stopped again.

    Args:
        address: Address of a running scheduler (`tcp://host:8786`); None starts a local cluster.
        workers: Number of processes of the local cluster.
        memory_limit: Memory of each local worker, e.g. `4GiB`; a worker beyond it is restarted.

    Raises:
        SettingsError: No scheduler answers at the address.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)  # its every step is an INFO line
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "10s"}),
        _cluster(address, workers, memory_limit) as target,
    ):
        engine = DaskMap(DaskLine(_connect(target, str(address)), lambda: _open(target)))
        try:
            yield engine
        finally:
            engine.client.close()


def _open(target: str | LocalCluster) -> Client:
    return Client(target, set_as_default=False)


def _connect(target: str | LocalCluster, address: str) -> Client:
    try:
        return _open(target)
    except OSError as error:
        raise SettingsError(
            address,
            "no Dask scheduler answers, or not to these certificates",
            "Start one with `dask scheduler`, or correct DASK_DISTRIBUTED__COMM__TLS__*",
        ) from error
    except (TypeError, RuntimeError) as error:  # Dask's for TLS without its certificates
        problem = f"TLS needs certificates and a tls:// address ({error})"
        remedy = f"Set {', '.join(_TLS_VARIABLES)}"
        raise SettingsError(address, problem, remedy) from error


@dataclass(slots=True)
class DaskLine:
    """The client in use, and what opens another where that one has given its scheduler up.

    Args:
        client: Client of the cluster.
        reopen: Function that opens another client; None where the client is the caller's to keep.
    """

    client: Client
    reopen: Callable[[], Client] | None = None


@dataclass(slots=True)
class _Window:
    """How many tasks are submitted at once, and when that was counted."""

    window: int = 0
    at: float = -math.inf


@dataclass(frozen=True)
class DaskMap:
    """`MapWork` on the workers of a Dask client."""

    _line: DaskLine
    _counted: _Window = field(default_factory=_Window, init=False, repr=False)

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        """Submit items as workers become free.

        Those that have not begun when the caller stops are cancelled.

        Raises:
            SettingsError: An item has killed every worker that tried it, and there is no `give_up`.
            UnreachableError: The scheduler has restarted or is away, and its tasks are lost. The
                same call begins anew on the scheduler that answers then.
        """
        self._require_scheduler()
        try:
            yield from self._map(function, items, give_up)
        except (CancelledError, ClosedClientError, CommClosedError) as error:
            raise self._make_loss("has lost the tasks that it was given") from error

    def _map(
        self, function: Callable[[T], R], items: Sequence[T], give_up: Callable[[T], R] | None
    ) -> Iterator[R]:
        work = partial(_keeping_memory, function)
        waiting = iter(enumerate(items))
        numbers: dict[str, int] = {}  # key of a submitted task -> number of its item

        def submit(count: int) -> list[Future[R]]:
            # pure=False: results are effects on storage, so none may be taken from a cache.
            taken = {f"{funcname(function)}-{uuid4()}": pair for pair in islice(waiting, count)}
            numbers.update({key: number for key, (number, _) in taken.items()})
            values = [item for _, item in taken.values()]
            futures: list[Future[R]] = self.client.map(
                work, values, key=list(taken), pure=False, retries=_RETRIES
            )
            return futures

        suspects = []
        running = dask_completed(submit(self._count_window()), loop=self.client.loop)
        for batch in running.batches():
            done = {future: numbers.pop(future.key) for future in batch}
            # As many as are free now: workers may have come or gone.
            running.update(submit(max(0, self._count_window() - len(numbers))))
            with suppress(KilledWorker):
                yield from self.client.gather(batch)  # one request for all that are ready
                continue
            for future, number in done.items():
                try:
                    yield future.result()
                except KilledWorker as error:
                    if give_up is None:
                        raise SettingsError(
                            f"item {number + 1} of {len(items)}", DEATH, DEATH_REMEDY
                        ) from error
                    suspects.append(items[number])
        if give_up is not None:
            for item in suspects:
                # A worker may have held other items when it died: the cause kills alone, too.
                again = self(function, [item], give_up=give_up) if len(items) > 1 else None
                yield from again or [give_up(item)]

    @property
    def client(self) -> Client:
        """Client of the cluster."""
        return self._line.client

    def _require_scheduler(self) -> None:
        """Open another client if this one has given its scheduler up, which it does in seconds.

        Raises:
            UnreachableError: The scheduler does not answer yet.
        """
        if self._line.reopen is None or self.client.status != "closed":
            return
        try:
            self._line.client = self._line.reopen()
        except OSError as error:
            raise self._make_loss("does not answer any more") from error

    def _make_loss(self, problem: str) -> UnreachableError:
        remedy = "Run it again: what is done already stays. If it stays away, start it"
        scheduler = self.client.scheduler
        return UnreachableError(
            f"Dask scheduler {scheduler.address if scheduler else ''}".strip(), problem, remedy
        )

    def _count_window(self) -> int:
        """Count the tasks that the scheduler is to hold: enough that no worker waits for one."""
        now = time.monotonic()
        if now - self._counted.at > _RECOUNT_S:
            threads = sum(self.client.nthreads().values())
            self._counted.at, self._counted.window = now, max(_LEAST_WINDOW, 2 * threads)
        return self._counted.window

    def describe(self) -> Workers:
        """Count the workers, at least one: the client waits for the first."""
        self._require_scheduler()
        found: list[Mapping[str, Any]] = []
        while not found:  # the first may have died since
            self.client.wait_for_workers(1)
            found = list(self.client.scheduler_info(n_workers=-1)["workers"].values())
        memory = min((w["memory_limit"] or MEMORY_LIMIT) // w["nthreads"] for w in found)
        return Workers(sum(worker["nthreads"] for worker in found), memory)


@contextmanager
def engine_of_worker() -> Iterator[MapWork]:
    """The cluster that the task at hand runs on, for pieces of that task.

    The task leaves its worker's thread meanwhile, so that its own worker takes pieces too. Where
    its worker dies, the pieces are cancelled, and the task begins anew elsewhere.
    """
    with worker_client() as client:
        yield DaskMap(DaskLine(client))


def _keeping_memory(function: Callable[[T], R], item: T) -> R:
    """Work in a process that keeps freed memory; Dask's workers return it to the system at once.

    Mapping it again for every tile takes as long as decoding the tile. Dask does so to make workers
    look smaller between tasks (`MALLOC_TRIM_THRESHOLD_`); their peak is the same.
    """
    set_freed_memory(is_kept=True)
    return function(item)


def describe_workers(map_work: MapWork) -> Workers:
    """Describe an engine's workers; one in this process has the whole machine or container."""
    if isinstance(map_work, DaskMap):
        return map_work.describe()
    return Workers(1, MEMORY_LIMIT)


@contextmanager
def _cluster(address: str | None, workers: int, memory_limit: str) -> Iterator[str | LocalCluster]:
    if address:
        yield address
        return
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_OF_AN_ITEM,
        # Looking into the threads every 10 ms takes a twentieth of the work's own time.
        "distributed.worker.profile.enabled": False,
    }
    # Processes are spawned, not forked: obstore hangs in a forked child.
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
            # Certificates for this cluster alone: its scheduler runs whatever it is sent, and
            # every user of the machine reaches its port.
            security=True,
            silence_logs=logging.ERROR,
        ) as cluster,
    ):
        # A worker that dies is started again, unless it died while it was starting: then this.
        cluster.adapt(minimum=workers, maximum=workers)
        yield cluster
