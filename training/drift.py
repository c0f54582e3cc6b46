"""Whether scores of a batch still lie where the champion's normals lay. Pure.

Two things raise scores. Where scanner, stain or preparation change, everything moves, the most
usual images too. Where more is strange, the usual images stay where they were and fewer of all
are among them. So the usual part of a batch is compared with the usual part of the reference: by
its shape (Kolmogorov and Smirnov) whether it has moved, then by the share over the threshold
whether more is strange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

State: TypeAlias = Literal["too_few", "steady", "shifted", "stranger"]
Floats: TypeAlias = NDArray[np.floating[Any]]

FEWEST_IMAGES: Final = 30
_LEVEL: Final = 0.01  # of all tests of a batch together
_USUAL_SHARE: Final = 0.75  # of the reference that counts as its usual part
_LEAST_USUAL: Final = 0.2  # of a batch; with less below, no share of strange ones explains it
_LEAST_DISTANCE: Final = 0.1  # of Kolmogorov and Smirnov: smaller ones matter to nobody
_LEAST_RISE: Final = 0.05  # of the share over the threshold


@dataclass(frozen=True)
class Drift:
    """How a batch, or a part of it, lies against the reference.

    Args:
        part: `all`, or `column=value`.
        image_count: Images of it.
        state: `shifted`: everything has moved. `stranger`: the usual images have not, but more
            lies over the threshold. `too_few` to tell.
        distance: Of Kolmogorov and Smirnov, between the usual parts; NaN where too few.
        share_over: Of images over the threshold.
        expected_over: Share of the reference over it.
    """

    part: str
    image_count: int
    state: State
    distance: float
    share_over: float
    expected_over: float

    def __str__(self) -> str:
        share = f"{self.share_over:.0%} of {self.image_count} images over the threshold, expected "
        words = {
            "shifted": "everything has shifted, the most usual images too "
            f"(Kolmogorov-Smirnov distance {self.distance:.2f})",
            "stranger": "more is strange, while the usual images lie where they lay",
            "steady": "steady",
            "too_few": f"fewer than {FEWEST_IMAGES} images tell nothing",
        }
        return f"{self.part}: {words[self.state]}; {share}{self.expected_over:.0%}"


@dataclass(frozen=True)
class DriftReport:
    """How a batch lies against the champion's normals.

    Args:
        whole: All of it.
        parts: By site, view and the like, where known.
    """

    whole: Drift
    parts: tuple[Drift, ...] = field(default=())

    @property
    def has_drifted(self) -> bool:
        """Whether somebody should look."""
        return bool(self.findings)

    @property
    def findings(self) -> tuple[Drift, ...]:
        """What has drifted: all, then parts that have."""
        return tuple(it for it in (self.whole, *self.parts) if it.state in {"shifted", "stranger"})

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads the worklist must know first."""
        notes = [f"Drift, {found}." for found in self.findings]
        if any(found.state == "shifted" for found in self.findings):
            notes.append(
                "The threshold is still that of the validation split: where everything has "
                "shifted, neither it nor the percentiles say what they said. The ranking within "
                "the shifted part still does."
            )
        return tuple(notes)


def measure_drift(
    scores: Floats,
    reference: Sequence[float],
    threshold: float,
    columns: Mapping[str, NDArray[Any]] | None = None,
) -> DriftReport:
    """Compare a batch, and each part of it, with the reference.

    Images of one slide or patient are not independent; that is why small distances never count,
    whatever their significance.

    Args:
        scores: float (n,), of the batch.
        reference: Ascending scores of normal validation images, or quantiles of them.
        threshold: Scores above it are called anomalous.
        columns: Name -> (n,), each value a part; empty values are none.
    """
    known = np.asarray(reference, np.float64)
    parts = list(_split(columns or {}))
    level = _LEVEL / (2 * (len(parts) + 1))
    whole = _compare("all", scores, known, threshold, level)
    return DriftReport(
        whole,
        tuple(_compare(name, scores[inside], known, threshold, level) for name, inside in parts),
    )


def _split(columns: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for column, values in sorted(columns.items()):
        texts = values.astype(str)
        for value in sorted(set(texts.tolist()) - {""}):
            inside = texts == value
            if inside.sum() >= FEWEST_IMAGES:
                yield f"{column}={value}", inside


def _compare(part: str, scores: Floats, reference: Floats, threshold: float, level: float) -> Drift:
    count = len(scores)
    expected = float((reference > threshold).mean())
    share = float((scores > threshold).mean()) if count else 0.0
    if count < FEWEST_IMAGES or len(reference) < FEWEST_IMAGES:
        return Drift(part, count, "too_few", float("nan"), share, expected)
    bound = np.quantile(reference, _USUAL_SHARE)
    usual = scores[scores <= bound]
    if len(usual) < _LEAST_USUAL * count:
        return Drift(part, count, "shifted", 1.0, share, expected)
    found = stats.ks_2samp(usual, reference[reference <= bound])
    distance = float(found.statistic)
    state: State = "steady"
    if found.pvalue < level and distance >= _LEAST_DISTANCE:
        state = "shifted"
    elif share - expected >= _LEAST_RISE:
        # The reference is a sample too: its own share is tested against, not taken as the truth.
        over, reference_over = (int((it > threshold).sum()) for it in (scores, reference))
        table = [[over, count - over], [reference_over, len(reference) - reference_over]]
        risen = stats.fisher_exact(table, alternative="greater").pvalue < level
        state = "stranger" if risen else "steady"
    return Drift(part, count, state, distance, share, expected)
