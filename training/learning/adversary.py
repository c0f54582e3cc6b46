"""The adversary of a training with an adversarial term: a discriminator, and how it learns.

As in the public code of Shvetsova et al. 2021: before each step of the autoencoder the
discriminator makes a few of its own, with Adam of the same settings, begun anew in every stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from training.learning.optimiser import make_optimiser
from training.learning.speed import Alpha
from training.networks.discriminator import Discriminator
from training.networks.growth import GrowthState
from training.networks.losses import adversarial_loss, critic_loss
from training.settings import AdversarialSettings, TrainSettings


class Critic(nn.Module):
    """The discriminator's loss as one call, so that a team's wrapper meets one for each step.

    Args:
        discriminator: Whose loss it is.
        settings: Weights of its terms.
    """

    def __init__(self, discriminator: Discriminator, settings: AdversarialSettings) -> None:
        super().__init__()
        self.discriminator = discriminator
        self._settings = settings

    def forward(
        self, real: Tensor, made: Tensor, shares: Tensor, *, resolution: int, alpha: Alpha
    ) -> Tensor:
        """The loss of (N, C, resolution, resolution) images; see `losses.critic_loss`."""
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
    """What plays against the autoencoder in one stage.

    Attributes:
        discriminator: All resolutions of it.
        critic: Its loss, wrapped for the team.
        optimiser: Adam over the stage's parameters.
        weight: Of the adversarial term.
    """

    discriminator: Discriminator
    critic: nn.Module
    optimiser: torch.optim.Adam
    weight: float

    def measure(self, made: Tensor, *, resolution: int, alpha: Alpha) -> Tensor:
        """The weighted term by which the autoencoder learns from it."""
        judge = partial(self.discriminator.judge_frozen, resolution=resolution, alpha=alpha)
        return self.weight * adversarial_loss(judge, made)


def build_discriminator(settings: TrainSettings, *, image_channels: int) -> Discriminator | None:
    """Make the discriminator, its weights drawn by the settings' seed; None where it has none."""
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


def make_adversary(
    discriminator: Discriminator,
    growth: GrowthState,
    settings: TrainSettings,
    *,
    wrap: Callable[[nn.Module], nn.Module],
) -> Adversary:
    """Make what plays in a stage.

    Args:
        discriminator: Its weights stay as they are.
        growth: A point of the stage.
        settings: Of the training.
        wrap: Makes a network average its gradients over the team.
    """
    optimiser = make_optimiser(discriminator, growth, settings)
    critic = wrap(Critic(discriminator, settings.adversarial))
    return Adversary(discriminator, critic, optimiser, settings.adversarial.weight)
