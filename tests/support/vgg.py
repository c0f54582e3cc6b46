"""Images and small weights for the feature extractor."""

from __future__ import annotations

import torch
from torch import Tensor

from training.networks.vgg import random_vgg_weights


def images_of(*, channels: int = 3, height: int = 24, width: int = 16) -> Tensor:
    """Two random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(6)
    return torch.rand((2, channels, height, width), generator=generator) * 2 - 1


def small_weights(layers: tuple[str, ...] = ("relu3_1",)) -> dict[str, Tensor]:
    """Random weights of a narrow VGG with biases that are not zero."""
    weights = random_vgg_weights(seed=4, layers=layers, width=4)
    biases = {key: torch.linspace(-0.2, 0.3, len(v)) for key, v in weights.items() if v.ndim == 1}
    return weights | biases
