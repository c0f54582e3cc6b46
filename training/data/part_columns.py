"""Columns of a dataset, read a few parts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.store.dataset import Dataset, read_fact
from pipeline.store.part import OpenPart

T = TypeVar("T")
Rows = NDArray[np.int64]
_READERS: Final = 8


def list_filled(dataset: Dataset) -> list[int]:
    """List the numbers of the parts that hold an image."""
    return [number for number, part in enumerate(dataset.parts) if part.image_count]


def map_parts(function: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
    """Apply a function to parts by their numbers, a few at once, in order."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="parts") as threads:
        for first in range(0, len(numbers), _READERS):
            yield from threads.map(function, numbers[first : first + _READERS])


def divide_by_part(dataset: Dataset, rows: Rows) -> list[tuple[int, slice]]:
    """Divide ascending rows by the part they lie in: its number, and where among the rows."""
    edges = np.searchsorted(rows, dataset.starts)
    spans = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [(number, slice(*span)) for number, span in enumerate(spans) if span[0] < span[1]]


def read_column(opened: OpenPart, name: str) -> NDArray[Any]:
    """Read a column of a part, or a fact of the part repeated for its rows: (n,) or (n, 2)."""
    if name not in opened.column_names:
        fact = read_fact(opened.part, name)
        if fact is not None:
            return np.full(opened.part.image_count, fact, object if isinstance(fact, str) else None)
    return opened.column(name)


def read_rows(dataset: Dataset, names: Sequence[str], rows: Rows) -> dict[str, NDArray[Any]]:
    """Read columns, or facts of parts, of some rows; each part is opened once.

    Args:
        dataset: Sealed dataset that holds the rows.
        names: Names of the columns.
        rows: int64 (n,), rows of the dataset in any order, at least one.

    Returns:
        Values by name, (n,) or (n, 2), in the order of the rows.
    """
    if not names:
        return {}
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    spans = divide_by_part(dataset, ascending)

    def read(place: int) -> list[NDArray[Any]]:
        number, span = spans[place]
        opened, within = dataset.open_part(number), ascending[span] - dataset.starts[number]
        return [read_column(opened, name)[within] for name in names]

    found = list(map_parts(read, range(len(spans))))
    columns = {}
    for place, name in enumerate(names):
        values = np.concatenate([each[place] for each in found])
        columns[name] = np.empty_like(values)
        columns[name][order] = values
    return columns
