"""Rows of a dataset that are chosen by split, label and quality: a bit a row.

Of 244 million tiles the bits are 30 MiB. The dataset's columns are read part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Label, Split
from pipeline.store.dataset import Dataset, find_chunks
from pipeline.store.part import OpenPart, Part
from training.data.part_columns import list_filled, map_parts, read_column

Rows = NDArray[np.int64]
Ranges = Mapping[str, tuple[float, float]]

_BLOCK_BYTES: Final = 1 << 16  # of packed bits that are counted at once


class ChosenRows:
    """Some rows of a dataset, ascending.

    Args:
        bits: uint8 (rows of the dataset / 8, rounded up), whether each row is chosen, as
            `np.packbits` packs it.
        chunk_starts: int64 (chunks + 1,), first row of each chunk, and the number of all rows.
    """

    def __init__(self, bits: NDArray[np.uint8], chunk_starts: Rows) -> None:
        self._bits, self.chunk_starts = bits, chunk_starts

    @classmethod
    def of(cls, rows: Rows, chunk_starts: Rows) -> ChosenRows:
        """Choose these rows."""
        is_chosen = np.zeros(int(chunk_starts[-1]), bool)
        is_chosen[rows] = True
        return cls(np.packbits(is_chosen), chunk_starts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def _ends(self) -> Rows:
        """Number of chosen rows up to the end of each chunk: int64 (chunks,)."""
        counts = np.zeros(len(self.chunk_starts) - 1, np.int64)
        for start in range(0, len(self._bits), _BLOCK_BYTES):
            rows = self.list_between(8 * start, 8 * (start + _BLOCK_BYTES))
            found, some = np.unique(self.find_chunks(rows), return_counts=True)
            counts[found] += some
        return np.cumsum(counts)

    @cached_property
    def chunks(self) -> Rows:
        """Numbers of the chunks that hold a chosen row, ascending."""
        return np.flatnonzero(np.diff(self._ends, prepend=0))

    def count_in(self, chunks: Rows) -> Rows:
        """Count the chosen rows of each of these chunks."""
        return np.diff(self._ends, prepend=0)[chunks]

    def find_chunks(self, rows: Rows) -> Rows:
        """Find the number of the chunk of each row."""
        return find_chunks(rows, self.chunk_starts)

    def list_chunk(self, chunk: int) -> Rows:
        """List the chosen rows of a chunk, ascending."""
        return self.list_between(int(self.chunk_starts[chunk]), int(self.chunk_starts[chunk + 1]))

    def list_all(self) -> Rows:
        """List all chosen rows: eight bytes each."""
        return self.list_between(0, int(self.chunk_starts[-1]))

    def at(self, places: Rows) -> Rows:
        """Find the rows at these places among the chosen ones, counted from 0."""
        chunks = np.searchsorted(self._ends, places, side="right")
        rows = np.empty(len(places), np.int64)
        for chunk in np.unique(chunks):
            inside = chunks == chunk
            own = self.list_chunk(int(chunk))
            rows[inside] = own[places[inside] - self._ends[chunk] + len(own)]
        return rows

    def place_of(self, rows: Rows) -> Rows:
        """Find the place of each of these chosen rows among all chosen ones."""
        chunks = self.find_chunks(rows)
        places = np.empty(len(rows), np.int64)
        for chunk in np.unique(chunks):
            inside = chunks == chunk
            own = self.list_chunk(int(chunk))
            first = self._ends[chunk] - len(own)
            places[inside] = first + np.searchsorted(own, rows[inside])
        return places

    def space_evenly(self, limit: int | None) -> Rows:
        """Choose up to `limit` rows at even distances, the first and the last; all if None."""
        if limit is None or len(self) <= limit:
            return self.list_all()
        return self.at(np.linspace(0, len(self) - 1, limit).round().astype(np.int64))

    def list_between(self, start: int, stop: int) -> Rows:
        """List the chosen rows from `start` up to, not including, `stop`, ascending."""
        first = start // 8
        found = np.flatnonzero(np.unpackbits(self._bits[first : -(-stop // 8)])) + 8 * first
        return found[(found >= start) & (found < stop)]


def choose(
    dataset: Dataset, split: Split, label: Label, ranges: Ranges | None = None
) -> ChosenRows:
    """Choose readable rows of a split and label, and of a quality.

    Args:
        dataset: The dataset, of which one column of a few parts is in memory at a time.
        split: Split of the rows.
        label: Label of the rows, normal or anomalous.
        ranges: Least and greatest value by quality column; unknown (NaN) values stay.
    """
    numbers = [n for n, part in enumerate(dataset.parts) if _may_hold(part, split, label)]
    return choose_in_parts(
        dataset, numbers, lambda opened: _choose_in_part(opened, split, label, ranges or {})
    )


def choose_in_parts(
    dataset: Dataset, numbers: list[int], function: Callable[[OpenPart], NDArray[np.bool_]]
) -> ChosenRows:
    """Choose rows part by part.

    Args:
        dataset: Sealed dataset that holds the rows.
        numbers: Numbers of the parts to choose from, ascending; of the others no row is chosen.
        function: Tells of each row of an open part whether it is chosen: bool (rows of the part,).
    """
    bits = np.zeros(-(-dataset.image_count // 8), np.uint8)
    found = map_parts(lambda number: function(dataset.open_part(number)), numbers)
    for number, is_chosen in zip(numbers, found, strict=True):
        first, offset = divmod(int(dataset.starts[number]), 8)
        packed = np.packbits(np.concatenate([np.zeros(offset, bool), is_chosen]))
        bits[first : first + len(packed)] |= packed
    return ChosenRows(bits, dataset.chunk_starts)


def list_groups(dataset: Dataset) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """List each pair of group and split that occurs, as two arrays: a few for each part."""

    def list_in(number: int) -> set[tuple[str, str]]:
        opened = dataset.open_part(number)
        groups, splits = (read_column(opened, name) for name in ("group_id", "split"))
        return set(zip(groups.tolist(), splits.tolist(), strict=True))

    pairs: set[tuple[str, str]] = set()
    for found in map_parts(list_in, list_filled(dataset)):
        pairs |= found
    groups, splits = zip(*sorted(pairs), strict=True) if pairs else ((), ())
    return np.array(groups, object), np.array(splits, object)


def _may_hold(part: Part, split: Split, label: Label) -> bool:
    count = part.normal_count if label == Label.NORMAL else part.anomalous_count
    return bool(count) and part.split in {split, ""}


def _choose_in_part(
    opened: OpenPart, split: Split, label: Label, ranges: Ranges
) -> NDArray[np.bool_]:
    is_chosen: NDArray[np.bool_] = (
        (read_column(opened, "split") == split)
        & (opened.column("label") == label)
        & opened.column("readable")
    )
    for name, (least, greatest) in ranges.items():
        values = opened.column(name)
        is_chosen &= ~((values < least) | (values > greatest))
    return is_chosen
