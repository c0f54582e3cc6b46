"""Finds the two stains of a slide, once, from a sample of its tissue pixels. Pure.

- `macenko`: Macenko et al., A method for normalizing histology slides for quantitative analysis,
  ISBI 2009. The plane of the two largest singular vectors of the optical densities; in it, the
  robust extremes of the angle.
- `vahadane`: Vahadane et al., Structure-preserving color normalization and sparse stain
  separation for histological images, IEEE TMI 35 (2016). Sparse non-negative dictionary learning.

Both were published image by image. Here the pixels of a whole slide are pooled: faster, and a
tile of pale fat is not stretched to look like one of dense nuclei. Two choices that the papers
leave open: tissue is what CIE lightness says (public code does so too), and the 99th percentile
of a stain is taken over tissue, so that it does not depend on how much glass lies round it.
"""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.slides.stain.normalise import (
    StainFit,
    StainMethod,
    Stains,
    check_pixels,
    measure_density,
    unmix,
)

# Linear light of each 8-bit value, and its weights in luminance: IEC 61966-2-1 (sRGB).
_VALUE: Final = np.arange(256) / 255
_LIGHT: Final = np.where(_VALUE <= 0.04045, _VALUE / 12.92, ((_VALUE + 0.055) / 1.055) ** 2.4)
_LUMINANCE: Final = np.array([0.2126, 0.7152, 0.0722])
# Tissue is below CIE L* = 116 Y^(1/3) - 16 of 80.
_MAX_LUMINANCE: Final = ((100 * 0.8 + 16) / 116) ** 3
_ALPHA: Final = 1.0  # Macenko's: percent of the angles beyond each extreme
_SPARSITY: Final = 0.1  # Vahadane's lambda: weight of the concentrations' sum in the learning
# A scanner's border and black ink are darker than this in every channel; nuclei are not.
_BLACK_BELOW: Final = 30
_PSEUDO_MAXIMUM_PERCENTILE: Final = 99.0
# Dictionary learning starts from Ruifrok and Johnston's colours (Anal Quant Cytol Histol 2001).
_INITIAL_STAINS: Final = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
_MAX_ITERATIONS: Final = 1000
_CONVERGED_BELOW: Final = 1e-6
# Below these, a second stain is noise: least angle between the stains (its sine; 3 degrees) and
# least pseudo-maximum. A density further below zero than the third is no dye's.
_LEAST_SINE: Final = 0.05
_LEAST_CONCENTRATION: Final = 0.02
_LEAST_DENSITY: Final = -0.15


def fit_stains(
    pixels: NDArray[np.uint8],
    method: StainMethod,
    *,
    seed: int = 0,
    max_pixels: int = 65_536,
    min_tissue_pixels: int = 1_000,
) -> StainFit:
    """Find the two stains of a slide from its pixels, a random sample of them where many.

    Args:
        pixels: uint8 (..., 3), RGB: tiles (n, y, x, 3) of one slide, or loose pixels (n, 3).
        method: Method of the fit, `macenko` or `vahadane`.
        seed: Seed of the random sample.
        max_pixels: Tissue pixels to fit on, drawn from four times as many pixels.
        min_tissue_pixels: Least number of tissue pixels; with fewer the fit is degenerate.

    Returns:
        The fit; degenerate, with its reason, where there is too little tissue or only one stain.

    Raises:
        ValueError: The pixels are not uint8 (..., 3).
    """
    check_pixels(pixels)
    sample = _sample_tissue(pixels.reshape(-1, 3), seed, max_pixels)
    if len(sample) < min_tissue_pixels:
        found = f"{len(sample)} tissue pixels in the sample, {min_tissue_pixels} needed"
        return StainFit(method, None, found)
    planes = measure_density(sample)
    density = np.stack(planes, axis=1, dtype=np.float64)
    matrix = _find_macenko(density) if method == "macenko" else _find_vahadane(density)
    # Haematoxylin is the one that takes more red. Rounded, so that the order in which threads
    # add up cannot show in a tile.
    matrix = matrix[np.argsort(-matrix[:, 0])].round(6)
    if (reason := _find_flaw(matrix)) is not None:
        return StainFit(method, None, reason)
    concentrations = unmix(planes, matrix, method)
    maxima = np.percentile(concentrations, _PSEUDO_MAXIMUM_PERCENTILE, axis=1).round(6)
    if maxima.min() < _LEAST_CONCENTRATION:
        return StainFit(method, None, f"a stain is all but absent: largest concentrations {maxima}")
    (h_red, h_green, h_blue), (e_red, e_green, e_blue) = matrix.tolist()
    haematoxylin, eosin = (h_red, h_green, h_blue), (e_red, e_green, e_blue)
    return StainFit(method, Stains(haematoxylin, eosin, (float(maxima[0]), float(maxima[1]))))


def _sample_tissue(pixels: NDArray[np.uint8], seed: int, max_pixels: int) -> NDArray[np.uint8]:
    looked_at = min(len(pixels), 4 * max_pixels)
    chosen = np.random.default_rng(seed).choice(len(pixels), looked_at, replace=False)
    sample = pixels[chosen]
    is_tissue = (np.take(_LIGHT, sample) @ _LUMINANCE < _MAX_LUMINANCE) & (
        sample.max(axis=1) >= _BLACK_BELOW
    )
    tissue: NDArray[np.uint8] = sample[is_tissue][:max_pixels]
    return tissue


def _find_macenko(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the extreme colours in the plane of the two largest axes; (2, 3), unit rows."""
    _, axes = np.linalg.eigh(density.T @ density)
    plane = axes[:, :0:-1]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    first, second = (density @ plane).T
    angles = np.percentile(np.arctan2(second, first), [_ALPHA, 100 - _ALPHA])
    matrix: NDArray[np.float64] = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    return matrix


def _find_vahadane(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise |density - C M|^2 / 2 + sparsity sum(C) over C, M >= 0, rows of M in the unit ball.

    The concentrations C are exact for each M; then M is, by block coordinate descent for that C
    (Mairal et al., Online learning for matrix factorization and sparse coding, JMLR 2010).
    """
    matrix = np.array(_INITIAL_STAINS)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    planes = [*np.ascontiguousarray(density.T)]
    for _ in range(_MAX_ITERATIONS):
        if _measure_sine(matrix) < _LEAST_SINE:
            break
        concentrations = np.stack(unmix(planes, matrix, "vahadane", _SPARSITY))
        updated = _update_dictionary(
            matrix, concentrations @ concentrations.T, concentrations @ density
        )
        has_converged = np.abs(updated - matrix).max() < _CONVERGED_BELOW
        matrix = updated
        if has_converged:
            break
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: NDArray[np.float64] = matrix / np.where(lengths > 0, lengths, 1.0)
    return unit


def _measure_sine(matrix: NDArray[np.float64]) -> float:
    """Measure the area that two colours span: the sine of their angle at unit length."""
    return float(np.linalg.norm(np.cross(matrix[0], matrix[1])))


def _update_dictionary(
    matrix: NDArray[np.float64], gram: NDArray[np.float64], products: NDArray[np.float64]
) -> NDArray[np.float64]:
    updated = matrix.copy()
    for _ in range(_MAX_ITERATIONS):
        before = updated.copy()
        for stain in np.flatnonzero(gram.diagonal() > 0):
            step = (products[stain] - gram[stain] @ updated) / gram[stain, stain]
            row = np.maximum(updated[stain] + step, 0.0)
            updated[stain] = row / max(1.0, float(np.linalg.norm(row)))
        if np.abs(updated - before).max() < _CONVERGED_BELOW / 10:
            break
    return updated


def _find_flaw(matrix: NDArray[np.float64]) -> str | None:
    if _measure_sine(matrix) < _LEAST_SINE:
        return f"one stain only: the two found are {matrix[0]} and {matrix[1]}"
    if matrix.min() < _LEAST_DENSITY:
        return f"a stain that brightens: the two found are {matrix[0]} and {matrix[1]}"
    return None


def encode_stains(fit: StainFit | None) -> str:
    """Write stains as text: JSON of haematoxylin, eosin (R, G, B) and their maxima; "" for none."""
    if fit is None or fit.stains is None:
        return ""
    stains = fit.stains
    return json.dumps([stains.haematoxylin, stains.eosin, stains.max_concentrations])


def decode_stains(text: str) -> Stains:
    """Read what `encode_stains` wrote."""
    haematoxylin, eosin, max_concentrations = (tuple(values) for values in json.loads(text))
    return Stains(haematoxylin, eosin, max_concentrations)
