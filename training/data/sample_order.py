"""The order in which samples are drawn, and how workers divide a batch.

The seed fixes an endless sequence of rows: in each epoch chunks are shuffled, then the rows of a
few chunks together. The number of samples drawn tells which come next. Workers divide a batch by
chunk, so that most chunks are read by one worker.

An epoch's order is computed a block at a time. What is held is a number a chunk for each of the
latest epochs, and the rows of a few blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.store.dataset import find_chunks
from training.data.chosen_rows import ChosenRows

BUFFER_CHUNKS: Final = 8
_BLOCK_WINDOWS: Final = 64  # windows whose order is computed together
_BLOCKS: Final = 4  # held of each epoch
_EPOCHS: Final = 3

Rows = NDArray[np.int64]


class _Epoch:
    """The order of one epoch: chunks shuffled, then the rows of `BUFFER_CHUNKS` chunks together.

    A block begins where its random generator stood, which is kept: to go back to an earlier block
    is to draw that block again.
    """

    def __init__(self, rows: ChosenRows, seed: int, epoch: int) -> None:
        draw = np.random.default_rng([seed, epoch])
        self._rows = rows
        self._chunks = rows.chunks[draw.permutation(len(rows.chunks))]
        size = _BLOCK_WINDOWS * BUFFER_CHUNKS
        counts = np.add.reduceat(rows.count_in(self._chunks), range(0, len(self._chunks), size))
        self._ends = np.cumsum(counts)
        self._states: list[Any] = [draw.bit_generator.state]
        self._blocks: OrderedDict[int, Rows] = OrderedDict()

    def read(self, place: int, count: int) -> Rows:
        """Read up to so many rows from a place on: those that lie in one block."""
        block = int(np.searchsorted(self._ends, place, side="right"))
        rows = self._read_block(block)
        start = place - int(self._ends[block]) + len(rows)
        return rows[start : start + count]

    def _read_block(self, block: int) -> Rows:
        while len(self._states) <= block:
            self._draw(len(self._states) - 1)
        if block not in self._blocks:
            self._draw(block)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _draw(self, block: int) -> None:
        draw = np.random.default_rng()
        draw.bit_generator.state = self._states[block]
        first = block * _BLOCK_WINDOWS * BUFFER_CHUNKS
        last = min(first + _BLOCK_WINDOWS * BUFFER_CHUNKS, len(self._chunks))
        ordered = []
        for start in range(first, last, BUFFER_CHUNKS):
            window = self._chunks[start : start + BUFFER_CHUNKS].tolist()
            found = np.concatenate([self._rows.list_chunk(chunk) for chunk in window])
            ordered.append(draw.permutation(found))
        self._blocks[block] = np.concatenate(ordered)
        while len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        if len(self._states) == block + 1:
            self._states.append(draw.bit_generator.state)


class SampleOrder:
    """Endless sequence of the rows that a training draws.

    Args:
        rows: Rows to draw from, at least one.
        seed: Seed of the sequence; each epoch has its own order.

    It is safe to use from several threads.
    """

    def __init__(self, rows: ChosenRows, *, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epochs: dict[int, _Epoch] = {}
        self._lock = Lock()

    def rows_at(self, start: int, count: int) -> Rows:
        """Find the rows of samples `start` to `start + count`, counted from 0 over all epochs."""
        parts, stop = [], start + count
        while start < stop:
            epoch, place = divmod(start, len(self._rows))
            with self._lock:
                parts.append(self._order(epoch).read(place, stop - start))
            start += len(parts[-1])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = _Epoch(self._rows, self._seed, epoch)
        return self._epochs[epoch]


def divide_batch(rows: Rows, *, chunk_starts: Rows, rank: int, world: int) -> Rows:
    """Choose a worker's part of a batch: rows that are close together in the dataset.

    Args:
        rows: (..., batch size) rows of one batch, or of several.
        chunk_starts: First row of each chunk of the dataset, and the number of all rows.
        rank: Number of the worker; higher ranks get rows further on in the dataset.
        world: Number of workers; their parts differ by one row at most.

    Returns:
        (..., n) places in the batch, ascending.
    """
    batch_size = rows.shape[-1]
    if world == 1:
        return np.broadcast_to(np.arange(batch_size), rows.shape)
    by_chunk = np.argsort(find_chunks(rows, chunk_starts), axis=-1, kind="stable")
    part = slice(batch_size * rank // world, batch_size * (rank + 1) // world)
    return np.sort(by_chunk[..., part], axis=-1)
