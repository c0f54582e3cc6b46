"""The promotion gate: scores of challenger and champion on the same images in, a decision out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.records import Label
from training.evaluation.intervals import (
    Interval,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    bootstrap_relative_excess,
    shows_non_inferiority,
    shows_superiority,
)
from training.evaluation.subgroups import SubgroupGain, compare_subgroups

Outcome: TypeAlias = Literal["promoted", "refused", "held"]
Floats: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]
Groups: TypeAlias = NDArray[Any]


class PromotionSettings(BaseModel):
    """Criteria that a challenger must meet to be promoted.

    Args:
        criterion: `non_inferiority` allows a loss of at most the margin; `superiority` demands a
            gain of more than the margin.
        margin: Margin in AUROC; without labelled anomalies, a share of the champion's mean score.
        level: Level of the two-sided bootstrap confidence interval that must show it, e.g. 0.95.
        subgroup_margin: Margin in AUROC for each subgroup. A subgroup that is shown to lose more
            refuses the challenger, one that seems to lose more holds it.
        max_weights_ratio: Refuse a challenger whose weights have more than this many times the
            champion's bytes.
        draws: Number of bootstrap resamples.
        seed: Seed of the bootstrap's random resampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    criterion: Literal["non_inferiority", "superiority"] = "non_inferiority"
    margin: float = Field(0.02, ge=0.0, lt=1.0)
    level: float = Field(0.95, gt=0.5, lt=1.0)
    subgroup_margin: float = Field(0.05, ge=0.0, le=1.0)
    max_weights_ratio: float = Field(2.0, gt=0.0)
    draws: int = Field(2000, ge=100)
    seed: int = 0

    def bootstrap_options(self, groups: Groups | None) -> dict[str, Any]:
        """The options that every bootstrap of a comparison shares."""
        return {"groups": groups, "level": self.level, "draws": self.draws, "seed": self.seed}


@dataclass(frozen=True)
class Decision:
    """The outcome for a challenger, and why.

    Args:
        outcome: `promoted`; `refused` if it is shown to fall short; `held` if the images decide
            neither, so that a person must.
        reasons: Reasons in words, the deciding one first.
        numbers: Every figure that the reasons rest on, by name.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]


def decide_promotion(
    challenger_scores: Floats,
    champion_scores: Floats | None,
    labels: Labels,
    settings: PromotionSettings,
    *,
    groups: Groups | None = None,
    subgroups: Mapping[str, NDArray[Any]] | None = None,
    is_same_measure: bool = True,
) -> Decision:
    """Decide by the scores of both versions on the same images.

    With labelled anomalies the AUROC decides. Without, the mean score of the normal images does:
    how badly they are reconstructed, which says nothing about anomalies. A first champion needs
    only finite scores.

    Args:
        challenger_scores: float (n,), higher = more anomalous.
        champion_scores: float (n,), higher = more anomalous; None if there is no champion.
        labels: int (n,), 0 = normal, 1 = anomalous.
        settings: Criteria that the challenger must meet.
        groups: Patient or slide of each image, (n,); None makes each image its own group.
        subgroups: Columns (n,) by name. No subgroup of equal values may lose more AUROC than the
            subgroup margin.
        is_same_measure: Whether both versions compare images by the same features and layers, so
            that their mean scores can be compared.
    """
    for name, scores in (("challenger", challenger_scores), ("champion", champion_scores)):
        if scores is not None and not np.isfinite(scores).all():
            count = int((~np.isfinite(scores)).sum())
            reason = f"{count} of {len(scores)} scores of the {name} are not finite"
            outcome: Outcome = "refused" if name == "challenger" else "held"
            return Decision(outcome, (reason,), {f"{name}_not_finite": float(count)})
    has_both = (labels == Label.ANOMALOUS).any() and (labels == Label.NORMAL).any()
    if champion_scores is None:
        return _accept_first(challenger_scores, labels if has_both else None, settings, groups)
    if has_both:
        return _decide_by_auroc(
            challenger_scores, champion_scores, labels, settings, groups, subgroups or {}
        )
    normal = labels == Label.NORMAL
    if not normal.any() or not is_same_measure:
        missing = "both measure by different features" if normal.any() else "no image is normal"
        reason = f"Without labelled anomalies mean scores would decide, but {missing}"
        return Decision("held", (reason,), {})
    return _decide_by_reconstruction(
        challenger_scores[normal],
        champion_scores[normal],
        settings,
        groups[normal] if groups is not None else None,
    )


def _accept_first(
    scores: Floats, labels: Labels | None, settings: PromotionSettings, groups: Groups | None
) -> Decision:
    first = "The first champion: it loads, reproduces its scores and all of them are finite"
    if labels is None:
        mean = float(scores.mean())
        reason = (
            "The images hold no labelled anomalies, so its AUROC is unknown; "
            f"its mean score is {mean:.4g}"
        )
        return Decision("promoted", (first, reason), {"challenger_mean_score": mean})
    auroc = bootstrap_auroc(scores, labels, **settings.bootstrap_options(groups))
    chance = (
        "" if auroc.low > 0.5 or auroc.missing else ", which is not shown to be better than chance"
    )
    reasons = (first, f"Its AUROC is {auroc}{chance}")
    return Decision("promoted", reasons, _list_figures("challenger_auroc", auroc))


def _decide_by_auroc(
    challenger_scores: Floats,
    champion_scores: Floats,
    labels: Labels,
    settings: PromotionSettings,
    groups: Groups | None,
    subgroups: Mapping[str, NDArray[Any]],
) -> Decision:
    options = settings.bootstrap_options(groups)
    difference = bootstrap_auroc_difference(challenger_scores, champion_scores, labels, **options)
    numbers = {
        **_list_figures("auroc_difference", difference),
        **_list_figures("challenger_auroc", bootstrap_auroc(challenger_scores, labels, **options)),
        **_list_figures("champion_auroc", bootstrap_auroc(champion_scores, labels, **options)),
    }
    reasons = (f"AUROC differs by {_signed(difference)}; {_describe_criterion(settings, 'AUROC')}",)
    decision = Decision(_conclude(difference, settings), reasons, numbers)
    for found in compare_subgroups(
        challenger_scores, champion_scores, labels, subgroups, **options
    ):
        decision = _check_subgroup(decision, found, settings.subgroup_margin)
    return decision


def _check_subgroup(decision: Decision, found: SubgroupGain, margin: float) -> Decision:
    numbers = {**decision.numbers, **_list_figures(f"auroc_difference {found.name}", found.gain)}
    if not found.seems_fallen(margin):
        return replace(decision, numbers=numbers)
    says = "is shown to lose" if found.has_fallen(margin) else "seems to lose"
    reason = (
        f"Subgroup {found.name} ({found.image_count} images) {says} more than {margin:g}: its "
        f"AUROC differs by {_signed(found.gain)}"
    )
    return _stop(replace(decision, numbers=numbers), reason, is_certain=found.has_fallen(margin))


def limit_weights(
    decision: Decision, challenger_bytes: int, champion_bytes: int, settings: PromotionSettings
) -> Decision:
    """Refuse a challenger whose weights are too large; other decisions stay as they are.

    Args:
        decision: Decision by the scores.
        challenger_bytes: Bytes of the challenger's weights.
        champion_bytes: Bytes of the champion's weights.
        settings: Criteria with the limit `max_weights_ratio`.
    """
    ratio, limit = challenger_bytes / champion_bytes, settings.max_weights_ratio
    decision = replace(decision, numbers={**decision.numbers, "weights_ratio": ratio})
    if ratio <= limit:
        return decision
    reason = f"It has {ratio:.2f} times the champion's bytes of weights; the limit is {limit:g}"
    return _stop(decision, reason, is_certain=True)


def _stop(decision: Decision, reason: str, *, is_certain: bool) -> Decision:
    """Hold or refuse for one more reason, which comes first unless it changes nothing."""
    outcome: Outcome = "refused" if is_certain or decision.outcome == "refused" else "held"
    is_decisive = outcome != decision.outcome
    reasons = (reason, *decision.reasons) if is_decisive else (*decision.reasons, reason)
    return replace(decision, outcome=outcome, reasons=reasons)


def _decide_by_reconstruction(
    challenger_scores: Floats,
    champion_scores: Floats,
    settings: PromotionSettings,
    groups: Groups | None,
) -> Decision:
    excess = bootstrap_relative_excess(
        challenger_scores, champion_scores, **settings.bootstrap_options(groups)
    )
    # Less error is better: with the sign reversed, higher is better, as with the AUROC.
    gain = replace(excess, estimate=-excess.estimate, low=-excess.high, high=-excess.low)
    reasons = (
        f"Mean error of normal images falls by {_signed(gain)} of the champion's; "
        f"{_describe_criterion(settings, 'share')}",
        "The images hold no labelled anomalies: this says how well normal images are "
        "reconstructed, and nothing about how well anomalies are distinguished from them",
    )
    return Decision(_conclude(gain, settings), reasons, _list_figures("error_reduction", gain))


def _conclude(gain: Interval, settings: PromotionSettings) -> Outcome:
    """Promoted or refused where the interval lies on one side of what is wanted, else held."""
    if settings.criterion == "superiority":
        is_shown = shows_superiority(gain, margin=settings.margin)
        is_disproved = gain.high <= settings.margin
    else:
        is_shown = shows_non_inferiority(gain, margin=settings.margin)
        is_disproved = gain.high < -settings.margin
    if is_shown:
        return "promoted"
    return "refused" if is_disproved else "held"


def _describe_criterion(settings: PromotionSettings, unit: str) -> str:
    if settings.criterion == "superiority":
        return f"wanted is a gain of more than {settings.margin:g} ({unit}) at its lower end"
    return f"wanted is a loss of at most {settings.margin:g} ({unit}) at its lower end"


def _signed(interval: Interval) -> str:
    ends = f"{interval.level:.0%} interval {interval.low:+.4f} to {interval.high:+.4f}"
    missing = f"no interval: {interval.missing}"
    return f"{interval.estimate:+.4f} ({missing if interval.missing else ends})"


def _list_figures(name: str, interval: Interval) -> dict[str, float]:
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.estimate, **({} if interval.missing else ends)}
