"""Tiles of two known stains."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.slides.stain.normalise import StainFit, StainMethod, Stains

METHODS: tuple[StainMethod, ...] = get_args(StainMethod)
# Two scanners' colours, unlike each other and unlike the reference; unequal maxima.
PURPLE = np.array([[0.62, 0.68, 0.39], [0.13, 0.94, 0.31]])
PINK = np.array([[0.52, 0.75, 0.41], [0.28, 0.91, 0.30]])
SHAPE = (3, 41, 67)  # tiles, y, x: not square, and no multiple of a vector register


def paint(
    stains: NDArray[np.float64], gains: tuple[float, float] = (1.3, 0.6), seed: int = 3
) -> NDArray[np.uint8]:
    """Tiles of two stains by Beer and Lambert, some pixels of one stain alone."""
    rng = np.random.default_rng(seed)
    concentrations = rng.gamma(3.0, 0.25, (*SHAPE, 2)) * gains
    alone = rng.random(SHAPE)
    concentrations[alone < 0.2, 0] = 0.0
    concentrations[alone > 0.85, 1] = 0.0
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    painted: NDArray[np.uint8] = np.rint(255 * np.exp(-concentrations @ unit)).astype(np.uint8)
    return painted


def require_stains(fit: StainFit) -> Stains:
    assert fit.stains is not None, fit.reason
    return fit.stains
