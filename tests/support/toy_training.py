"""A training on one process, of a toy dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.store.dataset import Dataset
from tests.support.toys import make_dataset, make_settings
from training.data.batches import TrainingImages
from training.learning.loop import Report, Save, train
from training.learning.perceptual_features import prepare_features, read_features
from training.learning.state import TrainingState, begin_training, make_recipe
from training.learning.validation import read_validation
from training.settings import TrainSettings

CPU = torch.device("cpu")


class Bench:
    """A toy dataset and a recipe for it."""

    def __init__(self, **changes: Any) -> None:
        self.settings = make_settings(**changes)
        self.dataset = make_dataset("memory://loop/toys", normals=60)
        features = prepare_features(self.settings, self.dataset)
        self.recipe = make_recipe(self.settings, features, image_channels=1, device=CPU)
        self.images = TrainingImages(self.dataset, self.settings)
        self.validation = read_validation(self.dataset, self.settings.images)

    def run(self, state: TrainingState, save: Save | None = None) -> list[Report]:
        reports: list[Report] = []
        train(
            self.recipe,
            state,
            self.images,
            self.validation,
            save=save or (lambda state, _: f"step-{state.step}"),
            publish=reports.append,
        )
        return reports


def train_alone(
    settings: TrainSettings, features_url: str, dataset: Dataset
) -> tuple[Mapping[str, torch.Tensor], list[Report]]:
    """A whole training in this process, without Ray: the weights, and all that it reports."""
    features = read_features(features_url, settings)
    recipe = make_recipe(settings, features, image_channels=1, device=CPU)
    state, reports = begin_training(recipe), list[Report]()
    train(
        recipe,
        state,
        TrainingImages(dataset, settings),
        read_validation(dataset, settings.images),
        save=lambda _state, _metrics: "",
        publish=reports.append,
    )
    return state.autoencoder.state_dict(), reports


def steady(resolution: int, steps: int) -> dict[str, Any]:
    """Growth and loss of one resolution alone."""
    growth = {
        "initial_resolution": resolution,
        "final_resolution": resolution,
        "fade_in_iterations": 0,
        "stabilize_iterations": steps,
        "batch_sizes": 12,
    }
    loss = {"layers": {resolution: {"relu1_2": 1}}, "vgg_weights": "random", "vgg_width": 8}
    return {"growth": growth, "loss": loss, "validate_every": 1000, "checkpoint_every": 1000}
