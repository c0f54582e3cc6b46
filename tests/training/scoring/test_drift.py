"""Drift: a shift of everything is told from a rise of the strange, and quiet stays quiet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.scoring.drift import Reference, Sample, measure_drift

DRAW = np.random.default_rng(4)
SCORES = sorted(DRAW.lognormal(0, 0.3, 400).tolist())
THRESHOLD = float(np.quantile(SCORES, 0.95))
MIXING = DRAW.normal(size=(12, 12))  # components of an embedding depend on each other


def draw_batch(seed: int, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 0.3, count)


def draw_embedded(seed: int, count: int = 300) -> Sample:
    """Strange images lie elsewhere a little, as they do in life."""
    scores = draw_batch(seed, count)
    noise = np.random.default_rng(seed + 10_000).normal(size=(count, 12)) @ MIXING
    return Sample(scores, noise + np.log(scores)[:, None])


REFERENCE = Reference(SCORES, THRESHOLD)
EMBEDDED = replace(REFERENCE, normals=draw_embedded(99, 500))


def test_a_batch_like_the_reference_is_steady_and_alarms_are_rare() -> None:
    found = [measure_drift(Sample(draw_batch(seed)), REFERENCE) for seed in range(200)]
    assert sum(report.has_drifted for report in found) <= 4
    assert found[0].notes == ()


@pytest.mark.parametrize("factor", [1.25, 2.5, 0.75])
def test_where_everything_moves_it_is_a_shift_and_the_threshold_is_in_doubt(factor: float) -> None:
    report = measure_drift(Sample(factor * draw_batch(1)), REFERENCE)
    assert report.whole.state == "shifted"
    assert "all images have shifted" in report.notes[0]
    assert "threshold is still that of the validation split" in report.notes[-1]


@pytest.mark.parametrize("share", [0.15, 0.30, 0.60])
def test_where_more_is_strange_the_usual_stay(share: float) -> None:
    batch = draw_batch(2)
    batch[: int(share * len(batch))] = np.random.default_rng(3).lognormal(
        1.2, 0.3, int(share * 300)
    )
    report = measure_drift(Sample(batch), REFERENCE)
    assert report.whole.state == "more_anomalies"
    assert report.whole.share_over > share
    assert len(report.notes) == 1


def test_one_site_that_shifts_is_named() -> None:
    batch = draw_batch(5, 400)
    site = np.where(np.arange(400) % 4 == 0, "north", "south")
    batch[site == "north"] *= 1.6
    columns = {"site": site, "sex": np.full(400, "")}
    report = measure_drift(Sample(batch), REFERENCE, columns)
    assert [(part.part, part.state) for part in report.parts] == [
        ("site=north", "shifted"),
        ("site=south", "stable"),
    ]
    assert report.has_drifted


def test_a_handful_tells_nothing() -> None:
    report = measure_drift(Sample(9 * draw_batch(6, 12)), REFERENCE)
    assert (report.whole.state, report.has_drifted) == ("too_few", False)
    assert measure_drift(Sample(np.empty(0)), REFERENCE).whole.image_count == 0


def test_embeddings_of_the_same_normals_raise_few_alarms() -> None:
    found = [measure_drift(draw_embedded(seed), EMBEDDED) for seed in range(200)]
    assert sum(report.has_drifted for report in found) <= 4
    assert all(0 < report.whole.embedding_distance < 0.25 for report in found)


def test_a_shift_that_no_score_shows_is_seen_in_the_embeddings() -> None:
    batch = draw_embedded(1)
    assert batch.embeddings is not None
    moved = batch.embeddings + np.where(np.arange(12) == 7, 4.0, 0.0)
    assert measure_drift(batch, EMBEDDED).whole.state == "stable"
    report = measure_drift(replace(batch, embeddings=moved), EMBEDDED)
    assert report.whole.state == "shifted"
    assert report.whole.distance < 0.1
    assert report.whole.embedding_distance > 0.25
    assert f"{report.whole.embedding_distance:.2f} of embeddings" in report.notes[0]


def test_a_small_shift_matters_to_nobody_however_sure_it_is() -> None:
    batch = draw_embedded(1, 20_000)
    assert batch.embeddings is not None
    known = draw_embedded(2, 20_000)
    moved = replace(batch, embeddings=batch.embeddings + 0.6)
    report = measure_drift(moved, replace(EMBEDDED, normals=known))
    assert report.whole.state == "stable"
    assert report.whole.embedding_distance > 0.05  # with so many of them, no chance


@pytest.mark.parametrize("share", [0.15, 0.30])
def test_strange_images_that_lie_elsewhere_are_no_shift(share: float) -> None:
    batch = draw_embedded(3)
    assert batch.embeddings is not None
    strange = np.arange(300) < share * 300
    scores = np.where(strange, np.random.default_rng(5).lognormal(0.9, 0.4, 300), batch.scores)
    embeddings = np.where(strange[:, None], batch.embeddings + 9.0, batch.embeddings)
    report = measure_drift(Sample(scores, embeddings), EMBEDDED)
    assert (scores[strange] < np.quantile(SCORES, 0.75)).any()  # some pass for usual
    assert report.whole.state == "more_anomalies"


def test_where_embeddings_are_not_known_scores_alone_tell() -> None:
    batch = draw_embedded(4)
    assert batch.embeddings is not None
    for known, reference in (
        (replace(batch, embeddings=None), EMBEDDED),
        (batch, REFERENCE),
    ):
        found = measure_drift(known, reference).whole
        assert (found.state, np.isnan(found.embedding_distance)) == ("stable", True)
