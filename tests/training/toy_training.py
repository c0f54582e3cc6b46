"""A training on one process, of a toy dataset."""

from __future__ import annotations

from typing import Any

import torch

from tests.training.toys import make_dataset, make_settings
from training.data import TrainingImages
from training.features import prepare_features
from training.loop import Report, Save, train
from training.state import TrainingState, make_recipe
from training.validation import read_validation

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


def steady(resolution: int, steps: int) -> dict[str, Any]:
    """Growth and loss of one resolution alone."""
    growth = {
        "initial_resolution": resolution, "final_resolution": resolution,
        "fade_in_iterations": 0, "stabilize_iterations": steps, "batch_sizes": 12,
    }  # fmt: skip
    loss = {"layers": {resolution: {"relu1_2": 1}}, "vgg_weights": "random", "vgg_width": 8}
    return {"growth": growth, "loss": loss, "validate_every": 1000, "checkpoint_every": 1000}
