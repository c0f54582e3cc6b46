"""The decision between challenger and champion, by planted scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from training.registry.gate import PromotionSettings, decide_promotion, limit_weights

SETTINGS = PromotionSettings(draws=300)
SUPERIOR = PromotionSettings(criterion="superiority", margin=0.0, draws=300)


def plant(gap: float, seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Scores of `count` normals and as many anomalies, so far apart."""
    labels = np.repeat([0, 1], count)
    return np.random.default_rng(seed).normal(2 + gap * labels, 0.5), labels


def test_a_better_challenger_is_promoted_by_either_criterion() -> None:
    better, labels = plant(2.0, 1)
    worse, _ = plant(0.3, 2)
    for settings in (SETTINGS, SUPERIOR):
        decision = decide_promotion(better, worse, labels, settings)
        assert decision.outcome == "promoted"
        assert decision.numbers["auroc_difference_low"] > 0
    assert "AUROC differs by +0." in decision.reasons[0]
    assert decision.numbers["challenger_auroc"] > decision.numbers["champion_auroc"]


def test_a_worse_challenger_is_refused_by_either_criterion() -> None:
    better, labels = plant(2.0, 1)
    worse, _ = plant(0.3, 2)
    for settings in (SETTINGS, SUPERIOR):
        assert decide_promotion(worse, better, labels, settings).outcome == "refused"


def test_an_equal_one_is_not_inferior_and_not_superior() -> None:
    scores, labels = plant(0.8, 3)
    assert decide_promotion(scores, scores, labels, SETTINGS).outcome == "promoted"
    assert decide_promotion(scores, scores, labels, SUPERIOR).outcome == "refused"


def test_where_few_images_decide_nothing_a_person_must() -> None:
    one, labels = plant(0.5, 4, count=12)
    other, _ = plant(0.5, 5, count=12)
    assert decide_promotion(one, other, labels, SETTINGS).outcome == "held"
    assert decide_promotion(one, other, labels, SUPERIOR).outcome == "held"


def plant_pair(
    auroc: float, other_auroc: float, seed: int, count: int = 80
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated scores of two models with these true AUROCs, and the labels."""
    draw = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count)
    shared = draw.normal(size=2 * count)
    one, other = (
        np.sqrt(2) * norm.ppf(share) * labels + (shared + draw.normal(size=2 * count)) / np.sqrt(2)
        for share in (auroc, other_auroc)
    )
    return one, other, labels


def count_promotions(
    settings: PromotionSettings, auroc: float, other_auroc: float, draws: int
) -> int:
    pairs = (plant_pair(auroc, other_auroc, seed) for seed in range(draws))
    found = (decide_promotion(one, other, labels, settings) for one, other, labels in pairs)
    return sum(decision.outcome == "promoted" for decision in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "margin", "challenger"),
    [
        ("non_inferiority", 0.05, 0.75),  # worse by the margin: the hardest of the wrong ones
        ("superiority", 0.0, 0.80),  # equal: not one bit better
    ],
)
def test_wrong_promotions_stay_under_the_level_over_1000_draws(
    criterion: str, margin: float, challenger: float
) -> None:
    settings = PromotionSettings.model_validate(
        {"criterion": criterion, "margin": margin, "level": 0.95, "draws": 200}
    )
    # Half of 5 % are wrong on this side; three standard errors of 1,000 draws are 1.5 %.
    assert count_promotions(settings, challenger, 0.80, 1000) <= 40


def test_what_is_clearly_worse_is_never_promoted_and_the_better_nearly_always() -> None:
    settings = PromotionSettings(margin=0.02, draws=100)
    assert count_promotions(settings, 0.60, 0.85, 40) == 0
    assert count_promotions(settings, 0.92, 0.75, 40) >= 38


def test_the_first_champion_needs_finite_scores_alone_and_reports_its_auroc() -> None:
    scores, labels = plant(0.0, 6)
    decision = decide_promotion(scores, None, labels, SETTINGS)
    assert decision.outcome == "promoted"
    assert "not shown to be better than chance" in decision.reasons[1]
    good, _ = plant(2.0, 6)
    assert "chance" not in decide_promotion(good, None, labels, SETTINGS).reasons[1]
    alone = decide_promotion(scores, None, np.zeros(len(scores), int), SETTINGS)
    assert alone.outcome == "promoted"
    assert "no labelled anomalies" in alone.reasons[1]


def test_scores_that_are_not_finite_never_win() -> None:
    scores, labels = plant(1.0, 7)
    broken = scores.copy()
    broken[4] = np.nan
    decision = decide_promotion(broken, None, labels, SETTINGS)
    assert (decision.outcome, decision.numbers) == ("refused", {"challenger_not_finite": 1.0})
    assert decide_promotion(scores, broken, labels, SETTINGS).outcome == "held"


def test_without_anomalies_the_reconstruction_of_normals_decides_and_says_so() -> None:
    champion, _ = plant(0.0, 8)
    normal = np.zeros(len(champion), int)
    decision = decide_promotion(0.9 * champion, champion, normal, SUPERIOR)
    assert decision.outcome == "promoted"
    assert decision.numbers["error_reduction"] == pytest.approx(0.1)
    assert "nothing about how well anomalies are distinguished" in decision.reasons[1]
    assert decide_promotion(1.1 * champion, champion, normal, SETTINGS).outcome == "refused"
    assert decide_promotion(1.01 * champion, champion, normal, SETTINGS).outcome == "promoted"


def test_mean_scores_by_different_features_are_not_compared() -> None:
    champion, _ = plant(0.0, 8)
    normal = np.zeros(len(champion), int)
    decision = decide_promotion(champion, champion, normal, SETTINGS, is_same_measure=False)
    assert decision.outcome == "held"
    assert "different features" in decision.reasons[0]
    alone = decide_promotion(champion, champion, normal + 1, SETTINGS)
    assert (alone.outcome, "no image is normal" in alone.reasons[0]) == ("held", True)


def test_images_of_one_patient_count_as_one() -> None:
    one, labels = plant(1.0, 9, count=40)
    other = one + np.random.default_rng(1).normal(0, 0.25, len(one))
    copies, champion, its_labels = (np.repeat(values, 8) for values in (other, one, labels))
    groups = np.repeat(np.arange(len(one)), 8)
    decision = decide_promotion(copies, champion, its_labels, SETTINGS, groups=groups)
    once = decide_promotion(other, one, labels, SETTINGS)
    assert decision.numbers == pytest.approx(once.numbers)


def test_anomalies_of_one_slide_decide_nothing() -> None:
    better, labels = plant(2.0, 1)
    worse, _ = plant(0.3, 2)
    slides = np.where(labels == 1, -1, np.arange(len(labels)))
    decision = decide_promotion(better, worse, labels, SETTINGS, groups=slides)
    assert decision.outcome == "held"
    assert "no interval: only 1 group holds an anomaly" in decision.reasons[0]
    assert set(decision.numbers) == {"auroc_difference", "challenger_auroc", "champion_auroc"}


def test_a_subgroup_that_falls_refuses_a_challenger_that_is_better_elsewhere() -> None:
    champion, labels = plant(0.5, 11, count=400)
    view = np.tile(["PA", "PA", "PA", "AP"], 200)
    noise = np.random.default_rng(12).normal(0, 1.5, len(labels))
    challenger = champion + 0.9 * labels * (view == "PA") + noise * (view == "AP")
    columns = {"view_position": view, "sex": np.full(len(view), "")}
    assert decide_promotion(challenger, champion, labels, SETTINGS).outcome == "promoted"
    decision = decide_promotion(challenger, champion, labels, SETTINGS, subgroups=columns)
    assert decision.outcome == "refused"
    assert decision.reasons[0].startswith("Subgroup view_position=AP (200 images) is shown to lose")
    assert decision.numbers["auroc_difference view_position=PA"] > 0
    assert not any("sex" in name for name in decision.numbers)
    lenient = SETTINGS.model_copy(update={"subgroup_margin": 0.9})
    kept = decide_promotion(challenger, champion, labels, lenient, subgroups=columns)
    assert kept.outcome == "promoted"


def test_a_small_subgroup_that_seems_to_fall_holds_the_challenger() -> None:
    champion, labels = plant(1.2, 13, count=200)
    few = np.where(np.arange(len(labels)) % 100 == 0, "F", "M")  # two of each label
    challenger = champion + labels - 3 * labels * (few == "F")
    decision = decide_promotion(challenger, champion, labels, SETTINGS, subgroups={"sex": few})
    assert decision.outcome == "held"
    assert "sex=F (4 images) seems to lose" in decision.reasons[0]
    assert "no interval: only 2 images hold an anomaly" in decision.reasons[0]


def test_a_challenger_with_much_larger_weights_is_refused() -> None:
    better, labels = plant(2.0, 1)
    worse, _ = plant(0.3, 2)
    decision = decide_promotion(better, worse, labels, SETTINGS)
    assert limit_weights(decision, 1900, 1000, SETTINGS).outcome == "promoted"
    large = limit_weights(decision, 2100, 1000, SETTINGS)
    assert large.outcome == "refused"
    assert large.numbers["weights_ratio"] == pytest.approx(2.1)
    assert large.reasons[0] == "It has 2.10 times the champion's bytes of weights; the limit is 2"
