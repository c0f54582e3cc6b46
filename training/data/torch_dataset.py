"""A dataset for PyTorch's own loaders, for training outside Normscope."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.sharding import ReadChunk

_CACHED_CHUNKS: Final = 16


class TileDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Some images of a sealed dataset, with their labels.

    Images are read chunk by chunk, and the chunks used last are kept: an order that stays within
    a chunk for a while reads less. It can be sent to the workers of a `DataLoader`; each opens
    the store for itself.

    Args:
        dataset: The sealed dataset, or its path or URL.
        where: Condition on its columns, as `Dataset.images` takes it; None for all readable
            images.
        transform: Function of each image, uint8 (C, H, W) on the CPU; None leaves it as it is.

    Raises:
        SchemaError: There is no sealed dataset of this name.
        SettingsError: The condition cannot be evaluated, or no image meets it.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> def load(url: str) -> DataLoader[Any]:
        ...     normals = "split == 'train' and label == 0 and readable"
        ...     return DataLoader(TileDataset(url, normals), batch_size=64)
    """

    def __init__(
        self,
        dataset: Dataset | str,
        where: str | NDArray[np.bool_] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        opened = open_dataset(dataset) if isinstance(dataset, str) else dataset
        self.dataset, self.transform = opened, transform
        where = "readable" if where is None else where
        self.rows = opened.images(where).rows
        if not len(self.rows):
            asked = repr(where) if isinstance(where, str) else "the given mask"
            problem = f"{asked} holds for none of the {opened.image_count} images of {opened.url}"
            raise SettingsError("where", problem, "Choose another condition")
        self.labels: NDArray[np.int8] = opened.column("label")[self.rows]
        self._read: ReadChunk | None = None
        self._chunks: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """Read an image, uint8 (C, H, W), transformed; and its label: 0, 1, or -1 if unknown."""
        row = self.rows[place]
        chunk = int(self.dataset.find_chunks(row))
        pixels = self._load(chunk)[row - self.dataset.chunk_starts[chunk]]
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return (self.transform(image) if self.transform else image), int(self.labels[place])

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process: its open store and the chunks it has read."""
        return {**self.__dict__, "_read": None, "_chunks": OrderedDict()}

    def _load(self, chunk: int) -> NDArray[np.uint8]:
        if self._read is None:
            self._read = self.dataset.open_chunks()
        if chunk not in self._chunks:
            self._chunks[chunk] = self._read(chunk)
        self._chunks.move_to_end(chunk)
        while len(self._chunks) > _CACHED_CHUNKS:
            self._chunks.popitem(last=False)
        return self._chunks[chunk]
