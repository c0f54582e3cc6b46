"""Images of a dataset by choice: read when they are asked for, a whole chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.store.dataset import Dataset


class ImageSelection:
    """Some images of a dataset, in the order of its rows.

    It holds the numbers of its rows. Images are read when it is indexed or iterated; iterating
    reads each chunk once.

    Args:
        dataset: Dataset that holds the images.
        rows: int64 (n,), ascending rows of the dataset.
    """

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64]) -> None:
        self.dataset, self.rows = dataset, rows

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.dataset.image_count} images of {self.dataset.url}>"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, place: slice | NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def __getitem__(self, place: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read one image (H, W, C), or several (n, H, W, C) in the order asked for."""
        rows = self.rows[place]
        if np.ndim(rows) == 0:
            (image,) = self._read(np.array([rows]))
            return np.asarray(image)
        return self._read(rows)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for _, images in self.batches():
            yield from images

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield rows (n,) and their images (n, H, W, C), those of one chunk at a time."""
        chunks = self.dataset.find_chunks(self.rows)
        edges = np.flatnonzero(np.diff(chunks)) + 1
        read = self.dataset.open_chunks()
        for rows in np.split(self.rows, edges) if len(self.rows) else ():
            chunk = int(self.dataset.find_chunks(rows[:1])[0])
            yield rows, read(chunk)[rows - self.dataset.chunk_starts[chunk]]

    def to_frame(self) -> pd.DataFrame:
        """Read the columns of these images, as `Dataset.to_frame` does."""
        return self.dataset.to_frame().iloc[self.rows]

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        order = np.argsort(rows, kind="stable")
        images = np.empty((len(rows), *self.dataset.image_shape), np.uint8)
        done = 0
        for found, some in ImageSelection(self.dataset, rows[order]).batches():
            images[order[done : done + len(found)]] = some
            done += len(found)
        return images


def choose_rows(dataset: Dataset, where: str | NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Choose rows of a dataset.

    Args:
        dataset: Dataset whose rows are chosen.
        where: Condition in the language of `pandas.DataFrame.query` on its columns; or bool
            (rows,); or None for every row.

    Returns:
        int64 (n,), ascending.

    Raises:
        SettingsError: The condition cannot be evaluated, or is not one value for each row.
    """
    if where is None:
        return np.arange(dataset.image_count, dtype=np.int64)
    if isinstance(where, str):
        return _query(dataset, where)
    if where.shape != (dataset.image_count,) or where.dtype != np.bool_:
        raise SettingsError(
            "where",
            f"{where.dtype} {where.shape}, the dataset has {dataset.image_count} rows",
            "Give one bool for each row",
        )
    return np.flatnonzero(where)


def _query(dataset: Dataset, where: str) -> NDArray[np.int64]:
    frames = import_module("pipeline.store.frames")
    found = [np.empty(0, np.int64)]
    for number, part in enumerate(dataset.parts):
        if part.image_count:
            found.append(frames.query_part(dataset, number, where))
    return np.concatenate(found)
