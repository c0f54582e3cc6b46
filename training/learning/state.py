"""The state of a training: networks, optimisers and the number of steps made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.learning.adversary import Adversary, Critic, build_discriminator
from training.learning.speed import (
    Alpha,
    Features,
    Losses,
    Objective,
    choose_memory_format,
    compile_objective,
    keep_freed_memory,
    use_channels_last,
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
class Workers:
    """The workers that train together; one alone by default.

    Attributes:
        rank: Number of this worker, from 0.
        size: Number of workers.
        wrap: Makes a network average its gradients over the workers (DDP).
        gather: Collects every worker's array, in the order of ranks.
    """

    rank: int = 0
    size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = _stay
    gather: Callable[[Array], list[Array]] = _gather_one


@dataclass(frozen=True)
class Recipe:
    """Everything that stays the same throughout a training.

    Attributes:
        settings: Settings of the training.
        features: Feature extractor of the loss, on the device.
        image_channels: 1 for grey, 3 for colour.
        device: Device that trains.
        workers: Workers that train together.
    """

    settings: TrainSettings
    features: VggFeatures | ReducedFeatures
    image_channels: int
    device: torch.device
    workers: Workers = field(default_factory=Workers)

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
        """Memory format of the images."""
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
        """Make the function that a step minimises: target -> terms of the loss."""
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
        """Make the context that the autoencoder runs in."""
        is_on = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_on)


def make_recipe(
    settings: TrainSettings,
    features: VggFeatures,
    *,
    image_channels: int,
    device: torch.device,
    workers: Workers | None = None,
) -> Recipe:
    """Make a recipe, with the feature extractor on the device in its fastest format."""
    set_tf32(is_allowed=settings.acceleration.allows_tf32)
    keep_freed_memory(settings.acceleration, device)
    whole = use_channels_last(features.to(device), settings.acceleration)
    extractor = whole if settings.precision == "fp32" else ReducedFeatures(whole)
    return Recipe(settings, extractor, image_channels, device, workers or Workers())


@dataclass
class TrainingState:
    """Everything that a step changes.

    Attributes:
        autoencoder: Autoencoder with all its resolutions.
        network: Autoencoder wrapped for data-parallel training; only the parameters that the stage
            uses are trainable.
        objective: Loss of the stage as a function of the images.
        optimiser: Adam over the parameters that the stage uses.
        adversary: Discriminator of the stage, if the loss has an adversarial term.
        stage_index: Index of the stage that network, objective and optimiser were made for.
        step: Number of steps made.
        sample: Number of samples drawn by all workers together.
        checkpoint: URL of the last saved checkpoint, if any.
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
        """The discriminator, if there is one."""
        return None if self.adversary is None else self.adversary.discriminator


def build_autoencoder(settings: TrainSettings, *, image_channels: int) -> Autoencoder:
    """Make the autoencoder with weights drawn by the settings' seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Autoencoder(
            final_resolution=settings.growth.final_resolution,
            image_channels=image_channels,
            **settings.network.model_dump(),
        )


def begin_training(recipe: Recipe) -> TrainingState:
    """Make the state before the first step."""
    settings, image_channels = recipe.settings, recipe.image_channels
    autoencoder = build_autoencoder(settings, image_channels=image_channels).to(recipe.device)
    use_channels_last(autoencoder, settings.acceleration)
    discriminator = build_discriminator(settings, image_channels=image_channels)
    if discriminator is not None:
        use_channels_last(discriminator.to(recipe.device), settings.acceleration)
    return _at_stage(recipe, autoencoder, discriminator, step=0, sample=0)


def continue_training(
    recipe: Recipe,
    weights: dict[str, Tensor],
    discriminator_weights: dict[str, Tensor],
    *,
    step: int,
    sample: int,
) -> TrainingState:
    """Make the state after some steps, with fresh optimisers."""
    state = begin_training(recipe)
    state.autoencoder.load_state_dict(weights)
    discriminator = state.discriminator
    if discriminator is not None:
        discriminator.load_state_dict(discriminator_weights)
    return _at_stage(recipe, state.autoencoder, discriminator, step=step, sample=sample)


def enter_stage(recipe: Recipe, state: TrainingState) -> None:
    """Make wrapper, objective and optimisers afresh for the stage of the step."""
    fresh = _at_stage(
        recipe, state.autoencoder, state.discriminator, step=state.step, sample=state.sample
    )
    state.network, state.objective = fresh.network, fresh.objective
    state.optimiser, state.adversary = fresh.optimiser, fresh.adversary
    state.stage_index = fresh.stage_index


def growth_at(recipe: Recipe, step: int) -> GrowthState:
    """Find what a step trains; beyond the last step, what the last one trained."""
    return state_at(min(step, recipe.total_steps - 1), recipe.stages)


def make_optimiser(
    network: Autoencoder | Discriminator, growth: GrowthState, settings: TrainSettings
) -> torch.optim.Adam:
    """Make Adam over the parameters that a stage uses of a network, and freeze all others.

    DDP averages the gradients of what is trainable when it wraps a network. Parameters that a stage
    does not use are frozen, so that it need not search for them in every step.
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
        # Before the wrapper, as it freezes parameters.
        of_critic = make_optimiser(discriminator, growth, recipe.settings)
        settings = recipe.settings.adversarial
        critic = recipe.workers.wrap(Critic(discriminator, settings))
        adversary = Adversary(discriminator, critic, of_critic, settings.weight)
    network = recipe.workers.wrap(autoencoder)
    objective = recipe.make_objective(network, growth.resolution, adversary)
    return TrainingState(
        autoencoder, network, objective, optimiser, adversary, growth.stage_index, step, sample
    )
