"""Which strange images look like artefacts: blurred, pen, bare glass, odd colour. Pure.

Dirt, pen and blur are as strange as a tumour. The quality attributes of a dataset tell likely
artefacts apart, by comparison with its own usual images; nothing is left out for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TAIL: Final = 0.005  # of the usual images lie beyond what counts as an artefact
FEWEST_USUAL: Final = 20


@dataclass(frozen=True, slots=True)
class _Sign:
    """A value of an attribute beyond which an image looks like an artefact."""

    column: str
    word: str
    is_high: bool
    least: float = 0.0  # a share that says nothing, however rare


_SIGNS: Final = (
    _Sign("laplacian_variance", "blurred", is_high=False),
    _Sign("pen_fraction", "pen", is_high=True, least=0.01),
    _Sign("blank_fraction", "bare glass", is_high=True, least=0.25),
    _Sign("saturation", "strong colour", is_high=True, least=0.5),
)
QUALITY_NAMES: Final = tuple(sign.column for sign in _SIGNS)


def mark_artefacts(
    columns: Mapping[str, NDArray[Any]], is_usual: NDArray[np.bool_]
) -> list[tuple[str, ...]]:
    """Say for each image which artefacts it looks like.

    Args:
        columns: Name -> float (n,), those of `QUALITY_NAMES` that there are; NaN where unknown.
        is_usual: bool (n,), whether an image is usual, to compare with; too few mark nothing.

    Returns:
        n tuples of words, most of them empty.
    """
    marks: list[list[str]] = [[] for _ in is_usual]
    for sign in _SIGNS:
        if sign.column not in columns:
            continue
        values = np.asarray(columns[sign.column], np.float64)
        usual = values[is_usual & np.isfinite(values)]
        if len(usual) < FEWEST_USUAL:
            continue
        if sign.is_high:
            is_marked = values > max(float(np.quantile(usual, 1 - _TAIL)), sign.least)
        else:
            is_marked = values < np.quantile(usual, _TAIL)
        for place in np.flatnonzero(is_marked):
            marks[place].append(sign.word)
    return [tuple(words) for words in marks]
