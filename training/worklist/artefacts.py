"""Mark anomalous images that look like artefacts: blur, pen, bare glass, odd colour. Pure.

Dirt, pen and blur score as high as a tumour. A dataset's quality columns tell likely artefacts
apart, by comparison with its own typical images; no image is left out because of a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TAIL: Final = 0.005  # share of the typical images beyond an artefact's limit
FEWEST_TYPICAL: Final = 20


@dataclass(frozen=True, slots=True)
class _Sign:
    """A quality column whose extreme values are signs of an artefact."""

    column: str
    word: str
    is_high: bool
    least: float = 0.0  # values up to this are no sign, however rare


_SIGNS: Final = (
    _Sign("laplacian_variance", "blurred", is_high=False),
    _Sign("pen_fraction", "pen", is_high=True, least=0.01),
    _Sign("blank_fraction", "bare glass", is_high=True, least=0.25),
    _Sign("saturation", "strong colour", is_high=True, least=0.5),
)
QUALITY_NAMES: Final = tuple(sign.column for sign in _SIGNS)


def find_limits(
    read_typical: Callable[[str], NDArray[np.floating[Any]]], names: Collection[str]
) -> dict[str, float]:
    """Find the values beyond which an image looks like an artefact.

    Args:
        read_typical: Reads a column of the images to compare with, float (m,); NaN where unknown.
        names: Names of the columns that there are; read one at a time.

    Returns:
        Limit by column; none where fewer than `FEWEST_TYPICAL` values are known.
    """
    limits = {}
    for sign in _SIGNS:
        if sign.column not in names:
            continue
        values = np.asarray(read_typical(sign.column), np.float64)
        typical = values[np.isfinite(values)]
        if len(typical) < FEWEST_TYPICAL:
            continue
        share = 1 - _TAIL if sign.is_high else _TAIL
        limit = float(np.quantile(typical, share, overwrite_input=True))
        limits[sign.column] = max(limit, sign.least) if sign.is_high else limit
    return limits


def mark_artefacts(
    columns: Mapping[str, NDArray[Any]], limits: Mapping[str, float], count: int
) -> list[tuple[str, ...]]:
    """Name the artefacts that each image looks like.

    Args:
        columns: Values by column, float (count,), of those that have a limit; NaN where unknown.
        limits: Limit by column, from `find_limits`.
        count: Number of images.

    Returns:
        `count` tuples of words, most of them empty.
    """
    marks: list[list[str]] = [[] for _ in range(count)]
    for sign in _SIGNS:
        if sign.column not in limits:
            continue
        values, limit = np.asarray(columns[sign.column], np.float64), limits[sign.column]
        is_marked = values > limit if sign.is_high else values < limit
        for place in np.flatnonzero(is_marked):
            marks[place].append(sign.word)
    return [tuple(words) for words in marks]
