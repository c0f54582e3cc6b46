"""Beyond 64 px: growth as far as 256 px, trained and scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.toys import make_settings
from training.learning.loop import train_step
from training.learning.state import begin_training, growth_at, make_recipe
from training.networks.inputs import to_tensor
from training.networks.vgg import layer_at
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset
from training.scoring.detector import Detector, DetectorDescription

SIDES = (64, 128, 256)


def test_growth_as_far_as_256_px_trains_and_scores() -> None:
    settings = make_settings(
        growth={
            "initial_resolution": 64,
            "final_resolution": 256,
            "fade_in_iterations": 1,
            "stabilize_iterations": 2,
            "batch_sizes": {64: 4, 128: 3, 256: 2},
        },
        loss={
            "layers": {side: {layer_at(side): 1} for side in SIDES},
            "vgg_weights": "random",
            "vgg_width": 8,
        },
        optimiser={"learning_rate": 1e-2},
    )
    features = load_vgg("random", layers=settings.loss.layer_names(), width=8)
    recipe = make_recipe(settings, features, image_channels=3, device=torch.device("cpu"))
    state = begin_training(recipe)
    y, x = np.mgrid[0:256, 0:288]
    waves = (120 + 100 * np.sin(0.05 * y + 0.02 * x))[None, ..., None].astype(np.uint8)
    images = np.repeat(np.repeat(waves, 4, axis=0), 3, axis=3)
    seen, losses = [], []
    for step in range(recipe.total_steps):
        growth = growth_at(recipe, step)
        batch = to_tensor(images[: growth.batch_size, :, 16:272], resolution=256)
        losses.append(train_step(recipe, state, batch)["train_loss"])
        seen.append((growth.resolution, growth.phase))
    assert list(dict.fromkeys(seen)) == [
        (64, "stabilize"),
        (128, "fade_in"),
        (128, "stabilize"),
        (256, "fade_in"),
        (256, "stabilize"),
    ]
    assert torch.isfinite(torch.stack(losses)).all()
    detector = Detector.make(
        DetectorDescription(image_shape=(256, 288, 3), settings=settings),
        network=state.autoencoder.state_dict(),
        features=features.state_dict(),
    )
    images[1, 40:90, 180:230] = 255
    found = detector.detect(images[:2], heatmaps=True)
    assert found.heatmap is not None
    assert found.heatmap.shape == (2, 256, 288)
    assert found.anomaly_score[1] > found.anomaly_score[0]


@pytest.mark.parametrize("name", ["tiles-256", "radiographs-256"])
def test_presets_beyond_64_px_take_a_layer_for_each_resolution(name: str) -> None:
    settings = load_preset(name)
    sides = settings.growth.resolutions()
    assert sides[-1] == 256
    assert [list(settings.loss.layers[side]) for side in sides] == [[layer_at(s)] for s in sides]
    smaller = load_preset(name, {"growth": {"final_resolution": 128}})
    assert smaller.growth.resolutions() == sides[:-1]
