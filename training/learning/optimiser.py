"""Adam over what one stage trains."""

from __future__ import annotations

import torch

from training.networks.autoencoder import Autoencoder
from training.networks.discriminator import Discriminator
from training.networks.growth import GrowthState
from training.settings import TrainSettings


def make_optimiser(
    network: Autoencoder | Discriminator, growth: GrowthState, settings: TrainSettings
) -> torch.optim.Adam:
    """Make Adam over the parameters that a stage uses of a network, and freeze all others.

    A team's wrapper averages the gradients of what is trainable when it is made, so the rest must
    not be: no unused parameters to search for in every step.
    """
    used = network.parameters_at(growth.resolution, is_fading=growth.phase == "fade_in")
    network.requires_grad_(False)
    for parameter in used:
        parameter.requires_grad_(True)
    return torch.optim.Adam(
        used,
        lr=settings.optimiser.learning_rate,
        betas=settings.optimiser.betas,
        weight_decay=settings.optimiser.weight_decay,
        fused=settings.acceleration.fuses_optimiser and used[0].device.type == "cuda",
    )
