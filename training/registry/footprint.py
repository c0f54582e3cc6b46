"""What a version costs to run: seconds an image and bytes of weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.scoring.loaded_model import ScoringModel

_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a version costs.

    Args:
        seconds_per_image: Of the fastest of some rounds, on this machine.
        weights_bytes: Of the network and of the features that it compares by.
    """

    seconds_per_image: float
    weights_bytes: int


def measure_footprints(
    models: Sequence[ScoringModel], images: NDArray[np.uint8]
) -> tuple[Footprint, ...]:
    """Measure versions in turns, so that a busy machine slows all of them.

    Args:
        models: Versions that take the same images.
        images: uint8 (N, H, W, C), a batch.
    """
    fastest = [float("inf")] * len(models)
    for _ in range(_ROUNDS):
        for place, model in enumerate(models):
            began = time.perf_counter()
            model.predict(images)
            fastest[place] = min(fastest[place], time.perf_counter() - began)
    return tuple(
        Footprint(seconds / len(images), _count_bytes(model))
        for model, seconds in zip(models, fastest, strict=True)
    )


def _count_bytes(model: ScoringModel) -> int:
    return sum(value.nbytes for state in model.detector.copy_weights() for value in state.values())
