"""Which split each slide goes to: whole, and copies of it along with it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Label
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey import SlideSurvey
from pipeline.splits import assign_splits


def split_slides(surveys: Sequence[SlideSurvey], settings: SlideSettings) -> NDArray[np.str_]:
    """Give every slide a split: the official one, else as `splits.assign_splits` does.

    Args:
        surveys: Of the slides, n of them.
        settings: Seed and shares.

    Returns:
        str (n,): `train`, `validation` or `test`.
    """
    official = [_official_split(found) for found in surveys]
    first: dict[str, str] = {}  # of the slides of the same bytes
    groups = [
        found.slide.slide_id if split else first.setdefault(found.digest, found.slide.slide_id)
        for found, split in zip(surveys, official, strict=True)
    ]
    return assign_splits(
        groups,
        [_label_slide(found) for found in surveys],
        official,
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
    )


def _official_split(found: SlideSurvey) -> str:
    """The official split; a tumour slide of the training part validates, as nothing trains on it.

    Shvetsova et al. 2021, section 4: a few labelled anomalies choose the hyperparameters.
    """
    if found.slide.split == "train" and _label_slide(found) == Label.ANOMALOUS:
        return "validation"
    return found.slide.split or ""


def _label_slide(found: SlideSurvey) -> int:
    """The slide's own label or, where it has none, the worst of its tiles'."""
    if found.slide.label is not Label.UNKNOWN:
        return int(found.slide.label)
    return int(found.label.max())
