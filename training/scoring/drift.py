"""Detect drift: whether a batch still resembles the champion's normal images. Pure.

Two things raise scores. A change of scanner, stain or preparation moves all scores, those of the
most typical images too. More anomalies leave the typical images where they were. So the typical
part of a batch is compared with the typical part of the reference: a Kolmogorov-Smirnov test tells
whether it has moved, then the share over the threshold whether there are more anomalies.

A network may reconstruct a new stain as well as the old one; then the scores show no change, but
the embeddings may. They are compared for the same typical images, each component by a
Kolmogorov-Smirnov test with Bonferroni correction, one of the best tests in Rabanser et al.,
"Failing Loudly", NeurIPS 2019, arXiv 1810.11953.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from training.evaluation.subgroups import divide

State: TypeAlias = Literal["too_few", "stable", "shifted", "more_anomalies"]
Floats: TypeAlias = NDArray[np.floating[Any]]

FEWEST_IMAGES: Final = 30
_LEVEL: Final = 0.01  # significance level of all tests of a batch together
_TYPICAL_SHARE: Final = 0.75  # share of the reference that counts as its typical part
_LEAST_TYPICAL: Final = 0.2  # share of a batch; below that, anomalies alone do not explain it
_LEAST_DISTANCE: Final = 0.1  # Kolmogorov-Smirnov distance of scores that matters in practice
# Anomalies with low scores move the embeddings too, at most by their share of the typical part.
# With 30 % anomalies up to 0.24 was seen; between slides of one laboratory, up to 0.15.
_LEAST_EMBEDDING_DISTANCE: Final = 0.25
_LEAST_RISE: Final = 0.05  # rise of the share over the threshold that matters in practice


@dataclass(frozen=True)
class Drift:
    """Comparison of a batch, or a part of it, with the reference.

    Args:
        part: Name of the part: `all`, or `column=value`.
        image_count: Number of images in the part.
        state: Result: `shifted` if the typical images have moved, `more_anomalies` if only the
            share over the threshold has risen, `stable` if neither, `too_few` images to tell.
        distance: Kolmogorov-Smirnov distance between the scores of the typical images; NaN if
            there are too few.
        embedding_distance: Kolmogorov-Smirnov distance of the embeddings' component that has
            moved most; NaN if there are too few or no embeddings.
        share_over: Share of the images over the threshold.
        expected_over: Share of the reference over the threshold.
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
            "shifted": "all images have shifted, the most typical ones too "
            f"(Kolmogorov-Smirnov distance {self._distances})",
            "more_anomalies": "more images are anomalous, while the typical ones have not moved",
            "stable": "stable",
            "too_few": f"fewer than {FEWEST_IMAGES} images are too few to tell",
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
    """Comparison of a batch with the champion's normal images.

    Args:
        whole: Comparison of the whole batch.
        parts: Comparisons by view, sex, site and scanner, where known.
    """

    whole: Drift
    parts: tuple[Drift, ...] = field(default=())

    @property
    def has_drifted(self) -> bool:
        """Whether anything has drifted, so that somebody should look."""
        return bool(self.findings)

    @property
    def findings(self) -> tuple[Drift, ...]:
        """Comparisons that show drift, the whole batch first."""
        return tuple(
            it for it in (self.whole, *self.parts) if it.state in {"shifted", "more_anomalies"}
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats for readers of the worklist."""
        notes = [f"Drift, {found}." for found in self.findings]
        if any(found.state == "shifted" for found in self.findings):
            notes.append(
                "The threshold is still that of the validation split: where all images have "
                "shifted, neither it nor the percentiles mean what they meant. The ranking within "
                "the shifted part still does."
            )
        return tuple(notes)


@dataclass(frozen=True)
class Sample:
    """Images by their scores and embeddings.

    Args:
        scores: float (n,), anomaly scores.
        embeddings: float (n, D), positions in the network's latent space; None if unknown.
    """

    scores: Floats
    embeddings: Floats | None = None

    def choose(self, chosen: NDArray[np.bool_]) -> Sample:
        """Choose the images where `chosen`, bool (n,), is true."""
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Sample(self.scores[chosen], embeddings)


@dataclass(frozen=True)
class Reference:
    """Normal images that batches are compared with.

    Args:
        scores: Ascending scores of normal validation images, or quantiles of them.
        threshold: Score above which an image is called anomalous.
        normals: Sample of the images with their embeddings; None to compare scores alone.
    """

    scores: Sequence[float]
    threshold: float
    normals: Sample | None = None


def measure_drift(
    batch: Sample, reference: Reference, columns: Mapping[str, NDArray[Any]] | None = None
) -> DriftReport:
    """Compare a batch, and each part of it, with the reference.

    Images of one slide or patient are not independent; therefore small distances never count,
    however significant.

    Args:
        batch: Scores and embeddings of the batch's images.
        reference: Normal images of the version that scored the batch.
        columns: Values of each image, (n,), by column; each value but the empty text is a part.
    """
    parts = [
        (f"{column}={value}", inside)
        for column, value, inside in divide(columns or {})
        if inside.sum() >= FEWEST_IMAGES
    ]
    level = _LEVEL / (3 * (len(parts) + 1))
    return DriftReport(
        _compare_part("all", batch, reference, level),
        tuple(
            _compare_part(name, batch.choose(inside), reference, level) for name, inside in parts
        ),
    )


def _compare_part(part: str, batch: Sample, reference: Reference, level: float) -> Drift:
    """Test for a shift of the typical images, then for a larger share over the threshold.

    A shift needs a significant and large distance of scores or of embeddings, or too few typical
    images. Only without one a rise of the share over the threshold counts.
    """
    known, threshold, scores = np.asarray(reference.scores), reference.threshold, batch.scores
    count, nan = len(scores), float("nan")
    expected = float((known > threshold).mean())
    share = float((scores > threshold).mean()) if count else 0.0
    if count < FEWEST_IMAGES or len(known) < FEWEST_IMAGES:
        return Drift(part, count, "too_few", nan, nan, share, expected)
    bound = np.quantile(known, _TYPICAL_SHARE)
    typical = batch.choose(scores <= bound)
    if len(typical.scores) < _LEAST_TYPICAL * count:
        return Drift(part, count, "shifted", 1.0, nan, share, expected)
    found = stats.ks_2samp(typical.scores, known[known <= bound])
    distance = float(found.statistic)
    have_moved = found.pvalue < level and distance >= _LEAST_DISTANCE
    embedding_distance, pvalue = _compare_embeddings(typical, reference.normals, bound)
    have_moved |= pvalue < level and embedding_distance >= _LEAST_EMBEDDING_DISTANCE
    state: State = "shifted" if have_moved else "stable"
    if not have_moved and share - expected >= _LEAST_RISE:
        # The reference is a sample too: Fisher's test does not take its share as the truth.
        over, known_over = (int((it > threshold).sum()) for it in (scores, known))
        table = [[over, count - over], [known_over, len(known) - known_over]]
        risen = stats.fisher_exact(table, alternative="greater").pvalue < level
        state = "more_anomalies" if risen else "stable"
    return Drift(part, count, state, distance, embedding_distance, share, expected)


def _compare_embeddings(
    typical: Sample, normals: Sample | None, bound: float
) -> tuple[float, float]:
    """Distance of the component that has moved most, and its p-value after Bonferroni."""
    if typical.embeddings is None or normals is None or normals.embeddings is None:
        return float("nan"), 1.0
    batch = typical.embeddings
    known = normals.embeddings[normals.scores <= bound]
    if min(len(batch), len(known)) < FEWEST_IMAGES:
        return float("nan"), 1.0
    found = stats.ks_2samp(batch, known)
    farthest = int(np.argmax(found.statistic))
    return float(found.statistic[farthest]), float(found.pvalue[farthest]) * batch.shape[1]
