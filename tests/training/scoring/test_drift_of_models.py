"""Drift by a trained model on synthetic tissue: stain, contrast, more lesions, and nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, box

from pipeline.synthetic.slides import paint_slide
from tests.support.toy_training import CPU, steady
from tests.support.toys import make_settings
from training.evaluation.calibration import choose_threshold
from training.learning.loop import train_step
from training.learning.state import begin_training, make_recipe
from training.networks.inputs import to_tensor
from training.networks.vgg_weights import load_vgg
from training.scoring.detector import Detector, DetectorDescription
from training.scoring.drift import Drift, Reference, Sample, measure_drift

PX, SIDE, STEPS, BATCH, COUNT = 32, 1152, 120, 16, 240
Tiles = NDArray[np.uint8]


def cut_tiles(seed: int, lesions: int = 0) -> tuple[Tiles, Tiles]:
    """Tiles of tissue without lesion, and tiles of nothing else."""
    pixels, found = paint_slide(np.random.default_rng(seed), (SIDE, SIDE + 3 * PX), lesions)
    ill = MultiPolygon(
        [Polygon(it.outline, [it.hole] if it.hole is not None else []) for it in found]
    )
    normal, lesion = [], []
    for y in range(0, SIDE, PX):
        for x in range(0, SIDE + 3 * PX, PX):
            tile, place = pixels[y : y + PX, x : x + PX], box(x, y, x + PX, y + PX)
            if ill.contains(place):
                lesion.append(tile)
            elif not ill.intersects(place) and (tile.min(-1) > 235).mean() < 0.3:
                normal.append(tile)
    return np.array(normal, np.uint8), np.array(lesion, np.uint8)


def stain(tiles: Tiles, densities: tuple[float, float, float]) -> Tiles:
    """As another laboratory would: optical densities of red, green and blue changed."""
    stained: Tiles = (245 * (np.clip(tiles, 1, 245) / 245) ** densities).astype(np.uint8)
    return stained


def change_contrast(tiles: Tiles, gain: float) -> Tiles:
    changed: Tiles = np.clip(128 + gain * (tiles - 128.0), 0, 255).astype(np.uint8)
    return changed


@dataclass(frozen=True)
class Trained:
    """A model, and the normals that it was calibrated by."""

    detector: Detector
    reference: Reference

    def compare(self, batch: Tiles, *, by_scores_alone: bool = False) -> Drift:
        found = self.detector.detect(batch)
        sample = Sample(found.anomaly_score, None if by_scores_alone else found.embedding)
        return measure_drift(sample, self.reference).whole


@pytest.fixture(scope="module")
def trained() -> Trained:
    learned, known = cut_tiles(1)[0], cut_tiles(2)[0]
    loss = {"layers": {PX: {"relu2_1": 1}}, "vgg_weights": "random", "vgg_width": 16}
    settings = make_settings(
        growth=steady(PX, STEPS)["growth"], loss=loss, optimiser={"learning_rate": 2e-3}
    )
    features = load_vgg("random", layers=settings.loss.layer_names(), width=16)
    recipe = make_recipe(settings, features, image_channels=3, device=CPU)
    state, draw = begin_training(recipe), np.random.default_rng(0)
    for _ in range(STEPS):
        batch = learned[draw.choice(len(learned), BATCH, replace=False)]
        train_step(recipe, state, to_tensor(batch, resolution=PX))
        state.step += 1
    detector = Detector.make(
        DetectorDescription(image_shape=(PX, PX, 3), settings=settings),
        network=state.autoencoder.state_dict(),
        features=features.state_dict(),
        device="cpu",
    )
    found = detector.detect(known)
    scores = np.sort(found.anomaly_score)
    normals = Sample(found.anomaly_score, found.embedding)
    reference = Reference(scores.tolist(), choose_threshold(scores).value, normals)
    return Trained(detector, reference)


@pytest.fixture(scope="module")
def new() -> Tiles:
    """Normal tiles of a slide that the model has not seen."""
    tiles = cut_tiles(3)[0]
    chosen: Tiles = tiles[np.linspace(0, len(tiles) - 1, COUNT).astype(int)]
    return chosen


def test_another_slide_of_the_same_laboratory_is_steady(trained: Trained, new: Tiles) -> None:
    found = trained.compare(new)
    assert found.state == "stable"
    assert found.embedding_distance < 0.15


@pytest.mark.parametrize("densities", [(1.3, 0.8, 1.3), (1.4, 1.0, 0.8)])
def test_another_stain_is_a_shift(
    trained: Trained, new: Tiles, densities: tuple[float, float, float]
) -> None:
    assert trained.compare(stain(new, densities)).state == "shifted"


def test_what_scores_take_for_strange_images_or_for_nothing_embeddings_tell(
    trained: Trained, new: Tiles
) -> None:
    for batch, state in (
        (stain(new, (1.1, 0.95, 1.05)), "more_anomalies"),
        (change_contrast(new, 1.1), "stable"),
    ):
        assert trained.compare(batch, by_scores_alone=True).state == state
        assert trained.compare(batch).state == "shifted"


@pytest.mark.parametrize("gain", [0.6, 1.4])
def test_another_contrast_is_a_shift(trained: Trained, new: Tiles, gain: float) -> None:
    assert trained.compare(change_contrast(new, gain)).state == "shifted"


def test_thirty_per_cent_more_lesions_are_a_rise_of_the_strange(
    trained: Trained, new: Tiles
) -> None:
    lesions = cut_tiles(4, 6)[1]
    ill = int(0.3 * COUNT)
    assert len(lesions) >= ill
    found = trained.compare(np.concatenate([new[ill:], lesions[:ill]]))
    assert found.state == "more_anomalies"
    assert found.embedding_distance < 0.2
    assert found.share_over > 0.15 > found.expected_over
