"""The order in which samples are drawn, and how workers divide a batch.

The seed fixes an endless sequence of rows: in each epoch chunks are shuffled, then the rows of a
few chunks together. The number of samples drawn tells which come next. Workers divide a batch by
chunk, so that most chunks are read by one worker.
"""

from __future__ import annotations

from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

BUFFER_CHUNKS: Final = 8

Rows = NDArray[np.int64]


def order_rows(rows: Rows, *, chunk_images: int, seed: int, epoch: int) -> Rows:
    """Shuffle chunks, then the rows of `BUFFER_CHUNKS` chunks together.

    Args:
        rows: Ascending rows of the dataset, at least one.
        chunk_images: Rows in a chunk of the dataset.
        seed: Seed of the shuffling.
        epoch: Number of the epoch; each has its own order.

    Returns:
        The same rows in the epoch's order.
    """
    draw = np.random.default_rng([seed, epoch])
    chunks = rows // chunk_images
    by_chunk = np.split(rows, np.flatnonzero(np.diff(chunks)) + 1)
    shuffled = draw.permutation(len(by_chunk))
    ordered = [
        draw.permutation(np.concatenate([by_chunk[chunk] for chunk in window]))
        for window in np.split(shuffled, range(BUFFER_CHUNKS, len(shuffled), BUFFER_CHUNKS))
    ]
    return np.concatenate(ordered)


class SampleOrder:
    """Endless sequence of the rows that a training draws.

    Args:
        rows: Ascending rows of the dataset, at least one.
        chunk_images: Rows in a chunk of the dataset.
        seed: Seed of the sequence.

    It is safe to use from several threads.
    """

    def __init__(self, rows: Rows, *, chunk_images: int, seed: int) -> None:
        self._rows, self._chunk_images, self._seed = rows, chunk_images, seed
        self._epochs: dict[int, Rows] = {}
        self._lock = Lock()

    def rows_at(self, start: int, count: int) -> Rows:
        """Find the rows of samples `start` to `start + count`, counted from 0 over all epochs."""
        parts, stop = [], start + count
        while start < stop:
            epoch, place = divmod(start, len(self._rows))
            parts.append(self._order(epoch)[place : place + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> Rows:
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) >= 3:
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = order_rows(
                    self._rows, chunk_images=self._chunk_images, seed=self._seed, epoch=epoch
                )
            return self._epochs[epoch]


def divide_batch(rows: Rows, *, chunk_images: int, rank: int, world: int) -> Rows:
    """Choose a worker's part of a batch: rows that are close together in the dataset.

    Args:
        rows: (..., batch size) rows of one batch, or of several.
        chunk_images: Rows in a chunk of the dataset.
        rank: Number of the worker; higher ranks get rows further on in the dataset.
        world: Number of workers; their parts differ by one row at most.

    Returns:
        (..., n) places in the batch, ascending.
    """
    batch_size = rows.shape[-1]
    if world == 1:
        return np.broadcast_to(np.arange(batch_size), rows.shape)
    by_chunk = np.argsort(rows // chunk_images, axis=-1, kind="stable")
    part = slice(batch_size * rank // world, batch_size * (rank + 1) // world)
    return np.sort(by_chunk[..., part], axis=-1)
