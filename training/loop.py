"""The training itself: one step, and the round of steps, validations and checkpoints.

Knows nothing of how workers are started nor of where figures are shown: a team, a place to save
to and one to publish to are passed in. No step waits for the device; the loss is read every
`log_every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NormscopeError
from training.acceleration import TargetCache
from training.data import Rows, TrainingImages, to_tensor
from training.memory import suggesting_batch
from training.models.autoencoder import mix_input
from training.models.growth import GrowthState
from training.state import Recipe, TrainingState, enter_stage, growth_at
from training.validation import (
    Gallery,
    ValidationImages,
    ValidationScores,
    make_gallery,
    reconstruct,
    score_validation_images,
    summarise,
)

# The public code's own limit, beyond which it calls a loss diverged.
LARGEST_LOSS: Final = 1e6


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


def train_step(
    recipe: Recipe,
    state: TrainingState,
    images: Tensor,
    *,
    places: Rows | None = None,
    targets: TargetCache | None = None,
) -> Tensor:
    """Make one step on one worker's share of a batch.

    Args:
        recipe: What stays the same.
        state: Changed in place.
        images: (n, C, final resolution, final resolution) float in [-1, 1].
        places: (n,) which of the training images they are.
        targets: Knows their features, if they were computed before.

    Returns:
        The loss, a scalar on the device. Its mean over the team is the mean over the batch,
        however unequal the shares.
    """
    growth = growth_at(recipe, state.step)
    if growth.stage_index != state.stage_index:
        enter_stage(recipe, state)
    target = mix_input(images, resolution=growth.resolution, alpha=growth.alpha)
    target = target.contiguous(memory_format=recipe.memory_format)
    known = None
    if targets is not None and places is not None:
        known = targets.look_up(places, growth, lambda: recipe.see(target, growth))
    loss = state.objective(target, growth.alpha, known)
    loss = loss * (len(images) * recipe.team.size / growth.batch_size)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    state.optimiser.step()
    state.step += 1
    state.sample += growth.batch_size
    return loss.detach()


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
        publish: Shows a report; the first worker alone calls it.

    Raises:
        DivergenceError: The loss is not finite or beyond `LARGEST_LOSS`.
        SettingsError: A batch does not fit into memory.
    """
    meter = _Meter(recipe)
    targets = TargetCache(recipe.settings, images.image_count)
    while state.step < recipe.total_steps:
        growth = growth_at(recipe, state.step)
        share = {"rank": recipe.team.rank, "world": recipe.team.size}
        batch = images.read_batch(state.sample, growth.batch_size, **share)
        places = images.places_at(state.sample, growth.batch_size, **share)
        final = recipe.settings.growth.final_resolution
        tensor = to_tensor(batch, resolution=final, device=recipe.device)
        with suggesting_batch(recipe, state, tensor):
            loss = train_step(recipe, state, tensor, places=places, targets=targets)
        meter.add(loss, growth.batch_size)
        due = _Due.after(recipe, state.step, growth)
        if not due.reading:
            continue
        metrics = meter.read(state, growth)
        if due.validation or due.checkpoint:
            # The loss that was read is that of the weights before: these must be good as well.
            _judge(recipe, state, growth, _measure(recipe, state, tensor, growth))
        gallery, scores = None, None
        if due.validation:
            scores = score_validation_images(recipe, state.autoencoder, validation, growth=growth)
            metrics |= summarise(scores.scores, scores.labels)
            gallery = make_gallery(recipe, state.autoencoder, validation, growth=growth)
        if recipe.team.rank == 0:
            publish(Report(state.step, recipe.total_steps, metrics, gallery, scores))
        if due.checkpoint:
            state.checkpoint = save(state, metrics)
        meter.begin()


def _measure(recipe: Recipe, state: TrainingState, images: Tensor, growth: GrowthState) -> float:
    """The loss of the present weights on a worker's share of a batch."""
    with torch.inference_mode():
        target, made = reconstruct(recipe, state.autoencoder, images, growth)
        return recipe.measure_loss(target, made, growth=growth).item()


def _judge(recipe: Recipe, state: TrainingState, growth: GrowthState, loss: float) -> float:
    """The team's mean of a loss.

    Raises:
        DivergenceError: On every worker at once, as all see the same mean.
    """
    mean = float(np.mean(recipe.team.gather(np.array([loss]))))
    if not math.isfinite(mean) or mean > LARGEST_LOSS:
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


class _Meter:
    """Sums the loss on the device, and reads it now and then."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.begin()

    def begin(self) -> None:
        """Start a stretch of steps."""
        self._sum = torch.zeros((), device=self._recipe.device)
        self._steps, self._images, self._began = 0, 0, time.perf_counter()

    def add(self, loss: Tensor, images: int) -> None:
        """Count one step."""
        self._sum += loss
        self._steps += 1
        self._images += images

    def read(self, state: TrainingState, growth: GrowthState) -> dict[str, float]:
        """Wait for the device, and judge the stretch."""
        mean = self._sum.item() / self._steps
        seconds = time.perf_counter() - self._began
        loss = _judge(self._recipe, state, growth, mean)
        return {
            "train_loss": loss,
            "resolution": float(growth.resolution),
            "alpha": 1.0 if growth.alpha is None else growth.alpha,
            "images_per_s": self._images / seconds,
        }
