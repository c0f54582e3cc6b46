"""Whether a challenger loses where only few images are: one view, one sex, one site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Label
from training.evaluation.intervals import Interval, bootstrap_auroc_difference

Floats: TypeAlias = NDArray[np.floating[Any]]

SUBGROUP_COLUMNS: Final = ("view_position", "sex", "site", "scanner")
"""Columns that divide images into subgroups, where a dataset has them."""


@dataclass(frozen=True)
class SubgroupGain:
    """What a subgroup gains by the challenger.

    Args:
        column: That divides.
        value: Of it.
        image_count: Images of known label.
        gain: In AUROC, higher = better.
    """

    column: str
    value: str
    image_count: int
    gain: Interval

    @property
    def name(self) -> str:
        """As reasons and figures call it."""
        return f"{self.column}={self.value}"

    def has_fallen(self, margin: float) -> bool:
        """Whether it is shown to lose more than the margin."""
        return self.gain.high < -margin

    def seems_fallen(self, margin: float) -> bool:
        """Whether the estimate loses more than the margin, shown or not."""
        return self.gain.estimate < -margin


def compare_subgroups(
    challenger_scores: Floats,
    champion_scores: Floats,
    labels: NDArray[np.integer[Any]],
    columns: Mapping[str, NDArray[Any]],
    **keywords: Any,
) -> Iterator[SubgroupGain]:
    """Compare both versions within each subgroup that holds both labels.

    Args:
        challenger_scores: float (n,), higher = stranger.
        champion_scores: float (n,).
        labels: int (n,), 0 or 1.
        columns: Name -> (n,), each value a subgroup; empty values are none.
        **keywords: `groups`, `level`, `draws` and `seed` of the bootstrap.
    """
    groups = keywords.pop("groups", None)
    for column, values in sorted(columns.items()):
        texts = values.astype(str)
        for value in sorted(set(texts.tolist()) - {""}):
            inside = texts == value
            if len({Label.NORMAL, Label.ANOMALOUS} & set(labels[inside].tolist())) < 2:
                continue
            gain = bootstrap_auroc_difference(
                challenger_scores[inside],
                champion_scores[inside],
                labels[inside],
                groups=None if groups is None else groups[inside],
                **keywords,
            )
            yield SubgroupGain(column, value, int(inside.sum()), gain)
