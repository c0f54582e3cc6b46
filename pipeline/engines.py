"""Serial, threads, Dask: three ways to map work over shards or slides.

An engine is a `MapWork`: it applies a picklable function to each item and yields the results in
the order in which they are ready. Callers never depend on that order, so that every engine gives
the same dataset. The only importer of dask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import dask
from distributed import Client, LocalCluster
from distributed import as_completed as dask_completed

from pipeline.errors import SettingsError

T = TypeVar("T")
R = TypeVar("R")

# A worker that dies takes one item with it; twice on the same item is bad luck, more is the item.
_RETRIES: Final = 3


class MapWork(Protocol):
    """Apply a function to each item, yielding results as they are ready."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Apply `function` to each of `items`; an exception of the function is raised here."""
        ...


def map_serially(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """One after the other, in this thread."""
    return (function(item) for item in items)


@contextmanager
def thread_engine(workers: int) -> Iterator[MapWork]:
    """A pool of threads in this process; OpenSlide, Pillow and obstore release the lock.

    Args:
        workers: Number of threads.
    """
    with ThreadPoolExecutor(workers) as pool:

        def map_in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
            futures = [pool.submit(function, item) for item in items]
            return (future.result() for future in as_completed(futures))

        yield map_in_threads


@contextmanager
def dask_engine(
    *, address: str | None = None, workers: int = 2, memory_limit: str = "auto"
) -> Iterator[MapWork]:
    """Processes of a Dask cluster: an existing one, or one started here and stopped again.

    Args:
        address: Of a running scheduler (`tcp://host:8786`), or None to start a local cluster.
        workers: Processes of the local cluster.
        memory_limit: Of each local worker, e.g. `4GiB`; a worker beyond it is restarted.

    Raises:
        SettingsError: No scheduler answers at the address.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)  # its every step is an INFO line
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "10s"}),
        _cluster(address, workers, memory_limit) as target,
    ):
        try:
            client = Client(target, set_as_default=False)
        except OSError as error:
            raise SettingsError(
                str(address), "no Dask scheduler answers", "Start one with `dask scheduler`"
            ) from error
        with client:

            def map_on_dask(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
                # pure=False: results are effects on storage, so none may be taken from a cache.
                futures = client.map(function, list(items), pure=False, retries=_RETRIES)
                return (future.result() for future in dask_completed(futures, loop=client.loop))

            yield map_on_dask


@contextmanager
def _cluster(address: str | None, workers: int, memory_limit: str) -> Iterator[str | LocalCluster]:
    if address:
        yield address
        return
    # Processes are spawned, not forked: obstore hangs in a forked child.
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=memory_limit,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    ) as cluster:
        yield cluster
