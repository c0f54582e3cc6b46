"""Normalises stains: a slide's two stains in, its tiles in the target's colours out. Pure.

Beer and Lambert: a pixel's optical density, -ln(RGB / 255), is its stains' concentrations times
their colours. `pipeline.slides.stain.fit` finds the colours of a slide, once; here tiles are
unmixed into concentrations, each stain is scaled so that its 99th percentile is the target's, and
the tiles are mixed again with the target's colours, in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

StainMethod: TypeAlias = Literal["macenko", "vahadane"]
Density: TypeAlias = tuple[float, float, float]
Plane: TypeAlias = NDArray[np.floating]

# Optical density of each 8-bit value; 0 would be infinite and counts as 1.
_DENSITY: Final = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
# Weight of the concentrations' sum when only they are sought: the public code's value.
_UNMIXING_SPARSITY: Final = 0.01
# Pixels normalised at once: their intermediate planes fit in a core's cache.
_BLOCK_PX: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Stains:
    """The two stains of a slide, or those to normalise to.

    Args:
        haematoxylin: Optical density (natural logarithm) of R, G and B per unit of stain.
        eosin: Optical density (natural logarithm) of R, G and B per unit of stain.
        max_concentrations: 99th percentile of the concentration of haematoxylin and of eosin.

    Raises:
        ValueError: A density is not finite, a stain has no colour, or a concentration is not
            positive.
    """

    haematoxylin: Density
    eosin: Density
    max_concentrations: tuple[float, float]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.matrix).all() and self.matrix.any(axis=1).all()):
            raise ValueError(f"stain colours must be finite and not all zero, got {self.matrix}")
        if not all(0 < maximum < np.inf for maximum in self.max_concentrations):
            raise ValueError(f"max_concentrations must be positive, got {self.max_concentrations}")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Optical densities (stain, channel) = (2, 3): haematoxylin, then eosin."""
        return np.array([self.haematoxylin, self.eosin], np.float64)


# What public code for Macenko's method has normalised to since its first release.
REFERENCE_STAINS: Final = Stains(
    (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), max_concentrations=(1.9705, 1.0308)
)


@dataclass(frozen=True, slots=True)
class StainFit:
    """The stains found on one slide.

    Args:
        method: Method that found the stains; unmixing uses the same.
        stains: The two stains, or None where the fit is degenerate.
        reason: Reason why the fit is degenerate, or None.
    """

    method: StainMethod
    stains: Stains | None
    reason: str | None = None

    @property
    def is_degenerate(self) -> bool:
        """True where no two stains were found: tiles of this slide stay as they are."""
        return self.stains is None


def normalise_stains(
    tiles: NDArray[np.uint8], fit: StainFit, target: Stains = REFERENCE_STAINS
) -> NDArray[np.uint8]:
    """Give tiles the target's colours. A tile's result does not depend on its neighbours.

    Args:
        tiles: uint8 (..., y, x, 3), RGB, of the slide that was fitted.
        fit: Stains of that slide, from `fit_stains`.
        target: Stains that the tiles are normalised to.

    Returns:
        uint8, the same shape; the tiles themselves where the fit is degenerate.

    Raises:
        ValueError: The tiles are not uint8 (..., 3).
    """
    check_pixels(tiles)
    if fit.stains is None:
        return tiles
    scale = np.divide(target.max_concentrations, fit.stains.max_concentrations)
    mixing = -(target.matrix * scale[:, None]).T
    pixels = tiles.reshape(-1, 3)
    normalised = np.empty_like(pixels)
    for start in range(0, len(pixels), _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        density = measure_density(pixels[block])
        concentrations = unmix(density, fit.stains.matrix, fit.method)
        for channel, exponent in enumerate(_mix(mixing, concentrations)):
            # Macenko's concentrations may be negative: brighter than white is white.
            light = np.exp(np.minimum(exponent, 0.0, out=exponent), out=exponent)
            normalised[block, channel] = light * np.float32(255) + np.float32(0.5)
    return normalised.reshape(tiles.shape)


def measure_density(pixels: NDArray[np.uint8]) -> tuple[Plane, Plane, Plane]:
    """Compute the optical density of uint8 (n, 3) pixels: float32 (n,) for R, G and B."""
    red, green, blue = np.take(_DENSITY, np.ascontiguousarray(pixels.T))
    return red, green, blue


def unmix(
    density: Sequence[Plane],
    matrix: NDArray[np.float64],
    method: StainMethod,
    sparsity: float = _UNMIXING_SPARSITY,
) -> list[Plane]:
    """Take pixels apart into the concentrations of the two stains.

    Args:
        density: Optical density of R, G and B, (n,) each.
        matrix: Colours of the stains (stain, channel), (2, 3).
        method: Method of unmixing: least squares or non-negative lasso.
        sparsity: Weight of the concentrations' sum in `vahadane`.

    Returns:
        Concentrations (n,) of haematoxylin and of eosin.

    Macenko: least squares. Vahadane: non-negative lasso, exact. Of two variables whose stains
    overlap (a Gram matrix without negative entries), each is the lesser of its value with the
    other free and with the other absent, and not below zero.
    """
    gram = matrix @ matrix.T
    inverse = np.linalg.inv(gram)
    free = _mix(inverse @ matrix, density)
    if method == "macenko":
        return free
    squares = gram.diagonal()
    alone = _mix(matrix / squares[:, None], density)
    for stain in range(2):
        as_number = free[stain].dtype.type
        free[stain] -= as_number(sparsity * inverse[stain].sum())
        alone[stain] -= as_number(sparsity / squares[stain])
        np.minimum(free[stain], alone[stain], out=free[stain])
        np.maximum(free[stain], 0.0, out=free[stain])
    return free


def check_pixels(pixels: NDArray[np.uint8]) -> None:
    """Refuse pixels that are not RGB.

    Raises:
        ValueError: The pixels are not uint8 (..., 3).
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels.shape[-1] != 3:
        raise ValueError(
            f"stains are found on uint8 (..., 3), got {pixels.dtype} {pixels.shape}: convert to RGB"
        )


def _mix(weights: NDArray[np.float64], planes: Sequence[Plane]) -> list[Plane]:
    """Sum weighted planes element by element: no bit depends on the number of pixels."""
    rows = []
    for row in weights.astype(planes[0].dtype):
        total = planes[0] * row[0]
        for weight, plane in zip(row[1:], planes[1:], strict=True):
            total += plane * weight
        rows.append(total)
    return rows
