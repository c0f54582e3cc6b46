"""An engine of threads: order and memory are those of concurrent work, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from pipeline.runtime.engines import MapWork

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def thread_engine(workers: int) -> Iterator[MapWork]:
    with ThreadPoolExecutor(workers) as pool:

        def map_in_threads(
            function: Callable[[T], R],
            items: Sequence[T],
            *,
            give_up: Callable[[T], R] | None = None,
        ) -> Iterator[R]:
            futures = [pool.submit(function, item) for item in items]
            return (future.result() for future in as_completed(futures))

        yield map_in_threads
