"""Whether a batch still lies where the champion's normals lay, by scores and embeddings. Pure.

Two things raise scores. Where scanner, stain or preparation change, everything moves, the most
usual images too. Where more is strange, the usual images stay where they were and fewer of all
are among them. So the usual part of a batch is compared with the usual part of the reference: by
its shape (Kolmogorov and Smirnov) whether it has moved, then by the share over the threshold
whether more is strange.

A network may reconstruct a new stain as well as the old one, and then no score says that anything
is new. Embeddings do: of the same usual images, component by component, with Bonferroni's
correction, the simplest of the tests that Rabanser et al. found to be among the best ("Failing
Loudly", NeurIPS 2019, arXiv 1810.11953).
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
# Strange images that pass for usual move the embeddings too, at most by their share of the usual.
# With three images of ten strange, up to 0.24 was seen; other slides of a laboratory, up to 0.15.
_LEAST_EMBEDDING_DISTANCE: Final = 0.25
_LEAST_RISE: Final = 0.05  # of the share over the threshold


@dataclass(frozen=True)
class Drift:
    """How a batch, or a part of it, lies against the reference.

    Args:
        part: `all`, or `column=value`.
        image_count: Images of it.
        state: `shifted`: everything has moved. `stranger`: the usual images have not, but more
            lies over the threshold. `too_few` to tell.
        distance: Of Kolmogorov and Smirnov, between scores of the usual parts; NaN where too few.
        embedding_distance: Likewise, of the component of the embeddings that has moved farthest;
            NaN where there are too few or no embeddings.
        share_over: Of images over the threshold.
        expected_over: Share of the reference over it.
    """

    part: str
    image_count: int
    state: State
    distance: float
    embedding_distance: float
    share_over: float
    expected_over: float

    def __str__(self) -> str:
        share = f"{self.share_over:.0%} of {self.image_count} images over the threshold, expected "
        words = {
            "shifted": "everything has shifted, the most usual images too "
            f"(Kolmogorov-Smirnov distance {self._distances})",
            "stranger": "more is strange, while the usual images lie where they lay",
            "steady": "steady",
            "too_few": f"fewer than {FEWEST_IMAGES} images tell nothing",
        }
        return f"{self.part}: {words[self.state]}; {share}{self.expected_over:.0%}"

    @property
    def _distances(self) -> str:
        of_scores = f"{self.distance:.2f} of scores"
        if np.isnan(self.embedding_distance):
            return of_scores
        return f"{of_scores}, {self.embedding_distance:.2f} of embeddings"


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


@dataclass(frozen=True)
class Sample:
    """Images by what a network says of them.

    Args:
        scores: float (n,).
        embeddings: float (n, D), a row NaN where it is not known; None where none is.
    """

    scores: Floats
    embeddings: Floats | None = None

    def choose(self, chosen: NDArray[np.bool_]) -> Sample:
        """Some of them."""
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Sample(self.scores[chosen], embeddings)


@dataclass(frozen=True)
class Reference:
    """What batches are compared with.

    Args:
        scores: Ascending scores of normal validation images, or quantiles of them.
        threshold: Scores above it are called anomalous.
        normals: Some of these images with their embeddings; None where none were kept.
    """

    scores: Sequence[float]
    threshold: float
    normals: Sample | None = None


def measure_drift(
    batch: Sample, reference: Reference, columns: Mapping[str, NDArray[Any]] | None = None
) -> DriftReport:
    """Compare a batch, and each part of it, with the reference.

    Images of one slide or patient are not independent; that is why small distances never count,
    whatever their significance.

    Args:
        batch: Its images.
        reference: Of the version that scored it.
        columns: Name -> (n,), each value a part; empty values are none.
    """
    parts = list(_split(columns or {}))
    level = _LEVEL / (3 * (len(parts) + 1))
    whole = _compare("all", batch, reference, level)
    return DriftReport(
        whole,
        tuple(_compare(name, batch.choose(inside), reference, level) for name, inside in parts),
    )


def _split(columns: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for column, values in sorted(columns.items()):
        texts = values.astype(str)
        for value in sorted(set(texts.tolist()) - {""}):
            inside = texts == value
            if inside.sum() >= FEWEST_IMAGES:
                yield f"{column}={value}", inside


def _compare(part: str, batch: Sample, reference: Reference, level: float) -> Drift:
    known, threshold, scores = np.asarray(reference.scores), reference.threshold, batch.scores
    count, nan = len(scores), float("nan")
    expected = float((known > threshold).mean())
    share = float((scores > threshold).mean()) if count else 0.0
    if count < FEWEST_IMAGES or len(known) < FEWEST_IMAGES:
        return Drift(part, count, "too_few", nan, nan, share, expected)
    bound = np.quantile(known, _USUAL_SHARE)
    usual = batch.choose(scores <= bound)
    if len(usual.scores) < _LEAST_USUAL * count:
        return Drift(part, count, "shifted", 1.0, nan, share, expected)
    found = stats.ks_2samp(usual.scores, known[known <= bound])
    distance = float(found.statistic)
    have_moved = found.pvalue < level and distance >= _LEAST_DISTANCE
    embedding_distance, pvalue = _compare_embeddings(usual, reference.normals, bound)
    have_moved |= pvalue < level and embedding_distance >= _LEAST_EMBEDDING_DISTANCE
    state: State = "shifted" if have_moved else "steady"
    if not have_moved and share - expected >= _LEAST_RISE:
        # The reference is a sample too: its own share is tested against, not taken as the truth.
        over, known_over = (int((it > threshold).sum()) for it in (scores, known))
        table = [[over, count - over], [known_over, len(known) - known_over]]
        risen = stats.fisher_exact(table, alternative="greater").pvalue < level
        state = "stranger" if risen else "steady"
    return Drift(part, count, state, distance, embedding_distance, share, expected)


def _compare_embeddings(usual: Sample, normals: Sample | None, bound: float) -> tuple[float, float]:
    """Distance of the component that has moved farthest, and its p-value after Bonferroni."""
    if usual.embeddings is None or normals is None or normals.embeddings is None:
        return float("nan"), 1.0
    batch = usual.embeddings[np.isfinite(usual.embeddings).all(axis=1)]
    known = normals.embeddings[normals.scores <= bound]
    if min(len(batch), len(known)) < FEWEST_IMAGES:
        return float("nan"), 1.0
    found = stats.ks_2samp(batch, known)
    farthest = int(np.argmax(found.statistic))
    return float(found.statistic[farthest]), float(found.pvalue[farthest]) * batch.shape[1]
