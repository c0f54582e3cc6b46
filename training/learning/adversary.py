"""The discriminator of an adversarial training, and its loss.

As in the public code of Shvetsova et al. 2021 the discriminator makes a few steps before each step
of the autoencoder, with an Adam optimiser of the same settings that starts afresh in every stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from training.learning.speed import Alpha
from training.networks.discriminator import Discriminator
from training.networks.losses import adversarial_loss, critic_loss
from training.settings import AdversarialSettings, TrainSettings


class Critic(nn.Module):
    """The discriminator's loss as one module, so that DDP sees one forward pass per step.

    Args:
        discriminator: Network that is trained.
        settings: Weights of the loss terms.
    """

    def __init__(self, discriminator: Discriminator, settings: AdversarialSettings) -> None:
        super().__init__()
        self.discriminator = discriminator
        self._settings = settings

    def forward(
        self, real: Tensor, made: Tensor, shares: Tensor, *, resolution: int, alpha: Alpha
    ) -> Tensor:
        """Compute the loss of (N, C, resolution, resolution) images; see `critic_loss`."""
        return critic_loss(
            partial(self.discriminator, resolution=resolution, alpha=alpha),
            real,
            made,
            shares,
            gradient_weight=self._settings.gradient_weight,
            drift_weight=self._settings.drift_weight,
        )


@dataclass(frozen=True)
class Adversary:
    """The discriminator of one stage and what trains it.

    Attributes:
        discriminator: Discriminator with all its resolutions.
        critic: Module that computes its loss, wrapped for data-parallel training.
        optimiser: Adam over the parameters that the stage uses.
        weight: Weight of the adversarial term in the autoencoder's loss.
    """

    discriminator: Discriminator
    critic: nn.Module
    optimiser: torch.optim.Adam
    weight: float

    def measure(self, made: Tensor, *, resolution: int, alpha: Alpha) -> Tensor:
        """Compute the weighted adversarial term of the autoencoder's loss."""
        judge = partial(self.discriminator.judge_frozen, resolution=resolution, alpha=alpha)
        return self.weight * adversarial_loss(judge, made)


def build_discriminator(settings: TrainSettings, *, image_channels: int) -> Discriminator | None:
    """Make the discriminator with weights drawn by the seed; None without an adversarial term."""
    if not settings.adversarial.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Discriminator(
            final_resolution=settings.growth.final_resolution,
            image_channels=image_channels,
            channels=settings.network.channels,
            form=settings.network.form,
        )
