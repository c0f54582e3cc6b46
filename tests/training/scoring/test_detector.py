"""The detector: scores as training measures them, heatmaps in the image's place and size."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.registered import make_detector
from tests.support.toys import make_settings
from training.learning.state import Recipe
from training.learning.validation import score_images
from training.networks.inputs import to_tensor
from training.scoring.detector import Detector, DetectorDescription

SHAPE = (40, 34, 1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, *SHAPE), dtype=np.uint8)


def test_scores_are_those_of_training_at_its_end(images: np.ndarray) -> None:
    detector = make_detector(SHAPE)
    centre = images[:, 3:37]
    growth = detector.growth
    assert (growth.resolution, growth.alpha) == (32, None)
    recipe = Recipe(detector.description.settings, detector.features, 1, detector.device)
    wanted = score_images(recipe, detector.autoencoder, centre, growth=growth)
    assert detector.detect(images).anomaly_score == pytest.approx(wanted, rel=1e-5)


def test_an_embedding_is_the_mean_of_the_latent_over_its_places(images: np.ndarray) -> None:
    detector = make_detector(SHAPE)
    resolution = detector.description.settings.growth.final_resolution
    views = to_tensor(images[:, 3:37], resolution=resolution)
    with torch.no_grad():
        latents = detector.autoencoder.encode(views, resolution=resolution).numpy()
    assert latents.shape == (70, 6, 4, 4)
    np.testing.assert_allclose(detector.detect(images).embedding, latents.mean((2, 3)), atol=1e-6)


def test_of_a_wide_latent_an_embedding_has_some_channels() -> None:
    network = {"form": "residual9", "latent_resolution": 4, "latent_channels": 40, "channels": 6}
    detector = make_detector(SHAPE, network=network)
    assert detector.detect(np.zeros((3, *SHAPE), np.uint8)).embedding.shape == (3, 32)
    assert detector.detect(np.zeros((0, *SHAPE), np.uint8)).embedding.shape == (0, 32)


def test_an_image_scores_alike_in_any_company(images: np.ndarray) -> None:
    detector = make_detector(SHAPE)
    together = detector.detect(images).anomaly_score
    alone = np.concatenate([detector.detect(image[None]).anomaly_score for image in images[60:]])
    assert alone == pytest.approx(together[60:], rel=1e-5)


def test_a_heatmap_lies_on_the_crop_and_rises_where_the_image_is_strange() -> None:
    detector = make_detector(SHAPE)
    with torch.no_grad():
        for parameter in detector.autoencoder.parameters():
            parameter.zero_()  # reconstructs nothing, so that the error is the image itself
    plain = np.full((1, *SHAPE), 120, np.uint8)
    marked = plain.copy()
    marked[0, 8:14, 22:30] = 255  # off the diagonal, near a corner
    before, after = detector.detect(np.concatenate([plain, marked]), heatmaps=True).heatmap  # type: ignore[misc] # asked for
    assert after.shape == (40, 34)
    assert np.isnan(after[:3]).all()
    assert np.isnan(after[37:]).all()
    assert np.isfinite(after[3:37]).all()
    y, x = np.unravel_index(np.nanargmax(after - before), after.shape)
    assert 4 <= y <= 18
    assert 18 <= x <= 33


def test_scores_survive_saving(images: np.ndarray, tmp_path: Path) -> None:
    detector = make_detector(SHAPE)
    detector.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features.safetensors",
        "model.json",
        "network.safetensors",
    ]
    loaded = Detector.load(tmp_path, device="cpu")
    assert (loaded.detect(images).anomaly_score == detector.detect(images).anomaly_score).all()


def test_other_images_are_refused_and_none_are_fine() -> None:
    detector = make_detector(SHAPE)
    with pytest.raises(ValueError, match=r"images are uint8 \(34, 40, 1\), .* uint8 \(40, 34, 1\)"):
        detector.detect(np.zeros((2, 34, 40, 1), np.uint8))
    with pytest.raises(ValueError, match="images are float64"):
        detector.detect(np.zeros((2, *SHAPE)))  # type: ignore[arg-type] # that is what is tested
    nothing = detector.detect(np.zeros((0, *SHAPE), np.uint8), heatmaps=True)
    assert nothing.anomaly_score.shape == (0,)
    assert nothing.heatmap is not None
    assert nothing.heatmap.shape == (0, 40, 34)


def test_a_description_survives_json() -> None:
    description = DetectorDescription(image_shape=SHAPE, settings=make_settings())
    text = description.model_dump_json()
    assert DetectorDescription.model_validate_json(text) == description


@pytest.mark.parametrize("heatmaps", [False, True])
def test_features_are_extracted_twice_a_batch_with_heatmaps_too(
    images: np.ndarray, heatmaps: bool
) -> None:
    detector = make_detector(SHAPE)
    calls: list[int] = []
    detector.features.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    detector.detect(images, heatmaps=heatmaps)
    assert calls == [64, 64, 6, 6]  # of each batch, what the network saw and what it made of that
    calls.clear()
    detector.reconstruct(images)
    assert not calls


@pytest.mark.parametrize("is_reduced", [False, True])
def test_a_detector_survives_pickling(images: np.ndarray, is_reduced: bool) -> None:
    detector = make_detector(SHAPE)
    detector = detector.reduce_precision() if is_reduced else detector
    again = pickle.loads(pickle.dumps(detector))  # noqa: S301 -- our own bytes
    assert again.is_reduced is is_reduced
    assert (again.detect(images).anomaly_score == detector.detect(images).anomaly_score).all()
