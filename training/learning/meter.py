"""The means of losses over a stretch of steps, without a wait in any of them."""

from __future__ import annotations

import time

from torch import Tensor

from training.learning.speed import Losses


class Meter:
    """Sums losses on the device, and reads them now and then."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start a stretch of steps."""
        self._sums: dict[str, Tensor] = {}
        self._steps, self._images, self._began = 0, 0, time.perf_counter()

    def add(self, losses: Losses, images: int) -> None:
        """Count one step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        self._steps += 1
        self._images += images

    def read(self) -> tuple[dict[str, float], float]:
        """Wait for the device: the mean of each loss, and the images a second."""
        means = {name: total.item() / self._steps for name, total in self._sums.items()}
        return means, self._images / (time.perf_counter() - self._began)
