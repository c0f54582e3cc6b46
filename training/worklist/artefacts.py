"""Mark anomalous images that look like artefacts: blur, pen, bare glass, odd colour. Pure.

Dirt, pen and blur score as high as a tumour. A dataset's quality columns tell likely artefacts
apart, by comparison with its own typical images; no image is left out because of a mark.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def mark_artefacts(
    columns: Mapping[str, NDArray[Any]], is_typical: NDArray[np.bool_]
) -> list[tuple[str, ...]]:
    """Name the artefacts that each image looks like.

    Args:
        columns: Values by column, float (n,), of those `QUALITY_NAMES` that there are; NaN where
            unknown.
        is_typical: bool (n,), images to compare with; fewer than `FEWEST_TYPICAL` mark nothing.

    Returns:
        n tuples of words, most of them empty.
    """
    marks: list[list[str]] = [[] for _ in is_typical]
    for sign in _SIGNS:
        if sign.column not in columns:
            continue
        values = np.asarray(columns[sign.column], np.float64)
        typical = values[is_typical & np.isfinite(values)]
        if len(typical) < FEWEST_TYPICAL:
            continue
        if sign.is_high:
            is_marked = values > max(float(np.quantile(typical, 1 - _TAIL)), sign.least)
        else:
            is_marked = values < np.quantile(typical, _TAIL)
        for place in np.flatnonzero(is_marked):
            marks[place].append(sign.word)
    return [tuple(words) for words in marks]
