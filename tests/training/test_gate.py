"""The decision between challenger and champion, by planted scores."""

from __future__ import annotations

import numpy as np
import pytest

from training.gate import PromotionSettings, decide_promotion

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


def test_wrong_promotions_stay_rare() -> None:
    # The challenger is worse by more than the margin; the level allows 2.5 % of promotions.
    settings = PromotionSettings(margin=0.01, draws=150)
    wrong = 0
    for seed in range(60):
        champion, labels = plant(1.0, 2 * seed, count=80)
        challenger = champion + np.random.default_rng(2 * seed + 1).normal(0, 0.5, len(champion))
        wrong += decide_promotion(challenger, champion, labels, settings).outcome == "promoted"
    assert wrong <= 5


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
    assert "nothing of how well anomalies are told" in decision.reasons[1]
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
