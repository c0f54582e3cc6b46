"""The training itself: one step, and the round of steps, validations and checkpoints.

Knows nothing of how workers are started nor of where figures are shown: a team, a place to save
to and one to publish to are passed in. No step waits for the device; the loss is read every
`log_every` steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NormscopeError
from training.data.augmentation import draw_shares
from training.data.batches import Rows, Samples, TrainingImages
from training.learning.meter import Meter
from training.learning.out_of_memory import suggesting_batch
from training.learning.speed import Losses, TargetCache
from training.learning.state import Recipe, TrainingState, enter_stage, growth_at
from training.learning.validation import (
    Gallery,
    ValidationImages,
    ValidationScores,
    make_gallery,
    score_validation_images,
    summarise,
)
from training.networks.autoencoder import mix_input
from training.networks.growth import GrowthState
from training.networks.inputs import to_tensor
from training.networks.losses import add_up
from training.networks.reconstruction import reconstruct

# The public code's own limit, beyond which it calls a loss diverged.
LARGEST_LOSS: Final = 1e6
CRITIC: Final = "discriminator_loss"


class DivergenceError(NormscopeError):
    """A loss that is no number any more, or beyond all bounds."""


@dataclass(frozen=True)
class Report:
    """What a training says of itself on the way.

    Attributes:
        step: Steps made.
        total_steps: Of the whole run.
        metrics: Figures by name.
        gallery: Reconstructions, with each validation.
        scores: Of all validation images, with each validation.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    gallery: Gallery | None = None
    scores: ValidationScores | None = None


Publish: TypeAlias = Callable[[Report], None]
Save: TypeAlias = Callable[[TrainingState, Mapping[str, float]], str]


def critic_step(
    recipe: Recipe, state: TrainingState, images: Tensor, *, samples: Samples
) -> Tensor:
    """Make one step of the discriminator on one worker's share of a batch.

    Args:
        recipe: What stays the same.
        state: Changed in place, but for the autoencoder; it has an adversary.
        images: As for `train_step`.
        samples: (n,) their numbers, counted over the whole training.

    Returns:
        The discriminator's loss, as `train_step` gives those of the autoencoder.
    """
    growth, target = _look(recipe, state, images)
    if state.adversary is None:
        raise RuntimeError("the settings ask for no discriminator")
    path = {"resolution": growth.resolution, "alpha": growth.alpha}
    with torch.no_grad(), recipe.mixed_precision():
        made = state.autoencoder(target, **path).to(target.dtype)
    shares = torch.from_numpy(draw_shares(samples, seed=recipe.settings.seed))
    loss: Tensor = state.adversary.critic(
        target, made, shares.to(target, non_blocking=True), **path
    )
    loss = loss * _weigh(recipe, growth, len(target))
    _learn(state.adversary.optimiser, loss)
    state.sample += growth.batch_size
    return loss.detach()


def train_step(
    recipe: Recipe,
    state: TrainingState,
    images: Tensor,
    *,
    places: Rows | None = None,
    targets: TargetCache | None = None,
) -> Losses:
    """Make one step of the autoencoder on one worker's share of a batch.

    Args:
        recipe: What stays the same.
        state: Changed in place.
        images: (n, C, final resolution, final resolution) float in [-1, 1].
        places: (n,) which of the training images they are.
        targets: Knows their features, if they were computed before.

    Returns:
        The terms of the loss, scalars on the device. Their means over the team are the means over
        the batch, however unequal the shares.
    """
    growth, target = _look(recipe, state, images)
    known = None
    if targets is not None and places is not None:
        extract = partial(recipe.loss.extract_target, target, growth.resolution)
        known = targets.look_up(places, growth, extract)
    weight = _weigh(recipe, growth, len(images))
    losses = {
        name: loss * weight for name, loss in state.objective(target, growth.alpha, known).items()
    }
    _learn(state.optimiser, add_up(losses))
    state.step += 1
    state.sample += growth.batch_size
    return {name: loss.detach() for name, loss in losses.items()}


def _look(recipe: Recipe, state: TrainingState, images: Tensor) -> tuple[GrowthState, Tensor]:
    """What the networks see at this step, of the stage that begins with it or goes on."""
    growth = growth_at(recipe, state.step)
    if growth.stage_index != state.stage_index:
        enter_stage(recipe, state)
    target = mix_input(images, resolution=growth.resolution, alpha=growth.alpha)
    return growth, target.contiguous(memory_format=recipe.memory_format)


def _weigh(recipe: Recipe, growth: GrowthState, images: int) -> float:
    """How much a worker's share counts in the team's mean."""
    return images * recipe.team.size / growth.batch_size


def _learn(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    optimiser.step()


def train(
    recipe: Recipe,
    state: TrainingState,
    images: TrainingImages,
    validation: ValidationImages,
    *,
    save: Save,
    publish: Publish,
) -> None:
    """Make all steps that are left.

    Args:
        recipe: What stays the same.
        state: Changed in place.
        images: What batches are drawn from.
        validation: What is scored on the way.
        save: Keeps the state and says where; every worker calls it at the same steps.
        publish: Shows a report; every worker calls it at the same steps, rank 0 with a gallery.

    Raises:
        DivergenceError: The loss is not finite or beyond `LARGEST_LOSS`.
        SettingsError: A batch does not fit into memory.
    """
    meter = Meter()
    targets = TargetCache(recipe.settings, images.image_count)
    while state.step < recipe.total_steps:
        growth = growth_at(recipe, state.step)
        losses: dict[str, Tensor] = {}
        for _ in range(recipe.settings.adversarial.steps_before_each):
            batch = _draw(recipe, state, images)
            with suggesting_batch(recipe, state, batch.images):
                losses[CRITIC] = critic_step(recipe, state, batch.images, samples=batch.samples)
        batch = _draw(recipe, state, images)
        with suggesting_batch(recipe, state, batch.images):
            losses |= train_step(recipe, state, batch.images, places=batch.places, targets=targets)
        meter.add(losses, growth.batch_size)
        due = _Due.after(recipe, state.step, growth)
        if not due.reading:
            continue
        metrics = _read(recipe, state, growth, meter)
        if due.validation or due.checkpoint:
            # The loss that was read is that of the weights before: these must be good as well.
            _judge(recipe, state, growth, _measure(recipe, state, batch.images, growth))
        gallery, scores = None, None
        if due.validation:
            scores = score_validation_images(recipe, state.autoencoder, validation, growth=growth)
            metrics |= summarise(scores.scores, scores.labels)
            if recipe.team.rank == 0:
                gallery = make_gallery(recipe, state.autoencoder, validation, growth=growth)
        publish(Report(state.step, recipe.total_steps, metrics, gallery, scores))
        if due.checkpoint:
            state.checkpoint = save(state, metrics)
        meter.begin()


@dataclass(frozen=True)
class _Batch:
    """One worker's share of a batch: the images on the device, and which they are."""

    images: Tensor
    places: Rows
    samples: Samples


def _draw(recipe: Recipe, state: TrainingState, images: TrainingImages) -> _Batch:
    """This worker's share of the next batch."""
    at = (state.sample, growth_at(recipe, state.step).batch_size)
    share = {"rank": recipe.team.rank, "world": recipe.team.size}
    read = images.read_batch(*at, **share)
    final = recipe.settings.growth.final_resolution
    tensor = to_tensor(read, resolution=final, device=recipe.device)
    return _Batch(tensor, *images.members_at(*at, **share))


def _read(
    recipe: Recipe, state: TrainingState, growth: GrowthState, meter: Meter
) -> dict[str, float]:
    """Wait for the device, and judge the stretch."""
    means, images_per_s = meter.read()
    return {
        **{name: _judge(recipe, state, growth, mean) for name, mean in means.items()},
        "resolution": float(growth.resolution),
        "alpha": 1.0 if growth.alpha is None else growth.alpha,
        "images_per_s": images_per_s,
    }


def _measure(recipe: Recipe, state: TrainingState, images: Tensor, growth: GrowthState) -> float:
    """The loss of the present weights on a worker's share of a batch."""
    with torch.inference_mode():
        made = reconstruct(state.autoencoder, images, growth, precision=recipe.mixed_precision())
        loss = made.compare(recipe.loss).reduce("mean")
        if state.adversary is not None:
            loss = loss + state.adversary.measure(
                made.images.to(made.target.dtype), resolution=growth.resolution, alpha=growth.alpha
            )
        return loss.item()


def _judge(recipe: Recipe, state: TrainingState, growth: GrowthState, loss: float) -> float:
    """The team's mean of a loss.

    Raises:
        DivergenceError: On every worker at once, as all see the same mean.
    """
    mean = float(np.mean(recipe.team.gather(np.array([loss]))))
    if not math.isfinite(mean) or abs(mean) > LARGEST_LOSS:
        last = state.checkpoint
        where = f"The last good checkpoint is {last}" if last else "No checkpoint was made"
        raise DivergenceError(
            f"step {state.step}",
            f"the loss has become {mean:g} at {growth.resolution} px",
            f"{where}; train with a lower optimiser.learning_rate under another run name",
        )
    return mean


@dataclass(frozen=True)
class _Due:
    """What has to be done after a step."""

    reading: bool
    validation: bool
    checkpoint: bool

    @classmethod
    def after(cls, recipe: Recipe, step: int, growth: GrowthState) -> _Due:
        settings = recipe.settings
        ends_stage = growth.stage_iteration + 1 == recipe.stages[growth.stage_index].iterations
        validation = ends_stage or step % settings.validate_every == 0
        checkpoint = ends_stage or step % settings.checkpoint_every == 0
        reading = validation or checkpoint or step % settings.log_every == 0
        return cls(reading, validation, checkpoint)
