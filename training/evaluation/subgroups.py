"""Compare two models within subgroups of the images: one view, one sex, one site."""

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
"""Columns that divide images into subgroups, where a dataset has them. No built-in source writes
`site` and `scanner`; a sample sheet may."""


@dataclass(frozen=True)
class SubgroupGain:
    """Gain of the challenger over the champion within a subgroup.

    Args:
        column: Column that divides the images.
        value: Value of the column in this subgroup.
        image_count: Number of images of known label.
        gain: Challenger's AUROC minus the champion's.
    """

    column: str
    value: str
    image_count: int
    gain: Interval

    @property
    def name(self) -> str:
        """Name of the subgroup, `column=value`."""
        return f"{self.column}={self.value}"

    def has_fallen(self, margin: float) -> bool:
        """Whether the interval shows a loss of more than the margin."""
        return self.gain.high < -margin

    def seems_fallen(self, margin: float) -> bool:
        """Whether the estimate loses more than the margin, whatever the interval says."""
        return self.gain.estimate < -margin


def divide(
    columns: Mapping[str, NDArray[Any]],
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """List column, value and members, bool (n,), of every subgroup.

    Args:
        columns: Values of each image, (n,), by column; an empty text is no subgroup.
    """
    for column, values in sorted(columns.items()):
        texts = values.astype(str)
        for value in sorted(set(texts.tolist()) - {""}):
            yield column, value, texts == value


def compare_subgroups(
    challenger_scores: Floats,
    champion_scores: Floats,
    labels: NDArray[np.integer[Any]],
    columns: Mapping[str, NDArray[Any]],
    **keywords: Any,
) -> Iterator[SubgroupGain]:
    """Compare two versions within each subgroup that has both labels.

    Args:
        challenger_scores: float (n,), challenger's scores, higher is more anomalous.
        champion_scores: float (n,), champion's scores of the same images.
        labels: int (n,), 0 normal or 1 anomalous.
        columns: Values of each image, (n,), by column; an empty text is no subgroup.
        **keywords: Options `groups`, `level`, `draws` and `seed` of the bootstrap.
    """
    groups = keywords.pop("groups", None)
    for column, value, inside in divide(columns):
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
