"""Where a training stands: networks, optimiser and the number of steps made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.learning.adversary import Adversary, build_discriminator, make_adversary
from training.learning.optimiser import make_optimiser
from training.learning.speed import (
    Alpha,
    Features,
    Losses,
    Objective,
    choose_memory_format,
    compile_objective,
    lay_out,
    settle_freed_memory,
)
from training.networks.autoencoder import Autoencoder
from training.networks.discriminator import Discriminator
from training.networks.growth import GrowthState, Stage, state_at, total_iterations
from training.networks.losses import PerceptualLoss, pixel_loss
from training.networks.precision import ReducedFeatures, set_tf32
from training.networks.vgg import VggFeatures
from training.settings import TrainSettings

Array: TypeAlias = NDArray[Any]
RECONSTRUCTION: Final = "train_loss"
PIXELS: Final = "pixel_loss"
ADVERSARIAL: Final = "adversarial_loss"


def _stay(network: nn.Module) -> nn.Module:
    return network


def _gather_one(array: Array) -> list[Array]:
    return [array]


@dataclass(frozen=True)
class Team:
    """The workers that train together; by default one alone.

    Attributes:
        rank: This worker's number, from 0.
        size: How many there are.
        wrap: Makes a network average its gradients over the team (DDP).
        gather: Every worker's array, in the order of ranks.
    """

    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = _stay
    gather: Callable[[Array], list[Array]] = _gather_one


@dataclass(frozen=True)
class Recipe:
    """All that stays the same throughout a training.

    Attributes:
        settings: Of the training.
        features: The eyes of the loss, on the device.
        image_channels: 1 for grey, 3 for colour.
        device: Where the networks are.
        team: The workers.
    """

    settings: TrainSettings
    features: VggFeatures | ReducedFeatures
    image_channels: int
    device: torch.device
    team: Team = field(default_factory=Team)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        return self.settings.growth.plan()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return total_iterations(self.stages)

    @property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory."""
        return choose_memory_format(self.settings.acceleration)

    @cached_property
    def loss(self) -> PerceptualLoss:
        """The reconstruction loss, which is also the anomaly score."""
        loss = self.settings.loss
        return PerceptualLoss(
            self.features,
            loss.weights_by_resolution(),
            norm=loss.norm,
            is_relative=loss.is_relative,
            is_blended=loss.blends_in_fade,
        )

    def make_objective(
        self, network: nn.Module, resolution: int, adversary: Adversary | None = None
    ) -> Objective:
        """What a step at a resolution makes smaller: target -> terms, through the network."""
        l1_weight = self.settings.l1_weight

        def objective(target: Tensor, alpha: Alpha, target_features: Features | None) -> Losses:
            with self.mixed_precision():
                made = network(target, resolution=resolution, alpha=alpha)
            compared = self.loss(
                target, made, resolution=resolution, alpha=alpha, target_features=target_features
            )
            made, terms = made.to(target.dtype), {RECONSTRUCTION: compared}
            if l1_weight:
                terms[PIXELS] = l1_weight * pixel_loss(target, made)
            if adversary is not None:
                terms[ADVERSARIAL] = adversary.measure(made, resolution=resolution, alpha=alpha)
            return terms

        if self.settings.acceleration.compiles_steps:
            return compile_objective(objective, self.device)
        return objective

    def mixed_precision(self) -> torch.autocast:
        """The context that the autoencoder runs in."""
        is_on = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_on)


def make_recipe(
    settings: TrainSettings,
    features: VggFeatures,
    *,
    image_channels: int,
    device: torch.device,
    team: Team | None = None,
) -> Recipe:
    """A recipe with its features on the device, laid out for speed."""
    set_tf32(is_allowed=settings.acceleration.allows_tf32)
    settle_freed_memory(settings.acceleration, device)
    eyes = lay_out(features.to(device), settings.acceleration)
    reduced = eyes if settings.precision == "fp32" else ReducedFeatures(eyes)
    return Recipe(settings, reduced, image_channels, device, team or Team())


@dataclass
class TrainingState:
    """What a step changes.

    Attributes:
        autoencoder: All resolutions of it.
        network: The same, wrapped for the team; a stage's parameters are the trainable ones.
        objective: The stage's loss as a function of the images.
        optimiser: Adam over the stage's parameters.
        adversary: The stage's, where the loss has an adversarial term.
        stage_index: The stage that these were made for.
        step: Steps made.
        sample: Samples drawn by all workers together.
        checkpoint: Where the state was saved last, if ever.
    """

    autoencoder: Autoencoder
    network: nn.Module
    objective: Objective
    optimiser: torch.optim.Adam
    adversary: Adversary | None
    stage_index: int
    step: int = 0
    sample: int = 0
    checkpoint: str | None = None

    @property
    def discriminator(self) -> Discriminator | None:
        """The adversary's, if there is one."""
        return None if self.adversary is None else self.adversary.discriminator


def build_autoencoder(settings: TrainSettings, *, image_channels: int) -> Autoencoder:
    """Make the networks, their weights drawn by the settings' seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Autoencoder(
            final_resolution=settings.growth.final_resolution,
            image_channels=image_channels,
            **settings.network.model_dump(),
        )


def begin_training(recipe: Recipe) -> TrainingState:
    """The state before the first step."""
    settings, image_channels = recipe.settings, recipe.image_channels
    autoencoder = build_autoencoder(settings, image_channels=image_channels).to(recipe.device)
    lay_out(autoencoder, settings.acceleration)
    discriminator = build_discriminator(settings, image_channels=image_channels)
    if discriminator is not None:
        lay_out(discriminator.to(recipe.device), settings.acceleration)
    return _at_stage(recipe, autoencoder, discriminator, step=0, sample=0)


def continue_training(
    recipe: Recipe,
    weights: dict[str, Tensor],
    discriminator_weights: dict[str, Tensor],
    *,
    step: int,
    sample: int,
) -> TrainingState:
    """The state after some steps, its optimisers still fresh."""
    state = begin_training(recipe)
    state.autoencoder.load_state_dict(weights)
    discriminator = state.discriminator
    if discriminator is not None:
        discriminator.load_state_dict(discriminator_weights)
    return _at_stage(recipe, state.autoencoder, discriminator, step=step, sample=sample)


def enter_stage(recipe: Recipe, state: TrainingState) -> None:
    """Make all but the weights anew for the stage that the step lies in."""
    fresh = _at_stage(
        recipe, state.autoencoder, state.discriminator, step=state.step, sample=state.sample
    )
    state.network, state.objective = fresh.network, fresh.objective
    state.optimiser, state.adversary = fresh.optimiser, fresh.adversary
    state.stage_index = fresh.stage_index


def growth_at(recipe: Recipe, step: int) -> GrowthState:
    """What a step trains; beyond the last one, what the last one trained."""
    return state_at(min(step, recipe.total_steps - 1), recipe.stages)


def _at_stage(
    recipe: Recipe,
    autoencoder: Autoencoder,
    discriminator: Discriminator | None,
    *,
    step: int,
    sample: int,
) -> TrainingState:
    growth = growth_at(recipe, step)
    optimiser = make_optimiser(autoencoder, growth, recipe.settings)
    adversary = None
    if discriminator is not None:
        adversary = make_adversary(discriminator, growth, recipe.settings, wrap=recipe.team.wrap)
    network = recipe.team.wrap(autoencoder)
    objective = recipe.make_objective(network, growth.resolution, adversary)
    return TrainingState(
        autoencoder, network, objective, optimiser, adversary, growth.stage_index, step, sample
    )
